"""SQLAlchemy's ``QueuePool``: ``connect`` and ``close`` of what it returns.

``max_overflow=0``, so that the size is the limit, and ``reset_on_return=None``, because stubs
have no transactions to roll back. Without an engine: only the pool is measured.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy.pool import QueuePool

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track


class Pool(Peer):
    name = "SQLAlchemy"
    distribution = "SQLAlchemy"
    module = "sqlalchemy.pool"
    better = "it belongs to the ORM: events, resets and invalidation of database connections come with it"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool = QueuePool(open, pool_size=size, max_overflow=0, timeout=PATIENCE, reset_on_return=None)

    def spin(self, running: Running, track: Track) -> None:
        connect = self.pool.connect
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = connect()
                conn.close()
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.connect()

    def put(self, handle: Any) -> None:
        handle.close()

    def raw(self, handle: Any) -> Any:
        return handle.dbapi_connection

    def discard(self, handle: Any) -> None:
        handle.invalidate()
        handle.close()

    def close(self) -> None:
        self.pool.dispose()
