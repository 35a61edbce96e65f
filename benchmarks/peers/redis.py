"""redis-py's ``BlockingConnectionPool``: ``get_connection`` and ``release``, with a stub connection class.

The stub is connected and has nothing to read, so that the look of every checkout costs next to nothing.
"""

import os
from collections.abc import Callable
from typing import Any

from redis import BlockingConnectionPool

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track


class Connection:
    """As much of redis-py's connection as its pool touches."""

    def __init__(self, **options: Any) -> None:
        self.pid = os.getpid()

    def connect(self) -> None:
        """It is."""

    def disconnect(self, *reason: Any) -> None:
        """Nothing was opened."""

    def can_read(self, timeout: float = 0) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False


class Pool(Peer):
    name = "redis-py"
    distribution = "redis"
    module = "redis"
    own_protocol = "it pools redis-py's connections"
    better = "it looks at each connection before it lends it, and speaks Redis: clusters, sentinels and all"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = BlockingConnectionPool(
            max_connections=size, timeout=PATIENCE, connection_class=Connection
        )

    def spin(self, running: Running, track: Track) -> None:
        get_connection, release = self.pool.get_connection, self.pool.release
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = get_connection()
                release(conn)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.get_connection()

    def put(self, handle: Any) -> None:
        self.pool.release(handle)

    def close(self) -> None:
        self.pool.disconnect()
