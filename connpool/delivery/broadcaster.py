"""Messages that must arrive: one copy to each member of a route, now or later."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

from connpool import clock as real
from connpool.clock import SystemClock
from connpool.delivery.admin import Admin, require_places
from connpool.delivery.deferred import Deferred
from connpool.delivery.keeping import GRACE, PATIENCE, Keeping
from connpool.delivery.office import Office
from connpool.delivery.receiving import Receiving
from connpool.delivery.sending import Sending
from connpool.delivery.settings import Confirm, Settings, require_spool
from connpool.delivery.spool import Spool
from connpool.delivery.telling import Telling
from connpool.delivery.tending import Tending
from connpool.delivery.watching import Watch
from connpool.delivery.words import closed
from connpool.delivery.writing import Writing
from connpool.errors import ConfigError, UsageError
from connpool.model.checks import require_seconds
from connpool.model.delivery import GLOBAL, Delivery, LinkState, Unsent
from connpool.pool.census import KEPT, keep
from connpool.pool.pool import ConnectionPool
from connpool.pool.turns import Turns
from connpool.wire.framing import Framing, bytes_of

__all__ = ["Broadcaster"]


class Broadcaster(Admin, Receiving):
    """Sends every message to all members of a group of a pool's route, and loses none.

    It holds one connection of the pool to each member (hot standby). The first
    group of which a member lives is the active one; a dead member's copy waits in the spool
    until it is back, and so does a message that no group can take. Nothing is
    reordered on its way to one member.

    Args:
        pool: Whose route is followed, and whose connector opens the connections. It needs a place for
            each member.
        spool: Where messages wait; closed with the broadcaster. What it drops and finds damaged the pool's
            listeners hear. None: what nobody takes is an error.
        framing: How messages are told apart on the wire; None: they are not.
        confirm: ``confirm(conn, message)`` returns when the peer has acknowledged *message*, which was just
            written; what it raises means that it has not. Input belongs to it, then. It writes nothing.
        write_ahead: Put each message into the spool before it is sent. Not unless asked for.
        failover: Whether a group takes over when all members of an earlier one are dead; it does.
        reconnect: Whether dead links are opened again by themselves, with the back-off of the pool; they are.
        standby: ``"hot"``, the default: all links are opened at once; ``"cold"``: those of later groups when
            needed.
        fail_back_after: Seconds that a member of an earlier group must live before traffic returns to it; 0.
        send_timeout: Seconds for which a peer may take nothing of what waits for it, 30 unless said; None:
            for ever.
        flush_rate: Most messages a second that are sent out of the spool to one member; None: no limit.
        heartbeat: ``(interval, message)``: sent to every live member that often, and at the end; the
            message may be a function that returns it. Never spooled. None: there is none.
        max_async: Messages that may wait in ``broadcast_async``, 10,000 unless said.
        on_full: ``"wait"``, the default: who finds that many waits for room; ``"raise"``: gets a
            SpoolFullError.

    Raises:
        ConfigError: a setting is out of range, or the pool has not a place for each member.
        UsageError: another broadcaster uses the spool.
        SpoolError: the spool is closed.

    Source: prelude_connection_pool (libprelude).
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        spool: Spool | None = None,
        framing: Framing | None = None,
        confirm: Confirm | None = None,
        write_ahead: bool = False,
        failover: bool = True,
        reconnect: bool = True,
        **settings: Any,
    ) -> None:
        if not isinstance(pool, ConnectionPool):
            raise ConfigError(f"pool must be a ConnectionPool, got {pool!r}")
        require_spool(spool)
        self._settings = Settings.of(
            framing=framing,
            confirm=confirm,
            write_ahead=write_ahead,
            failover=failover,
            reconnect=reconnect,
            **settings,
        )
        if self._settings.write_ahead and spool is None:
            raise ConfigError("write_ahead=True needs a spool to write to")
        require_places(pool, pool.route)
        if any(
            isinstance(other, Broadcaster) and other._spool is spool for other in KEPT if spool is not None
        ):
            raise UsageError(f"broadcaster {pool.name!r}: another broadcaster uses the spool", pool=pool.name)
        if spool is not None:
            spool.count(GLOBAL)  # one that is closed says so before anything has begun
        self.pool = pool
        self.name: str = pool.name
        self._spool: Spool | None = spool
        self._begin()
        keep(self)
        pool._lead(self)
        self._office.follow()
        self._keeping.begin()

    def _begin(self) -> None:
        self._closings = Turns()
        self._closer: threading.Thread | None = None  # who closes it, or has
        office = self._office = Office(self.pool, self._spool, self._settings)
        self._tending = Tending(office)
        self._watch = Watch(office)
        writing = Writing(office)
        sending = Sending(office, writing)
        self._deliver = sending.deliver
        self._telling = Telling(self, office)
        self._keeping = Keeping(office, writing, self._watch)
        settings = self._settings
        self._deferred = Deferred(
            sending, self.name, most=settings.max_async, waits=settings.on_full == "wait"
        )
        office.start_worker, office.stop_worker = self._tending.start, self._tending.stop
        office.on_strands, office.hear_out = self._watch.look, self._watch.hear_out
        office.kept = self

    # -- sending

    def broadcast(self, message: bytes) -> Delivery:
        """Send *message* to each member of the active group, from any thread.

        A member that is dead, or behind with what was sent before, gets its copy from the spool later. If
        all members are dead the next group gets the message, in the same call; if none is left it waits for
        whichever comes back first.

        Args:
            message: Bytes of any kind; it is framed first, so that one that cannot be is not taken.

        Returns:
            Who has it and where it waits. From now on it is not lost.

        Raises:
            FramingError: it cannot be framed. Nothing was sent.
            NoEndpointError: nobody takes it, and there is no spool.
            SpoolError: nobody takes it, and it cannot be spooled (SpoolFullError: for want of room).
            PoolClosedError: the broadcaster is closed.
            UsageError: it would wait for the broadcast from within which it comes, for want of a spool.

        Locking: one lock for each member; no wait for a peer unless there is no spool, or a ``confirm``, or a
            link is being opened for the first time (a quarter of a second at most, once).
        Source: prelude_connection_pool_broadcast (libprelude).
        """
        return self._deliver(message if type(message) is bytes else bytes_of(message))

    def broadcast_async(self, message: bytes) -> Future[Delivery]:
        """Send *message* on another thread, after all that were given to this method before.

        Returns:
            What ``broadcast`` would return or raise. A future that is cancelled in time is not sent.

        Raises:
            FramingError: it is not bytes.
            SpoolFullError: ``max_async`` messages wait, and ``on_full`` is ``"raise"``.
            PoolClosedError: the broadcaster is closed.

        Source: prelude_connection_pool_broadcast_async (libprelude).
        """
        return self._deferred.add(bytes_of(message))

    def flush(self, timeout: float | None = None) -> int:
        """Wait until nothing is unsent; dead members are tried at once.

        What ``broadcast_async`` has not come to yet is not among it: its futures tell.

        Args:
            timeout: Seconds; None: until all that can be sent now is sent.

        Returns:
            How many messages are still unsent.

        Raises:
            UsageError: it would wait for the call from within which it comes, as in a signal handler.
        """
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        return self._keeping.flush(timeout)

    def unsent(self) -> Unsent:
        """How many messages wait, for each member and for all; after the end: did then."""
        return Unsent(self._keeping.waiting())

    # -- the end

    def close(self, timeout: float | None = None) -> int:
        """Take no more messages, send what can be sent, and close the links and the spool.

        What was given to ``broadcast_async`` is sent or spooled first, what waits in the spool is sent to
        the members that live, and a heartbeat says goodbye.

        Args:
            timeout: Seconds for all of that, and for another thread that is at it, and a quarter of a second
                for a ``confirm``, handler or heartbeat of yours that is at work; None: as long as it takes.

        Returns:
            How many messages are unsent: they are in the spool, or, given to ``broadcast_async``, lost.

        Raises:
            UsageError: it is called by a signal handler that has interrupted a call to the spool; nothing is
                closed. One that has interrupted something else waits for nobody.
        """
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        return self._close(timeout, PATIENCE)

    def _close(self, timeout: float | None, patience: float) -> int:
        waits = not self._keeping.is_inside()
        until = None if timeout is None else real.now() + timeout
        self._take_no_more()
        self._deferred.drain(timeout if waits else 0.0)
        turn = self._closings.try_take(0.0)
        if turn is None:
            me = threading.current_thread()
            if self._closer is me or self._keeping.awaits(me):
                return self._deferred.lost()  # it is being closed by who cannot go on before we return
            left = None if until is None else max(0.0, until - real.now())
            turn = self._closings.try_take(left if waits else 0.0)
            if turn is None:  # it is being closed by who may take longer than we
                return self._deferred.lost() + self._keeping.unsent()
        try:
            self._closer = threading.current_thread()
            left = None if until is None else max(0.0, until - real.now())
            unsent = self._keeping.close(left, waits=waits, patience=patience)
        finally:
            turn.end()  # before the rest, for a handler that closes, too
        try:
            if self._spool is not None:
                self._spool.close()
        finally:
            self._watch.stop(waits=waits)
            left = None if until is None else max(until - real.now(), patience)
            self._telling.stop(left, waits=waits)
            KEPT.discard(self)
            self.pool._part_with(self)
        return self._deferred.lost() + unsent

    def _take_no_more(self) -> None:
        """What was given to ``broadcast_async`` before is sent all the same."""
        self._deliver = partial(_refuse, self.name)
        self._deferred.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        links, unsent = self.links(), self.unsent().total
        living = sum(link.state is LinkState.ALIVE for link in links)
        return f"<Broadcaster {self.name!r}: {living} of {len(links)} links alive, {unsent} unsent>"

    # -- in the background

    def sweep(self) -> None:
        """Do now what is due: attempts to connect, heartbeats, messages that killed processes have left."""
        self._keeping.turn()

    def _pace(self) -> float | None:
        is_real = isinstance(self._office.clock, SystemClock)
        return 0.01 if is_real else None

    def _take_turn(self, *, is_leap: bool) -> None:
        self._watch.start(self._office)
        self._telling.start()
        self._keeping.turn()

    def _start_clean(self) -> None:
        old = self._office
        for lock in old._lock, *[link.writing for link in old.roster.links.values()]:
            if not lock._is_owned():  # type: ignore[attr-defined]
                lock._at_fork_reinit()  # type: ignore[attr-defined]  # a call may go on here, but not who held it
        self._begin()
        office = self._office
        office.is_closed = old.is_closed
        office.mailbox.take_over(old.mailbox)
        old.mailbox.close()  # who waits there, or has forked in a handler and looks for more, goes
        if not office.is_closed:
            office.roster.follow(self.pool.route, office.clock.now())
            office.rouse = self._start

    def _start(self) -> None:
        """In a forked child, once somebody uses it there: many a child never does."""
        office = self._office
        self._telling.resume()
        office.open(list(office.roster.links.values()))
        self._keeping.start()
        office.rouse = lambda: None  # last: who is interrupted before, or comes meanwhile, begins as well

    def _follow(self) -> None:
        """The pool has another route."""
        self._office.follow()

    def _close_at_exit(self, until: float) -> None:
        deferred = self._deferred
        self._take_no_more()
        deferred.drain(until - real.now())
        self._close(until - real.now() if deferred.has_spooled else 0.0, GRACE)


def _refuse(name: str, _message: bytes) -> NoReturn:
    raise closed(name)
