"""Makes a new file, or finds out whether an old one is what was written, and what is in it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from connpool.delivery.books import Books, Tally
from connpool.delivery.faults import Damaged
from connpool.delivery.rows import (
    APPLICATION,
    FORMAT,
    MESSAGES,
    PAGE_SIZE,
    SCHEMA,
    first_of,
    lane_of,
    serial_of,
)
from connpool.delivery.salvage import LOG_HEADER, is_whole
from connpool.errors import SpoolError
from connpool.wire import disk

if TYPE_CHECKING:
    from connpool.delivery.segment import Segment

__all__ = ["index_of", "log_of", "refuse_what_sqlite_would_destroy", "set_up", "take_stock"]

HEADER: Final = struct.Struct(">16sH46xII")  # magic, page size, ..., whether it shrinks by steps, application
MAGIC: Final = b"SQLite format 3\0"
LOG_PAGES: Final = 64  # in the write-ahead log before they go to their places
HIGHEST_FORMAT: Final = 99  # what claims to be of a later format than that is damaged

MAKING: Final = (f"page_size = {PAGE_SIZE}", "auto_vacuum = INCREMENTAL")  # these write
USING: Final = (
    "journal_mode = WAL",
    f"wal_autocheckpoint = {LOG_PAGES}",
    f"journal_size_limit = {LOG_PAGES * PAGE_SIZE}",
    "secure_delete = ON",  # what was removed must not come back when a damaged file is read page by page
    "cell_size_check = ON",
    "trusted_schema = OFF",
)


def log_of(path: Path) -> Path:
    """The write-ahead log of the database *path*."""
    return path.with_name(path.name + "-wal")


def index_of(path: Path) -> Path:
    """What SQLite knows of that log, and shares with who else has *path* open."""
    return path.with_name(path.name + "-shm")


def refuse_what_sqlite_would_destroy(path: Path) -> None:
    """See to it that SQLite does not write over what it cannot read.

    It takes an all too short file for a new one, removes the log of an empty one, and forgets what
    stands in a log behind the first bad page.

    Raises:
        Damaged: it would.
        SpoolError: it is another program's, whose log only SQLite can judge.
    """
    with disk.reading(path) as file, disk.reading(log_of(path)) as log, disk.reading(index_of(path)) as index:
        beginning = b"" if file is None else file.read(HEADER.size)
        if beginning and not beginning.startswith(MAGIC):
            raise Damaged("it does not begin as a SQLite file does")
        if _is_anothers(beginning):
            raise _anothers(path)
        if log is None or log.seek(0, io.SEEK_END) <= LOG_HEADER.size:
            return
        if not beginning:
            raise Damaged("it is empty, and its log is not")
        if not is_whole(log, index):
            raise Damaged("its log holds commits that cannot be read")


def _is_anothers(beginning: bytes) -> bool:
    """Whether nothing in it is as we make it. Less than that may be damage."""
    if len(beginning) < HEADER.size:
        return False
    _, page_size, is_incremental, application = HEADER.unpack(beginning)
    return page_size != PAGE_SIZE and not is_incremental and application != APPLICATION


def _anothers(path: Path) -> SpoolError:
    return SpoolError(f"spool {path}: it is the database of another program")


def set_up(segment: Segment) -> None:
    """Have SQLite do what we rely on; see that the file is whole and ours, or make it if it is new.

    Raises:
        Damaged: it is not what was written.
        SpoolError: it is another program's, or of a later format.
    """
    (verdict,) = segment.execute("PRAGMA quick_check(1)")[0]
    if verdict != "ok":
        raise Damaged(verdict)
    tables = dict(segment.execute("SELECT name, sql FROM sqlite_master"))
    application, version = (segment.number(f"PRAGMA {what}") for what in ("application_id", "user_version"))
    is_new = not tables and (application, version) == (0, 0)
    if tables and application != APPLICATION and tables.get("message") != MESSAGES:
        raise _anothers(segment.path)
    if FORMAT < version <= HIGHEST_FORMAT:
        raise SpoolError(
            f"spool {segment.path}: its format is {version}, of a later release; this one reads {FORMAT}"
        )
    if not is_new and (application, version, *tables.values()) != (APPLICATION, FORMAT, *SCHEMA):
        raise Damaged("its tables are not as they were made")
    for pragma in (*MAKING, *USING) if is_new else USING:
        segment.execute(f"PRAGMA {pragma}")
    segment.begin(is_durable=is_new)
    if is_new:
        for statement in SCHEMA:
            segment.execute(statement)
        segment.execute(f"PRAGMA application_id = {APPLICATION}")
        segment.execute(f"PRAGMA user_version = {FORMAT}")
    # Nothing lies there. But if SQLite could not open the file otherwise just then, it may only be read.
    segment.delete([0])
    segment.commit()


def take_stock(segment: Segment) -> Books:
    """Count what is there."""
    books = Books()
    serial, lane = 1, 0
    while found := segment.execute(
        "SELECT position FROM message WHERE position >= ? ORDER BY position LIMIT 1", (first_of(lane),)
    ):
        ((first,),) = found
        lane = lane_of(first)
        row = next(segment.rows(first))
        messages, size, last = segment.execute(
            "SELECT count(*), total(length(message)), max(position) FROM message"
            " WHERE position >= ? AND position < ?",
            (first, first_of(lane + 1)),
        )[0]
        books.put(row.queue.decode("utf-8", "surrogatepass"), Tally(lane, messages, int(size), 0))
        serial = max(serial, serial_of(last) + 1)
        lane += 1
    for note in segment.notes():
        if note.kind == "dropped":
            books.note_dropped(note.name.decode("utf-8", "surrogatepass"), note.number)
        elif note.kind == "serial":
            serial = max(serial, note.number)
    books.serial = books.reserved = serial
    return books
