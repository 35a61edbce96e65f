"""Reads what is left of a damaged file, page by page, and asks nothing of its structure.

SQLite gives up on a tree at its first bad page. Here every page, and every page
in the write-ahead log, is looked through for rows, and a row is believed because
of its own checksum and nothing else. Pages that are no longer in use hold none:
they are overwritten with zeros when they are freed (``secure_delete``).

The layout of pages and of the log is that of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from connpool.delivery.rows import PAGE_SIZE, Note, Row, note_from, row_from

__all__ = ["FRAME_SIZE", "LOG_HEADER", "Salvage", "has_more"]

LOG_HEADER: Final = struct.Struct(">8I")  # magic, version, page size, number, 2 salts, 2 checksums
FRAME_HEADER: Final = struct.Struct(
    ">6I"
)  # page, pages in the file after a commit or 0, 2 salts, 2 checksums
FRAME_SIZE: Final = FRAME_HEADER.size + PAGE_SIZE
BIG_ENDIAN: Final = 0x377F0683  # the magic of logs whose checksums read big-endian words
LEAF: Final = 13  # the first byte of a page with rows
FIRST_PAGE_HEADER: Final = 100  # bytes before the rest of page 1
INTEGERS: Final = (0, 1, 2, 3, 4, 6, 8)  # how long an integer of this type is
MOST: Final = PAGE_SIZE - 35  # of a row that lies in its page alone
LEAST: Final = (PAGE_SIZE - 12) * 32 // 255 - 23  # of a longer one that does

Sums: TypeAlias = tuple[int, int]


class Frame(NamedTuple):
    """One page in the log."""

    page: int
    size: int
    salts: Sums
    sums: Sums


def _checksum(data: bytes, order: str, sums: Sums) -> Sums:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _frame(header: bytes) -> Frame | None:
    if len(header) < FRAME_HEADER.size:
        return None
    page, size, *rest = FRAME_HEADER.unpack(header)
    return Frame(page, size, (rest[0], rest[1]), (rest[2], rest[3]))


def _is_of(frame: Frame, salts: Sums) -> bool:
    """Whether *frame* is of the log's present life. Both salts change with it; one may be damaged."""
    return frame.salts[0] == salts[0] or frame.salts[1] == salts[1]


def has_more(log: BinaryIO, frames: int) -> bool:
    """Whether *log* holds more than the *frames* that SQLite takes for all of it: it stops at a bad one."""
    header = log.read(LOG_HEADER.size)
    if len(header) < LOG_HEADER.size:
        return False
    magic, _, _, _, *salts, first, second = LOG_HEADER.unpack(header)
    order = ">" if magic == BIG_ENDIAN else "<"
    if _checksum(header[:24], order, (0, 0)) != (first, second):
        return bool(log.read(1))
    number = frames
    while True:
        log.seek(LOG_HEADER.size + number * FRAME_SIZE)
        frame = _frame(log.read(FRAME_HEADER.size))
        if frame is None or not _is_of(frame, (salts[0], salts[1])):
            return False
        if frame.size:  # the end of a transaction; without it the process was ended in the midst of one
            return True
        number += 1


class Salvage:
    """What can be read of one file.

    Attributes:
        suspects: Positions of rows that are there and cannot be believed. Another
            copy of one may have been found; known when ``rows`` is at its end.
    """

    def __init__(self, database: BinaryIO | None, log: BinaryIO | None) -> None:
        self.suspects: set[int] = set()
        self._database = database
        self._log = log
        self._latest: dict[int, int] = {}  # page: where its latest image is in the log
        self._doubtful: dict[int, int] = {}  # images that may be wrong: where, of which page as it says
        self._in_file = 0  # pages
        self._extent = 0  # bytes in both
        if log is not None:
            self._extent += log.seek(0, 2)
            log.seek(0)
            self._read_log(log)
        if database is not None:
            size = database.seek(0, 2)
            self._extent += size
            self._in_file = (size + PAGE_SIZE - 1) // PAGE_SIZE

    def rows(self) -> Iterator[Row | Note]:
        """Every row and note that can be believed. One may come twice."""
        for number in self._numbers():
            yield from self._rows_in(self._page(number), is_first=number == 1)
        for offset, number in self._doubtful.items():
            yield from self._rows_in(self._read(self._log, offset), is_first=number == 1)

    # -- pages

    def _read_log(self, log: BinaryIO) -> None:
        """Find the latest image of each page, as far as transactions are complete."""
        header = log.read(LOG_HEADER.size)
        if len(header) < LOG_HEADER.size:
            return
        magic, _, _, _, *rest = LOG_HEADER.unpack(header)
        order = ">" if magic == BIG_ENDIAN else "<"
        sums = _checksum(header[:24], order, (0, 0))
        seeds = {sums, (rest[2], rest[3])}
        salts: Sums | None = (rest[0], rest[1]) if sums == (rest[2], rest[3]) else None
        open_images: list[tuple[int, int, bool]] = []
        offset = LOG_HEADER.size
        while (frame := _frame(head := log.read(FRAME_HEADER.size))) is not None:
            salts = salts or frame.salts
            image = log.read(PAGE_SIZE)
            if not _is_of(frame, salts) or len(image) < PAGE_SIZE:
                break
            # The sum goes on from frame to frame. After a bad one: from what it says or from what it has.
            found = {_checksum(image, order, _checksum(head[:8], order, seed)) for seed in seeds}
            is_good = frame.sums in found and frame.salts == salts
            open_images.append((frame.page, offset + FRAME_HEADER.size, is_good))
            seeds = {frame.sums} if is_good else {frame.sums, *found}
            if frame.size:
                self._commit(open_images)
                open_images = []
            offset += FRAME_SIZE

    def _commit(self, images: list[tuple[int, int, bool]]) -> None:
        for page, offset, is_good in images:
            if is_good:
                self._latest[page] = offset
                self._doubtful = {at: of for at, of in self._doubtful.items() if of != page}
            else:
                self._doubtful[offset] = page

    def _numbers(self) -> Iterator[int]:
        """Of all pages that there are."""
        yield from range(1, self._in_file + 1)
        yield from sorted(number for number in self._latest if number > self._in_file)

    def _page(self, number: int) -> bytes:
        offset = self._latest.get(number)
        if offset is not None:
            return self._read(self._log, offset)
        return self._read(self._database, (number - 1) * PAGE_SIZE)

    def _read(self, file: BinaryIO | None, offset: int) -> bytes:
        """One page; what the file does not have of it is zeros."""
        if file is None or offset < 0:
            return bytes(PAGE_SIZE)
        file.seek(offset)
        return file.read(PAGE_SIZE).ljust(PAGE_SIZE, b"\0")

    # -- rows

    def _rows_in(self, page: bytes, *, is_first: bool) -> Iterator[Row | Note]:
        """Rows in *page*, whatever its header says it is: the header may be what is damaged."""
        start = FIRST_PAGE_HEADER if is_first else 0
        count = int.from_bytes(page[start + 3 : start + 5]) if page[start] == LEAF and not is_first else 0
        for i, at in enumerate(range(start + 8, PAGE_SIZE - 1, 2)):
            pointer = int.from_bytes(page[at : at + 2])
            if pointer == 0:
                break
            position = -1
            try:
                size, at_rest = _varint(page, pointer)
                position, at_rest = _varint(page, at_rest)
                found = _believed(position, _values(self._payload(page, at_rest, size)))
            except (IndexError, ValueError):
                found = None
            if found is not None:
                yield found
            elif i < count:
                self.suspects.add(position if position < 1 << 63 else -1)

    def _payload(self, page: bytes, at: int, size: int) -> bytes:
        """The *size* bytes that begin in *page* and go on in pages of their own."""
        if size <= MOST:
            return page[at : at + size]
        if size > self._extent:
            raise ValueError("it is longer than the file")
        local = LEAST + (size - LEAST) % (PAGE_SIZE - 4)
        if local > MOST:
            local = LEAST
        parts = [page[at : at + local]]
        following = page[at + local : at + local + 4]
        for left in range(size - local, 0, 4 - PAGE_SIZE):
            number = int.from_bytes(following)
            if number == 0:
                raise ValueError("it ends too early")
            image = self._page(number)
            following = image[:4]
            parts.append(image[4 : 4 + left])
        return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1


def _values(payload: bytes) -> list[object]:
    """What a row holds, column by column."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[object] = []
    for kind in kinds:
        if kind >= 12:
            size = (kind - 12) // 2
            value: object = payload[at : at + size]
            if kind % 2:
                value = payload[at : at + size].decode()
        elif kind == 7:
            size = 8
            (value,) = struct.unpack(">d", payload[at : at + 8].ljust(8, b"\0"))
        elif kind in (8, 9):
            size, value = 0, kind - 8
        else:
            size = INTEGERS[kind]
            value = int.from_bytes(payload[at : at + size], signed=True) if kind else None
        values.append(value)
        at += size
    if at > len(payload):
        raise ValueError("it is cut short")
    return values


def _believed(position: int, values: list[object]) -> Row | Note | None:
    """The row or note that *values* are, if they are what was written."""
    if len(values) == 4:
        return note_from(tuple(values))
    return row_from((position, *values[1:]))
