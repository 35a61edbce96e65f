"""Other people's pools, each through its public interface, and each in a file that says how.

``PEERS`` is the way to add one: a file with a class ``Pool``, and a line here.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module, metadata

from attrs import frozen

from benchmarks.peers.apart import Apart
from benchmarks.peers.base import Peer
from benchmarks.race import Elsewhere

PEERS: Mapping[str, str] = {
    "queue.LifoQueue": "lifo_queue",
    "SQLAlchemy": "sqlalchemy",
    "psycopg_pool": "psycopg_pool",
    "redis-py": "redis",
    "urllib3": "urllib3",
    "pymongo": "pymongo",
    "pymemcache": "pymemcache",
    "DBUtils": "dbutils",
    "generic-connection-pool": "generic",
    "peewee": "peewee",
    "httpcore": "httpcore",
}


@frozen
class Missing:
    """A peer that cannot be had here."""

    name: str
    why: str


@cache
def find(name: str) -> type[Peer] | Missing:
    """The peer, or why it cannot be had."""
    try:
        found: type[Peer] = import_module(f"benchmarks.peers.{PEERS[name]}").Pool
    except ImportError as error:
        return Missing(name, f"not installed ({error})")
    return found


def here() -> dict[str, type[Peer]]:
    """Those that are installed, by name."""
    return {name: peer for name in PEERS if not isinstance(peer := find(name), Missing)}


def is_peer(name: str) -> bool:
    return name in PEERS or name == Apart.name


def waits_when_full(name: str) -> bool:
    """Whether a checkout from that peer waits while all is lent."""
    peer = find(name) if name in PEERS else None
    return not isinstance(peer, Missing) and (peer is None or peer.waits)


def lenders(*, must_wait: bool) -> dict[str, Callable[[int], Peer | Elsewhere]]:
    """What opens a pool of so many connections, for each peer that is here."""
    found: dict[str, Callable[[int], Peer | Elsewhere]] = {
        name: peer for name, peer in here().items() if peer.waits or not must_wait
    }
    return found | ({Apart.name: Apart} if Apart.python is not None else {})


def versions() -> dict[str, str]:
    """The version of each, or why it is missing."""
    told = {}
    for name in PEERS:
        peer = find(name)
        if isinstance(peer, Missing):
            told[name] = peer.why
        elif peer.distribution:
            told[name] = metadata.version(peer.distribution)
    told[Apart.name] = Apart.version() if Apart.python is not None else Apart.why_missing
    return told
