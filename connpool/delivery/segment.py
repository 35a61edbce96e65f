"""One SQLite file that one spool at a time has to itself."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from connpool.delivery.checkup import index_of, log_of, refuse_what_sqlite_would_destroy, set_up, take_stock
from connpool.delivery.faults import FORKED, Damaged, ForkedError, Told, code_of
from connpool.delivery.rows import END, PAGE_SIZE, Note, Row, first_of, lane_of, note_from, row_from
from connpool.delivery.salvage import FRAME_SIZE, LOG_HEADER
from connpool.errors import SpoolError
from connpool.pool.flock import Flock
from connpool.wire import disk

__all__ = ["Segment", "disown_all"]

BUSY_TIMEOUT: Final = 5.0  # seconds for another program that looks into the file
SPARE_PAGES: Final = 32  # free ones that a file may keep, besides half of those in use
INSERTS: Final = tuple(
    "INSERT INTO message VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows) for rows in range(1, 33)
)
STEP: Final = 64  # pages given back after one transaction; moving one costs about as much as writing it


class Segment:
    """An open file. For one thread at a time.

    Attributes:
        path: Where it is.
        books: What was in it when it was opened.

    Raises:
        Damaged: the file must be mended first.
        SpoolError: it cannot be opened: permission, a directory, another program's, a later format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._is_durable: bool | None = None
        self._has_refuse = False  # behind its end the log holds a commit that could not be flushed
        disk.require_directory(path)
        refuse_what_sqlite_would_destroy(path)
        if (identity := disk.identity(path)) is not None and identity in _INHERITED:
            disk.renew(path)  # SQLite's notes on the old one are the parent's
        disk.create(path)
        self._identity = disk.identity(path)
        with Told(path):
            self._connection = _connect(path)
            self._is_open = True
            _OPEN.add(self)
            try:
                try:
                    set_up(self)
                except sqlite3.OperationalError as error:
                    if code_of(error) != sqlite3.SQLITE_IOERR_SHMSIZE:
                        raise
                    self._keep_to_ourselves()
                    set_up(self)
                self.books = take_stock(self)
                self._log_identity = disk.identity(log_of(path))
            except BaseException as error:
                # If the log's index, too, can be read by now, but not written, SQLite would remove the log.
                if sys.version_info >= (3, 12) and code_of(error) == sqlite3.SQLITE_CANTOPEN:
                    self._connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
                self.close()
                raise

    def _keep_to_ourselves(self) -> None:
        """Do without the file that is shared with who else looks: a full disk has no space for it."""
        self._connection.close()
        self._connection = _connect(self.path)
        self.execute("PRAGMA locking_mode = EXCLUSIVE")

    def close(self) -> None:
        """Close it; again: do nothing. What is in its log goes to its place if that is possible."""
        if not self._is_open:
            return
        if self._process != os.getpid():
            self.let_go()
            return
        self._is_open = False
        try:
            self._connection.close()
        except sqlite3.Error:  # whatever is the matter, whoever opens it next will see
            pass

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):
            self.close()

    def is_in_place(self) -> bool:
        """Whether nobody has removed or replaced the file or its log, while it is open."""
        if not self._is_open:
            return True
        now = disk.identity(self.path), disk.identity(log_of(self.path))
        return now == (self._identity, self._log_identity)

    def has_no_successor(self) -> bool:
        """Whether no other file has its name now."""
        return disk.identity(self.path) in (None, self._identity)

    def remove_rest(self) -> None:
        """Remove what is still there of its files; leave what has taken their places."""
        disk.remove(index_of(self.path))  # says nothing that the log does not say
        log = log_of(self.path)
        if disk.identity(log) == self._log_identity:
            disk.remove(log)
        if disk.identity(self.path) == self._identity:
            disk.remove(self.path)

    def copy_to(self, path: Path, late: Iterable[int]) -> None:
        """Copy all that is in it, but the messages at *late*, into the new file *path*, and to the disk."""
        disk.create(path)
        try:
            copy = _connect(path)
            try:
                self._connection.backup(copy)
                copy.execute("PRAGMA secure_delete = ON")
                copy.execute("BEGIN")
                _delete(copy, late)
                copy.execute("COMMIT")
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise SpoolError(f"spool {self.path}: it cannot be copied to {path}: {error}") from error

    def let_go(self) -> None:
        """Never touch it again: to close it would remove what is called like its log, and is another's."""
        self._is_open = False
        _FOREIGN.append(self._connection)

    def disown(self) -> None:
        """In a forked child: never touch it. SQLite would take the parent's locks for its own."""
        if self._is_open:
            _INHERITED.add(self._identity)
            self.close()
            self._connection = _Cut(self.path)  # type: ignore[assignment]  # for a call that goes on here

    # -- transactions

    def begin(self, *, is_durable: bool) -> None:
        """Begin a transaction; *is_durable*: its end is to survive that the power fails."""
        if is_durable != self._is_durable:
            # Every commit is in the order of the log, so that a later flush covers the earlier ones too.
            self.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._is_durable = is_durable
        if is_durable and self._has_refuse:
            self.settle()  # opened after a crash, what is left of it would be taken for damage
            self._has_refuse = False
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._has_refuse = code_of(error) == sqlite3.SQLITE_IOERR_FSYNC
            raise

    def roll_back(self) -> None:
        if self.is_in_transaction:
            self.execute("ROLLBACK")
        if self._is_open:  # else it is the parent's, in a forked child
            self._cut_log()

    def _cut_log(self) -> None:
        """Cut off a part of a page that a full disk has taken: the file would seem damaged."""
        log = log_of(self.path)
        size = disk.size_of(log) or 0
        rest = (size - LOG_HEADER.size) % FRAME_SIZE if size > LOG_HEADER.size else 0
        if rest and disk.identity(log) == self._log_identity:
            disk.cut(log, size - rest)

    @property
    def is_in_transaction(self) -> bool:
        return self._is_open and self._connection.in_transaction

    def execute(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """Do *statement*; returns what it gives."""
        return self._connection.execute(statement, tuple(values)).fetchall()

    def number(self, statement: str) -> int:
        """The one number that *statement* gives."""
        return int(self.execute(statement)[0][0])

    # -- content

    def rows(self, position: int) -> Iterator[Row]:
        """The messages of one lane from *position* on.

        Raises:
            Damaged: when it comes to one that is not what was written.
        """
        return self._rows(position, first_of(lane_of(position) + 1), -1)

    def rows_of_all(self, position: int, limit: int) -> Iterator[Row]:
        """The same, of all lanes: first all that are in the lane of *position*, then those of the next."""
        return self._rows(position, END, limit)

    def _rows(self, position: int, end: int, limit: int) -> Iterator[Row]:
        found = self._connection.execute(
            "SELECT position, queue, id, spooled_at, message, checksum FROM message"
            " WHERE position >= ? AND position < ? ORDER BY position LIMIT ?",
            (position, end, limit),
        )
        for values in found:
            row = row_from(values)
            if row is None:
                raise Damaged(f"message {values[0]} is not what was written")
            yield row

    def heads(self, lane: int) -> Iterator[tuple[int, int, float]]:
        """Position, size and time of the messages of *lane*, the oldest first.

        Raises:
            Damaged: when it comes to one that has none.
        """
        found = self._connection.execute(
            "SELECT position, length(message), spooled_at FROM message"
            " WHERE position >= ? AND position < ? ORDER BY position",
            (first_of(lane), first_of(lane + 1)),
        )
        for position, size, spooled_at in found:
            if not (isinstance(size, int) and isinstance(spooled_at, float)):
                raise Damaged(f"message {position} is not what was written")
            yield position, size, spooled_at

    def size_at(self, position: int) -> int | None:
        """Size of the message at *position*; None: there is none."""
        found = self.execute("SELECT length(message) FROM message WHERE position = ?", (position,))
        return found[0][0] if found else None

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert *rows*, many with one statement: each gives other threads the interpreter for a moment."""
        for at in range(0, len(rows), len(INSERTS)):
            chunk = rows[at : at + len(INSERTS)]
            self._connection.execute(INSERTS[len(chunk) - 1], tuple(chain.from_iterable(chunk)))

    def restore(self, row: Row) -> None:
        """Insert *row* unless there is one at its position."""
        self._connection.execute("INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?, ?)", row)

    def delete(self, positions: Iterable[int]) -> None:
        _delete(self._connection, positions)

    def notes(self) -> Iterator[Note]:
        """All notes.

        Raises:
            Damaged: when it comes to one that is not what was written.
        """
        for values in self.execute("SELECT kind, name, number, checksum FROM note"):
            note = note_from(values)
            if note is None:
                raise Damaged(f"the note {values[:3]} is not what was written")
            yield note

    def write(self, kind: str, name: bytes, number: int) -> None:
        """Set the note *kind* of *name*."""
        self.erase(kind, name)
        self._connection.execute("INSERT INTO note VALUES (?, ?, ?, ?)", Note.sealed(kind, name, number))

    def erase(self, kind: str, name: bytes) -> None:
        self._connection.execute("DELETE FROM note WHERE kind = ? AND name = ?", (kind, name))

    # -- space

    def settle(self) -> None:
        """See to it that the file holds everything without its log, even if the power fails."""
        busy, frames, settled = self.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if busy or frames != settled:
            raise SpoolError(f"spool {self.path}: another program keeps it from being settled")

    def used(self) -> int:
        """Bytes of the file that are in use."""
        return (self.number("PRAGMA page_count") - self.number("PRAGMA freelist_count")) * PAGE_SIZE

    def tidy(self) -> None:
        """Give some of the space back that is no longer in use. Within a transaction."""
        free = self.number("PRAGMA freelist_count")
        if free > SPARE_PAGES and free - SPARE_PAGES > self.used() // PAGE_SIZE // 2:
            for _ in range(STEP):  # the module takes but one step of a statement that gives no rows
                self._connection.execute("PRAGMA incremental_vacuum(1)")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def _delete(connection: sqlite3.Connection, positions: Iterable[int]) -> None:
    connection.executemany("DELETE FROM message WHERE position = ?", [(position,) for position in positions])


class _Cut:
    """Stands for the parent's connection in a forked child."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getattr__(self, name: str) -> object:
        raise ForkedError(f"spool {self._path}: {FORKED}")


def disown_all() -> None:
    """In a forked child: whatever is open is the parent's. A call to it may go on here."""
    for segment in _OPEN:
        segment.disown()


_OPEN: Final[Flock[Segment]] = Flock()
_INHERITED: Final[set[disk.Identity | None]] = set()  # files that a forked child's parent has open
_FOREIGN: Final[list[sqlite3.Connection]] = []  # connections kept so that nobody closes them
