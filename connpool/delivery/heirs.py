"""Takes over what owners have left that live no more: each message by one, whenever the heir itself dies."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from connpool.delivery.books import Draft
from connpool.delivery.faults import Damaged, Told
from connpool.delivery.keeper import HEIRLOOM, Keeper
from connpool.delivery.limits import Limits
from connpool.delivery.mend import mend, open_whole, remove_attached, remove_file
from connpool.delivery.places import lock_of
from connpool.delivery.rows import END, Row, up_to
from connpool.errors import SpoolError
from connpool.wire import disk
from connpool.wire.disk import FileLock

__all__ = ["adopt", "nothing"]

logger = logging.getLogger("connpool.spool")

NUMBER: Final = r"(\.(?:[1-9]\d{1,4}|[2-9]))?"  # a copy that ends with a date, or with .1, is nobody's rest
CHUNK: Final = 500  # messages taken over in one transaction: callers do not wait for all of them
CHUNK_BYTES: Final = 1 << 20


def adopt(keeper: Keeper) -> Counter[str]:
    """Take over the files of dead owners. One thread at a time; returns how many messages of each queue.

    A file is inherited in three steps: it is renamed, so that only the owner of
    *keeper*'s file will ever see to it; its messages are copied, and how far that
    has come is noted in the same transaction; it is removed. A death in between
    leaves all of it to the next owner.
    """
    adopted = _take_all_in(keeper)
    for path, lock in _left_behind(keeper):
        try:
            _inherit(keeper, path, lock)
        except SpoolError as error:
            if path not in keeper.shunned:
                keeper.shunned.add(path)
                logger.warning(
                    "spool %s: cannot take over what another has left: %s", keeper.base, str(error)
                )
        adopted += _take_all_in(keeper)
    return adopted


def _left_behind(keeper: Keeper) -> Iterator[tuple[Path, FileLock]]:
    """Files of others, and their locks, which nobody has. Of some not everything may be there any more."""
    number = re.compile(re.escape(keeper.base.name) + NUMBER)
    found = disk.names_like(keeper.base, rf"{NUMBER}(\.lock|\.mended-.*|{HEIRLOOM})?")
    for name in sorted({number.match(path.name)[0] for path in found}):  # type: ignore[index]
        path = keeper.base.with_name(name)
        if path != keeper.path:
            lock = FileLock.try_take(lock_of(path))
            if lock is not None:
                yield path, lock


def _inherit(keeper: Keeper, path: Path, lock: FileLock) -> None:
    """Make the file *path* an heirloom of *keeper*'s, or remove it if nothing is in it."""
    other = Keeper(path, Limits())
    other.news = keeper.news
    other.own(path, lock)
    try:
        other.do(nothing)  # it is open and whole now
        _take_all_in(other)  # its owner may have died while it was at this
        segment = other.ledger.living()
        if other.books.are_worth_noting:
            with Told(path):
                segment.settle()
            segment.close()
            remove_attached(path)  # or it would be taken for what belongs to the next file of that name
            disk.rename(path, _heirloom(keeper))
        else:
            segment.close()
            remove_file(path)
    except Exception:  # after an interrupt the finalisers do it: a call may still be under way
        other.close()
        raise
    other.close()


def _heirloom(keeper: Keeper) -> Path:
    assert keeper.path is not None
    return keeper.path.with_name(f"{keeper.path.name}.inherited-{os.urandom(8).hex()}")


def _take_all_in(keeper: Keeper) -> Counter[str]:
    """Copy what was inherited and not yet copied."""
    assert keeper.path is not None
    adopted: Counter[str] = Counter()
    for path in disk.names_like(keeper.path, HEIRLOOM):
        adopted += _take_in(keeper, path)
    return adopted


def _take_in(keeper: Keeper, path: Path) -> Counter[str]:
    name = os.fsencode(path.name)
    position = keeper.do(partial(_progress, keeper, name))
    adopted: Counter[str] = Counter()
    source = open_whole(path, keeper.note)
    try:
        while position < END:
            try:
                with Told(path):
                    rows = up_to(CHUNK_BYTES, source.rows_of_all(position, CHUNK))
                    dropped = {note.name: note.number for note in source.notes() if note.kind == "dropped"}
            except Damaged as damage:
                source.close()
                source = mend(path, str(damage), keeper.note)
                continue
            position = rows[-1].position + 1 if rows else END
            work = partial(_copy, keeper, name, position, rows, {} if rows else dropped)
            adopted += keeper.do(work, is_durable=True)
    finally:
        source.close()
    remove_file(path)
    keeper.do(partial(_forget, keeper, name))
    return adopted


# -- jobs


def nothing(draft: Draft) -> None:
    """Just see that the file can be used."""


def _progress(keeper: Keeper, name: bytes, draft: Draft) -> int:
    """From which position on the file *name* is still to be copied."""
    del draft
    notes = keeper.ledger.living().notes()
    return max((note.number for note in notes if (note.kind, note.name) == ("merged", name)), default=0)


def _copy(
    keeper: Keeper, name: bytes, position: int, rows: list[Row], dropped: dict[bytes, int], draft: Draft
) -> Counter[str]:
    segment = keeper.ledger.living()
    for queue, messages in dropped.items():
        total = draft.books.note_dropped(queue.decode("utf-8", "surrogatepass"), messages)
        segment.write("dropped", queue, total)
    segment.write("merged", name, position)
    return keeper.ledger.take_in(draft, rows)


def _forget(keeper: Keeper, name: bytes, draft: Draft) -> None:
    del draft
    keeper.ledger.living().erase("merged", name)
