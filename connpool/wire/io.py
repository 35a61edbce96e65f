"""Input and output over sockets, TLS or not, with one timeout per call."""

from __future__ import annotations

import os
import select
import socket
import ssl
from typing import Final, TypeGuard, TypeVar

from connpool.errors import UsageError
from connpool.model.checks import PLAIN_NUMBERS
from connpool.wire import look
from connpool.wire.buffers import BytesLike, gather
from connpool.wire.files import FileStream
from connpool.wire.modes import SocketModes, is_tls
from connpool.wire.stream import TimeIsUp
from connpool.wire.tls import begin_tls, handshake_error, require_context, require_server_hostname
from connpool.wire.waiting import may_wait_briefly

__all__ = [
    "DIRECTIONS",
    "SHUT_RDWR",
    "FileStream",
    "Socket",
    "Stream",
    "TLSContext",
    "TLSSocket",
    "is_socket",
    "is_stream",
    "is_tls",
    "open_stream",
]

# The names by which the floors above speak of what is this floor's.
SHUT_RDWR: Final[int] = socket.SHUT_RDWR
DIRECTIONS: Final[tuple[int, ...]] = (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)
Socket = socket.socket
TLSContext = ssl.SSLContext
TLSSocket = ssl.SSLSocket

T = TypeVar("T")

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
# As numbers: to join two flags of an enum costs more than the system call they are for.
_EAGER: Final = int(socket.MSG_DONTWAIT)
_QUIET: Final = int(socket.MSG_NOSIGNAL)
_EAGER_AND_QUIET: Final = _EAGER | _QUIET
_TLS_CHUNK: Final = 65_536  # OpenSSL tells no progress within one write


def is_stream(raw: object) -> bool:
    """Whether ``open_stream`` takes *raw*."""
    return isinstance(raw, socket.socket | FileStream)


def is_socket(raw: object) -> TypeGuard[socket.socket]:
    """Whether *raw* is a socket, with or without TLS."""
    return isinstance(raw, socket.socket)


def open_stream(raw: object, *, is_private: bool = False) -> Stream | FileStream | None:
    """Give the stream over what a connector opened; a FileStream is one already. None: it is no socket.

    Args:
        is_private: Nobody but the stream uses *raw*, before somebody says ``hand_out``.
    """
    if isinstance(raw, FileStream):
        return raw
    return Stream(raw, is_private=is_private) if isinstance(raw, socket.socket) else None


class Stream(SocketModes):
    """A connected stream socket, with or without TLS."""

    __slots__ = ("_has_ended", "_was_filled")

    def __init__(self, raw: socket.socket, *, is_private: bool = False) -> None:
        super().__init__(raw, is_private=is_private)
        self._has_ended = False  # TLS's own end was read: nothing more comes, and the system does not know
        self._was_filled = False  # TLS gave all that was asked for: more of the same record may lie decrypted

    def is_clean(self) -> bool:
        if self.rest or self.is_midway or (self._was_filled and self.has_unread()):
            return False
        return self._descriptor() >= 0

    def has_unread(self) -> bool:
        return bool(self.rest) or (isinstance(self.raw, ssl.SSLSocket) and self.raw.pending() > 0)

    def interrupt(self, how: int, why: str) -> None:
        """End what other threads are blocked in: it raises ConnectionAbortedError(*why*).

        Never blocks, never raises, and leaves the descriptor open.

        Args:
            how: ``SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR``.
            why: A sentence for whoever is interrupted.
        """
        self.interrupted = why  # before the shutdown, which looks like the peer's end of stream
        look.interrupt(self.raw, how)

    def start_tls(
        self, context: ssl.SSLContext, server_hostname: str | None, timeout: float | None = None
    ) -> ssl.SSLSocket:
        """Go over to TLS in place.

        Args:
            context: Decides what is verified.
            server_hostname: What the certificate must be made out to, and SNI.
            timeout: Seconds for the handshake.

        Returns:
            The TLS socket, which is ``raw`` from now on; the old object is empty.

        Raises:
            UsageError: TLS is on already; or plain text was read ahead, which an
                attacker may have put there to pass as protected. Nothing was changed.
            ConfigError: *context* is none for clients, or *server_hostname* no name. Nothing was changed.
            HandshakeError: The peer or its certificate is refused.
            TimeoutError: It was not done in time.
            ConnectionAbortedError: Another thread broke it off.
        """
        require_context("context", context)
        require_server_hostname(server_hostname)
        if isinstance(self.raw, ssl.SSLSocket):
            raise UsageError("start_tls: the connection speaks TLS already")
        if self.rest:
            raise UsageError(f"start_tls: {len(self.rest)} bytes of plain text lie unread")
        limit = self._limit(timeout)
        peer = look.describe(self.raw)[1] or server_hostname or "the peer"
        try:
            secure = begin_tls(self.raw, context, server_hostname)
        except (OSError, ValueError) as exc:
            raise handshake_error(exc, peer) from exc
        self._go_on_with(secure)
        if self.interrupted is not None:  # its shutdown may have met the emptied object
            look.interrupt(secure, socket.SHUT_RDWR)
        try:
            self._attempt(self._try_handshake, secure, select.POLLIN, limit)
        except TimeIsUp:
            raise self._late(timeout, "the TLS handshake was not done") from None
        except (OSError, ValueError) as exc:
            if self.interrupted is not None:
                raise
            raise handshake_error(exc, peer) from exc
        return secure

    def sendall(self, data: BytesLike, timeout: float | None = None) -> None:
        raw = self.raw
        if type(data) is not bytes or not data:
            self.writev_all((data,), timeout)
            return
        if timeout is not None and timeout.__class__ not in PLAIN_NUMBERS:
            self._limit(timeout)  # what is wrong with it is said before a byte is sent
        try:
            if isinstance(raw, ssl.SSLSocket):
                limit = self._limit(timeout)
                is_brief = self._is_alone and len(data) <= _TLS_CHUNK and may_wait_briefly(limit)
                sent = (self._on_tls_alone(raw.write, data) or 0) if is_brief else 0
            else:
                if raw.gettimeout() is not None:  # see _block_without_limit, the call of which costs as much
                    raw.settimeout(None)
                try:  # as a rule the system takes a message at once
                    sent = raw.send(data, _EAGER_AND_QUIET)
                except BlockingIOError:
                    sent = 0
                except OSError as exc:  # of why the connection broke it tells but once
                    self._raise_why(exc)
        except BaseException:  # perhaps a signal handler's, after some of it was sent
            self.is_midway = True
            raise
        if sent < len(data):
            self._write([memoryview(data)[sent:]], len(data), timeout)

    # -- one attempt each ---------------------------------------------------------

    def _try_handshake(self, secure: ssl.SSLSocket, eager: bool) -> None:
        self._on_tls(secure.do_handshake)

    def must_wait_to_read(self, eager: bool) -> bool:
        raw = self.raw
        if isinstance(raw, ssl.SSLSocket):
            return not (self._has_ended or self._has_decrypted(raw))
        return eager

    def _read(self, n: int, limit: float | None) -> bytes:
        raw = self.raw
        data: bytes | None
        if isinstance(raw, ssl.SSLSocket):
            if not (self._is_alone and may_wait_briefly(limit)):
                return super()._read(n, limit)
            data = self._on_tls_alone(raw.read, n)
            self._has_ended = data == b""
            self._was_filled = data is not None and len(data) == n
        else:
            try:
                data = self._read_plain(raw, n, limit)
            except BlockingIOError:
                data = None
            except OSError as exc:
                self._raise_why(exc)
        if not data:
            return super()._read(n, limit)  # it says so again, to who knows what to do
        self.received = True
        return data

    def _read_plain(self, raw: socket.socket, n: int, limit: float | None) -> bytes:
        """Read once, as a rule when there is something before the time is up."""
        if self._is_alone and (limit is None or may_wait_briefly(limit)):
            return self._read_alone(raw, n, limit)
        if limit is None:
            return b""
        _block_without_limit(raw)
        self._wait(select.POLLIN, limit)
        return raw.recv(n, _EAGER)

    def try_read(self, n: int, eager: bool) -> bytes:
        raw = self.raw
        if isinstance(raw, ssl.SSLSocket):
            data = self._on_tls(raw.recv, n)
            self._has_ended, self._was_filled = not data, len(data) == n
            return data
        _block_without_limit(raw)
        return raw.recv(n, _EAGER if eager else 0)

    def try_read_into(self, target: memoryview, eager: bool) -> int:
        raw = self.raw
        if isinstance(raw, ssl.SSLSocket):
            got = self._on_tls(raw.recv_into, target)
            self._has_ended, self._was_filled = not got, got == len(target)
            return got
        _block_without_limit(raw)
        return raw.recv_into(target, 0, _EAGER if eager else 0)

    def try_write(self, views: list[memoryview], eager: bool) -> int:
        raw = self.raw
        if isinstance(raw, ssl.SSLSocket):
            if len(views) > 1 and len(views[0]) < _TLS_CHUNK:
                return self._on_tls(raw.send, gather(views, _TLS_CHUNK))
            with views[0][:_TLS_CHUNK] as front:
                return self._on_tls(raw.send, front)
        _block_without_limit(raw)
        flags = _EAGER_AND_QUIET if eager else _QUIET
        if len(views) == 1:
            return raw.send(views[0], flags)
        return raw.sendmsg(views[:_IOV_MAX], (), flags)


def _block_without_limit(raw: socket.socket) -> None:
    """Undo what the user of ``raw`` may have set: a socket's own timeout would sleep before DONTWAIT."""
    if raw.gettimeout() is not None:
        raw.settimeout(None)
