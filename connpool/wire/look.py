"""Looking at, breaking off, closing and describing an open transport: what never blocks."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import sys
from typing import Any, Final

__all__ = ["abandon", "address_text", "close", "describe", "descriptor_of_tls", "interrupt", "is_usable"]

_SOMETHING_TO_READ: Final = select.POLLIN | select.POLLPRI
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
# The first byte that Linux answers is the state. After the peer's end, or a reset, it is TIME_WAIT, CLOSE,
# CLOSE_WAIT, LAST_ACK or CLOSING; what only we have ended, or is still being connected, is in another.
_ENDED: Final = frozenset((b"\x06", b"\x07", b"\x08", b"\x09", b"\x0b"))

_abandoned: Final[list[object]] = []  # see abandon()


def is_usable(raw: Any) -> bool:
    """Whether an idle transport can still be lent. Never blocks.

    An idle connection has nothing to say: end of stream, a reset, a byte that
    nobody asked for and TLS's close_notify all make it unusable. The session
    tickets of TLS 1.3 do not: a read that yields no data consumes them.

    Args:
        raw: A socket, TLS or not, that nobody else uses. Anything else is
            taken to be usable: this module cannot tell.
    """
    if not isinstance(raw, socket.socket):
        return True
    poll = select.poll()
    try:
        poll.register(raw, _SOMETHING_TO_READ)
    except ValueError:
        return False  # closed already
    readable = poll.poll(0)
    if not isinstance(raw, ssl.SSLSocket):
        return not readable and not _has_just_ended(raw)
    try:
        if descriptor_of_tls(raw) < 0:
            return False
        return (not readable or _has_only_tickets(raw)) and not _has_just_ended(raw)
    except OSError:
        return False


def descriptor_of_tls(raw: ssl.SSLSocket) -> int:
    """Give the descriptor of *raw*; -1: it is closed, has unread bytes, or no TLS: it would send in clear."""
    return -1 if raw.pending() or _tls_version(raw) is None else raw.fileno()


def _has_just_ended(raw: socket.socket) -> bool:
    """Whether the peer hung up while we waited for the interpreter, which ``poll`` gives to others.

    That may be milliseconds where many threads compute. This question keeps it.
    """
    if _TCP_INFO is None:
        return False
    try:
        return raw.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1) in _ENDED
    except OSError:  # no TCP
        return False


def _has_only_tickets(raw: ssl.SSLSocket) -> bool:
    """Read what TLS itself has to say. True: there was no data, no end and no error."""
    timeout = raw.gettimeout()
    system_waits = os.get_blocking(raw.fileno())  # perhaps where Python does not: see ``limit_waits``
    try:
        raw.settimeout(0.0)
        raw.recv(1)
    except ssl.SSLWantReadError:
        return True
    finally:
        raw.settimeout(timeout)
        os.set_blocking(raw.fileno(), system_waits)
    return False


def interrupt(raw: Any, how: int = socket.SHUT_RDWR) -> None:
    """End the input and output that other threads are blocked in. Never blocks, never raises.

    The descriptor stays open: only its owner may close it, since a closed
    number can be another connection a moment later.

    Args:
        raw: A socket; anything else is left alone.
        how: ``SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR``.
    """
    if isinstance(raw, socket.socket):
        with contextlib.suppress(OSError):  # not connected, or closed: nobody is blocked in it
            # SSLSocket.shutdown would also take the TLS layer off, and the
            # interrupted thread would go on in plain text.
            socket.socket.shutdown(raw, how)


def close(raw: Any) -> None:
    """Close *raw*. For sockets: never blocks, never raises, and may be repeated.

    On TLS a goodbye (close_notify) is sent if the system takes it at once; the
    peer's is not waited for.

    Args:
        raw: A socket, or an object whose ``close()`` is called if it has one
            (that may block or raise as it likes).
    """
    if not isinstance(raw, socket.socket):
        closer = getattr(raw, "close", None)
        if closer is not None:
            closer()
        return
    if isinstance(raw, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            raw.settimeout(0.0)
            raw.unwrap()
    # close(2) frees the descriptor even where it reports a reset.
    with contextlib.suppress(OSError):
        raw.close()


def abandon(raw: Any) -> None:
    """In a forked child: let go of the parent's connection without a word to its peer.

    A socket's descriptor is closed; the parent's stays open, so nothing goes
    over the wire. Of any other object with a ``fileno()`` the descriptor is
    pointed at the null device, so that a goodbye said by the object's own
    finaliser reaches nobody.
    """
    if isinstance(raw, socket.socket):
        with contextlib.suppress(OSError):
            raw.close()  # neither socket nor SSLSocket says goodbye here
        return
    _abandoned.append(raw)  # most finalisers never run at all then
    try:
        fd = raw.fileno()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except Exception:  # noqa: BLE001 - a foreign object that has no descriptor, or no longer
        return
    try:
        os.dup2(null, fd, inheritable=False)
    except (OSError, TypeError):
        pass  # not a descriptor after all
    finally:
        os.close(null)


def describe(raw: Any) -> tuple[str | None, str | None, str | None]:
    """Give the own address, the peer's address and the TLS version of *raw*, as texts.

    None stands for what there is not, or no longer.
    """
    if not isinstance(raw, socket.socket):
        return None, None, None
    local = peer = None
    with contextlib.suppress(OSError):
        local = address_text(raw.getsockname())
        peer = address_text(raw.getpeername())
    return local, peer, _tls_version(raw) if isinstance(raw, ssl.SSLSocket) else None


def _tls_version(raw: ssl.SSLSocket) -> str | None:
    try:
        return raw.version()
    except AttributeError:  # it looks twice whether it is closed; another thread has closed it in between
        return None


def address_text(address: Any) -> str | None:
    """Write a socket's address as ``host:port``, ``[v6]:port`` or a path; None: it has no name."""
    if isinstance(address, tuple):
        host, *port = map(str, address[:2])  # of a virtual machine both are numbers
        return ":".join((f"[{host}]" if ":" in host else host, *port))
    if isinstance(address, bytes):
        address = os.fsdecode(address)  # Linux's abstract namespace
    return address or None
