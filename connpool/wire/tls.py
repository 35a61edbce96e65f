"""Putting TLS on a socket that stands, within what is left of a dial."""

from __future__ import annotations

import select
import socket
import ssl
import traceback
from functools import partial
from typing import Any, Final

from connpool.errors import ConfigError, HandshakeError
from connpool.model.endpoint import Endpoint
from connpool.wire.resolve import is_address
from connpool.wire.waiting import LOCAL_ERRORS, Budget, wait_until_ready

__all__ = [
    "arose_here",
    "assurance",
    "begin_tls",
    "close_half_wrapped",
    "handshake_error",
    "name_in_certificate",
    "require_context",
    "require_server_hostname",
    "wrap_tls",
]

# What OpenSSL says of settings that no server can meet, before it has sent a byte.
_CONTRADICTIONS: Final = frozenset({"NO_PROTOCOLS_AVAILABLE", "NO_CIPHERS_AVAILABLE"})


def require_context(name: str, value: Any) -> None:
    """Accept, as the argument *name*, what can speak TLS with servers."""
    if not isinstance(value, ssl.SSLContext) or value.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ConfigError(f"{name} must be an ssl.SSLContext for clients, got {value!r}")


def require_server_hostname(value: Any) -> None:
    """Accept what can be looked for in a certificate, and None."""
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"server_hostname must be a text or None, got {value!r}")
    if value is not None and "\0" in value:
        raise ConfigError(f"server_hostname {value!r} contains a NUL character")


def begin_tls(sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None) -> ssl.SSLSocket:
    """Move *sock* into an SSLSocket whose handshake is still to come.

    Whatever happens, *sock* is empty afterwards and no descriptor is lost.

    Raises:
        OSError: The connection is gone.
        ValueError: *context* and *server_hostname* do not fit together.
    """
    try:
        # Settings that do not fit show here; some Pythons lose the descriptor if they show below.
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_hostname)
        # Not the whole handshake in one call: this way the SSLSocket can be
        # published first, so that another thread can break the handshake off.
        return context.wrap_socket(sock, server_hostname=server_hostname, do_handshake_on_connect=False)
    except BaseException as error:
        sock.close()
        close_half_wrapped(error)
        raise


def close_half_wrapped(error: BaseException) -> None:
    """Close what ``wrap_socket`` had moved the descriptor into before it raised *error*.

    If the peer has reset meanwhile, CPython 3.11 does not do it itself.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        half = frame.f_locals.get("self")
        if isinstance(half, ssl.SSLSocket):
            half.close()


def wrap_tls(
    sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None, budget: Budget
) -> ssl.SSLSocket:
    """Shake hands on *sock*, which is closed if that fails.

    Args:
        sock: A connected socket; empty afterwards.
        context: Decides what is verified.
        server_hostname: What the certificate must be made out to, and SNI.
        budget: Of the dial that *sock* comes from: time does not start again.

    Returns:
        The TLS socket, in blocking mode, owned by the caller.

    Raises:
        HandshakeError: The peer or its certificate is refused, or it refused
            ours (``local``).
        ConnectTimeoutError: The time is up.
        CancelledError: The dial was cancelled.
    """
    endpoint = budget.endpoint
    try:
        secure = begin_tls(sock, context, server_hostname)
    except (OSError, ValueError) as exc:
        raise handshake_error(exc, str(endpoint), endpoint) from exc
    try:
        secure.settimeout(0.0)
        while (events := _shake(secure, endpoint)) is not None:
            while not budget.wait(partial(wait_until_ready, secure.fileno(), events), "the TLS handshake"):
                pass
        secure.settimeout(None)
    except BaseException:
        secure.close()
        raise
    return secure


def _shake(secure: ssl.SSLSocket, endpoint: Endpoint) -> int | None:
    """Go on as far as possible. Returns the poll event to wait for, or None when done."""
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        return select.POLLIN
    except ssl.SSLWantWriteError:
        return select.POLLOUT
    except (OSError, ValueError) as exc:
        raise handshake_error(exc, str(endpoint), endpoint) from exc
    return None


def handshake_error(exc: Exception, peer: str, endpoint: Endpoint | None = None) -> HandshakeError:
    """Say in our words why TLS with *peer* failed, and whether the cause lies here."""
    error = HandshakeError(
        f"{peer}: the TLS handshake failed: {exc}", endpoint=endpoint, local=_is_our_own_fault(exc)
    )
    error.errno = exc.errno if isinstance(exc, OSError) else None
    return error


def _is_our_own_fault(exc: Exception) -> bool:
    """Whether the settings do not fit, or else the peer is not to blame."""
    return not isinstance(exc, OSError) or _reason(exc) in _CONTRADICTIONS or arose_here(exc)


def arose_here(error: BaseException) -> bool:
    """Whether *error* says nothing against the peer: this machine lacks something, or *we* were refused.

    With TLS 1.3 a peer that refuses our certificate may say so only at the first read after the handshake.
    """
    reason = _reason(error)
    is_refused = "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason)
    return is_refused or (isinstance(error, OSError) and error.errno in LOCAL_ERRORS)


def _reason(error: BaseException) -> str:
    return (error.reason or "") if isinstance(error, ssl.SSLError) else ""


def assurance(context: ssl.SSLContext | None, name: str | None, host: str) -> int:
    """How far *context*, which has looked for *name*, tells that one speaks to *host*. None: the default one.

    Returns:
        2: it is that host; or, if that is an address, whom the program says to be there. 1: somebody whom
        an authority knows. 0: anybody.
    """
    if context is not None and not context.check_hostname:
        return int(context.verify_mode != ssl.CERT_NONE)
    return 2 if name == host or is_address(host) else 1


def name_in_certificate(host: str) -> str:
    """Strip what is part of an address but of no certificate: an IPv6 zone, the root's dot."""
    return host.partition("%")[0].removesuffix(".")
