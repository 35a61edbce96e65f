"""The operator's half of a pool's public methods: steering it, ending it, looking at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from connpool.clock import SystemClock
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.events import Event
from connpool.model.request import Request
from connpool.model.route import Route
from connpool.model.states import ConnState
from connpool.model.stats import ConnectionInfo, EndpointInfo, PoolStats
from connpool.model.uncopied import Uncopied
from connpool.pool.flock import Flock
from connpool.pool.lifetimes import pause_of
from connpool.pool.snapshots import (
    Names,
    connection_info,
    endpoint_infos,
    idle_ones,
    pool_stats,
    worn_out_ones,
)
from connpool.wire.io import SHUT_RDWR

if TYPE_CHECKING:
    from connpool.pool.chores import Chores
    from connpool.pool.control import Control
    from connpool.pool.doors import Doors
    from connpool.pool.lending import Lender

__all__ = ["Follower", "Steering"]


class Follower(Protocol):
    """Who sends over the pool's route, and must know it."""

    def _follow(self) -> None:
        """The pool has another route, or more than one by now. No lock is held."""


class Steering(Uncopied):
    """What a program's operator calls; ``ConnectionPool`` adds what its threads call."""

    name: str
    _lender: Lender
    _control: Control
    _doors: Doors
    _chores: Chores
    _followers: Flock[Follower] | None = None  # told of each new route; few pools have any

    @property
    def route(self) -> Route | None:
        """Where to. Setting it takes effect at once.

        Connections to endpoints that stay keep serving; those to the others are
        closed, lent ones when they come back.
        """
        return self._lender.books.route

    @route.setter
    def route(self, route: Route | Endpoint | str | Iterable[Endpoint | str] | None) -> None:
        new = None if route is None else Route.coerce(route)
        self._reroute(lambda _: new)

    def _reroute(self, change: Callable[[Route | None], Route | None]) -> None:
        """Set the route to what *change*, which waits for nothing, makes of the present one."""
        self._control.reroute(change)
        for follower in self._followers or ():
            follower._follow()

    @property
    def config(self) -> PoolConfig:
        """The settings in force."""
        return self._lender.config

    def configure(self, **settings: Any) -> None:
        """Change any field of ``PoolConfig`` at run time, taking effect at once.

        Raises:
            ConfigError: a setting is unknown or out of range; nothing was changed.
        """
        self._control.configure(settings)
        self._chores.turn()

    def resize(self, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the limits. Idle connections too many are closed now, lent ones when they come back."""
        given = {"max_size": max_size, "min_idle": min_idle}
        self.configure(**{name: value for name, value in given.items() if value is not None})

    def blacklist(self, endpoint: Endpoint | str, seconds: float | None = None) -> None:
        """Do not dial *endpoint* for *seconds*; None: until ``unblacklist``.

        Raises:
            UsageError: the pool does not know it (also a LookupError).

        Source: dpl_blacklist_host (Droplet).
        """
        self._control.blacklist(Endpoint.of(endpoint), seconds)

    def unblacklist(self, endpoint: Endpoint | str) -> None:
        """Let *endpoint* be dialled again, at once. Nothing happens if it is not blacklisted."""
        self._control.unblacklist(Endpoint.of(endpoint))

    def clear(self, endpoint: Endpoint | str | None = None, *, interrupt: bool = False) -> None:
        """Begin anew: idle connections (to *endpoint*) are closed now, lent ones when they come back.

        Args:
            interrupt: Shut the lent ones' sockets down at once, so that blocked input and output ends.
        """
        self._control.clear(None if endpoint is None else Endpoint.of(endpoint), interrupt=interrupt)

    def sweep(self) -> int:
        """Do one turn of what the reaper does, now: expire, warm up, validate, probe, recover, warn.

        Dials and looks are begun on threads of their own, and not waited for.

        Returns:
            How many connections it has closed, or will close when their replacement is open.
        """
        return self._chores.turn()

    def listen(self, handler: Callable[[Any], object], *types: type[Event]) -> Callable[[], None]:
        """Call ``handler(event)`` for everything that happens from now on.

        Args:
            handler: Called with no lock held, by the thread that did it. It may
                call anything; what it raises is logged, and the pool goes on.
                What happens to one connection is told in its order, each before
                the connection is passed on.
            types: Kinds of events to hear of; none, or ``Event``: all.

        Returns:
            What ends it. It may be called from inside *handler*, and twice.

        Raises:
            ConfigError: *handler* cannot be called, or one of *types* is no event.

        Source: events of MongoDB's connection pools.
        """
        return self._control.listen(handler, types)

    # -- transports from outside, and out

    def add_connection(self, raw: Any, endpoint: Endpoint | str | None = None) -> None:
        """Take in a transport that is open already, as idle.

        Args:
            endpoint: Where it leads; None: the route's only endpoint, or nowhere in particular:
                it has a turn of its own among the endpoints, for checkouts that pin nothing.

        Raises:
            UsageError: it is closed, in the pool already, or no transport; it stays the caller's.
            PoolExhaustedError: no place is free.
            PoolClosedError: the pool is closed or shut down.

        Source: add_to_pool (evlua).
        """
        self._control.adopt(raw, None if endpoint is None else Endpoint.of(endpoint))

    def take(self, req: Request | Endpoint | str | None = None) -> Any:
        """Remove an idle connection for good and return its transport; None: none is usable.

        Never dials and never waits. Dead ones found on the way are closed. One that no checkout gets just
        now comes last: of a later group, at a blacklisted endpoint, in a paused pool.

        Source: get_from_pool (evlua).
        """
        return self._control.stock.take(Request.of(req))

    # -- for a while

    def pause(self, fail: bool = False) -> None:
        """Lend nothing for the time being. Loans go on, and what comes back is kept.

        Args:
            fail: Checkouts fail with ``PoolPausedError``, those that wait already
                too; else they wait until their deadline.

        Raises:
            PoolClosedError: the pool is closed or shut down.
        """
        self._doors.pause(fail=fail)

    def resume(self) -> None:
        """Lend again, the oldest waiter first. Nothing happens if the pool is not paused.

        Raises:
            PoolClosedError: the pool is closed or shut down.
        """
        self._doors.resume()

    # -- the end

    def shutdown(self, how: int = SHUT_RDWR) -> int:
        """Cut off every loan: blocked input and output in other threads ends, and so do dials.

        New checkouts are refused, waiters fail at once. Idle connections stay.

        Args:
            how: ``SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR`` of ``socket``: what is cut off.

        Returns:
            How many are lent or being opened; call again until it is 0.

        Raises:
            ConfigError: *how* is none of these.

        Source: dmConnectionPool::Shutdown (Defold).
        """
        return self._doors.shutdown(how)

    def reopen(self) -> None:
        """Undo ``shutdown``: lend again, even if the pool was paused before.

        Loans from before are still closed when they come back.

        Raises:
            PoolClosedError: the pool was closed.
        """
        self._doors.reopen()

    def close(self, timeout: float | None = None) -> int:
        """End the pool: refuse checkouts, fail every waiter at once, close what is idle.

        Args:
            timeout: Seconds to wait for what is lent; those still lent then are
                interrupted. None: neither waits nor interrupts.

        Returns:
            How many are still lent. They are closed when they are given back.
        """
        n_lent = self._doors.close(timeout)
        self._chores.take_leave()
        return n_lent

    # -- looking

    def stats(self) -> PoolStats:
        """Counts that add up, and percentiles."""
        return self._control.picture(pool_stats)

    def endpoints(self) -> tuple[EndpointInfo, ...]:
        """Every endpoint of the route in its order, then pinned ones off the route."""
        return self._control.picture(endpoint_infos)

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Every connection, those being opened and closed included."""
        records, idle, worn_out = self._control.picture(
            lambda books: (list(books.records()), idle_ones(books), worn_out_ones(books))
        )
        names = Names()
        infos = [
            connection_info(r, is_idle=r in idle, is_worn_out=r in worn_out, names=names) for r in records
        ]
        return tuple(info for info in infos if info.state is not ConnState.CLOSED)  # closed meanwhile

    # -- who sends over its route

    def _lead(self, follower: Follower) -> None:
        """Tell *follower* of each new route from now on."""
        flock: Flock[Follower] = self.__dict__.setdefault("_followers", Flock())  # of two that begin, one
        flock.add(follower)

    def _part_with(self, follower: Follower) -> None:
        if self._followers is not None:
            self._followers.discard(follower)

    # -- what upkeep calls

    def _pace(self) -> float | None:
        is_timed = isinstance(self._lender.clock, SystemClock)
        return pause_of(self._lender.config) if is_timed else None

    def _take_turn(self, *, is_leap: bool) -> None:
        self._chores.turn(apart=True, is_leap=is_leap)

    def _close_at_exit(self, until: float) -> None:
        self._doors.close_idle_at_exit()
