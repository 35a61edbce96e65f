"""What SQLite says, told apart: the file is damaged, or something else is the matter."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final

from connpool.errors import SpoolError

__all__ = ["Damaged", "NoSpaceError", "Told", "told"]

# What SQLite says when the fault lies in the file. ERROR: a table or a column is missing that we made.
DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
    }
)


class Damaged(Exception):
    """The file is not what was written. Never leaves the spool."""


class NoSpaceError(SpoolError):
    """The disk is full. To callers it is a SpoolError."""


def told(error: sqlite3.Error, path: Path) -> Damaged | SpoolError:
    """What *error* is: damage of the file *path*, or something else: no space, no permission."""
    code = getattr(error, "sqlite_errorcode", None)  # None: the module says so, not SQLite
    if isinstance(error, sqlite3.OperationalError) if code is None else code & 0xFF in DAMAGE:
        return Damaged(str(error))
    kind = NoSpaceError if code is not None and code & 0xFF == sqlite3.SQLITE_FULL else SpoolError
    return kind(f"spool {path}: {error}")


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
