"""What one of several holders of a connection has in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from connpool import clock as real
from connpool.errors import UsageError
from connpool.model.states import CloseReason
from connpool.pool.connection import Connection
from connpool.pool.sharing import Share, leave
from connpool.pool.traffic import Bytes
from connpool.wire.io import SHUT_RDWR, TLSContext

__all__ = ["SharedConnection"]

T = TypeVar("T")


class SharedConnection(Connection):
    """One of several loans of one connection at the same time.

    What is written in one call goes out as a whole, never mixed with another
    holder's; ``exchange`` keeps an answer together with its request. Nothing
    tells apart who reads what else.
    """

    __slots__ = ()

    def release(self) -> None:
        """Give back this share. The last one to do so makes the connection idle again."""
        share = self._surrender()
        leave(share.record.pool._lender, share)

    def terminate(self, error: BaseException | None = None, *, interrupt: bool = False) -> None:
        """Something went wrong on it: nobody joins any more, and the last one to leave closes it.

        Args:
            error: What went wrong, for ``EndpointInfo.last_error``.
            interrupt: Have the others' blocked input and output fail at once.
        """
        record = self._held()
        if error is not None:
            record.host.last_error = error
        self._end(is_failure=error is not None)
        if interrupt:
            record.pool._lender.interrupt(record, SHUT_RDWR, "another holder terminated it")

    def _end(self, *, is_failure: bool) -> None:
        share = self._surrender()
        if is_failure:
            share.record.noted().wants_another = True
        share.record.condemn(CloseReason.TERMINATED)
        leave(share.record.pool._lender, share)

    def detach(self) -> Any:
        """A shared connection cannot leave the pool: others may hold it.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self!r}: it is shared, so others may hold it", pool=self._held().pool.name)

    def start_tls(
        self, context: TLSContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> None:
        """A shared connection cannot be upgraded: others may be writing on it.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self!r}: it is shared, so others may write on it", pool=self._held().pool.name)

    def writev_all(self, buffers: Iterable[Bytes], timeout: float | None = None) -> None:
        """Write all of *buffers* as one stretch of bytes, after those who came before.

        Raises:
            TimeoutError: not everything was taken within *timeout* seconds, waiting for a turn included.
            OSError: the connection is broken.
        """
        until = None if timeout is None else real.now() + timeout
        turn = self._hold().turns.take(timeout)
        try:
            super().writev_all(buffers, None if until is None else max(0.0, until - real.now()))
        finally:
            turn.end()

    def exchange(
        self, buffers: Iterable[Bytes], read: Callable[[Connection], T], timeout: float | None = None
    ) -> T:
        until = None if timeout is None else real.now() + timeout
        turn = self._hold().turns.take(timeout)
        try:
            super().writev_all(buffers, None if until is None else max(0.0, until - real.now()))
            try:
                return read(self)
            except BaseException:
                self._held().condemn(CloseReason.BROKEN)  # the next would read the rest of this answer
                raise
        finally:
            turn.end()

    exchange.__doc__ = Connection.exchange.__doc__

    def _hold(self) -> Any:
        try:
            return self._key.hold  # type: ignore[attr-defined]
        except AttributeError:
            raise self._given_back() from None

    def _surrender(self) -> Share:
        share = super()._surrender()
        assert isinstance(share, Share)
        return share
