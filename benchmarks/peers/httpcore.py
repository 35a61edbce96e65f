"""httpcore's ``ConnectionPool``: ``handle_request``, and ``close`` of the response.

It lends a connection for one request. ``create_connection`` is overridden, as its proxies do, and makes one
that answers at once and speaks no HTTP, so that what is measured is the pool alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import httpcore

from benchmarks.peers.base import PATIENCE, Peer
from benchmarks.race import Running, Track

URL = httpcore.URL("http://a.test:1/")
TIMEOUT = {"timeout": {"pool": PATIENCE}}


class Body:
    """The end of which is the end of the loan."""

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        self.connection.is_busy = False


class Connection(httpcore.ConnectionInterface):
    """As much of a connection as the pool touches."""

    is_busy = False

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        if self.is_busy:
            raise httpcore.ConnectionNotAvailable
        self.is_busy = True
        return httpcore.Response(200, content=Body(self))

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return True

    def is_available(self) -> bool:
        return not self.is_busy

    def is_idle(self) -> bool:
        return not self.is_busy

    def has_expired(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing was opened."""


class StubPool(httpcore.ConnectionPool):
    """Opens what costs nothing."""

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        return Connection()


class Pool(Peer):
    name = "httpcore"
    distribution = "httpcore"
    module = "httpcore"
    own_protocol = "it pools HTTP connections"
    better = "it speaks HTTP/1.1 and HTTP/2, where requests share a connection, and has an asyncio twin"

    def start(self, size: int, open: Callable[[], Any]) -> None:
        self.pool: Any = StubPool(max_connections=size)

    def spin(self, running: Running, track: Track) -> None:
        handle_request = self.pool.handle_request
        bundle = track.bundle
        while running:
            for _ in bundle:
                response = handle_request(httpcore.Request("GET", URL, extensions=TIMEOUT))
                response.close()
            track.turns += len(bundle)

    def get(self) -> Any:
        return self.pool.handle_request(httpcore.Request("GET", URL, extensions=TIMEOUT))

    def put(self, handle: Any) -> None:
        handle.close()

    def close(self) -> None:
        self.pool.close()
