"""A spool in memory."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal, TypeAlias

from connpool import clock
from connpool.delivery.backlog import Backlog
from connpool.delivery.batch import Batch
from connpool.delivery.limits import Limits, Teller
from connpool.delivery.spool import SpoolCount, Spooled, check_put
from connpool.errors import SpoolError, UsageError
from connpool.pool.flock import Flock, undisturbed
from connpool.pool.listeners import Handler

__all__ = ["MemorySpool"]


Head: TypeAlias = tuple[int, int, float, str]  # position, size, when it was spooled, queue


def _nothing() -> None:
    """Add nothing."""


class MemorySpool:
    """A spool that is lost with the process.

    Args:
        max_messages: Most messages in all its queues together; None: no limit.
        max_bytes: Most bytes of messages in all its queues together; None: no limit.
        on_full: ``"drop-oldest"``: a new message takes the place of the oldest
            that nobody has claimed. ``"raise"``: it is refused.
        max_age: Seconds after which a message is dropped; None: never.
        listener: Called with a ``MessagesDropped`` for each queue that a limit cost
            messages, on the thread that noticed, with no lock held.

    Attributes:
        adopts: Whether ``adopt`` has anything to do.

    Raises:
        ConfigError: an argument is out of range.

    Locking: one lock, for work in memory only.
    """

    def __init__(
        self,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        on_full: Literal["drop-oldest", "raise"] = "drop-oldest",
        *,
        max_age: float | None = None,
        listener: Handler | None = None,
    ) -> None:
        self._limits = Limits(
            max_messages=max_messages, max_bytes=max_bytes, max_age=max_age, on_full=on_full
        )
        self._is_limited = self._limits.are_any or max_age is not None
        self.adopts: bool = self._is_limited
        self._teller = Teller("in memory", listener)
        self._is_closed = False
        self._start_clean()
        _ALL.add(self)

    def _start_clean(self) -> None:
        """Begin anew: in a forked child the messages are the parent's."""
        self._lock = threading.RLock()  # guards all below; re-entrant only to be turned away
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._queues: dict[str, Backlog] = {}
        self._claimed: set[int] = set()
        self._next = 1  # position

    def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
        check_put(queues, message, id)
        now = clock.wall()
        self._require_outside()
        with self._lock:
            self._require_open()
            first = self._next
            positions = list(range(first, first + len(queues)))
            if not self._is_limited:
                try:
                    self._add_locked(queues, id, message, now)
                except BaseException:
                    self._mend_locked(first)
                    raise
                return positions
            add = partial(self._add_locked, queues, id, message, now)
            doomed = self._expired_locked(now)
            evicted = self._evicted_locked(doomed, len(queues), len(message))
            if evicted is None:
                dropped = self._drop_locked(doomed)
            else:
                dropped = self._drop_locked(doomed + evicted, add)
            held = self._held_locked()
        self._teller.tell_dropped(dropped)
        if evicted is None:
            raise self._limits.full("in memory", *held, len(queues), len(message))
        return positions

    def peek(self, queue: str, max_messages: int, max_bytes: int) -> Sequence[Spooled]:
        self._require_outside()
        with self._lock:
            self._require_open()
            backlog = self._queues.get(queue, _NOTHING)
            if self._is_limited:
                now = clock.wall()
                dropped = self._drop_locked(self._expired_locked(now))
                oldest = self._oldest_locked(backlog, max_messages, max_bytes, now)
                self._claimed.update(oldest.positions)
            else:  # then nothing has to be claimed
                dropped, oldest = Counter(), backlog.oldest(max_messages, max_bytes)
        self._teller.tell_dropped(dropped)
        return oldest

    def remove(self, positions: Sequence[int]) -> None:
        self._require_outside()
        with self._lock:
            self._require_open()
            self._exchange_locked(positions)

    def release(self, positions: Sequence[int]) -> None:
        self._require_outside()
        with self._lock:
            self._require_open()
            self._claimed.difference_update(positions)

    def move(self, source: str, targets: Sequence[str], max_messages: int) -> int:
        self._require_outside()
        with self._lock:
            self._require_open()
            leaving = self._queues.get(source, _NOTHING).oldest(max_messages, math.inf)
            if max_messages < 1 or not leaving:
                return 0
            self._exchange_locked(leaving.positions, partial(self._add_all_locked, targets, leaving))
        return len(leaving)

    def count(self, queue: str) -> int:
        if self._is_closed:  # asked here, as it is asked twice for each message that is sent
            self._require_open()
        return self._queues.get(queue, _NOTHING).messages

    def counts(self) -> Mapping[str, SpoolCount]:
        self._require_outside()
        with self._lock:
            self._require_open()
            known = tuple(item for item in self._queues.items() if item[1].messages or item[1].dropped)
            return {name: SpoolCount(each.messages, each.bytes, each.dropped) for name, each in known}

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
            self._queues, self._claimed = {}, set()
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
        backlogs = self._queues.values()
        return sum(each.messages for each in backlogs), sum(each.bytes for each in backlogs)

    def _expired_locked(self, now: float) -> list[Head]:
        """What is too old, at the head of each queue."""
        if self._limits.max_age is None:
            return []
        return [
            head
            for name, backlog in self._queues.items()
            if self._limits.is_expired(backlog.begun_at(self._claimed), now)
            for head in itertools.takewhile(
                lambda head: self._limits.is_expired(head[2], now), self._unclaimed_locked(name)
            )
        ]

    def _unclaimed_locked(self, name: str) -> Iterator[Head]:
        heads = self._queues[name].heads()
        return ((*head, name) for head in heads if head[0] not in self._claimed)

    def _oldest_locked(self, backlog: Backlog, max_messages: int, max_bytes: int, now: float) -> Batch:
        """The oldest within both limits, but one at least if there is any."""
        oldest = backlog.oldest(max_messages, max_bytes)
        if self._limits.max_age is None or not self._limits.is_expired(min(oldest.times, default=now), now):
            return oldest

        def is_left_out(item: Spooled) -> bool:  # moved here when it was old, and not at the head yet
            return self._limits.is_expired(item.spooled_at, now) and item.position not in self._claimed

        return backlog.oldest_but(is_left_out, max_messages, max_bytes)

    def _evicted_locked(self, doomed: Sequence[Head], copies: int, each: int) -> list[Head] | None:
        """What must go, besides the *doomed*, for *copies* of *each* bytes; None: there cannot be room."""
        messages, size = self._held_locked()
        messages += copies - len(doomed)
        size += copies * each - sum(head[1] for head in doomed)
        if self._limits.holds(messages, size):
            return []
        gone = {head[0] for head in doomed}
        oldest = (
            head for head in heapq.merge(*map(self._unclaimed_locked, self._queues)) if head[0] not in gone
        )
        evicted: list[Head] = []
        while not self._limits.holds(messages, size):
            head = next(oldest, None) if self._limits.may_drop else None
            if head is None:
                return None
            evicted.append(head)
            messages, size = messages - 1, size - head[1]
        return evicted

    def _drop_locked(self, doomed: Sequence[Head], add: Callable[[], object] = _nothing) -> Counter[str]:
        """Let what *add* adds take the place of the *doomed*; returns how many each queue has lost."""
        dropped = Counter(name for *_, name in doomed)
        for name, messages in dropped.items():
            self._queues[name].dropped += messages
        self._exchange_locked([head[0] for head in doomed], add)
        return dropped

    def _exchange_locked(self, leaving: Sequence[int], add: Callable[[], object] = _nothing) -> None:
        """Let *add* add and take all *leaving* positions out, or neither if it is interrupted before."""
        first = self._next
        is_added = False
        try:
            add()
            is_added = True
            if leaving:
                self._take_out_locked(leaving)
        except BaseException:
            if is_added:
                self._take_out_locked(leaving)
            self._mend_locked(self._next if is_added else first)
            raise

    def _mend_locked(self, first: int) -> None:
        """After an interrupt: take out what has come at *first* or later, and count anew."""
        for backlog in self._queues.values():
            backlog.cut_back(first)
            backlog.recount()

    def _add_locked(self, queues: Sequence[str], id: bytes, message: bytes, spooled_at: float) -> None:
        for name in queues:
            self._backlog_locked(name).append(self._next, id, message, spooled_at)
            self._next += 1

    def _add_all_locked(self, queues: Sequence[str], batch: Batch) -> None:
        """Add a copy of *batch* to each of *queues*. The copies of one message are of one age."""
        n, n_copies = len(batch), len(queues)
        is_one_each = len(set(queues)) == n_copies
        for number, name in enumerate(queues):
            first = self._next + (number if is_one_each else number * n)
            step = n_copies if is_one_each else 1
            positions = array("q", range(first, first + n * step, step))
            self._backlog_locked(name).extend(batch.at(positions))
        self._next += n * n_copies

    def _backlog_locked(self, name: str) -> Backlog:
        return self._queues.get(name) or self._queues.setdefault(name, Backlog())

    def _take_out_locked(self, positions: Sequence[int]) -> None:
        """Take out what is there of *positions*. What is the head of its queue leaves it as one piece."""
        if not isinstance(positions, array):
            positions = array("q", [position for position in positions if 0 < position < self._next])
        if self._claimed:
            self._claimed.difference_update(positions)
        for backlog in self._queues.values():
            positions = backlog.shift(positions)
        if positions:
            gone, first, last = frozenset(positions), min(positions), max(positions)
            for backlog in self._queues.values():
                backlog.remove(gone, first, last)


_NOTHING: Final = Backlog()
_ALL: Final[Flock[MemorySpool]] = Flock()


def _start_clean() -> None:
    for spool in _ALL:
        spool._teller.start_clean()
        spool._start_clean()


os.register_at_fork(after_in_child=undisturbed(_start_clean))
