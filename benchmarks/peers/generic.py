"""generic-connection-pool's ``threading.ConnectionPool`` with one endpoint: ``acquire`` and ``release``.

Without its background collector, and with ``min_idle`` as large as the pool, so that nothing is ever closed.
"""

from collections.abc import Callable
from typing import Any

from generic_connection_pool.threading import BaseConnectionManager, ConnectionPool

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track

ENDPOINT = "a.test"


class Manager(BaseConnectionManager):
    """Opens what it was told to."""

    def __init__(self, open: Callable[[], Any]) -> None:
        self.open = open

    def create(self, endpoint: str, timeout: float | None = None) -> Any:
        return self.open()

    def dispose(self, endpoint: str, conn: Any, timeout: float | None = None) -> None:
        conn.close()

    def check_aliveness(self, endpoint: str, conn: Any, timeout: float | None = None) -> bool:
        return bool(conn.fileno() != -1)


class Pool(Peer):
    name = "generic-connection-pool"
    distribution = "generic-connection-pool"
    module = "generic_connection_pool.threading"
    better = "it has an asyncio twin, and limits per endpoint and in all that may be exceeded for a while"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = ConnectionPool(
            Manager(open), acquire_timeout=PATIENCE, min_idle=size, max_size=size, total_max_size=size
        )

    def spin(self, running: Running, track: Track) -> None:
        acquire, release = self.pool.acquire, self.pool.release
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = acquire(ENDPOINT)
                release(conn, ENDPOINT)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.acquire(ENDPOINT)

    def put(self, handle: Any) -> None:
        self.pool.release(handle, ENDPOINT)

    def discard(self, handle: Any) -> None:
        handle.close()
        self.pool.release(handle, ENDPOINT)  # the next checkout finds it closed

    def close(self) -> None:
        self.pool.close()
