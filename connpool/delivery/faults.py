"""What SQLite says, told apart: the file is damaged, or something else is the matter."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final

from connpool.errors import SpoolError

__all__ = ["FORKED", "Damaged", "ForkedError", "Told", "UnwritableError", "code_of", "told"]

# What SQLite says when the fault lies in the file. ERROR: a table or a column is missing that we made.
DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
    }
)
# Of the many kinds of IOERR those that say so of what is read. The others: of what surrounds the file.
UNREADABLE: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
        sqlite3.SQLITE_IOERR_DATA,
    }
)
# What it says when the disk takes nothing more. FULL is one reason of several: a quota, a limit on the size
# of files and a broken disk are WRITE.
UNWRITABLE: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    }
)


FORKED: Final = "a signal handler has forked within this call, which is not for the child to end"


class Damaged(Exception):
    """The file is not what was written. Never leaves the spool."""


class ForkedError(SpoolError):
    """A call that a handler has interrupted to fork goes on in the child. To callers it is a SpoolError."""


class UnwritableError(SpoolError):
    """The disk takes nothing more, for now. To callers it is a SpoolError."""


def code_of(error: BaseException) -> int | None:
    """What SQLite says, in full; None: it is not SQLite that says so."""
    return getattr(error, "sqlite_errorcode", None)


def told(error: sqlite3.Error, path: Path) -> Damaged | SpoolError:
    """What *error* is: damage of the file *path*, or something else: no space, no permission."""
    code = code_of(error)
    if code is None:  # the module says so, not SQLite
        is_damage = isinstance(error, sqlite3.OperationalError)
        return Damaged(str(error)) if is_damage else SpoolError(f"spool {path}: {error}")
    what = f"{error} ({error.sqlite_errorname})"
    if code in UNREADABLE or code & 0xFF in DAMAGE:
        return Damaged(what)
    kind = UnwritableError if code in UNWRITABLE else SpoolError
    return kind(f"spool {path}: {what}")


class Told:
    """Raises what SQLite says as ``told`` calls it. A context manager."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            raise told(error, self._path) from error
