"""DBUtils' ``PooledDB``: ``connection`` and ``close`` of what it returns.

``blocking=True`` (there is no timeout), ``ping=0`` and ``reset=False``: stubs need neither.
"""

from collections.abc import Callable
from typing import Any

from dbutils.pooled_db import PooledDB

from benchmarks.peers.base import Peer, Stub
from benchmarks.race import Running, Track


class Driver:
    """As much of a DB-API module as PooledDB touches."""

    threadsafety = 1
    OperationalError = InterfaceError = InternalError = OSError

    @staticmethod
    def connect() -> Stub:
        return Stub()


class Pool(Peer):
    name = "DBUtils"
    distribution = "DBUtils"
    module = "dbutils.pooled_db"
    own_protocol = "it pools connections of DB-API drivers"
    better = "it opens a connection anew in the midst of its use, and repeats the statement, for any driver"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = PooledDB(
            Driver, mincached=size, maxcached=size, maxconnections=size, blocking=True, ping=0, reset=False
        )

    def spin(self, running: Running, track: Track) -> None:
        connection = self.pool.connection
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = connection()
                conn.close()
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.connection()

    def put(self, handle: Any) -> None:
        handle.close()

    def close(self) -> None:
        self.pool.close()
