"""One queue in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence, Set
from itertools import accumulate, chain

from connpool.delivery.batch import BATCH, BATCH_BYTES, Batch
from connpool.delivery.spool import Spooled

__all__ = ["Backlog"]


class Backlog:
    """Messages in chunks, the oldest first. These are the truth, numbers are kept beside them.

    A chunk is what a worker sends together. Messages come at the end of the last one; a chunk that some leave is
    replaced by what stays, in one step: an interrupt leaves each message in or out, and ``cut_back`` or another
    ``remove``, and then ``recount``, mend the rest.

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

    def positions(self) -> Iterator[int]:
        return chain.from_iterable(chunk.positions for chunk in self._chunks)

    def oldest(self, max_messages: int, max_bytes: float) -> Batch:
        """The oldest within both limits, but one at least if there is any."""
        most = max(1, max_messages)
        if self._begins_with_batch(most, max_bytes):
            return self._chunks[0]
        found = Batch()
        for chunk in self._chunks:
            found.extend(chunk.part(0, most - len(found)))
            if len(found) == most or found.size > max_bytes:
                break
        if found.size <= max_bytes:
            return found
        ends = list(accumulate(map(len, found.messages)))
        return found.part(0, max(1, bisect_right(ends, max_bytes)))

    def _begins_with_batch(self, most: int, max_bytes: float) -> bool:
        """Whether the first chunk is the oldest within these limits, and will not grow: it need not be copied."""
        if len(self._chunks) < 2:
            return False
        first, second = self._chunks[:2]
        is_most = len(first) == most or first.size + len(second.messages[0]) > max_bytes
        return is_most and len(first) <= most and first.size <= max_bytes

    def append(self, position: int, id: bytes, message: bytes, spooled_at: float) -> None:
        """Add one at the tail."""
        chunks = self._chunks
        if not chunks or len(chunks[-1].messages) >= BATCH or chunks[-1].size + len(message) > BATCH_BYTES:
            chunks.append(Batch())
        chunks[-1].append(position, id, message, spooled_at)
        self.messages += 1
        self.bytes += len(message)

    def shift(self, positions: Sequence[int]) -> Sequence[int]:
        """Take *positions* out as far as they are the oldest; returns the others."""
        while self._chunks and positions:
            chunk = self._chunks[0]
            leaving = chunk.positions[: len(positions)]
            if leaving != positions[: len(leaving)]:
                break
            self._replace(0, chunk.part(len(leaving), len(chunk)))
            positions = positions[len(leaving) :]
        return positions

    def remove(self, positions: Set[int]) -> None:
        """Take *positions* out, wherever they are; those that are not here do nothing."""
        last = max(positions)
        index = bisect_left(self._chunks, min(positions), key=_last_of)
        while index < len(self._chunks) and self._chunks[index].positions[0] <= last:
            stays = self._chunks[index].without(positions)
            self._replace(index, stays)
            index += bool(stays)

    def _replace(self, index: int, stays: Batch) -> None:
        """Let *stays* be what is left of a chunk."""
        chunk = self._chunks[index]
        self._chunks[index : index + 1] = [stays] if stays else []
        self.messages -= len(chunk) - len(stays)
        self.bytes -= chunk.size - stays.size

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
        for chunk in self._chunks:
            chunk.size = sum(map(len, chunk.messages))
        self.messages = sum(map(len, self._chunks))
        self.bytes = sum(chunk.size for chunk in self._chunks)


def _last_of(chunk: Batch) -> int:
    return chunk.positions[-1]
