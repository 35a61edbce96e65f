"""What one of several holders of a connection has in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from connpool import clock as real
from connpool.errors import UsageError
from connpool.model.checks import no_seconds, require_function, require_seconds
from connpool.model.states import POOL_OPEN, CloseReason
from connpool.pool.connection import Connection
from connpool.pool.record import Key
from connpool.pool.sharing import BROKEN_OFF, Hold, Share, add_share, form, leave, pick
from connpool.pool.traffic import Bytes, is_misuse
from connpool.pool.unwinding import drop_keys, keeping_no_key
from connpool.wire.io import TLSContext

__all__ = ["SharedConnection", "share_at_hand"]

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool

T = TypeVar("T")


def share_at_hand(pool: ConnectionPool, timeout: float | None) -> SharedConnection | None:
    """A share of what lies idle, or is shared already, if that can be had without a look or a wait."""
    if timeout is not None:
        require_seconds("timeout", timeout, or_zero=True)
    lender = pool._lender
    books = lender.books
    if lender.is_inside():
        return None
    key: Key | None = None
    conn = SharedConnection()
    try:
        with lender._lock:
            try:
                key = pool._take()
            except IndexError:
                if books.queue.waiters or books.state is not POOL_OPEN:
                    return None
                now = pool._now()
                hold = pick(books, now)
                if hold is None:
                    return None
                conn._record = hold.record
                conn._key = add_share(books, hold, now)
                return conn
            record, now = key.record, pool._now()
            if not (
                now < pool._lend_until and now - record.since < pool._fresh_for and now < record.expires_at
            ):
                record.host.idle.append(key)
                key = None
                return None
            notes = record.notes
            hold = None if notes is None else notes.hold
            conn._record = record
            conn._key = form(books, key, now) if hold is None else add_share(books, hold, now, key)
        if books.queue.waiters:
            lender.serve()  # others may join
        return conn
    except BaseException as error:
        drop_keys(error)
        del key, conn  # their finalisers see to it
        raise


class SharedConnection(Connection):
    """One of several loans of one connection at the same time.

    What is written in one call goes out as a whole, never mixed with another
    holder's; ``exchange`` keeps an answer together with its request. Nothing
    tells apart who reads what else.
    """

    __slots__ = ()

    _key: Share

    def release(self) -> None:
        """Give back this share. The last one to do so makes the connection idle again."""
        try:
            share = self._key
            record = share.record
            del self._key
        except AttributeError:
            raise self._given_back() from None
        try:
            leave(record.pool._lender, share)
        except BaseException as error:
            drop_keys(error)
            del share  # as in ``Connection.release``
            raise

    def terminate(self, error: BaseException | None = None, *, interrupt: bool = False) -> None:
        """Something went wrong on it: nobody joins any more, and the last one to leave closes it.

        Args:
            error: What went wrong, for ``EndpointInfo.last_error``.
            interrupt: Have the others' blocked input and output fail at once.
        """
        record = self._held()
        self._end(is_failure=self._is_blamed(error))
        if interrupt:
            record.pool._lender.interrupt(record, "another holder terminated it")

    @keeping_no_key
    def _end(self, *, is_failure: bool) -> None:
        share = self._surrender()
        if is_failure:
            share.record.noted().wants_another = True
        share.record.condemn(CloseReason.TERMINATED)
        leave(share.record.pool._lender, share)

    @property
    def uses(self) -> int:
        """How often the connection was lent before this share: 0 on the first loan."""
        self._held()
        return self._key.uses

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
        self._in_turn(buffers, _nothing, timeout)

    def sendall(self, data: Bytes, timeout: float | None = None) -> None:
        """Write all of *data*; as ``writev_all`` of one buffer."""
        self.writev_all((data,), timeout)

    def exchange(
        self, buffers: Iterable[Bytes], read: Callable[[Connection], T], timeout: float | None = None
    ) -> T:
        require_function("read", read)
        return self._in_turn(buffers, read, timeout)

    exchange.__doc__ = Connection.exchange.__doc__

    @keeping_no_key  # nor a turn
    def _in_turn(self, buffers: Iterable[Bytes], read: Callable[[Connection], T], timeout: float | None) -> T:
        """Write *buffers* and *read* the answer, when those who came before are done.

        ``Hold.amid`` is set before the first byte and taken back after the last: whatever ends it in between,
        an interrupt even, whoever comes next does not write behind half a message or read another's answer.
        """
        try:
            until = None if timeout is None else real.now() + timeout
        except TypeError:
            raise no_seconds("timeout", timeout) from None
        hold, me = self._hold(), get_ident()
        if hold.amid == me:
            raise UsageError(
                f"{self!r}: its thread is in the middle of an exchange on it", pool=hold.record.pool.name
            )
        turn = hold.turns.take(timeout)
        try:
            if hold.amid is not None:
                raise ConnectionAbortedError(f"{self!r}: another write or exchange was broken off")
            hold.amid = me
            try:
                super().writev_all(buffers, None if until is None else max(0.0, until - real.now()))
            except BaseException as error:
                stream = hold.record.stream
                if is_misuse(error) and (stream is None or not stream.is_midway):
                    hold.amid = None  # nothing was written
                raise
            answer = read(self)
            hold.amid = None
            return answer
        finally:
            if hold.amid == me:
                hold.amid = BROKEN_OFF
                hold.record.condemn(CloseReason.BROKEN)
            turn.end()

    def _hold(self) -> Hold:
        try:
            share = self._key
            share.record  # noqa: B018 - as in ``_surrender``
            hold = share.hold
        except AttributeError:
            raise self._given_back() from None
        assert hold is not None
        return hold

    def _surrender(self) -> Share:
        share = super()._surrender()
        assert isinstance(share, Share)
        return share


def _nothing(_: Connection) -> None:
    """Read no answer."""
