"""A spool in memory."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Final, Literal, TypeAlias

from connpool import clock
from connpool.delivery.limits import Limits, Teller
from connpool.delivery.spool import SpoolCount, Spooled, check_put
from connpool.errors import SpoolError, UsageError
from connpool.pool.flock import Flock
from connpool.pool.listeners import Handler

__all__ = ["MemorySpool"]

Copy: TypeAlias = tuple[str, Spooled]  # what goes to the tail of which queue

_position: Final = attrgetter("position")


class _Queue:
    """One queue in memory. What waits is the truth, ``bytes`` is kept beside it."""

    __slots__ = ("bytes", "dropped", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: OrderedDict[int, Spooled] = OrderedDict()  # by position, ascending
        self.bytes = 0
        self.dropped = 0


class MemorySpool:
    """A spool that is lost with the process.

    Args:
        max_messages: Most messages in all its queues together; None: no limit.
        max_bytes: Most bytes of messages in all its queues together; None: no limit.
        max_age: Seconds after which a message is dropped; None: never.
        on_full: ``"drop-oldest"``: a new message takes the place of the oldest
            that nobody has claimed. ``"raise"``: it is refused.
        listener: Called with a ``MessagesDropped`` for each queue that a limit cost
            messages, on the thread that noticed, with no lock held.

    Raises:
        ConfigError: an argument is out of range.

    Locking: one lock, for work in memory only.
    """

    def __init__(
        self,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        max_age: float | None = None,
        on_full: Literal["drop-oldest", "raise"] = "drop-oldest",
        *,
        listener: Handler | None = None,
    ) -> None:
        self._limits = Limits(
            max_messages=max_messages, max_bytes=max_bytes, max_age=max_age, on_full=on_full
        )
        self._is_limited = self._limits.are_any or max_age is not None
        self._teller = Teller("in memory", listener)
        self._is_closed = False
        self._start_clean()
        _ALL.add(self)

    def _start_clean(self) -> None:
        """Begin anew: in a forked child the messages are the parent's."""
        self._lock = threading.RLock()  # guards all below; re-entrant only to be turned away
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._queues: dict[str, _Queue] = {}
        self._homes: dict[int, _Queue] = {}  # where each position is
        self._claimed: set[int] = set()
        self._numbers = itertools.count(1)

    def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
        check_put(queues, message, id)
        now = clock.wall()
        self._require_outside()
        with self._lock:
            self._require_open()
            copies = [(name, Spooled(next(self._numbers), id, message, now)) for name in queues]
            positions = [copy.position for _, copy in copies]
            if not self._is_limited:
                self._exchange_locked(copies, ())
                return positions
            doomed = self._expired_locked(now)
            evicted = self._evicted_locked(doomed, len(copies), len(message))
            if evicted is None:
                dropped = self._drop_locked(doomed)
            else:
                dropped = self._drop_locked(doomed + evicted, copies)
            held = self._held_locked()
        self._teller.tell_dropped(dropped)
        if evicted is None:
            raise self._limits.full("in memory", *held, len(copies), len(message))
        return positions

    def peek(self, queue: str, max_messages: int, max_bytes: int) -> Sequence[Spooled]:
        oldest: list[Spooled] = []
        size = 0
        self._require_outside()
        with self._lock:
            self._require_open()
            home = self._queues.get(queue)
            if not self._is_limited:  # then nothing has to be claimed
                return _oldest(home, max_messages, max_bytes) if home else []
            now = clock.wall()
            dropped = self._drop_locked(self._expired_locked(now))
            for item in home.waiting.values() if home else ():
                if self._limits.is_expired(item.spooled_at, now) and item.position not in self._claimed:
                    continue  # moved here when it was old; it is dropped when it comes to the head
                size += len(item.message)
                if oldest and (len(oldest) >= max_messages or size > max_bytes):
                    break
                oldest.append(item)
            self._claimed.update([item.position for item in oldest])
        self._teller.tell_dropped(dropped)
        return oldest

    def remove(self, positions: Sequence[int]) -> None:
        self._require_outside()
        with self._lock:
            self._require_open()
            self._exchange_locked((), positions)

    def release(self, positions: Sequence[int]) -> None:
        self._require_outside()
        with self._lock:
            self._require_open()
            self._claimed.difference_update(positions)

    def move(self, source: str, targets: Sequence[str], max_messages: int) -> int:
        self._require_outside()
        with self._lock:
            self._require_open()
            home = self._queues.get(source)
            leaving = list(itertools.islice(home.waiting.values(), max_messages)) if home else []
            copies = [
                (name, Spooled(next(self._numbers), item.id, item.message, item.spooled_at))
                for item in leaving
                for name in targets
            ]
            self._exchange_locked(copies, [item.position for item in leaving])
        return len(leaving)

    def count(self, queue: str) -> int:
        self._require_open()
        home = self._queues.get(queue)
        return len(home.waiting) if home else 0

    def counts(self) -> Mapping[str, SpoolCount]:
        self._require_outside()
        with self._lock:
            self._require_open()
            return {
                name: SpoolCount(len(queue.waiting), queue.bytes, queue.dropped)
                for name, queue in self._queues.items()
                if queue.waiting or queue.dropped
            }

    def adopt(self) -> Mapping[str, int]:
        """Nothing: nobody else has been here. What has grown too old is dropped."""
        self._require_outside()
        with self._lock:
            self._require_open()
            dropped = self._drop_locked(self._expired_locked(clock.wall()))
        self._teller.tell_dropped(dropped)
        self._teller.log_dropped(clock.now())
        return {}

    def report_to(self, listener: Handler) -> None:
        """Tell *listener*, too, of what happens; its broadcaster asks for that, on behalf of the pool's."""
        self._teller.report_to(listener)

    def close(self) -> None:
        """Give no more out and take no more in. What it holds is lost."""
        self._require_outside()
        with self._lock:
            self._is_closed = True
            self._queues, self._homes, self._claimed = {}, {}, set()
        self._teller.log_dropped(clock.now(), is_last=True)

    def _require_outside(self) -> None:
        """Turn away a signal handler or finaliser that runs in the midst of a call of this very thread."""
        if self._is_inside():
            raise UsageError("the spool in memory is used from within a call to it")

    def _require_open(self) -> None:
        if self._is_closed:
            raise SpoolError("the spool in memory is closed")

    # -- with the lock held

    def _held_locked(self) -> tuple[int, int]:
        """How many messages there are, and their bytes."""
        return len(self._homes), sum(queue.bytes for queue in self._queues.values())

    def _expired_locked(self, now: float) -> list[Spooled]:
        """What is too old, at the head of each queue."""
        if self._limits.max_age is None:
            return []
        return [
            item
            for queue in self._queues.values()
            for item in itertools.takewhile(
                lambda item: self._limits.is_expired(item.spooled_at, now), self._unclaimed_locked(queue)
            )
        ]

    def _unclaimed_locked(self, queue: _Queue) -> Iterator[Spooled]:
        return (item for position, item in queue.waiting.items() if position not in self._claimed)

    def _evicted_locked(self, doomed: Sequence[Spooled], copies: int, each: int) -> list[Spooled] | None:
        """What must go, besides the *doomed*, for *copies* of *each* bytes; None: there cannot be room."""
        messages, size = self._held_locked()
        messages += copies - len(doomed)
        size += copies * each - sum(len(item.message) for item in doomed)
        heads = map(self._unclaimed_locked, self._queues.values())
        gone = {item.position for item in doomed}
        oldest = (item for item in heapq.merge(*heads, key=_position) if item.position not in gone)
        evicted: list[Spooled] = []
        while not self._limits.holds(messages, size):
            item = next(oldest, None) if self._limits.may_drop else None
            if item is None:
                return None
            evicted.append(item)
            messages, size = messages - 1, size - len(item.message)
        return evicted

    def _drop_locked(self, doomed: Sequence[Spooled], copies: Sequence[Copy] = ()) -> Counter[str]:
        """Let *copies* take the place of what a limit costs; returns how many that is of each queue."""
        dropped = Counter(self._homes[item.position].name for item in doomed)
        for name, messages in dropped.items():
            self._queues[name].dropped += messages
        self._exchange_locked(copies, [item.position for item in doomed])
        return dropped

    def _exchange_locked(self, copies: Sequence[Copy], leaving: Sequence[int]) -> None:
        """Add all *copies* and take all *leaving* positions out, or neither if it is interrupted before."""
        is_added = False
        queues, homes = self._queues, self._homes
        try:
            for name, copy in copies:
                home = queues.get(name) or queues.setdefault(name, _Queue(name))
                home.waiting[copy.position] = copy
                home.bytes += len(copy.message)
                homes[copy.position] = home
            is_added = True
            for position in leaving:
                left = homes.pop(position, None)
                if left is not None:
                    left.bytes -= len(left.waiting.pop(position).message)
            self._claimed.difference_update(leaving)
        except BaseException:
            gone = leaving if is_added else [copy.position for _, copy in copies]
            for home in self._queues.values():
                for position in gone:
                    home.waiting.pop(position, None)
            self._recount_locked()
            raise

    def _recount_locked(self) -> None:
        self._homes = {position: queue for queue in self._queues.values() for position in queue.waiting}
        self._claimed.intersection_update(self._homes)
        for queue in self._queues.values():
            queue.bytes = sum(len(item.message) for item in queue.waiting.values())


def _oldest(queue: _Queue, max_messages: int, max_bytes: int) -> list[Spooled]:
    """The oldest of *queue* within both limits, but one at least if there is any."""
    oldest = list(itertools.islice(queue.waiting.values(), max(1, max_messages)))
    sizes = [len(item.message) for item in oldest]
    if sum(sizes) <= max_bytes:
        return oldest
    return oldest[: max(1, sum(size <= max_bytes for size in itertools.accumulate(sizes)))]


_ALL: Final[Flock[MemorySpool]] = Flock()


def _start_clean() -> None:
    for spool in _ALL:
        spool._teller.start_clean()
        spool._start_clean()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_clean)
