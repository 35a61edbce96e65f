"""What a spool's file holds: the tables, and how each row proves that it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from zlib import crc32

__all__ = [
    "APPLICATION",
    "END",
    "FORMAT",
    "LANES",
    "MESSAGES",
    "PAGE_SIZE",
    "SCHEMA",
    "Note",
    "Row",
    "first_of",
    "lane_of",
    "note_from",
    "row_from",
    "sealed",
    "serial_of",
    "up_to",
]

APPLICATION: Final = 0x43507370  # "CPsp", by which file(1) and we know our own
FORMAT: Final = 1  # of what is below; a file of a higher one is left alone
PAGE_SIZE: Final = 8192

# A queue has a lane, and its messages lie side by side: position = lane * 2**48 + serial. So one tree is
# enough: the oldest of a queue is one search away, a message is one insertion, and removing from the front
# frees whole pages. The number of a lane means nothing after the file is closed: each row names its queue.
SERIAL_BITS: Final = 48
LANES: Final = (1 << (63 - SERIAL_BITS)) - 1
END: Final = LANES << SERIAL_BITS  # no position is that high

MESSAGES: Final = (
    "CREATE TABLE message"
    " (position INTEGER PRIMARY KEY, queue BLOB, id BLOB, spooled_at REAL, message BLOB, checksum INTEGER)"
)
# kind "serial": no serial below this was given out yet. "dropped": how many of a queue.
# "merged": from which position on the rows of another file are not here yet.
NOTES: Final = "CREATE TABLE note (kind TEXT, name BLOB, number INTEGER, checksum INTEGER)"
SCHEMA: Final = (MESSAGES, NOTES)


def first_of(lane: int) -> int:
    """The lowest position of *lane*; one lane ends where the next begins."""
    return lane << SERIAL_BITS


def lane_of(position: int) -> int:
    """The lane that *position* is in."""
    return position >> SERIAL_BITS


def serial_of(position: int) -> int:
    """When *position* was given out, compared with others: the lower, the earlier."""
    return position & ((1 << SERIAL_BITS) - 1)


class Row(NamedTuple):
    """One message, as it lies in the table of messages."""

    position: int
    queue: bytes
    id: bytes
    spooled_at: float
    message: bytes
    checksum: int


class Note(NamedTuple):
    """One number that outlives the process."""

    kind: str
    name: bytes
    number: int
    checksum: int

    @classmethod
    def sealed(cls, kind: str, name: bytes, number: int) -> Note:
        """Make a note and its checksum."""
        return cls(kind, name, number, crc32(b"%s %d " % (kind.encode(), number) + name))


def sealed(position: int, queue: bytes, id: bytes, spooled_at: float, message: bytes) -> Row:
    """Make a row and its checksum."""
    head = b"%d %a %d " % (position, spooled_at, len(queue))
    return Row(position, queue, id, spooled_at, message, crc32(message, crc32(head + queue + id)))


def row_from(values: tuple[Any, ...]) -> Row | None:
    """The row of these *values*; None: they are not what was written."""
    try:
        position, queue, id, spooled_at, message, _ = values
        row = sealed(position, queue, id, float(spooled_at), message)
        return row if row == values else None
    except (TypeError, ValueError):
        return None


def note_from(values: tuple[Any, ...]) -> Note | None:
    """The note of these *values*; None: they are not what was written."""
    try:
        kind, name, number, _ = values
        return note if (note := Note.sealed(kind, name, number)) == values else None
    except (AttributeError, TypeError, ValueError):
        return None


def up_to(most: int, rows: Iterable[Row]) -> list[Row]:
    """The first of *rows* whose messages together have at most *most* bytes: one at least if there is any."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        size += len(row.message)
        if taken and size > most:
            break
        taken.append(row)
    return taken
