"""What opens, looks at, resets and closes the transports of a pool."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from connpool.errors import ConfigError, HandshakeError
from connpool.model.checks import is_whole, require_flag, require_function
from connpool.model.endpoint import Endpoint
from connpool.wire import look
from connpool.wire.dial import DialOptions, open_tcp, open_unix
from connpool.wire.tls import (
    assurance,
    name_in_certificate,
    require_context,
    require_server_hostname,
    wrap_tls,
)
from connpool.wire.waiting import LOCAL_ERRORS, Budget, Cancel

__all__ = ["CallableConnector", "Connector", "SocketConnector"]

logger: Final = logging.getLogger("connpool")

_MOST_KEEPALIVE: Final = (32_767, 32_767, 127)  # what Linux takes: seconds, seconds, a count


@runtime_checkable
class Connector(Protocol):
    """What a pool needs in order to have connections.

    Only ``open`` is required. What else a connector may have:

    - ``close(raw)``: close it; may block. Default: ``raw.close()``, if there is one.
    - ``is_usable(raw)``: whether an idle one can still be lent. Default: sockets are looked at,
      anything else is trusted.
    - ``reset(raw)``: make a returned one as good as new; False or an exception has it closed. Default:
      nothing.
    - ``is_fatal(error)``: whether an exception that left a ``with`` block, or the work of ``run``, is the
      end of the connection. If not, it is released. Default: each is.
    - ``prompt``: True promises that ``is_usable`` and ``close`` never block. Default: False.
    - ``handshake(conn)``, ``permissions(conn)``: see ``SocketConnector``.
    """

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: Cancel | None) -> Any:
        """Open one transport to *endpoint*.

        Args:
            endpoint: Where to.
            timeout: Seconds for everything; None: no limit.
            cancel: Has ``is_set()``; give up soon after it becomes true.
        """


class SocketConnector:
    """Opens TCP, TLS and Unix sockets. What a pool uses by default.

    An endpoint's ``tls`` alone decides whether TLS is spoken.

    Args:
        tls: For endpoints with TLS. None: ``ssl.create_default_context()``, which
            verifies the certificate and its host name.
        server_hostname: What certificates must be made out to, and SNI. None: the endpoint's host.
        nodelay: Send small pieces at once (TCP_NODELAY).
        keepalive: TCP keep-alive. None: off; True: as the system is set; or
            ``(time, interval, probes)``: seconds, seconds, a count.
        source_address: ``(host, port)`` to connect from, the host in digits; port 0: any.
        handshake: ``handshake(conn)`` runs once on each new connection: login, banner.
        permissions: ``permissions(conn)`` gives the set of what a new connection is allowed to do.
            A subclass may have methods of these names instead.

    Raises:
        ConfigError: A value is out of range; the sentence names it.
    """

    prompt: bool = True  # look.is_usable and look.close never block
    if TYPE_CHECKING:  # what a subclass may have; here there is none, which a pool need not call

        def handshake(self, conn: Any, /) -> object: ...

        def permissions(self, conn: Any, /) -> Set[str]: ...
    else:
        handshake = None
        permissions = None

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        nodelay: bool = True,
        keepalive: bool | tuple[int, int, int] | None = None,
        source_address: tuple[str, int] | None = None,
        handshake: Callable[[Any], object] | None = None,
        permissions: Callable[[Any], Set[str]] | None = None,
    ) -> None:
        if tls is not None:
            require_context("tls", tls)
        require_server_hostname(server_hostname)
        require_flag("nodelay", nodelay)
        require_function("handshake", handshake, or_none=True)
        require_function("permissions", permissions, or_none=True)
        _check_keepalive(keepalive)
        _check_source_address(source_address)
        if tls is not None and tls.verify_mode == ssl.CERT_NONE:
            logger.warning("SocketConnector: the TLS context verifies nobody; anyone can pose as the server")
        if handshake is not None:
            self.handshake = handshake  # type: ignore[method-assign]
        if permissions is not None:
            self.permissions = permissions  # type: ignore[method-assign]
        self._tls = tls
        self._verifies = tls is None or tls.verify_mode != ssl.CERT_NONE
        self._server_hostname = server_hostname
        self._options = DialOptions(nodelay, keepalive, source_address)

    def open(
        self, endpoint: Endpoint, timeout: float | None = None, cancel: Cancel | None = None
    ) -> socket.socket:
        """Connect to *endpoint*, TLS included.

        Args:
            endpoint: Where to.
            timeout: Seconds for looking the name up, connecting and the TLS
                handshake together, over all addresses; None: no limit.
            cancel: Ends it within 0.1 s of being set, in each of these phases.

        Returns:
            A socket in blocking mode, owned by the caller.

        Raises:
            ConnectError: No address could be connected to; see ``__cause__`` and ``local``.
            ConnectTimeoutError: *timeout* passed.
            HandshakeError: TLS failed.
            CancelledError: *cancel* was set. No descriptor is left open in any of these cases.

        Source: dmConnectionPool::Dial (Defold).
        """
        budget = Budget(endpoint, timeout, cancel)
        sock = open_tcp(budget, self._options) if endpoint.path is None else open_unix(budget)
        if not endpoint.tls:
            return sock
        try:
            context = self._context(endpoint)
        except BaseException:
            sock.close()
            raise
        return wrap_tls(sock, context, self._server_hostname or name_in_certificate(endpoint.host), budget)

    def would_trust(self, endpoint: Endpoint, context: ssl.SSLContext, name: str | None) -> bool:
        """Whether *context*, which has looked for *name*, has verified as much as TLS to *endpoint* would."""
        host = self._server_hostname or name_in_certificate(endpoint.host)
        return assurance(context, name, host) >= assurance(self._tls, host, host)

    def close(self, raw: Any) -> None:
        """Close *raw* without blocking; on TLS say goodbye if that is possible at once."""
        look.close(raw)

    def is_usable(self, raw: Any) -> bool:
        """Whether an idle *raw* can still be lent: no end, no reset, no stray byte. Never blocks."""
        return look.is_usable(raw)

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext:
        # Loading the system's certificates takes tens of milliseconds: not before TLS is really needed.
        # Two first dials at once may each make one; they are alike and the later one stays.
        if self._tls is None:
            try:
                self._tls = _default_context()
            except OSError as exc:
                raise HandshakeError(
                    f"{endpoint}: cannot load the system's certificates: {exc}", endpoint=endpoint, local=True
                ) from exc
        return self._tls

    def __repr__(self) -> str:
        # Neither hooks nor the context: what they are bound to may be a password.
        tls = "verified" if self._verifies else "unverified"
        return f"<SocketConnector tls={tls} server_hostname={self._server_hostname!r} {self._options!r}>"


def _default_context() -> ssl.SSLContext:
    """Make a context that trusts whom the system trusts.

    Raises:
        OSError: No descriptor is left to read who that is. OpenSSL does not tell: it trusts nobody then.
    """
    context = ssl.create_default_context()
    path = ssl.get_default_verify_paths().cafile
    if path and not context.cert_store_stats()["x509"]:
        try:
            context.load_verify_locations(path)
        except OSError as exc:
            if exc.errno in LOCAL_ERRORS:
                raise
    return context


class CallableConnector:
    """Pools what a callable opens: a database connection, a client object, a socket.

    Args:
        open: Called without arguments; its exceptions reach the caller as ``__cause__``.
        close, is_usable, reset, is_fatal: As in ``Connector``.
    """

    prompt: Final = False

    def __init__(
        self,
        open: Callable[[], Any],
        close: Callable[[Any], object] | None = None,
        is_usable: Callable[[Any], bool] | None = None,
        reset: Callable[[Any], object] | None = None,
        is_fatal: Callable[[Exception], object] | None = None,
    ) -> None:
        hooks = {"close": close, "is_usable": is_usable, "reset": reset, "is_fatal": is_fatal}
        for name, hook in {"open": open, **{k: v for k, v in hooks.items() if v is not None}}.items():
            if not callable(hook):
                raise ConfigError(f"{name} must be callable, got {hook!r}")
        self._open = open
        self.close: Final = close or look.close
        self.is_usable: Final = is_usable or look.is_usable
        self.reset: Final = reset
        self.is_fatal: Final = is_fatal

    def open(self, endpoint: Endpoint, timeout: float | None = None, cancel: Cancel | None = None) -> Any:
        """Call what was given. It knows nothing of *timeout* and *cancel*: the pool does not wait for it."""
        return self._open()

    def __repr__(self) -> str:
        # Not the callable's own repr: a partial shows its arguments, and a password among them.
        name = getattr(self._open, "__qualname__", type(self._open).__qualname__)
        return f"<CallableConnector open={name}>"


def _check_keepalive(value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, tuple) or len(value) != 3:
        raise ConfigError(f"keepalive must be None, True or (time, interval, probes), got {value!r}")
    for part, most in zip(value, _MOST_KEEPALIVE, strict=True):
        if not is_whole(part) or not 1 <= part <= most:
            upto = ", ".join(map(str, _MOST_KEEPALIVE))
            raise ConfigError(f"keepalive: whole numbers from 1 to {upto} expected, got {value!r}")


def _check_source_address(value: object) -> None:
    if value is None:
        return
    match value:
        case (str() as host, int() as port) if 0 <= port <= 65535 and not isinstance(port, bool):
            # A name would have to be looked up at each dial, outside of its time limit.
            for family in (socket.AF_INET, socket.AF_INET6):
                try:
                    socket.inet_pton(family, host)
                except (OSError, ValueError):  # a null byte
                    continue
                return
    raise ConfigError(f"source_address must be (address in digits, port), got {value!r}")
