"""The pool as its users see it, and the fast path of a checkout."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from threading import TIMEOUT_MAX, get_ident
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from connpool.clock import Clock, SystemClock
from connpool.model.checks import (
    PLAIN_NUMBERS,
    require_flag,
    require_kind,
    require_listeners,
    require_methods,
    require_text,
)
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.events import PoolOpened
from connpool.model.request import Request
from connpool.model.route import Route
from connpool.model.states import PoolState
from connpool.pool.census import disown, keep, watch
from connpool.pool.checkout import Checkout
from connpool.pool.chores import Chores
from connpool.pool.connection import Connection
from connpool.pool.control import Control
from connpool.pool.doors import Doors
from connpool.pool.drops import key_dropped, share_dropped
from connpool.pool.fleet import Missed, Take
from connpool.pool.lending import Lender
from connpool.pool.loose import open_file, run, share
from connpool.pool.observed import observe
from connpool.pool.record import Key
from connpool.pool.shared import SharedConnection, share_at_hand
from connpool.pool.steering import Steering
from connpool.pool.unwinding import drop_keys
from connpool.wire.connector import CallableConnector, Connector, SocketConnector
from connpool.wire.full_connector import adapt

__all__ = ["ConnectionPool"]

T = TypeVar("T")
_numbers: Final = itertools.count(1)  # for pools without a name


class ConnectionPool(Steering):
    """Lends connections to threads, over several endpoints, fairly.

    Nothing is dialled before it is needed. A pool without a route lends only what ``add_connection``
    gives it, and what a request pins. As a context manager it is closed at the end of the block.

    Args:
        route: Where to: ``"a:1, b:1 && c:2 || d:3"``, a Route, an Endpoint, or several of these.
        connector: What opens and closes transports; None: ``SocketConnector()``.
        config: All settings at once; single ones may be given by name besides.
        name: For messages and statistics; None: ``pool-1``, ``pool-2``, ...
        listeners: Called with every event, from ``PoolOpened`` on; see ``listen``.
        clock: What tells the time; None: the machine. For tests; such a pool is swept by hand.
        rng: What jitter is drawn from; None: chance. A seeded one repeats itself, for tests.
        paused: Lend nothing before ``resume``.
        settings: Fields of ``PoolConfig``: ``max_size``, ``checkout_timeout``, ``idle_timeout`` and more.

    Raises:
        ConfigError: a setting is unknown or out of range.
        RouteSyntaxError: the route cannot be read; ``column`` tells where.
    """

    # What every loan reads. In a dictionary it would have to be searched for: that of a listened-to pool
    # holds what the class does not know. The board is read without the lock, and written by ``Books`` alone.
    __slots__ = (
        "_brief_for",
        "_fresh_for",
        "_is_awaited",
        "_lend_until",
        "_lender",
        "_now",
        "_receive",
        "_return_until",
        "_shares_at_hand",
        "_take",
        "name",
    )

    name: str
    _lender: Lender
    _now: Callable[[], float]
    _receive: Callable[[Key, float], None]
    _take: Take  # board: an idle key of the next host, or IndexError
    _fresh_for: float  # seconds of idleness after which a connection is looked at
    _lend_until: float  # from this instant on a checkout takes the long way
    _return_until: float  # from this instant on a return takes the long way
    _brief_for: float  # who held a connection longer lets nobody overtake the oldest waiter
    _is_awaited: bool  # somebody sleeps who must hear of every return
    _shares_at_hand: bool  # a share may be had without the long way
    _when_closed: Callable[[], object] | None = None  # told with no lock held

    def __init__(
        self,
        route: Route | Endpoint | str | Iterable[Endpoint | str] | None = None,
        *,
        connector: Connector | None = None,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Callable[[Any], object]] = (),
        clock: Clock | None = None,
        rng: random.Random | None = None,
        paused: bool = False,
        **settings: Any,
    ) -> None:
        if config is not None:
            require_kind("config", config, PoolConfig)
        self.name = f"pool-{next(_numbers)}" if name is None else require_text("name", name)
        clock = SystemClock() if clock is None else require_methods("clock", clock, "now", "wait")
        self._now = clock.now
        config = PoolConfig.from_settings(**settings) if config is None else config.evolve(**settings)
        full = adapt(SocketConnector() if connector is None else connector)
        self._settle(Lender(self, full, clock, config))
        if rng is not None:
            self._lender.books.rng = require_kind("rng", rng, random.Random)
        for handler in require_listeners(listeners):
            self._control.listen(handler, ())
        where_to = None if route is None else Route.coerce(route)
        if self._lender.listeners.by_kind[PoolOpened]:
            self._lender.listeners.tell(PoolOpened(self.name, self._now(), config.changed()))
        if require_flag("paused", paused):
            self._doors.pause(fail=False)
        self._control.begin_with(where_to)
        keep(self)
        if config.min_idle:
            watch(self, self._now())

    def _settle(self, lender: Lender) -> None:
        self._lender = lender
        self._control = Control(lender)
        self._doors = Doors(lender)
        self._chores = Chores(lender)
        observe(self, is_heard=False, is_tracked=lender.config.track_origin)

    def _start_clean(self) -> None:
        """In a forked child: begin as a new pool; what was open belongs to the parent."""
        old = self._lender
        self._settle(Lender(self, old.connector, old.clock, old.config))
        if old.books.state is PoolState.PAUSED:
            self._doors.pause(fail=old.books.pause_fails)
        elif old.books.state is not PoolState.OPEN:
            self._doors.close(None)
        self._lender.listeners.by_kind = old.listeners.by_kind
        self._control.attend()
        self._control.begin_with(old.books.route)
        disown(old)

    @classmethod
    def of(
        cls,
        open: Callable[[], Any],
        *,
        close: Callable[[Any], object] | None = None,
        is_usable: Callable[[Any], bool] | None = None,
        reset: Callable[[Any], object] | None = None,
        is_fatal: Callable[[Exception], object] | None = None,
        **settings: Any,
    ) -> Self:
        """Pool whatever *open*, called without arguments, returns.

        Args:
            open: Opens one; it runs on a thread of the pool unless ``dial_in_caller`` is set.
            close: Closes one; None: its own ``close`` method, if it has one.
            is_usable: Returns true if one that was idle can still be lent; None: sockets are looked at.
            reset: Makes a returned one ready for the next; False or an exception has it closed.
            is_fatal: Returns true if an exception that left a ``with`` block ends its connection; None: each.
            settings: As for ``ConnectionPool``.
        """
        connector = CallableConnector(open, close, is_usable, reset, is_fatal)
        name = getattr(open, "__qualname__", type(open).__name__)
        return cls(Endpoint.callable(name), connector=connector, **settings)

    # -- lending

    def try_connect(
        self, req: Request | Endpoint | str | None = None, *, timeout: float | None = None
    ) -> Connection:
        """Lend one connection that can serve *req*, to the calling thread alone.

        The most recently released usable connection of the next healthy endpoint, else a new one. An
        endpoint that cannot be dialled is blacklisted, and the next is tried, then the next group, each once.

        Args:
            req: What it is for. A text or an Endpoint pins one address.
            timeout: Seconds for waiting, looking and dialling together; 0 never
                waits for a place. None: that of *req*, else ``checkout_timeout``.

        Returns:
            A connection to be given back exactly once, by ``release`` or
            ``terminate``, or by leaving its ``with`` block.

        Raises:
            CheckoutTimeoutError: *timeout* passed. No endpoint was blacklisted for it.
            PoolExhaustedError: nothing is free, and it may not wait.
            NoEndpointError: every endpoint failed or is blacklisted; see ``causes``.
            ConnectError: the endpoint that *req* pins could not be dialled; that does not blacklist it.
            CancelledError: ``req.cancel`` was set.
            PoolClosedError, PoolPausedError: it is closed, shut down or paused (``fail``), or was meanwhile.

        Locking: none on the fast path; else the pool's lock, never while anything blocks.
        Source: dpl_try_connect (Droplet); dmConnectionPool::Dial (Defold).
        """
        key: Key | None = None
        conn: Connection | None
        turn: int | None = None
        try:
            if req is None and (
                timeout is None or (timeout.__class__ in PLAIN_NUMBERS and 0 <= timeout <= TIMEOUT_MAX)
            ):
                try:
                    take, ask = self._take, self._now  # called as attributes, both would be sought as methods
                    key = take()
                    record = key.record
                    now = ask()
                    if (
                        now < self._lend_until
                        and now - record.since < self._fresh_for
                        and now < record.expires_at
                    ):
                        conn = Connection()
                        conn._record = record
                        conn._key = key
                        record.since = now
                        record.holder = get_ident()
                        record.uses += 1
                        return conn
                except Missed as missed:
                    turn = missed.turn
                except IndexError:
                    pass
            if key is not None:  # its turn was taken with it
                turn = self._lender.books.fleet.turn_of(key.record.host)
            return Checkout(self._lender, Request.of(req), timeout, turn).run(key)
        except BaseException as error:
            drop_keys(error)
            key = conn = None  # a traceback must not keep a key from its finaliser
            raise

    _lend_untold = try_connect  # what a listened-to pool does itself, unless a class below has its own way

    def share(
        self, req: Request | Endpoint | str | None = None, *, timeout: float | None = None
    ) -> SharedConnection:
        """Lend a connection that others may hold at the same time; ``try_connect`` of a shared request.

        One that is idle, else the one that the fewest share, in turn where several are shared alike;
        where ``max_sharers`` hold each, another is opened or waited for.

        Args:
            req: What it is for. A text or an Endpoint pins one address.
            timeout: As for ``try_connect``.

        Returns:
            A share to be given back exactly once. The connection is idle again when the last one is.

        Raises:
            NotSharableError: the pool is not ``sharable``.
            ConnPoolError: as ``try_connect``.

        Source: share_from_pool (evlua).
        """
        if req is None and self._shares_at_hand and (conn := share_at_hand(self, timeout)) is not None:
            return conn
        return share(self._lender, req, timeout)

    def run(
        self,
        work: Callable[[Connection], T],
        req: Request | Endpoint | str | None = None,
        *,
        idempotent: bool = False,
    ) -> T:
        """Call ``work(conn)`` with a connection and give that back. Returns what *work* returns.

        Servers close idle connections. One that was closed before *work* begins is
        replaced; but a server may do so just then. If a connection that was used
        before breaks before a byte of the answer was read, *work* is called once
        more with one that is newly opened.

        Args:
            idempotent: Whether doing *work* twice does no harm; only then is it repeated.

        Raises:
            Exception: what *work* raised, which closes it (see ``is_fatal``). Also as ``try_connect``.

        Source: the stale rule of dmHttpClient (Defold).
        """
        return run(self._lender, work, req, idempotent=idempotent)

    def open_file(self, fd: int) -> Connection:
        """A connection over the open descriptor *fd*: the same input and output, but not one of the pool's.

        It is not counted and never lent again; its ``release`` closes *fd*.

        Source: dpl_conn_open_file (Droplet).
        """
        return open_file(self._lender, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ConnectionPool {self.name!r} to {self.route}: {self._lender.books.summary()}>"

    _key_dropped = key_dropped
    _share_dropped = share_dropped
