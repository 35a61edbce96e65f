"""One queue in memory."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import accumulate, chain
from typing import Final

from connpool.delivery.batch import Batch
from connpool.delivery.spool import Spooled

__all__ = ["Backlog"]

LARGE: Final = 4_096  # bytes from which on a message is not copied: it has a chunk of its own


class Backlog:
    """Messages in chunks, the oldest first. These are the truth, numbers are kept beside them.

    A chunk is what a worker sends together. Messages come at the end of the last one; a chunk that some
    leave is replaced by what stays, in one step. So an interrupt leaves each message in or out, and
    ``cut_back`` or another ``remove``, and then ``recount``, mend what it has left half done.

    Attributes:
        messages: How many wait.
        bytes: Of these together.
        dropped: How many a limit has cost it.
    """

    __slots__ = ("_chunks", "bytes", "dropped", "messages")

    def __init__(self) -> None:
        self._chunks: list[Batch] = []  # none is empty
        self.messages = 0
        self.bytes = 0
        self.dropped = 0

    def __iter__(self) -> Iterator[Spooled]:
        return chain.from_iterable(self._chunks)

    def heads(self) -> Iterator[tuple[int, int, float]]:
        """Position, size and time of each message."""
        return chain.from_iterable(chunk.heads() for chunk in self._chunks)

    def oldest(self, max_messages: int, max_bytes: float) -> Batch:
        """The oldest within both limits, but one at least if there is any. It never changes."""
        most = max(1, max_messages)
        if self._begins_with_batch(most, max_bytes):
            self._chunks[0].is_closed = True
            return self._chunks[0]
        found = Batch.empty()
        for chunk in self._chunks:
            found.extend(chunk.part(0, most - len(found)))
            if len(found) == most or len(found.data) > max_bytes:
                break
        if len(found.data) <= max_bytes:
            return found
        ends = list(accumulate(found.sizes))
        return found.part(0, max(1, bisect_right(ends, max_bytes)))

    def oldest_but(
        self, is_left_out: Callable[[Spooled], bool], max_messages: int, max_bytes: float
    ) -> Batch:
        """The same, of those that are not left out."""
        found = Batch.empty()
        for item in self:
            if is_left_out(item):
                continue
            if found and (len(found) >= max_messages or len(found.data) + len(item.message) > max_bytes):
                break
            found.append(item.position, item.id, item.message, item.spooled_at)
        return found

    def begun_at(self, unsure: Set[int]) -> float:
        """When the oldest was spooled; inf: there is none; -inf: it is *unsure*, look at each."""
        if not self._chunks:
            return math.inf
        first = self._chunks[0]
        return -math.inf if first.positions[0] in unsure else first.times[0]

    def _begins_with_batch(self, most: int, max_bytes: float) -> bool:
        """Whether the first chunk is just the oldest within these limits: then it is lent as it is."""
        if not self._chunks:
            return False
        first = self._chunks[0]
        n, size = len(first.sizes), len(first.data)
        if n > most or (size > max_bytes and n > 1):
            return False
        return n == most or len(self._chunks) == 1 or size + self._chunks[1].sizes[0] > max_bytes

    def append(self, position: int, id: bytes, message: bytes, spooled_at: float) -> None:
        """Add one at the tail."""
        chunks, size = self._chunks, len(message)
        if chunks and (last := chunks[-1]).has_room(size):
            last.append(position, id, message, spooled_at)
        else:
            is_large = size >= LARGE
            chunk = Batch.of_one(position, id, message if is_large else bytearray(message), spooled_at)
            chunk.is_closed = is_large
            chunks.append(chunk)
        self.messages += 1
        self.bytes += size

    def extend(self, batch: Batch) -> None:
        """Add *batch* at the tail."""
        chunks = self._chunks
        if chunks and chunks[-1].has_room(len(batch.data), len(batch)):
            chunks[-1].extend(batch)
        else:
            chunks.append(batch)
        self.messages += len(batch)
        self.bytes += len(batch.data)

    def shift(self, positions: Sequence[int]) -> Sequence[int]:
        """Take *positions* out as far as they are the oldest, in order; returns the others."""
        while self._chunks and positions:
            chunk = self._chunks[0]
            if chunk.positions[0] != positions[0]:
                break  # as a rule, where there are many queues
            n = min(len(chunk.sizes), len(positions))
            if chunk.positions[:n] != positions[:n]:
                break
            self._replace(0, None if n == len(chunk.sizes) else chunk.part(n, len(chunk.sizes)))
            positions = positions[n:]
        return positions

    def remove(self, positions: Set[int], first: int, last: int) -> None:
        """Take *positions*, which go from *first* to *last*, out, wherever they are; others do nothing."""
        index = bisect_left(self._chunks, first, key=_last_of)
        while index < len(self._chunks) and self._chunks[index].positions[0] <= last:
            stays = self._chunks[index].without(positions)
            self._replace(index, stays or None)
            index += bool(stays)

    def _replace(self, index: int, stays: Batch | None) -> None:
        """Let *stays* be left of a chunk. Each number changes in one step: it is read without a lock."""
        chunk = self._chunks[index]
        n_gone, n_bytes_gone = len(chunk.sizes), len(chunk.data)
        if stays is not None:
            n_gone -= len(stays.sizes)
            n_bytes_gone -= len(stays.data)
        self._chunks[index : index + 1] = [] if stays is None else [stays]
        self.messages -= n_gone
        self.bytes -= n_bytes_gone

    # -- after an interrupt

    def cut_back(self, position: int) -> None:
        """Take out what has come at *position* or later, as far as it has come."""
        while self._chunks:
            chunk = self._chunks[-1]
            n_before = bisect_left(chunk.positions, position)
            self._chunks[-1:] = [chunk.part(0, n_before)] if n_before else []
            if n_before:
                break

    def recount(self) -> None:
        """Set the numbers right."""
        self.messages = sum(map(len, self._chunks))
        self.bytes = sum(len(chunk.data) for chunk in self._chunks)


def _last_of(chunk: Batch) -> int:
    return chunk.positions[-1]
