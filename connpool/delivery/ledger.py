"""What is done with messages in a file, within a transaction: put, look, remove, move, drop."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeAlias

from connpool import clock
from connpool.delivery.batch import BATCH_BYTES
from connpool.delivery.books import Draft
from connpool.delivery.faults import Damaged
from connpool.delivery.limits import Limits
from connpool.delivery.rows import PAGE_SIZE, Row, first_of, lane_of, sealed, serial_of, up_to
from connpool.delivery.segment import Segment
from connpool.delivery.spool import Spooled

__all__ = ["Ledger"]

RESERVE: Final = 1 << 20  # serials that are noted as given out at a time
ROOM: Final = 1 << 20  # bytes that a file may take beyond its limit on messages, or a tenth of that limit
BESIDES: Final = 40  # bytes at least that a message takes in the file, besides its own and its queue's name

Head: TypeAlias = tuple[int, int, float]  # position, size, when it was spooled


class Ledger:
    """The messages of one segment. On the thread that has the file, within a transaction.

    Attributes:
        claimed: Positions that limits spare, and the size of each message; None: the file was mended or
            opened anew since, and may no longer have it.
        late: Positions that were removed, and are still in the file: a full disk has no space for removals.
        again: Those of before the file was mended or opened anew, which has them in its books again.
    """

    def __init__(self, limits: Limits, name: str) -> None:
        self._limits = limits
        self._is_limited = limits.are_any
        self._name = name
        self.claimed: dict[int, int | None] = {}
        self.late: set[int] = set()
        self.again: set[int] = set()
        self.segment: Segment | None = None

    # -- what callers want

    def put(self, draft: Draft, queues: Sequence[str], message: bytes, id: bytes) -> list[int]:
        now = clock.wall()
        if self._limits.max_age is not None:
            self.expire(draft, now)
            # The clock may have been set back: this one is too old before those that are there.
            draft.books.expires_at = min(draft.books.expires_at, now + self._limits.max_age)
        if self._is_limited:
            self._make_room(draft, len(queues), len(message))
        return self._add(draft, queues, id, now, message)

    def peek(
        self, draft: Draft, queue: str, max_messages: int, max_bytes: int, *, drops: bool = True
    ) -> list[Spooled]:
        """The oldest that are not too old. *drops*: those that are go."""
        now = clock.wall()
        if drops:
            self.expire(draft, now)
        tally = draft.books.tallies.get(queue)
        if tally is None or not tally.messages:
            return []
        oldest: list[Spooled] = []
        doomed: list[tuple[int, int]] = []  # too old behind one that is not: the clock was set back
        size = 0
        for row in self._rows(draft, tally.lane):
            if len(oldest) >= max(max_messages, 1):
                break
            if self._limits.is_expired(row.spooled_at, now) and not self._is_claimed(draft, row.position):
                doomed.append((row.position, len(row.message)))
                continue
            size += len(row.message)
            if oldest and size > max_bytes:
                break
            oldest.append(Spooled(row.position, row.id, row.message, row.spooled_at))
            draft.claimed[row.position] = len(row.message)
        if doomed and drops:
            self._drop(draft, doomed)
        if not oldest and not doomed and drops:
            raise Damaged(f"{tally.messages} message(s) of queue {queue!r} are not where they were")
        return oldest

    def remove(self, draft: Draft, positions: Iterable[int]) -> None:
        self._make_good(draft)
        sizes = self._sizes(draft, positions)
        self.written(draft).delete(sizes)
        self._strike_out(draft, sizes)

    def remove_later(self, draft: Draft, positions: Iterable[int]) -> None:
        """The same without a change to the file. It is made good as soon as that is possible."""
        sizes = self._sizes(draft, positions)
        self._strike_out(draft, sizes)
        draft.late.update(sizes)

    def doubt(self) -> None:
        """Another file is open: let claims hold, but not for proof that what was claimed is still there."""
        self.claimed.update(dict.fromkeys(self.claimed))
        self.again |= self.late
        self.late.clear()

    def _sizes(self, draft: Draft, positions: Iterable[int]) -> dict[int, int]:
        """Of the messages at those of *positions* where there is one."""
        sizes = {}
        for position in positions:
            size = self.claimed.get(position)
            if size is None:
                size = self.written(draft).size_at(position)
            if size is not None and not self._is_gone(draft, position):
                sizes[position] = size
        return sizes

    def _make_good(self, draft: Draft) -> None:
        """Delete what was removed without a change to the file."""
        late = self.late | draft.late
        if late:
            self.living().delete(late)
            draft.made_good.update(late)

    def move(self, draft: Draft, source: str, targets: Sequence[str], max_messages: int) -> int:
        tally = draft.books.tallies.get(source)
        if tally is None or max_messages < 1:
            return 0
        most = BATCH_BYTES // max(1, len(targets))  # all of it is written twice: to the log, and to the file
        leaving = up_to(most, islice(self._rows(draft, tally.lane), max_messages))
        for row in leaving:
            self._add(draft, targets, row.id, row.spooled_at, row.message)
        sizes = {row.position: len(row.message) for row in leaving}
        self.written(draft).delete(sizes)
        self._strike_out(draft, sizes)
        return len(leaving)

    def take_in(self, draft: Draft, leftovers: Iterable[Row]) -> Counter[str]:
        """Put *leftovers* of another file at the tail of their queues; returns how many of each."""
        taken: Counter[str] = Counter()
        for row in leftovers:
            queue = row.queue.decode("utf-8", "surrogatepass")
            self._add(draft, [queue], row.id, row.spooled_at, row.message)
            taken[queue] += 1
        draft.books.expires_at = 0.0
        return taken

    def keep_within(self, draft: Draft) -> None:
        """Drop what is too old, and the oldest of what is too much; give space back."""
        self.expire(draft, clock.wall())
        if self._limits.may_drop:
            self._evict(draft, 0, 0)
        self._make_good(draft)
        self.living().tidy()

    # -- limits

    def expire(self, draft: Draft, now: float) -> None:
        """Drop what is too old at the head of each queue."""
        max_age = self._limits.max_age
        if max_age is None or now < draft.books.expires_at:
            return
        doomed, oldest_left = [], now
        for tally in draft.books.tallies.values():
            for position, size, spooled_at in self._heads(draft, tally.lane) if tally.messages else ():
                is_claimed = self._is_claimed(draft, position)
                if is_claimed or not self._limits.is_expired(spooled_at, now):
                    oldest_left = min(oldest_left, spooled_at)
                if not self._limits.is_expired(spooled_at, now):
                    break
                if not is_claimed:
                    doomed.append((position, size))
        self._drop(draft, doomed)
        draft.books.expires_at = oldest_left + max_age

    def _make_room(self, draft: Draft, copies: int, each: int) -> None:
        """Drop the oldest until *copies* of *each* bytes are within the limits.

        Raises:
            SpoolFullError: they cannot be, or nothing may be dropped.
        """
        books = draft.books
        can_ever = self._limits.holds(copies, copies * each)
        if not (can_ever and self._evict(draft, copies, copies * each)):
            raise self._limits.full(self._name, books.messages, books.bytes, copies, each)

    def _evict(self, draft: Draft, messages: int, size: int) -> bool:
        """Drop the oldest until there is room for so much more; False: there is none, and nothing dropped."""
        books = draft.books
        messages, size = messages + books.messages, size + books.bytes
        doomed: list[Head] = []
        if not self._limits.holds(messages, size):
            if not self._limits.may_drop:
                return False
            for head in self._unclaimed(draft):
                doomed.append(head)
                messages, size = messages - 1, size - head[1]
                if self._limits.holds(messages, size):
                    break
            else:
                return False
            self._drop(draft, [head[:2] for head in doomed])
        return self._fit(draft, size - books.bytes)

    def _fit(self, draft: Draft, size: int) -> bool:
        """The same for the file itself, which small messages make larger than their bytes."""
        limit = self._limits.max_bytes
        if limit is None:
            return True
        books, most = draft.books, limit + max(limit // 10, ROOM)
        if 3 * (books.bytes + size + max(100, 60 + books.longest) * books.messages) <= most:
            return True  # pages are not as empty as that: there is no need to ask
        while (excess := self.written(draft).used() + size - most) > 0:
            if not self._limits.may_drop:
                return False
            doomed = []
            for position, freed, _ in self._unclaimed(draft):
                doomed.append((position, freed))
                excess -= freed + BESIDES + len(draft.books.lanes[lane_of(position)])
                if excess <= -PAGE_SIZE:
                    break
            if not doomed:
                return False
            self._drop(draft, doomed)
        return True

    def _unclaimed(self, draft: Draft) -> Iterator[Head]:
        """What may be dropped, the oldest of all queues first."""
        heads = (self._heads(draft, t.lane) for t in draft.books.tallies.values() if t.messages)
        oldest = heapq.merge(*heads, key=lambda head: serial_of(head[0]))
        return (head for head in oldest if not self._is_claimed(draft, head[0]))

    def _is_claimed(self, draft: Draft, position: int) -> bool:
        return position in self.claimed or position in draft.claimed

    def _drop(self, draft: Draft, doomed: Sequence[tuple[int, int]]) -> None:
        """Take out what a limit costs, and note it down."""
        self.written(draft).delete([position for position, _ in doomed])
        dropped = self._strike_out(draft, dict(doomed))
        for queue, messages in dropped.items():
            total = draft.books.note_dropped(queue, messages)
            self.living().write("dropped", queue.encode("utf-8", "surrogatepass"), total)
            draft.dropped[queue] = draft.dropped.get(queue, 0) + messages

    # -- the file

    def living(self) -> Segment:
        """The file, which is open."""
        assert self.segment is not None
        return self.segment

    def _add(
        self, draft: Draft, queues: Sequence[str], id: bytes, spooled_at: float, message: bytes
    ) -> list[int]:
        """Add a copy at the tail of each of *queues*; returns their positions."""
        books, size = draft.books, len(message)
        for queue in queues:
            if queue not in books.tallies:
                books.lane_of(queue)  # or an error, before anything has changed
        if books.serial + len(queues) > books.reserved:
            books.reserved = books.serial + len(queues) + RESERVE
            self.living().write("serial", b"", books.reserved)
        positions = []
        for queue in queues:
            position = books.grow(queue, size)
            positions.append(position)
            name = queue.encode("utf-8", "surrogatepass")
            draft.rows.append(sealed(position, name, id, spooled_at, message))
        return positions

    def written(self, draft: Draft) -> Segment:
        """The file, with what was added so far written to it."""
        if draft.rows:
            self.living().insert(draft.rows)
            draft.rows = []
        return self.living()

    def _rows(self, draft: Draft, lane: int) -> Iterator[Row]:
        """The messages of *lane*, the oldest first."""
        rows = self.written(draft).rows(first_of(lane))
        return (row for row in rows if not self._is_gone(draft, row.position))

    def _heads(self, draft: Draft, lane: int) -> Iterator[Head]:
        """The same, less what they say."""
        heads = self.written(draft).heads(lane)
        return (head for head in heads if not self._is_gone(draft, head[0]))

    def _is_gone(self, draft: Draft, position: int) -> bool:
        return position in draft.gone or position in self.late

    def _strike_out(self, draft: Draft, sizes: dict[int, int]) -> Counter[str]:
        """Let the messages at these positions be no more; returns how many of each queue that are."""
        draft.gone.update(sizes)
        struck: Counter[str] = Counter()
        for position, size in sizes.items():
            queue = draft.books.lanes[lane_of(position)]
            draft.books.shrink(queue, size)
            struck[queue] += 1
        return struck
