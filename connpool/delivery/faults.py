"""What SQLite says, told apart: the file is damaged, or something else is the matter."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from connpool.errors import SpoolError

__all__ = ["Damaged", "told"]

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


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Let what SQLite says become an error that names *path*.

    Raises:
        Damaged: the fault lies in the file.
        SpoolError: it lies elsewhere: no space, no permission, another program.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # None: the module says so, not SQLite
        if isinstance(error, sqlite3.OperationalError) if code is None else code & 0xFF in DAMAGE:
            raise Damaged(str(error)) from error
        raise SpoolError(f"spool {path}: {error}") from error
