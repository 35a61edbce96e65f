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

__all__ = ["FRAME_SIZE", "LOG_HEADER", "Salvage", "is_whole"]

LOG_HEADER: Final = struct.Struct(">8I")  # magic, version, page size, number, 2 salts, 2 checksums
FRAME_HEADER: Final = struct.Struct(">6I")  # page, after a commit pages in the file, 2 salts, 2 checksums
FRAME_SIZE: Final = FRAME_HEADER.size + PAGE_SIZE
INDEX_HEADER: Final = struct.Struct("=3I2BH2I8s8s2I")  # ..., last frame of a commit, ..., salts, 2 checksums
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


UNREADABLE: Final = Frame(0, 0, (0, 0), (0, 0))  # its header says nothing; what is in its page, nobody knows


class Image(NamedTuple):
    """One page in the log, and whether it is what was written."""

    frame: Frame
    offset: int
    is_good: bool


def _images(log: BinaryIO) -> Iterator[Image]:
    """All that was written to *log* in its present life; the last may be there in part only."""
    log.seek(0)
    header = log.read(LOG_HEADER.size)
    if len(header) < LOG_HEADER.size:
        return
    magic, _, _, _, *rest = LOG_HEADER.unpack(header)
    order = ">" if magic == BIG_ENDIAN else "<"
    sums = _checksum(header[:24], order, (0, 0))
    seeds = {sums, (rest[2], rest[3])}
    is_header_good = magic | 1 == BIG_ENDIAN and sums == (rest[2], rest[3])
    salts = (rest[0], rest[1]) if is_header_good else _salts_of_frames(log)
    offset = LOG_HEADER.size
    skipped: list[Image] = []
    while (frame := _frame(head := _read_at(log, offset, FRAME_HEADER.size))) is not None:
        if salts[0] != frame.salts[0] and salts[1] != frame.salts[1]:
            # Both change with every life of a log; one may be damaged. If both are, more of this one follows.
            skipped.append(Image(UNREADABLE, offset + FRAME_HEADER.size, False))
            seeds = set()
        else:
            yield from skipped
            skipped = []
            image = log.read(PAGE_SIZE)
            is_good = is_header_good and salts == frame.salts and len(image) == PAGE_SIZE
            is_header_good = True  # one image is enough to tell of it
            # The sum goes on from frame to frame; after a bad one from what it says, or from what it has.
            found = {
                _checksum(image.ljust(PAGE_SIZE, b"\0"), order, _checksum(head[:8], order, seed))
                for seed in seeds
            }
            is_good = is_good and frame.sums in found
            seeds = {frame.sums} if is_good else {frame.sums, *found}
            yield Image(frame, offset + FRAME_HEADER.size, is_good)
        offset += FRAME_SIZE


def _salts_of_frames(log: BinaryIO) -> Sums:
    """What the header of *log*, which is damaged, should say: the first frame may be damaged with it."""
    heads = [_read_at(log, LOG_HEADER.size + n * FRAME_SIZE, FRAME_HEADER.size) for n in range(3)]
    first, *others = [frame.salts for frame in map(_frame, heads) if frame is not None] or [(0, 0)]
    return first if not others or first in others else others[0]


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def is_whole(log: BinaryIO, index: BinaryIO | None) -> bool:
    """Whether *log* holds no commit behind something bad: SQLite would stop there and forget the rest.

    A process that is killed while it writes its last commit leaves the end of that in part: by the *index* of
    the log, which outlives a process, it never came to its end, and nobody misses it.
    """
    is_good, n_bad, n_committed = True, 0, 0
    for number, image in enumerate(_images(log), 1):
        is_good = is_good and image.is_good
        if image.frame.size and is_good:
            n_committed = number
        elif image.frame.size:
            n_bad += 1
    return n_bad == 0 or (n_bad == 1 and n_committed == _indexed(index, _read_at(log, 16, 8)))


def _indexed(index: BinaryIO | None, salts: bytes) -> int | None:
    """How many frames of the log with these *salts* are committed, as its *index* says; None: it does not."""
    header = b"" if index is None else index.read(INDEX_HEADER.size)
    if len(header) < INDEX_HEADER.size:
        return None
    *_, n_frames, _, _, its_salts, first, second = INDEX_HEADER.unpack(header)
    is_good = _checksum(header[:40], "=", (0, 0)) == (first, second)
    return n_frames if is_good and its_salts == salts else None


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
        transaction: list[Image] = []
        for image in _images(log):
            transaction.append(image)
            if image.frame.size:
                for page, offset, is_good in ((i.frame.page, i.offset, i.is_good) for i in transaction):
                    if is_good:
                        self._latest[page] = offset
                        self._doubtful = {at: of for at, of in self._doubtful.items() if of != page}
                    else:
                        self._doubtful[offset] = page
                transaction = []

    def _numbers(self) -> Iterator[int]:
        """Of all pages that there are."""
        yield from range(1, self._in_file + 1)
        yield from sorted(number for number in self._latest if number > self._in_file)

    def _page(self, number: int) -> bytes:
        offset = self._latest.get(number)
        if offset is not None:
            return self._read(self._log, offset)
        return self._read(self._database if number <= self._in_file else None, (number - 1) * PAGE_SIZE)

    def _read(self, file: BinaryIO | None, offset: int) -> bytes:
        """One page; what the file does not have of it is zeros."""
        if file is None:
            return bytes(PAGE_SIZE)
        file.seek(offset)
        return file.read(PAGE_SIZE).ljust(PAGE_SIZE, b"\0")

    # -- rows

    def _rows_in(self, page: bytes, *, is_first: bool) -> Iterator[Row | Note]:
        """Rows in *page*, even if one byte of its header is wrong."""
        start = FIRST_PAGE_HEADER if is_first else 0
        kind, count, rows_begin = page[start], *struct.unpack_from(">HH", page, start + 3)
        if kind != LEAF and not start + 8 + 2 * count <= rows_begin < PAGE_SIZE:
            return  # neither is the rest of its header that of a page with rows
        for i, at in enumerate(range(start + 8, PAGE_SIZE - 1, 2)):
            pointer = int.from_bytes(page[at : at + 2])
            if pointer == 0:  # behind the last one; the number of them may be wrong
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
            elif kind == LEAF and i < count and not is_first:
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
