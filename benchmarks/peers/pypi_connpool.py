"""The project called ``connpool`` on PyPI, which has our import name: ``acquire`` and ``release``.

Only for an interpreter in whose environment that project is installed instead of ours; see
``benchmarks/peers/apart.py``. Its background maintenance is not started.
"""

from collections.abc import Callable
from typing import Any

import connpool
from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track

theirs: Any = connpool  # another package than the one that type checkers find
if not hasattr(theirs, "BreakerConfig"):
    raise ImportError("this connpool is ours")


class Pool(Peer):
    name = "connpool of PyPI"
    distribution = "connpool"
    module = "connpool"
    better = "it has an asyncio twin, a circuit breaker and retries, and needs no other package"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        config = theirs.PoolConfig(max_size=size, acquire_timeout=float(PATIENCE))
        self.pool: Any = theirs.ConnectionPool.from_callables(open, config=config)

    def spin(self, running: Running, track: Track) -> None:
        acquire, release = self.pool.acquire, self.pool.release
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = acquire()
                release(conn)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.acquire()

    def put(self, handle: Any) -> None:
        self.pool.release(handle)

    def discard(self, handle: Any) -> None:
        self.pool.release(handle, discard=True)

    def close(self) -> None:
        self.pool.close()
