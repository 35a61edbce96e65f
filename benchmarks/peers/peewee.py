"""peewee's ``PooledDatabase``: ``connect`` and ``close``, over a database that opens stubs.

It lends at most one connection to each thread, and keeps it in a thread's own state: a thread cannot hold
two, nor hand one on.
"""

from collections.abc import Callable
from typing import Any

import peewee
from playhouse.pool import PooledDatabase

from benchmarks.peers.base import PATIENCE, Peer, Stub
from benchmarks.race import Running, Track


class StubDatabase(peewee.Database):
    """Opens what costs nothing."""

    def _connect(self) -> Any:
        return Stub()


class PooledStubDatabase(PooledDatabase, StubDatabase):
    """As peewee's own pooled databases are made."""


class Pool(Peer):
    name = "peewee"
    distribution = "peewee"
    module = "playhouse.pool"
    own_protocol = "it pools connections of peewee's databases"
    one_per_thread = True
    better = "it belongs to the ORM: a thread's queries find the thread's connection by themselves"

    def __init__(self, size: int, open: Callable[[], Any] | None = None) -> None:
        self.start(size, open or Stub)  # one thread cannot open them all: each is opened when it is needed

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = PooledStubDatabase("stub", max_connections=size, timeout=PATIENCE)

    def spin(self, running: Running, track: Track) -> None:
        connect, close = self.pool.connect, self.pool.close
        bundle = track.bundle
        while running:
            for _ in bundle:
                connect()
                close()
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.connect()

    def put(self, handle: Any) -> None:
        self.pool.close()

    def close(self) -> None:
        self.pool.close_idle()
