"""Input and output over a loan: all or an error, and an error breaks the connection."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from connpool.errors import HandshakeError, UsageError
from connpool.model.checks import require_function
from connpool.model.states import CloseReason
from connpool.model.uncopied import Uncopied
from connpool.pool.record import Record
from connpool.pool.unwinding import drop_keys, is_from_outside
from connpool.wire.io import FileStream, Stream, TLSContext
from connpool.wire.tls import name_in_certificate

__all__ = ["Traffic", "is_misuse"]

Bytes: TypeAlias = bytes | bytearray | memoryview
T = TypeVar("T")


def is_misuse(error: BaseException) -> bool:
    """Whether *error* only says that the arguments are wrong: it has broken nothing.

    In the midst of a write, or from a function of others, it is a signal handler's, whatever it says.
    """
    return isinstance(error, TypeError | ValueError | UsageError) and not isinstance(error, OSError)


class Traffic(Uncopied, abc.ABC):
    """What ``Connection`` can send and receive."""

    __slots__ = ()

    @abc.abstractmethod
    def _held(self) -> Record:
        """The record of a loan that has not been given back; UsageError if it has."""

    @abc.abstractmethod
    def _stream(self) -> Stream | FileStream:
        """Its stream; UsageError also if it is no socket."""

    def writev_all(self, buffers: Iterable[Bytes], timeout: float | None = None) -> None:
        """Write all of *buffers*, in order, as one stretch of bytes.

        Raises:
            TimeoutError: not everything was taken within *timeout* seconds.
            OSError: the connection is broken.
            UsageError: given back before, or not a socket.

        Source: dpl_conn_writev_all (Droplet).
        """
        stream = self._stream()
        try:
            stream.writev_all(buffers, timeout)
        except BaseException as error:
            self._fail(error, has_begun=stream.is_midway)
            raise

    def sendall(self, data: Bytes, timeout: float | None = None) -> None:
        """Write all of *data*; as ``writev_all`` of one buffer."""
        stream = self._stream()
        try:
            stream.sendall(data, timeout)
        except BaseException as error:
            self._fail(error, has_begun=stream.is_midway)
            raise

    def exchange(self, buffers: Iterable[Bytes], read: Callable[[Any], T], timeout: float | None = None) -> T:
        """Write *buffers* and read the answer to them, with no other holder's exchange in between.

        Args:
            buffers: The request, as for ``writev_all``.
            read: Called with this connection, reads one whole answer and returns it. On a shared
                connection one that raises breaks it: the rest of the answer would meet the next. It must not
                write there.
            timeout: Seconds for waiting for one's turn and for writing; *read* has its own.

        Returns:
            What *read* returns.

        Raises:
            TimeoutError: not everything was taken within *timeout* seconds.
            ConnectionAbortedError: another holder's write or exchange was broken off.
            UsageError: *read* writes on a shared connection.
            ConfigError: *read* is no function. Nothing was written.
            Exception: what *read* raised; else as ``writev_all``.
        """
        require_function("read", read)
        self.writev_all(buffers, timeout)
        return read(self)

    def recv(self, n: int, timeout: float | None = None) -> bytes:
        """Read at most *n* bytes, at least one; ``b""`` at the end of the stream.

        Raises:
            TimeoutError: nothing came within *timeout* seconds.
            OSError: the connection is broken, or the pool interrupted it.
            UsageError: given back before, or not a socket.
        """
        stream = self._stream()
        try:
            data = stream.recv(n, timeout)
        except BaseException as error:
            self._fail(error, has_begun=is_from_outside(error))
            raise
        if not data and n:
            self._held().condemn(CloseReason.BROKEN)  # the peer has finished
        return data

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, timeout: float | None = None) -> int:
        """Read at most *nbytes* bytes (0: as many as fit) into *buffer*. Returns how many; see ``recv``."""
        stream = self._stream()
        try:
            n = stream.recv_into(buffer, nbytes, timeout)
        except BaseException as error:
            self._fail(error, has_begun=is_from_outside(error))
            raise
        if not n and len(buffer):
            self._held().condemn(CloseReason.BROKEN)
        return n

    def recv_exactly(self, n: int, timeout: float | None = None) -> bytes:
        """Read *n* bytes, no more and no fewer.

        Raises:
            ConnectionError: the stream ended before; see ``recv`` for the rest.
        """
        stream = self._stream()
        try:
            return stream.recv_exactly(n, timeout)
        except BaseException as error:
            self._fail(error, has_begun=is_from_outside(error))
            raise

    def recv_until(self, delimiter: bytes, limit: int = 65_536, timeout: float | None = None) -> bytes:
        """Read up to and including *delimiter*, at most *limit* bytes.

        What was read behind it is kept for the next call; a connection that is
        released with such a rest is closed.

        Raises:
            ConnectionError: *limit* bytes came without it, or the stream ended; see ``recv`` for the rest.
        """
        stream = self._stream()
        try:
            return stream.recv_until(delimiter, limit, timeout)
        except BaseException as error:
            self._fail(error, has_begun=is_from_outside(error))
            raise

    def start_tls(
        self, context: TLSContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> None:
        """Upgrade to TLS in place. From then on it serves the TLS endpoint, never the plain one.

        If less was verified than the pool's connector does for that endpoint, or another connection went over
        to TLS there for another name, it serves nobody else: it is closed when the loan ends. So it is with
        Unix sockets and callables, which have no TLS endpoint.

        Args:
            server_hostname: The name to verify; None: the endpoint's host, if it has one.

        Raises:
            HandshakeError: the peer cannot be trusted, or does not speak TLS.
            UsageError: unread bytes came in clear, or it speaks TLS already.

        Source: dmConnectionPool::CreateSSLSocket (Defold).
        """
        record, stream = self._held(), self._stream()
        host = name_in_certificate(record.host.endpoint.host)
        name = server_hostname or host or None
        try:
            try:
                stream.start_tls(context, name, timeout)
            finally:
                record.raw = stream.raw  # even a handshake that failed has taken the descriptor over
            record.pool._lender.upgraded(record, context, name)
        except BaseException as error:
            if isinstance(error, HandshakeError):  # which a stream cannot tell
                error.pool, error.endpoint = record.pool.name, record.host.endpoint
            self._fail(error, has_begun=is_from_outside(error))
            drop_keys(error)  # somebody who waits for a plain one may have been about to get it
            raise

    def _fail(self, error: BaseException, *, has_begun: bool) -> None:
        """*error* ends a call: that has broken the connection, unless it was refused before it had begun."""
        if has_begun or not is_misuse(error):
            self._held().condemn(CloseReason.BROKEN)
