"""The pool as the benchmarks use it: the only module here that knows its interface."""

import gc
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.race import Running, Track
from connpool import Connection, ConnectionPool

UPKEEP: Mapping[str, Any] = {"keepalive_interval": 0.1, "max_lifetime": 1.0, "reap_interval": 0.05}


class Ours:
    """A pool of dummy connections, warm: all of them are open and idle."""

    is_kept_up = False  # whether the reaper has something to do all the time

    def __init__(self, size: int) -> None:
        self.pool = self.open_pool(size)
        fill(self.pool, size)

    def open_pool(self, size: int) -> ConnectionPool:
        return ConnectionPool.of(object, max_size=size, **self.settings(size))

    @classmethod
    def settings(cls, size: int) -> dict[str, Any]:
        return {"min_idle": size // 2, **UPKEEP} if cls.is_kept_up else {}

    def spin(self, running: Running, track: Track) -> None:
        try_connect = self.pool.try_connect
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = try_connect()
                conn.release()
            track.turns += len(bundle)

    def take(self) -> Callable[[], object]:
        return self.pool.try_connect().release

    def close(self) -> None:
        self.pool.close()


class OursThroughWith(Ours):
    """The same pool, used as it is meant to be used."""

    def spin(self, running: Running, track: Track) -> None:
        try_connect = self.pool.try_connect
        bundle = track.bundle
        while running:
            for _ in bundle:
                with try_connect():
                    pass
            track.turns += len(bundle)


class OursThreeEndpoints(Ours):
    """A pool that goes round robin over three endpoints."""

    def open_pool(self, size: int) -> ConnectionPool:
        route, settings = "a.test:1, b.test:1, c.test:1", self.settings(size)
        return ConnectionPool(route, connector=DummyConnector(), max_size=size, **settings)


class OursListenedTo(Ours):
    """A pool with one listener, which hears every kind of event and does nothing."""

    def open_pool(self, size: int) -> ConnectionPool:
        pool = super().open_pool(size)
        pool.listen(bool)
        return pool


class DummyConnector:
    """Opens what costs nothing; asks no network for the endpoint."""

    def open(self, endpoint: object, timeout: object, cancel: object) -> object:
        return object()


def fill(pool: ConnectionPool, size: int) -> None:
    """Open *size* connections and leave them idle."""
    for conn in [pool.try_connect() for _ in range(size)]:
        conn.release()


def bytes_per_idle_connection(count: int) -> float:
    """What a pool with *count* idle connections keeps for each of them, in bytes.

    What the connector hands out exists before the counting begins, so only the
    pool's own memory is seen; the first connection is opened before it too, so
    that what a pool costs once is not laid on its connections.
    """
    raws = iter([object() for _ in range(count)])
    pool = ConnectionPool.of(raws.__next__, max_size=count)
    fill(pool, 1)
    gc.collect()
    tracemalloc.start()
    try:
        fill(pool, count)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pool.close()
    return kept / (count - 1)


class OursHeld(Ours):
    """The same pool, for a thread that holds on to the connection."""

    def get(self) -> Connection:
        return self.pool.try_connect()

    def put(self, conn: Connection) -> None:
        conn.release()
