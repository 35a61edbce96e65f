"""Messages of one queue by columns, without an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Sequence
from itertools import accumulate, compress, pairwise
from typing import Final, overload

from connpool.delivery.spool import ID_SIZE, Spooled

__all__ = ["BATCH", "BATCH_BYTES", "Batch"]

BATCH: Final = 512  # messages that are sent together
BATCH_BYTES: Final = 262_144


class Batch(Sequence[Spooled]):
    """Messages of one queue, the oldest first. As a sequence it gives each as a ``Spooled``.

    An object for each would take longer to make and to throw away than its message takes to be sent.

    Attributes:
        positions: Of each message.
        sizes: The same, in bytes.
        times: When each was first spooled.
        data: All messages, one behind the other.
        is_closed: Nothing is added any more, because somebody else has it in hand.
    """

    __slots__ = ("_ids", "data", "is_closed", "positions", "sizes", "times")

    def __init__(
        self,
        positions: array[int],
        ids: bytearray,
        times: array[float],
        sizes: array[int],
        data: bytes | bytearray,
    ) -> None:
        self.positions = positions
        self._ids = ids  # one behind the other, too
        self.times = times
        self.sizes = sizes
        self.data = data
        self.is_closed = False

    @classmethod
    def empty(cls) -> Batch:
        return cls(array("q"), bytearray(), array("d"), array("q"), bytearray())

    @classmethod
    def of_one(cls, position: int, id: bytes, data: bytes | bytearray, spooled_at: float) -> Batch:
        """The one message *data*."""
        return cls(
            array("q", (position,)), bytearray(id), array("d", (spooled_at,)), array("q", (len(data),)), data
        )

    # -- as a sequence

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Spooled]:
        return map(Spooled, self.positions, self.ids(), self.messages(), self.times)

    @overload
    def __getitem__(self, index: int) -> Spooled: ...

    @overload
    def __getitem__(self, index: slice) -> list[Spooled]: ...

    def __getitem__(self, index: int | slice) -> Spooled | list[Spooled]:
        if isinstance(index, slice):
            return list(self)[index]
        at = range(len(self))[index]
        return next(iter(self.part(at, at + 1)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Batch({list(self)!r})"

    # -- columns

    def ids(self) -> Iterator[bytes]:
        """Of each message."""
        ids = bytes(self._ids)
        return (ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE))

    def messages(self) -> Iterator[bytes]:
        """Each one."""
        data = bytes(self.data)
        ends = pairwise(accumulate(self.sizes, initial=0))
        return (data[begin:end] for begin, end in ends)

    def heads(self) -> Iterator[tuple[int, int, float]]:
        """Position, size and time of each message."""
        return zip(self.positions, self.sizes, self.times, strict=True)

    def part(self, begin: int, end: int) -> Batch:
        """A copy of those from *begin* on, before *end*."""
        first = sum(self.sizes[:begin])
        last = len(self.data) if end >= len(self.sizes) else first + sum(self.sizes[begin:end])
        return Batch(
            self.positions[begin:end],
            self._ids[begin * ID_SIZE : end * ID_SIZE],
            self.times[begin:end],
            self.sizes[begin:end],
            self.data[first:last],
        )

    def at(self, positions: array[int]) -> Batch:
        """The same messages at other *positions*. They are not copied: neither grows any more."""
        batch = Batch(positions, self._ids, self.times, self.sizes, self.data)
        batch.is_closed = True
        return batch

    def without(self, positions: Container[int]) -> Batch:
        """A copy of those that are not at *positions*."""
        stays = [position not in positions for position in self.positions]
        return Batch(
            array("q", compress(self.positions, stays)),
            bytearray().join(compress(self.ids(), stays)),
            array("d", compress(self.times, stays)),
            array("q", compress(self.sizes, stays)),
            bytearray().join(compress(self.messages(), stays)),
        )

    # -- growing

    def has_room(self, size: int, messages: int = 1) -> bool:
        """Whether so many *messages* may be added, of *size* bytes together."""
        is_within = len(self.sizes) + messages <= BATCH and len(self.data) + size <= BATCH_BYTES
        return is_within and not self.is_closed

    def append(self, position: int, id: bytes, message: bytes, spooled_at: float) -> None:
        """Add one at the end."""
        self.positions.append(position)  # first: by this ``Backlog.cut_back`` knows what came
        self._ids += id
        self.times.append(spooled_at)
        self.sizes.append(len(message))
        self.data += message  # last: a size that has no data yet is cut off, data without a size would stay

    def extend(self, other: Batch) -> None:
        """Add those of *other* at the end, in the same order of steps."""
        self.positions += other.positions
        self._ids += other._ids
        self.times += other.times
        self.sizes += other.sizes
        self.data += other.data
