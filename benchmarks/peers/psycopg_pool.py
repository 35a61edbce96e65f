"""psycopg_pool's ``ConnectionPool``: ``getconn`` and ``putconn``, with a stub for psycopg's connection class.

The stub says that it is idle whenever it is asked for its transaction's state, so that nothing is
rolled back. ``min_size`` is ``max_size``: its workers have opened all before the race begins.
"""

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track


class Idle:
    transaction_status = psycopg.pq.TransactionStatus.IDLE


class Connection:
    """As much of psycopg's connection as its pool touches."""

    pgconn = Idle()
    closed = False

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> "Connection":
        return cls()

    def close(self) -> None:
        """Nothing was opened."""


class Pool(Peer):
    name = "psycopg_pool"
    distribution = "psycopg-pool"
    module = "psycopg_pool"
    own_protocol = "it pools psycopg's connections"
    better = "it serves as fairly as ours, comes with psycopg, and has an asyncio twin"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = ConnectionPool(
            connection_class=Connection, min_size=size, max_size=size, timeout=PATIENCE, open=True
        )
        self.pool.wait()

    def spin(self, running: Running, track: Track) -> None:
        getconn, putconn = self.pool.getconn, self.pool.putconn
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = getconn()
                putconn(conn)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.getconn()

    def put(self, handle: Any) -> None:
        self.pool.putconn(handle)

    def close(self) -> None:
        self.pool.close()
