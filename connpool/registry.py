"""Named pools, made once each, and where they are looked up."""

from __future__ import annotations

import difflib
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from connpool.clock import now
from connpool.errors import DuplicatePoolError, UnknownPoolError, UsageError
from connpool.model.checks import require_path, require_seconds, require_text
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.route import Route
from connpool.model.states import PoolState
from connpool.model.stats import PoolStats
from connpool.pool.failures import not_sharable
from connpool.pool.flock import Flock, undisturbed
from connpool.pool.pool import ConnectionPool
from connpool.pool.shared import SharedConnection
from connpool.pool.spec import PoolSpec
from connpool.wire.connector import Connector

__all__ = ["Repository", "repository"]


class Entry:
    """A name that is taken: by a pool, or by the thread that is making it."""

    __slots__ = ("made", "maker", "pool", "spec")

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.pool: ConnectionPool | None = None
        self.maker = threading.get_ident()
        self.made: threading.Event | None = threading.Event()  # None: there is nothing to wait for

    def has_ended(self) -> bool:
        """Whether the end of the pool has begun: it will be taken out any moment."""
        return self.pool is not None and self.pool._lender.books.state is PoolState.CLOSED


class Repository:
    """Pools by name. A pool that is closed leaves it.

    A name means something only in its own repository: two of them never mix.

    Args:
        name: For messages.
        defaults: What pools are made with if nothing else is said: ``connector``,
            and any field of ``PoolConfig``.

    Raises:
        ConfigError: a default is unknown or out of range.

    Locking: one re-entrant lock for the names, held for a look-up and never while a pool is made or closed.
    Source: evpoolrepos (evlua).
    """

    def __init__(self, name: str = "default", **defaults: Any) -> None:
        self.name: str = require_text("name", name)
        self._connector: Connector | None = defaults.pop("connector", None)
        self._defaults = PoolConfig.from_settings(**defaults)
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()  # a signal handler or finaliser may ask for a pool in the midst of it
        _ALL.add(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, name: str = "default") -> Self:
        """Make the pools that a file describes. See ``docs/repository.md`` for what it may say.

        Raises:
            ConfigError: one for all that is wrong in it; each line names the file, the table and the key.
            OSError: it cannot be read.
        """
        from connpool.settings_file import read_pools  # noqa: PLC0415 - few programs pay for a TOML parser

        made = cls(name)
        for wanted in read_pools(Path(require_path("path", path))):
            made.new(wanted.name, wanted.route, connector=wanted.connector, **wanted.settings)
        return made

    # -- pools

    def new(
        self,
        name: str,
        route: Route | Endpoint | str | Iterable[Endpoint | str] | None = None,
        *,
        connector: Connector | None = None,
        **settings: Any,
    ) -> ConnectionPool:
        """The pool called *name*: a new one, or the one that was made with the same settings.

        Args:
            route: As for ``ConnectionPool``.
            connector: Compared by identity; None: the repository's.
            settings: Fields of ``PoolConfig``; those not named are the repository's.

        Raises:
            DuplicatePoolError: there is one with other settings; the sentence says which.
            ConfigError: a setting is unknown or out of range.
            UsageError: a listener or connector asks for the pool while that very pool is being made.
        """
        require_text("name", name)
        spec = PoolSpec(
            None if route is None else Route.coerce(route),
            self._defaults.evolve(**settings),
            self._connector if connector is None else connector,
        )
        while True:
            mine = Entry(spec)
            with self._lock:
                entry = self._entries.setdefault(name, mine)  # one step: see ``_lock``
            if entry is mine:
                return self._make(name, mine)
            if entry.has_ended():
                self._forget(name, entry)
                continue
            if differences := entry.spec.differences(spec):
                raise DuplicatePoolError(
                    f"repository {self.name!r} has a pool {name!r} with {differences}", pool=name
                )
            pool = self._wait_for(name, entry)
            if pool is not None:
                return pool

    def _make(self, name: str, entry: Entry) -> ConnectionPool:
        """Make the pool that *entry* has kept the name for."""
        spec, event = entry.spec, entry.made
        assert event is not None
        try:
            pool = ConnectionPool(spec.route, connector=spec.connector, config=spec.config, name=name)
            pool._when_closed = partial(_farewell, weakref.ref(self), name, entry)
            entry.pool = pool  # from here on others find it, and may close it
        except BaseException:
            self._forget(name, entry)
            raise
        finally:
            entry.made = None
            event.set()
        return pool

    def _wait_for(self, name: str, entry: Entry) -> ConnectionPool | None:
        """The pool of *entry*, once it is made. None: that came to nothing."""
        event = entry.made
        if event is not None:
            if entry.maker == threading.get_ident():
                raise UsageError(f"pool {name!r} is being made by this very thread", pool=name)
            event.wait()
        return entry.pool

    def __getitem__(self, name: str) -> ConnectionPool:
        """The pool called *name*.

        Raises:
            UnknownPoolError: there is none; the sentence says the nearest name.
        """
        pool = self._find(name)
        if pool is None:
            near = difflib.get_close_matches(str(name), [*self], n=1, cutoff=0.5)
            hint = f" (the nearest one is {near[0]!r})" if near else ""
            raise UnknownPoolError(f"repository {self.name!r} has no pool {name!r}{hint}", pool=name)
        return pool

    def _find(self, name: str) -> ConnectionPool | None:
        with self._lock:
            entry = self._entries.get(name)
        return None if entry is None or entry.has_ended() else entry.pool

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which the pools were made."""
        return iter([name for name in list(self._entries) if name in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Repository {self.name!r}: {len(self)} pools>"

    # -- connections

    def add_to_pool(self, name: str, raw: Any, endpoint: Endpoint | str | None = None) -> None:
        """Give the pool called *name* a transport that is open already, as idle.

        Raises:
            UnknownPoolError: there is no such pool.
            UsageError: it is closed, or in the pool already; it stays the caller's.
            PoolExhaustedError, PoolClosedError: no place is free; the pool is shut down.

        Source: add_to_pool (evlua).
        """
        self[name].add_connection(raw, endpoint)

    def get_from_pool(self, name: str, req: Request | Endpoint | str | None = None) -> Any:
        """Remove an idle connection of the pool called *name* for good and return its transport.

        Never dials and never waits. Dead ones found on the way are closed. None: none is usable.

        Raises:
            UnknownPoolError: there is no such pool.

        Source: get_from_pool (evlua).
        """
        return self[name].take(req)

    def share_from_pool(self, name: str) -> SharedConnection | None:
        """A share of a connection of the pool called *name*, which stays in it.

        Never dials; waits for another thread's look at what is idle, 0.1 s at most. None: there is nothing.

        Raises:
            UnknownPoolError: there is no such pool.
            NotSharableError: it is not ``sharable``.

        Source: share_from_pool (evlua).
        """
        pool = self[name]
        if not pool.config.sharable:
            raise not_sharable(name)
        return pool._control.stock.share()

    # -- the end

    def remove(self, name: str) -> ConnectionPool:
        """Take the pool called *name* out, open as it is. Returns it.

        Raises:
            UnknownPoolError: there is no such pool.
        """
        pool = self[name]
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.pool is pool:
                self._entries.pop(name, None)
        return pool

    def close(self, timeout: float | None = None) -> int:
        """Close every pool. Pools may be made again after that.

        Args:
            timeout: Seconds for all of them together; see ``ConnectionPool.close``. All refuse checkouts
                at once, whichever is waited for first.

        Returns:
            How many connections are still lent.
        """
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        deadline = None if timeout is None else now() + timeout
        pools = list(filter(None, map(self._find, [*self])))
        left = sum([pool.close() for pool in pools])  # none lends while another is waited for
        if deadline is not None:
            left = sum([pool.close(max(0.0, deadline - now())) for pool in pools])
        return left

    def stats(self) -> dict[str, PoolStats]:
        """The statistics of every pool, by name."""
        pools = [(name, self._find(name)) for name in self]
        return {name: pool.stats() for name, pool in pools if pool is not None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self, name: str, entry: Entry) -> None:
        with self._lock:
            if self._entries.get(name) is entry:
                self._entries.pop(name, None)


class Homes:
    """The repositories of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # as in ``Repository``
        self._made: dict[str, Repository] = {}

    def find(self, name: str) -> Repository:
        with self.lock:
            if name not in self._made:
                self._made.setdefault(name, Repository(name))
            return self._made[name]


def repository(name: str = "default") -> Repository:
    """The process-wide repository called *name*, made once however many threads ask for it."""
    return _HOMES.find(name)


def _farewell(home: weakref.ref[Repository], name: str, entry: Entry) -> None:
    """A pool was closed: its name is free. Keeps no repository alive."""
    owner = home()
    if owner is not None:
        owner._forget(name, entry)


def _start_clean() -> None:
    """In a forked child: locks may be held by threads that are not there, and pools be made by none."""
    _HOMES.lock = threading.RLock()
    for each in _ALL:
        each._lock = threading.RLock()
        each._entries = {name: entry for name, entry in each._entries.items() if entry.pool is not None}


_ALL: Final[Flock[Repository]] = Flock()
_HOMES: Final = Homes()

os.register_at_fork(after_in_child=undisturbed(_start_clean))
