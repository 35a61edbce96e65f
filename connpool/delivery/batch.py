"""Messages of one queue by columns, without an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import compress
from typing import Final, overload

from connpool.delivery.spool import ID_SIZE, Spooled

__all__ = ["BATCH", "BATCH_BYTES", "Batch", "columns_of"]

BATCH: Final = 512  # messages that are sent together
BATCH_BYTES: Final = 262_144


class Batch(Sequence[Spooled]):
    """Messages of one queue, the oldest first. As a sequence it gives each as a ``Spooled``.

    An object for each would take longer to make and to throw away than its message takes to be sent.

    Attributes:
        positions: Of each message.
        messages: What is to be sent.
        times: When each was first spooled.
        size: Bytes of all messages.
    """

    __slots__ = ("_ids", "messages", "positions", "size", "times")

    def __init__(
        self,
        positions: array[int] | None = None,
        ids: bytearray | None = None,
        times: array[float] | None = None,
        messages: list[bytes] | None = None,
    ) -> None:
        self.positions = array("q") if positions is None else positions
        self._ids = bytearray() if ids is None else ids  # one behind the other
        self.times = array("d") if times is None else times
        self.messages = [] if messages is None else messages
        self.size = sum(map(len, self.messages))

    @property
    def ids(self) -> Iterator[bytes]:
        """Of each message."""
        return (bytes(self._ids[at : at + ID_SIZE]) for at in range(0, len(self._ids), ID_SIZE))

    @overload
    def __getitem__(self, index: int) -> Spooled: ...

    @overload
    def __getitem__(self, index: slice) -> list[Spooled]: ...

    def __getitem__(self, index: int | slice) -> Spooled | list[Spooled]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        id = bytes(self._ids[at * ID_SIZE : (at + 1) * ID_SIZE])
        return Spooled(self.positions[at], id, self.messages[at], self.times[at])

    def __len__(self) -> int:
        return len(self.messages)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Batch({list(self)!r})"

    def heads(self) -> Iterator[tuple[int, int, float]]:
        """Position, size and time of each message."""
        return zip(self.positions, map(len, self.messages), self.times, strict=True)

    def part(self, begin: int, end: int) -> Batch:
        """Those from *begin* on, before *end*."""
        return Batch(
            self.positions[begin:end],
            self._ids[begin * ID_SIZE : end * ID_SIZE],
            self.times[begin:end],
            self.messages[begin:end],
        )

    def without(self, positions: Container[int]) -> Batch:
        """Those that are not at *positions*."""
        stays = [position not in positions for position in self.positions]
        return Batch(
            array("q", compress(self.positions, stays)),
            bytearray().join(compress(self.ids, stays)),
            array("d", compress(self.times, stays)),
            list(compress(self.messages, stays)),
        )

    def append(self, position: int, id: bytes, message: bytes, spooled_at: float) -> None:
        """Add one at the end. It is there when its message is."""
        self.positions.append(position)
        self._ids += id
        self.times.append(spooled_at)
        self.size += len(message)
        self.messages.append(message)

    def extend(self, other: Batch) -> None:
        """Add those of *other* at the end."""
        self.positions += other.positions
        self._ids += other._ids
        self.times += other.times
        self.size += other.size
        self.messages += other.messages


def columns_of(items: Sequence[Spooled]) -> tuple[Sequence[int], Iterable[bytes], Sequence[bytes]]:
    """Positions, ids and messages of *items*."""
    if isinstance(items, Batch):
        return items.positions, items.ids, items.messages
    return [item.position for item in items], (item.id for item in items), [item.message for item in items]
