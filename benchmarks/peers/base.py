"""What each peer is asked for, and nothing of how it does it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from benchmarks.race import Running, Track

PATIENCE = 30  # seconds that a checkout may wait: as long as ours does unless told otherwise


class Peer(ABC):
    """Somebody else's pool, warm: *size* connections are open and idle.

    Each peer spells out ``spin`` with its own pool's calls, as the floors do, and is
    spared whatever it does not need: no checks, no resets, no pings.

    Args:
        size: How many it may open, and opens.
        open: Makes a connection; it has a ``close``.

    Attributes:
        name: As the tables show it.
        distribution: Of which the version is told; empty: the standard library.
        module: What a program imports to use it.
        waits: Whether a checkout waits while all are lent.
        own_protocol: Why it cannot pool sockets of ours; empty if it can.
        one_per_thread: Whether a thread can hold only one.
        better: In what it is better than ours.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    module: ClassVar[str]
    waits: ClassVar[bool] = True
    own_protocol: ClassVar[str] = ""
    one_per_thread: ClassVar[bool] = False
    better: ClassVar[str]

    def __init__(self, size: int, open: Callable[[], Any] | None = None) -> None:
        self.start(size, open or Stub)
        for handle in [self.get() for _ in range(size)]:
            self.put(handle)

    @abstractmethod
    def start(self, size: int, open: Callable[[], Any]) -> None:
        """Make the pool."""

    @abstractmethod
    def spin(self, running: Running, track: Track) -> None:
        """Borrow and give back while *running*."""

    @abstractmethod
    def get(self) -> Any:
        """Check one out."""

    @abstractmethod
    def put(self, handle: Any) -> None:
        """Give back what ``get`` returned."""

    def raw(self, handle: Any) -> Any:
        """What *open* made."""
        return handle

    def discard(self, handle: Any) -> None:
        """Give back what is broken, so that another is opened in its place."""
        raise NotImplementedError(self.name)

    def take(self) -> Callable[[], object]:
        return partial(self.put, self.get())

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class Stub:
    """A connection to nowhere."""

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing was opened."""
