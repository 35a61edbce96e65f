"""What a user holds: one loan of one connection, given back exactly once."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Final, Self

from connpool.errors import UsageError
from connpool.model.checks import require_kind
from connpool.model.endpoint import Endpoint
from connpool.model.states import CloseReason
from connpool.model.stats import ConnectionInfo
from connpool.pool.record import Key, Record
from connpool.pool.snapshots import connection_info
from connpool.pool.traffic import Traffic
from connpool.pool.unwinding import drop_keys, keeping_no_key
from connpool.wire.io import FileStream, Socket, Stream, TLSSocket, is_socket, is_tls

__all__ = ["Connection"]

HAS_GIL: Final = "t" not in sys.abiflags  # of builds, not of processes: a build without it may still use one


class Connection(Traffic):
    """One loan: exclusive use of one connection until ``release`` or ``terminate``.

    Made by ``ConnectionPool.try_connect`` and never by hand. As a context
    manager it is released at the end of the block, or terminated if the block
    raises, unless the connector's ``is_fatal`` says otherwise. Every method of a
    loan that was given back raises ``UsageError`` and does nothing, even if the
    same connection has been lent again since.

    Input and output are all-or-error: ``timeout`` (seconds; None: no limit)
    covers a call as a whole, on TLS too, and a call that fails marks the
    connection broken, so that even ``release`` closes it.

    Locking: ``release`` takes none on the fast path; one loan is for one thread at a time.
    """

    if HAS_GIL:  # without it ``del`` of a slot is a look and a store, of a dictionary's entry one step
        __slots__ = ("__weakref__", "_key", "_record")
    else:

        def __del__(self) -> None:
            """Without the GIL its key's own finaliser may come late, on the thread that made that."""
            key: Key | None = self.__dict__.pop("_key", None)
            if key is not None:
                key.drop()

    _key: Key  # deleted when the loan ends: of two threads that try, one gets an AttributeError
    _record: Record  # for words only, once the key is gone

    def release(self) -> None:
        """Give it back, for the next caller: it is healthy.

        It is closed nevertheless if it is broken, has expired, has been cleared,
        or holds bytes that were read from the socket but not consumed.

        Raises:
            UsageError: it was given back before; whoever holds the connection now is unharmed.

        Source: dpl_conn_release (Droplet); dmConnectionPool::Return (Defold).
        """
        try:
            key = self._key
            record = key.record
            del self._key
        except AttributeError:
            raise self._given_back() from None
        try:
            pool = record.pool
            ask = pool._now
            now = ask()
            if (
                now < pool._return_until
                and now < record.expires_at
                and now - record.since < pool._brief_for
                and ((stream := record.stream) is None or stream.is_clean())
            ):
                record.since = now
                record.host.idle.append(key)
                if pool._is_awaited:  # announced before its last look: see docs/locking.md
                    pool._lender.serve(is_brisk=True)
            else:
                receive = pool._receive  # called as an attribute, it would be sought as a method
                receive(key, now)
        except BaseException as error:
            drop_keys(error)  # where no frame is left for it, the traceback keeps all until there is room
            del key  # let the finaliser find it: a traceback would keep it alive
            raise

    def terminate(self, error: BaseException | None = None) -> None:
        """Give it back to be closed: something went wrong on it.

        Args:
            error: What went wrong, for ``EndpointInfo.last_error``. It blames no
                endpoint; ``pool.blacklist(conn.endpoint)`` does.

        Raises:
            UsageError: it was given back before.
            ConfigError: *error* is none. It is still lent.

        Source: dpl_conn_terminate (Droplet); dmConnectionPool::Close (Defold).
        """
        self._end(is_failure=self._is_blamed(error))

    def _is_blamed(self, error: BaseException | None) -> bool:
        """Whether *error* is what went wrong; then the endpoint's last one is that."""
        if error is None:
            return False
        self._held().host.last_error = require_kind("error", error, BaseException)
        return True

    @keeping_no_key
    def _end(self, *, is_failure: bool) -> None:
        """Give it back to be closed. *is_failure*: ``revive`` replaces it like a broken one."""
        key = self._surrender()
        if is_failure:
            key.record.noted().wants_another = True
        key.record.condemn(CloseReason.TERMINATED)
        pool = key.record.pool
        pool._receive(key, pool._now())

    @keeping_no_key
    def detach(self) -> Any:
        """Leave the pool with the transport still open, and return it; its place is free again.

        Raises:
            UsageError: it was given back before, or is the parent's of a forked child. Or bytes were
                read from the socket and not consumed, which would be lost: ``recv`` them first.
        """
        stream = self._held().stream
        if stream is not None and stream.rest:
            raise UsageError(
                f"{self!r}: {len(stream.rest)} bytes were read ahead and would be lost: `recv` them first",
                pool=self._record.pool.name,
            )
        key = self._surrender()
        lender, record = key.record.pool._lender, key.record
        if lender.books.is_heard:
            now = lender.now()
            lender.tell_checked_in(record, now, now - record.since)
        return lender.let_go(key)

    def __enter__(self) -> Self:
        try:
            self._key.record  # noqa: B018 - is it still ours?
        except AttributeError:
            raise self._given_back() from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._key.record  # noqa: B018 - given back or detached within the block, or found lost?
        except AttributeError:
            return
        if kind is None:
            self.release()
        else:
            self._end_after(error)

    def _end_after(self, error: BaseException | None) -> None:
        """*error* has left the block: that ends the connection, unless its connector knows better."""
        record = self._held()
        is_over = True
        try:
            is_over = record.pool._lender.dialler.is_fatal(record, error)
        finally:  # an interrupt of the hook is the end, too
            if is_over:
                self._end(is_failure=True)
            else:
                self.release()

    def __repr__(self) -> str:
        record = self._record
        ended = "" if hasattr(getattr(self, "_key", None), "record") else ", given back"
        return f"<Connection {record.id} of pool {record.pool.name!r} to {record.host.endpoint}{ended}>"

    # -- what it is

    @property
    def raw(self) -> Any:
        """What the connector opened: a socket, a database connection, ..."""
        return self._exposed()

    @property
    def socket(self) -> Socket:
        """The socket.

        Raises:
            UsageError: what the connector opened is not one.
        """
        raw = self._exposed()
        if not is_socket(raw):
            raise UsageError(
                f"{self!r}: a {type(raw).__name__!r} is not a socket; use raw", pool=self._record.pool.name
            )
        return raw

    @property
    def ssl_socket(self) -> TLSSocket | None:
        """The socket if it speaks TLS, else None."""
        raw = self._exposed()
        return raw if is_tls(raw) else None

    def fileno(self) -> int:
        """The descriptor, so that ``select`` takes a connection.

        Raises:
            UsageError: what the connector opened has none.
        """
        record = self._held()
        if record.stream is not None or not hasattr(record.raw, "fileno"):
            record.streaming().expect_company()  # a read by other means must not meet our time limit
        return int(record.raw.fileno())

    @property
    def endpoint(self) -> Endpoint:
        """The address it leads to."""
        return self._held().host.endpoint

    @property
    def info(self) -> ConnectionInfo:
        """A snapshot of what the pool knows of it."""
        return connection_info(self._held(), is_idle=False)

    @property
    def uses(self) -> int:
        """How often the connection was lent before: 0 on the first loan."""
        return max(0, self._held().uses - 1)

    @property
    def extra(self) -> Any:
        """Data of yours that stays with the connection from loan to loan; None at first."""
        notes = self._held().notes
        return None if notes is None else notes.extra

    @extra.setter
    def extra(self, value: Any) -> None:
        self._held().noted().extra = value

    # -- the loan itself

    def _interrupt(self, why: str) -> None:
        """Have input and output fail at once in which another thread is blocked. The loan goes on."""
        record = self._held()
        record.pool._lender.interrupt(record, why)

    def _held(self) -> Record:
        try:
            return self._key.record
        except AttributeError:
            raise self._given_back() from None

    def _stream(self) -> Stream | FileStream:
        try:
            stream = self._key.record.stream
        except AttributeError:
            raise self._given_back() from None
        return self._held().streaming() if stream is None else stream

    def _exposed(self) -> Any:
        """The transport itself, which is not the pool's alone from now on."""
        record = self._held()
        if record.stream is not None:
            record.stream.hand_out()
        return record.raw

    def _surrender(self) -> Key:
        try:
            key = self._key
            key.record  # noqa: B018 - one that has reported itself has none any more
            del self._key
        except AttributeError:
            raise self._given_back() from None
        return key

    def _given_back(self) -> UsageError:
        record = getattr(self, "_record", None)
        if record is None:
            return UsageError("a Connection comes from ConnectionPool.try_connect; it is not made by hand")
        how = (
            "was found lost: the garbage collector came to it before the finaliser that uses it"
            if hasattr(self, "_key")
            else "was given back already: a loan ends with its first release or terminate"
        )
        return UsageError(f"connection {record.id} of pool {record.pool.name!r} {how}", pool=record.pool.name)
