"""All-or-error input and output over anything that has a descriptor, with one timeout per call."""

from __future__ import annotations

import abc
import select
import ssl
from collections.abc import Callable, Iterable
from typing import Final, NoReturn, TypeVar

from connpool.clock import now
from connpool.model.checks import no_seconds
from connpool.wire.buffers import BytesLike, as_views, check_size, drop_front
from connpool.wire.waiting import wait_until_ready

__all__ = ["ByteStream", "TimeIsUp"]

A = TypeVar("A")
T = TypeVar("T")

_LINE_CHUNK: Final = 16_384  # read ahead in search of a delimiter; what is left over is copied once per line
_BULK_CHUNK: Final = 262_144


class TimeIsUp(Exception):
    """Unwinds to the call that knows how far it got."""


class ByteStream(abc.ABC):
    """One open transport, as loans read from it and write to it.

    Every ``timeout`` is in seconds and covers the whole call, however many
    system calls it takes; None: no limit; 0: one attempt that does not wait.
    When it is over, ``TimeoutError`` says how far the call got; what is no number is a
    ``ConfigError``, before anything is read or written. Bytes that were read before an
    error stay in ``rest``; how much of a message that failed has left is unknown.

    At most one thread may read and one write at the same time.

    Attributes:
        rest: Bytes that were read but not consumed yet; what is read next.
        received: Whether a byte has come from the peer since ``begin``.
        deadline: Monotonic instant that ends every call, however long its own
            timeout; None: there is none.
        interrupted: Why another thread broke the connection off; None: nobody did.
        is_midway: Whether a write has begun and has not come to its end, or never did.
    """

    __slots__ = ("deadline", "interrupted", "is_midway", "received", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self.received = False
        self.deadline: float | None = None
        self.interrupted: str | None = None
        self.is_midway = False

    def is_clean(self) -> bool:
        """Whether the next holder would find it as a new one: nothing half done, not closed, its TLS on."""
        return not self.rest and self.fileno() >= 0

    def has_unread(self) -> bool:
        """Whether bytes have come out of the system that nobody has consumed."""
        return bool(self.rest)

    def expect_company(self) -> None:  # noqa: B027 - for most kinds there is nothing to do
        """Several threads may read from now on."""

    # -- one attempt each, by the kind of transport -------------------------------

    @abc.abstractmethod
    def fileno(self) -> int:
        """Give the descriptor; -1 when closed."""

    @abc.abstractmethod
    def must_wait_to_read(self, eager: bool) -> bool:
        """Whether to poll before reading. *eager*: the next read must not block."""

    @abc.abstractmethod
    def try_read(self, n: int, eager: bool) -> bytes:
        """Read up to *n* bytes once; b"" at the end. If *eager*, BlockingIOError instead of blocking."""

    @abc.abstractmethod
    def try_read_into(self, target: memoryview, eager: bool) -> int:
        """Read once into *target*; as ``try_read``."""

    @abc.abstractmethod
    def try_write(self, views: list[memoryview], eager: bool) -> int:
        """Write once from the front of *views*, and return how many bytes; as ``try_read``."""

    # -- writing ------------------------------------------------------------------

    def writev_all(self, buffers: Iterable[BytesLike], timeout: float | None = None) -> None:
        """Write the bytes of all *buffers* in order, without joining large ones.

        Args:
            buffers: Any number of bytes-like objects of any item type; empty ones are fine.

        Raises:
            TimeoutError: It was not all taken in time. A part of it may be on its way.
            OSError: The connection failed; a ConnectionAbortedError: another thread broke it off.

        Source: dpl_conn_writev_all (Droplet).
        """
        views = as_views(buffers)
        self._write(views, sum(map(len, views)), timeout)

    def _write(self, views: list[memoryview], total: int, timeout: float | None) -> None:
        """Write *views*, which are what is left of *total* bytes, and release them."""
        left = sum(map(len, views))
        limit = self._limit(timeout)
        self.is_midway = True
        try:
            while left:
                sent = self._attempt(self.try_write, views, select.POLLOUT, limit)
                left -= sent
                drop_front(views, sent)
                if left:
                    _check(limit)
            self.is_midway = False
        except TimeIsUp:
            raise self._late(timeout, f"{total - left} of {total} bytes were sent") from None
        finally:
            for view in views:
                view.release()  # a bytearray may be resized again, even while an error is handled

    def sendall(self, data: BytesLike, timeout: float | None = None) -> None:
        """Write all of *data*; otherwise as ``writev_all``."""
        self.writev_all((data,), timeout)

    # -- reading ------------------------------------------------------------------

    def begin(self) -> None:
        """Start over with ``received``: what comes from now on answers a new request."""
        self.received = False

    def recv(self, n: int, timeout: float | None = None) -> bytes:
        """Read between 1 and *n* bytes; b"" when the peer has sent its last.

        Raises:
            TimeoutError: Nothing came in time.
            OSError, ConnectionAbortedError: As ``writev_all``.
        """
        check_size(n)
        if self.rest or not n:
            return self._take(n)
        try:
            return self._read(n, self._limit(timeout))
        except TimeIsUp:
            raise self._late(timeout, "nothing was received") from None

    def recv_into(self, buffer: BytesLike, nbytes: int = 0, timeout: float | None = None) -> int:
        """Read into *buffer*: at most *nbytes*, or what fits if that is 0.

        Returns:
            How many bytes were read; 0 when the peer has sent its last.

        Raises:
            TimeoutError, OSError, ConnectionAbortedError: As ``recv``.
        """
        check_size(nbytes)
        with memoryview(buffer) as view, view.cast("B") as whole, whole[: nbytes or None] as target:
            if view.readonly:
                raise TypeError(f"a {type(buffer).__name__} cannot be written to")
            if len(target) < nbytes:
                raise ValueError(f"the buffer has room for {len(target)} bytes, not for {nbytes}")
            if self.rest or not target:
                data = self._take(len(target))
                target[: len(data)] = data
                return len(data)
            try:
                return self._receive(self.try_read_into, target, self._limit(timeout))
            except TimeIsUp:
                raise self._late(timeout, "nothing was received") from None

    def recv_exactly(self, n: int, timeout: float | None = None) -> bytes:
        """Read *n* bytes, neither fewer nor more.

        Raises:
            ConnectionResetError: The peer ended the stream before.
            TimeoutError, OSError, ConnectionAbortedError: As ``recv``. What came is read again next.
        """
        check_size(n)
        if n <= len(self.rest):
            return self._take(n)
        limit = self._limit(timeout)
        chunks, got = [self.rest], len(self.rest)
        try:
            while True:
                chunk = self._read(min(n - got, _BULK_CHUNK), limit)
                if len(chunk) == n:
                    return chunk  # in one piece, as a rule
                chunks.append(chunk)
                got += len(chunk)
                if got == n:
                    break
                if not chunk:
                    raise ConnectionResetError(f"the peer ended the stream after {got} of {n} bytes")
                _check(limit)
        except BaseException as exc:
            self.rest = b"".join(chunks)
            if isinstance(exc, TimeIsUp):
                raise self._late(timeout, f"{got} of {n} bytes were received") from None
            raise
        self.rest = b""
        return b"".join(chunks)

    def recv_until(self, delimiter: bytes, limit: int = 65_536, timeout: float | None = None) -> bytes:
        """Read up to and including *delimiter*.

        What was read beyond it stays in ``rest``.

        Args:
            delimiter: One or more bytes.
            limit: Most bytes the answer may have, delimiter included.

        Raises:
            ConnectionAbortedError: It is longer than *limit*; or another thread broke off.
            ConnectionResetError: The peer ended the stream before.
            TimeoutError, OSError: As ``recv``. What came is read again next.
        """
        width = len(delimiter)  # a TypeError before anything is read: a number could be searched for
        if not width:
            raise ValueError("recv_until: the delimiter is empty")
        check_size(limit)
        until = self._limit(timeout)
        buffer = bytearray(self.rest)
        consumed = 0
        try:
            at = buffer.find(delimiter, 0, limit)
            while at < 0:
                searched = len(buffer)
                if searched >= limit:
                    raise ConnectionAbortedError(f"no delimiter within the {limit} bytes allowed")
                chunk = self._read(_LINE_CHUNK, until)
                if not chunk:
                    raise ConnectionResetError(
                        f"the peer ended the stream after {searched} bytes, before the delimiter"
                    )
                buffer += chunk
                at = buffer.find(delimiter, max(searched - width + 1, 0), limit)
                if at < 0:
                    _check(until)
            consumed = at + width
            return bytes(buffer[:consumed])
        except TimeIsUp:
            raise self._late(timeout, f"{len(buffer)} bytes came, and no delimiter") from None
        finally:
            self.rest = bytes(buffer[consumed:])

    # -- shared by both -----------------------------------------------------------

    def _take(self, n: int) -> bytes:
        data, self.rest = self.rest[:n], self.rest[n:]
        return data

    def _limit(self, timeout: float | None) -> float | None:
        """Give the instant at which a call that begins now must end."""
        if timeout is None:
            return self.deadline
        try:
            limit = now() + timeout
        except TypeError:
            raise no_seconds("timeout", timeout) from None
        return limit if self.deadline is None else min(limit, self.deadline)

    def _late(self, timeout: float | None, how_far: str) -> TimeoutError:
        if timeout is None or (self.deadline is not None and now() >= self.deadline):
            return TimeoutError(f"the deadline passed: {how_far}")
        return TimeoutError(f"{timeout:g} s passed: {how_far}")

    def _read(self, n: int, limit: float | None) -> bytes:
        """Read up to *n* bytes once, when there is something to read; b"" at the end."""
        return self._receive(self.try_read, n, limit)

    def _receive(self, attempt: Callable[[A, bool], T], argument: A, limit: float | None) -> T:
        """Read once, when there is something to read."""
        if self.must_wait_to_read(limit is not None):
            self._wait(select.POLLIN, limit)
        got = self._attempt(attempt, argument, select.POLLIN, limit)
        if got:
            self.received = True
        elif self.interrupted is not None:  # our own shutdown looks like the peer's end of stream
            raise ConnectionAbortedError(self.interrupted)
        return got

    def _attempt(self, attempt: Callable[[A, bool], T], argument: A, events: int, limit: float | None) -> T:
        """Repeat *attempt* until it gets somewhere; in between wait for *events*, or what TLS wants."""
        while True:
            try:
                return attempt(argument, limit is not None)
            except BlockingIOError:
                wanted = events
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except OSError as exc:
                self._raise_why(exc)
            self._wait(wanted, limit)

    def _raise_why(self, error: OSError) -> NoReturn:
        """Raise *error*, or what it comes from."""
        try:
            if self.interrupted is not None:
                raise ConnectionAbortedError(self.interrupted) from error
            raise error
        finally:
            del error  # or it would refer to itself, through its traceback and this frame

    def _wait(self, events: int, limit: float | None) -> None:
        seconds = None if limit is None else max(0.0, limit - now())  # in this order not a number is 0, too
        if not wait_until_ready(self.fileno(), events, seconds):
            raise TimeIsUp


def _check(limit: float | None) -> None:
    """Between two steps of one call: a peer that dribbles must not stretch it."""
    if limit is not None and now() >= limit:
        raise TimeIsUp
