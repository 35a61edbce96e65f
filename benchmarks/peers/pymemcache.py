"""pymemcache's ``ObjectPool``: ``get`` and ``release``.

It raises where others wait, so it runs only where there is a connection for each thread.
"""

from collections.abc import Callable
from typing import Any

from pymemcache.pool import ObjectPool

from benchmarks.peers.base import Peer
from benchmarks.race import Running, Track


class Pool(Peer):
    name = "pymemcache"
    distribution = "pymemcache"
    module = "pymemcache.pool"
    waits = False
    better = "it is one short file, and lends the very object that you made"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = ObjectPool(open, max_size=size)

    def spin(self, running: Running, track: Track) -> None:
        get, release = self.pool.get, self.pool.release
        bundle = track.bundle
        while running:
            for _ in bundle:
                item = get()
                release(item)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.get()

    def put(self, handle: Any) -> None:
        self.pool.release(handle)

    def close(self) -> None:
        self.pool.clear()
