"""Which of the files at one path a spool has: each has a name and a lock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from connpool.delivery.mend import MENDED
from connpool.delivery.segment import Segment
from connpool.wire import disk
from connpool.wire.disk import FileLock

__all__ = ["lock_of", "take"]


def lock_of(path: Path) -> Path:
    """The file whose lock its owner has."""
    return path.with_name(path.name + ".lock")


def take(
    base: Path, former: Path | None = None, *, is_vacant: bool = False, segment: Segment | None = None
) -> tuple[Path, FileLock]:
    """The first file that nobody has, and its lock: *base*, or one called like it and a number.

    Args:
        former: Rather this one again.
        is_vacant: None in whose place there is a file, but for that of *segment*: it is a dead owner's.
    """
    paths = _names(base, former)
    while True:
        path = next(paths)
        if (lock := FileLock.try_take(lock_of(path))) is not None:
            if not is_vacant or _is_vacant(path, segment):
                return path, lock
            lock.end()


def _names(base: Path, former: Path | None) -> Iterator[Path]:
    if former is not None:
        yield former
    yield base
    for n in itertools.count(2):
        yield base.with_name(f"{base.name}.{n}")


def _is_vacant(path: Path, segment: Segment | None) -> bool:
    is_its_own = segment is not None and path == segment.path and segment.has_no_successor()
    return (is_its_own or disk.size_of(path) is None) and not disk.names_like(path, MENDED + ".*")
