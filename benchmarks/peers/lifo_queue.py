"""``queue.LifoQueue``, as people write a pool by hand.

A queue with one entry for each place, None where nothing was opened yet; ``get`` with a
timeout, and ``put``. It checks nothing, counts nothing, and cannot be closed.
"""

import queue
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track


class Pool(Peer):
    name = "queue.LifoQueue"
    distribution = ""
    module = "queue"
    better = "it is in the standard library, and ten lines that everybody understands"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.open = open
        self.pool: queue.LifoQueue[Any] = queue.LifoQueue(size)
        for _ in range(size):
            self.pool.put(None)

    def spin(self, running: Running, track: Track) -> None:
        get, put = self.pool.get, self.pool.put
        bundle = track.bundle
        while running:
            for _ in bundle:
                item = get(timeout=PATIENCE)
                put(item)
            track.turns += len(bundle)

    def get(self) -> Any:
        item = self.pool.get(timeout=PATIENCE)
        if item is not None:
            return item
        try:
            return self.open()
        except BaseException:
            self.pool.put(None)
            raise

    def put(self, handle: Any) -> None:
        self.pool.put(handle)

    def discard(self, handle: Any) -> None:
        handle.close()
        self.pool.put(None)

    def close(self) -> None:
        while not self.pool.empty():
            item = self.pool.get_nowait()
            if item is not None:
                item.close()
