"""What SQLite says of a spool's file, told apart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from connpool.delivery.faults import Damaged, UnwritableError, told
from connpool.errors import SpoolError

PATH = Path("/spool.db")


def said(name: str, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    error = kind("disk I/O error")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize("name", ["CORRUPT", "NOTADB", "IOERR", "IOERR_READ", "IOERR_SHORT_READ"])
def test_what_cannot_be_read_as_it_was_written_is_damage(name: str) -> None:
    assert isinstance(told(said(f"SQLITE_{name}"), PATH), Damaged)


@pytest.mark.parametrize("name", ["FULL", "IOERR_WRITE", "IOERR_FSYNC", "IOERR_TRUNCATE", "IOERR_SHMSIZE"])
def test_what_cannot_be_written_is_no_damage_and_says_which_file_and_why(name: str) -> None:
    error = told(said(f"SQLITE_{name}"), PATH)
    assert isinstance(error, UnwritableError)
    assert str(error) == f"spool /spool.db: disk I/O error (SQLITE_{name})"


@pytest.mark.parametrize("name", ["IOERR_LOCK", "IOERR_NOMEM", "READONLY", "BUSY", "CANTOPEN", "PERM"])
def test_what_is_the_matter_around_the_file_is_neither(name: str) -> None:
    error = told(said(f"SQLITE_{name}"), PATH)
    assert type(error) is SpoolError


def test_what_the_module_says_by_itself_is_damage_only_if_it_could_not_read() -> None:
    assert isinstance(told(sqlite3.OperationalError("Could not decode to UTF-8"), PATH), Damaged)
    assert type(told(sqlite3.ProgrammingError("closed"), PATH)) is SpoolError
