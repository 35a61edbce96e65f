"""urllib3's ``HTTPConnectionPool`` with ``block=True``: ``_get_conn`` and ``_put_conn``.

It has no public checkout: ``urlopen`` borrows, speaks HTTP and gives back in one. The two methods are what
``urlopen`` calls; leaving HTTP out favours it. The stub connection is connected whenever it is asked.
"""

from collections.abc import Callable
from typing import Any

from urllib3 import HTTPConnectionPool

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track


class Connection:
    """As much of urllib3's connection as its pool touches."""

    is_connected = True

    def __init__(self, **options: Any) -> None:
        """It goes nowhere."""

    def close(self) -> None:
        """Nothing was opened."""


class Pool(Peer):
    name = "urllib3"
    distribution = "urllib3"
    module = "urllib3"
    own_protocol = "it pools HTTP connections"
    better = "it speaks HTTP: retries, redirects, proxies and a pool for each host come with it"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = HTTPConnectionPool("a.test", 1, maxsize=size, block=True)
        self.pool.ConnectionCls = Connection

    def spin(self, running: Running, track: Track) -> None:
        get_conn, put_conn = self.pool._get_conn, self.pool._put_conn
        bundle = track.bundle
        while running:
            for _ in bundle:
                conn = get_conn(PATIENCE)
                put_conn(conn)
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool._get_conn(PATIENCE)

    def put(self, handle: Any) -> None:
        self.pool._put_conn(handle)

    def close(self) -> None:
        self.pool.close()
