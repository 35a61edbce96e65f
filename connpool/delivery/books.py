"""What a spool holds, in numbers: kept in memory, so that asking costs no look at the disk."""

from __future__ import annotations

from typing import NamedTuple

from connpool.delivery.rows import LANES, Row, first_of
from connpool.errors import SpoolFullError

__all__ = ["Books", "Tally"]


class Tally(NamedTuple):
    """One queue."""

    lane: int
    messages: int
    bytes: int
    dropped: int

    @property
    def is_worth_noting(self) -> bool:
        """Whether it holds something or has lost something."""
        return bool(self.messages or self.dropped)


class Books:
    """All queues of one file.

    A transaction changes a copy, which takes the place of the other when it has
    come to its end: books that do not fit the file are never seen.

    Attributes:
        tallies: Of each queue, though it may be empty: it keeps its lane, or its positions would not ascend.
        lanes: Which queue has which lane.
        messages: In all queues together.
        bytes: The same.
        serial: The next to be given out.
        reserved: Serials below this are known to the file as given out.
        expires_at: Nothing grows too old before that moment.
        longest: Bytes of the longest name: each message has that of its queue beside it.
    """

    __slots__ = ("bytes", "expires_at", "lanes", "longest", "messages", "reserved", "serial", "tallies")

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.lanes: dict[int, str] = {}
        self.messages = 0
        self.bytes = 0
        self.serial = 1
        self.reserved = 1
        self.expires_at = 0.0
        self.longest = 0

    def copy(self) -> Books:
        other = Books.__new__(Books)
        other.tallies = self.tallies.copy()
        other.lanes = self.lanes.copy()
        other.messages, other.bytes = self.messages, self.bytes
        other.serial, other.reserved = self.serial, self.reserved
        other.expires_at, other.longest = self.expires_at, self.longest
        return other

    def lane_of(self, queue: str) -> int:
        """The lane of *queue*, which gets one if it has none.

        Raises:
            SpoolFullError: there are no more.
        """
        tally = self.tallies.get(queue)
        if tally is None:
            lane = len(self.lanes)
            if lane >= LANES or lane in self.lanes:
                lane = self._free_lane(queue)
            self.put(queue, tally := Tally(lane, 0, 0, 0))
        return tally.lane

    def _free_lane(self, queue: str) -> int:
        """One that no queue has, or else that of one which is empty and has lost nothing."""
        lane = next((lane for lane in range(LANES) if lane not in self.lanes), None)
        if lane is not None:
            return lane
        empty = next((name for name, tally in self.tallies.items() if not tally.is_worth_noting), None)
        if empty is None:
            raise SpoolFullError(f"no room for queue {queue!r}: there are {LANES} already")
        return self.tallies.pop(empty).lane

    def put(self, queue: str, tally: Tally) -> None:
        """Let *tally* be what is known of *queue*."""
        before = self.tallies.get(queue)
        if before is not None:
            self.messages -= before.messages
            self.bytes -= before.bytes
        else:
            self.longest = max(self.longest, len(queue.encode("utf-8", "surrogatepass")))
        self.messages += tally.messages
        self.bytes += tally.bytes
        self.tallies[queue] = tally
        self.lanes[tally.lane] = queue

    @property
    def are_worth_noting(self) -> bool:
        """Whether there is anything that is to outlive the process."""
        return any(tally.is_worth_noting for tally in self.tallies.values())

    def grow(self, queue: str, size: int) -> int:
        """One more message of *size* bytes is in *queue*, which has a lane; returns its position."""
        lane, messages, before, dropped = self.tallies[queue]
        self.tallies[queue] = Tally(lane, messages + 1, before + size, dropped)
        self.messages += 1
        self.bytes += size
        self.serial += 1
        return first_of(lane) + self.serial - 1

    def shrink(self, queue: str, size: int) -> None:
        """One message of *size* bytes less is in *queue*."""
        lane, messages, before, dropped = self.tallies[queue]
        self.put(queue, Tally(lane, messages - 1, before - size, dropped))

    def note_dropped(self, queue: str, messages: int) -> int:
        """*queue* has lost so many more. Returns how many that makes."""
        self.lane_of(queue)
        before = self.tallies[queue]
        self.put(queue, before._replace(dropped=before.dropped + messages))
        return self.tallies[queue].dropped


class Draft:
    """What a transaction will have changed when it has come to its end.

    Attributes:
        books: As they will be.
        claimed: Positions that were looked at, and the size of each message.
        gone: Positions that are no more.
        dropped: How many messages a limit has cost each queue.
        rows: Messages that are in the books and not yet in the file.
        late: Positions that are no more, but are still in the file.
        made_good: Those of before that are no longer in the file either.
    """

    __slots__ = ("books", "claimed", "dropped", "gone", "late", "made_good", "rows")

    def __init__(self, books: Books) -> None:
        self.books = books.copy()
        self.claimed: dict[int, int] = {}
        self.gone: set[int] = set()
        self.dropped: dict[str, int] = {}
        self.rows: list[Row] = []
        self.late: set[int] = set()
        self.made_good: set[int] = set()
