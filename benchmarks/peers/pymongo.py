"""pymongo's ``Pool``: ``with pool.checkout()``, or its two halves where a thread holds on to the connection.

Its pool is no public class; a ``MongoClient`` cannot be had without a server. A subclass makes connections
over a stub instead of dialling; all of lending and taking back is pymongo's own. Nobody listens to events.
"""

from collections.abc import Callable
from typing import Any

from pymongo.pool_options import PoolOptions
from pymongo.synchronous.pool import Connection
from pymongo.synchronous.pool import Pool as MongoPool

from benchmarks.peers.base import PATIENCE, Peer, Stub
from benchmarks.race import Running, Track

ADDRESS = ("a.test", 1)


class StubConnection(Connection):
    """As good as open, when it is looked at after a second's rest."""

    def conn_closed(self) -> bool:
        return False


class StubPool(MongoPool):
    """Opens what costs nothing."""

    def connect(self, handler: Any = None) -> Any:
        with self.lock:
            number = self.next_connection_id
            self.next_connection_id += 1
        stub: Any = Stub()
        return StubConnection(stub, self, ADDRESS, number, True)


class Pool(Peer):
    name = "pymongo"
    distribution = "pymongo"
    module = "pymongo"
    own_protocol = "it pools MongoDB's connections"
    better = "it speaks MongoDB, knows which member of a replica set to ask, and has an asyncio twin"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        options = PoolOptions(max_pool_size=size, wait_queue_timeout=PATIENCE, pause_enabled=False)
        self.pool: Any = StubPool(ADDRESS, options, is_sdam=True)

    def spin(self, running: Running, track: Track) -> None:
        checkout = self.pool.checkout
        bundle = track.bundle
        while running:
            for _ in bundle:
                with checkout():
                    pass
            track.turns += len(bundle)

    def get(self) -> Any:
        loan = self.pool.checkout()
        loan.__enter__()
        return loan

    def put(self, handle: Any) -> None:
        handle.__exit__(None, None, None)

    def close(self) -> None:
        self.pool.close()
