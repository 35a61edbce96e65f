"""The pool as its users see it, and the fast path of a checkout."""

from __future__ import annotations

import itertools
import socket
import warnings
from collections.abc import Callable, Iterable
from threading import get_ident
from types import TracebackType
from typing import Any, Final, TypeVar

from connpool.clock import Clock, SystemClock
from connpool.errors import ConfigError
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.route import Route
from connpool.model.stats import ConnectionInfo, EndpointInfo, PoolStats
from connpool.pool.census import POOLS, disown
from connpool.pool.checkout import Checkout
from connpool.pool.connection import Connection
from connpool.pool.control import Control
from connpool.pool.hosts import Missed, Take
from connpool.pool.lending import Lender
from connpool.pool.loose import open_file, run
from connpool.pool.record import Key, Phase, Record
from connpool.pool.snapshots import connection_info, endpoint_infos, idle_ones, pool_stats
from connpool.wire.connector import CallableConnector, Connector, SocketConnector, adapt

__all__ = ["ConnectionPool"]

T = TypeVar("T")
_numbers: Final = itertools.count(1)  # for pools without a name


class ConnectionPool:
    """Lends connections to threads, over several endpoints, fairly.

    Nothing is dialled before it is needed. A pool without a route lends only
    what ``add_connection`` gives it. As a context manager it is closed at the
    end of the block.

    Args:
        route: Where to: ``"a:1, b:1 && c:2 || d:3"``, a Route, an Endpoint, or several of these.
        connector: What opens and closes transports; None: ``SocketConnector()``.
        config: All settings at once; single ones may be given by name besides.
        name: For messages and statistics; None: ``pool-1``, ``pool-2``, ...
        clock: What tells the time; None: the machine. For tests.
        settings: Fields of ``PoolConfig``.

    Raises:
        ConfigError: a setting is unknown or out of range.
        RouteSyntaxError: the route cannot be read; ``column`` tells where.
    """

    _take: Take
    _fresh_for: float
    _lend_until: float
    _return_until: float
    _is_awaited: bool

    def __init__(
        self,
        route: Route | Endpoint | str | Iterable[Endpoint | str] | None = None,
        *,
        connector: Connector | None = None,
        config: PoolConfig | None = None,
        name: str | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigError(f"config must be a PoolConfig, got {config!r}")
        self.name = f"pool-{next(_numbers)}" if name is None else name
        clock = SystemClock() if clock is None else clock
        self._now = clock.now
        config = PoolConfig.from_settings(**settings) if config is None else config.evolve(**settings)
        full = adapt(SocketConnector() if connector is None else connector)
        self._settle(Lender(self, full, clock, config), None if route is None else Route.coerce(route))
        POOLS.add(self)

    def _settle(self, lender: Lender, route: Route | None) -> None:
        self._lender = lender
        self._control = Control(lender)
        self._control.follow(route)

    def _start_clean(self) -> None:
        """In a forked child: begin as a new pool; what was open belongs to the parent."""
        old = self._lender
        self._settle(Lender(self, old.connector, old.clock, old.config), old.books.route)
        disown(old)

    @classmethod
    def of(
        cls,
        open: Callable[[], Any],
        *,
        close: Callable[[Any], object] | None = None,
        is_usable: Callable[[Any], bool] | None = None,
        reset: Callable[[Any], object] | None = None,
        **settings: Any,
    ) -> ConnectionPool:
        """Pool whatever *open*, called without arguments, returns.

        Args:
            open: Opens one; it runs on a thread of the pool unless ``dial_in_caller`` is set.
            close: Closes one; None: its own ``close`` method, if it has one.
            is_usable: Whether one that was idle can still be lent; None: sockets are looked at.
            reset: Makes a returned one ready for the next; False or an exception closes it.
            settings: As for ``ConnectionPool``.
        """
        connector = CallableConnector(open, close=close, is_usable=is_usable, reset=reset)
        name = getattr(open, "__qualname__", type(open).__name__)
        return cls(Endpoint.callable(name), connector=connector, **settings)

    # -- lending

    def try_connect(
        self, req: Request | Endpoint | str | None = None, *, timeout: float | None = None
    ) -> Connection:
        """Lend one connection that can serve *req*, to the calling thread alone.

        The most recently released usable connection of the next healthy endpoint,
        else a new one. An endpoint that cannot be dialled is blacklisted, and the
        next is tried, then the next group; each at most once.

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
            ConnectError: the endpoint that *req* pins could not be dialled.
            CancelledError: ``req.cancel`` was set.
            PoolClosedError: the pool is closed or shut down, or was meanwhile.

        Locking: none on the fast path; else the pool's lock, never while anything blocks.
        Source: dpl_try_connect (Droplet); dmConnectionPool::Dial (Defold).
        """
        key: Key | None = None
        conn: Connection | None = None
        turn: int | None = None
        try:
            if req is None:
                try:
                    key = self._take()
                    record = key.record
                    now = self._now()
                    if (
                        now < self._lend_until
                        and now - record.since < self._fresh_for
                        and now < record.expires_at
                    ):
                        conn = Connection()
                        conn._key = key
                        record.since = now
                        record.holder = get_ident()
                        record.uses += 1
                        return conn
                except Missed as missed:
                    turn = missed.turn
                except IndexError:
                    pass
            return Checkout(self._lender, Request.of(req), timeout, turn).run(key)
        except BaseException:
            key = conn = None  # a traceback must not keep a key from its finaliser
            raise

    def run(
        self,
        work: Callable[[Connection], T],
        req: Request | Endpoint | str | None = None,
        *,
        idempotent: bool = False,
    ) -> T:
        """Call ``work(conn)`` with a connection and give that back. Returns what *work* returns.

        Servers close idle connections, and one may do so just when it is lent.
        If a connection that was used before breaks before a byte of the answer
        was read, *work* is called once more with one that is newly opened.

        Args:
            idempotent: Whether doing *work* twice does no harm; only then is it repeated.

        Raises:
            Exception: what *work* raised; the connection is closed then. Also as ``try_connect``.

        Source: the stale rule of dmHttpClient (Defold).
        """
        return run(self._lender, work, Request.of(req), idempotent=idempotent)

    def open_file(self, fd: int) -> Connection:
        """A connection over the open descriptor *fd*: the same input and output, not counted, never lent again.

        Its ``release`` closes *fd*.

        Source: dpl_conn_open_file (Droplet).
        """
        return open_file(self._lender, fd)

    def add_connection(self, raw: Any, endpoint: Endpoint | str | None = None) -> None:
        """Take in a transport that is open already, as idle.

        Args:
            endpoint: Where it leads; None: the route's only endpoint, or nowhere in particular,
                and then it serves every checkout that pins nothing.

        Raises:
            UsageError: it is closed, or in the pool already; it stays the caller's.
            PoolExhaustedError: no place is free.
            PoolClosedError: the pool is closed or shut down.

        Source: add_to_pool (evlua).
        """
        self._control.adopt(raw, None if endpoint is None else Endpoint.of(endpoint))

    def take(self, req: Request | Endpoint | str | None = None) -> Any:
        """Remove an idle connection for good and return its transport; None: none is usable.

        Never dials and never waits. Dead ones found on the way are closed.

        Source: get_from_pool (evlua).
        """
        return self._control.take(Request.of(req))

    # -- steering

    @property
    def route(self) -> Route | None:
        """Where to. Setting it takes effect at once.

        Connections to endpoints that stay keep serving; those to the others are
        closed, lent ones when they come back.
        """
        return self._lender.books.route

    @route.setter
    def route(self, route: Route | Endpoint | str | Iterable[Endpoint | str] | None) -> None:
        self._control.follow(None if route is None else Route.coerce(route))

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

    def resize(self, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the limits. Idle connections too many are closed now, lent ones when they come back."""
        given = {"max_size": max_size, "min_idle": min_idle}
        self._control.configure({name: value for name, value in given.items() if value is not None})

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
        """Close what has expired and recover what was lost. Returns how many connections that were."""
        return self._control.sweep()

    # -- the end

    def shutdown(self, how: int = socket.SHUT_RDWR) -> int:
        """Cut off every loan: blocked input and output in other threads ends, and so do dials.

        New checkouts are refused, waiters fail at once. Idle connections stay.

        Returns:
            How many are lent or being opened; call again until it is 0.

        Source: dmConnectionPool::Shutdown (Defold).
        """
        return self._control.shutdown(how)

    def reopen(self) -> None:
        """Undo ``shutdown``. Loans from before are still closed when they come back.

        Raises:
            PoolClosedError: the pool was closed.
        """
        self._control.reopen()

    def close(self, timeout: float | None = None) -> int:
        """End the pool: refuse checkouts, fail every waiter at once, close what is idle.

        Args:
            timeout: Seconds to wait for what is lent; those still lent then are
                interrupted. None: neither waits nor interrupts.

        Returns:
            How many are still lent. They are closed when they are given back.
        """
        return self._control.close(timeout)

    def __enter__(self) -> ConnectionPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- looking

    def stats(self) -> PoolStats:
        """Counts that add up, and percentiles."""
        return self._control.picture(pool_stats)

    def endpoints(self) -> tuple[EndpointInfo, ...]:
        """Every endpoint of the route in its order, then pinned ones off the route."""
        return self._control.picture(endpoint_infos)

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Every connection, those being opened and closed included."""
        records, idle = self._control.picture(lambda books: (list(books.records()), idle_ones(books)))
        return tuple(connection_info(record, is_idle=record in idle) for record in records)

    def __repr__(self) -> str:
        return f"<ConnectionPool {self.name!r} to {self.route}: {self._lender.books.summary()}>"

    def _key_dropped(self, record: Record) -> None:
        """A finaliser's report; it may come at any moment, in any thread, so it takes no lock."""
        if any(key.record is record for key in record.host.idle.copy()):
            self._lender.dialler.close_forgotten(record)  # the pool itself is being collected
            return
        self._lender.books.lost.append(record)
        self._lender.nudge()
        if record.phase is Phase.OPEN and record.fate is None:
            held = self._now() - record.since
            warnings.warn(
                f"connection {record.id} of pool {self.name!r} to {record.host.endpoint} was never given back:"
                f" it was dropped {held:.1f} s after thread {record.holder} took it",
                ResourceWarning,
                stacklevel=2,
                source=record.raw,
            )
