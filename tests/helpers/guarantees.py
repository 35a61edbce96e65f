"""The settings of a broadcaster whose guarantees are promised, one above the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from connpool import MemorySpool, Spool, SQLiteSpool
from tests.helpers.sinks import acknowledged

ALL: Final = ("no spool", "MemorySpool", "SQLiteSpool", "write_ahead", "confirm")
SPOOLED: Final = ALL[1:]
IN_A_FILE: Final = ALL[2:]
AHEAD: Final = ALL[3:]
UNCONFIRMED: Final = ALL[:-1]


def arguments(setting: str, path: str | Path, spool_class: type[SQLiteSpool] = SQLiteSpool) -> dict[str, Any]:
    """What a broadcaster of that *setting* is given; its file, if it has any, is at *path*."""
    spool: Spool | None = None
    if setting == "MemorySpool":
        spool = MemorySpool()
    elif setting in IN_A_FILE:
        spool = spool_class(path)
    return {
        "spool": spool,
        "write_ahead": setting in AHEAD,
        "confirm": acknowledged if setting == "confirm" else None,
    }
