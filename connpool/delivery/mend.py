"""Opens a file whatever has happened to it: what a damaged one held goes on in a new one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from connpool import clock
from connpool.delivery.books import Books
from connpool.delivery.checkup import log_of
from connpool.delivery.faults import Damaged, Told, UnwritableError
from connpool.delivery.rows import LANES, Note, Row, first_of, lane_of, sealed, serial_of
from connpool.delivery.salvage import Salvage
from connpool.delivery.segment import Segment
from connpool.errors import SpoolError
from connpool.model.events import SpoolDamaged
from connpool.wire import disk

__all__ = ["MENDED", "damage_of", "mend", "open_whole", "remove_attached", "remove_file", "renewed", "rescue"]

ATTACHED: Final = "-wal", "-shm", "-journal"  # what SQLite keeps beside a file
ASIDE: Final = ".damaged-"
MENDED: Final = ".mended-"
CHUNK: Final = 10_000  # messages in one transaction

Tell: TypeAlias = Callable[[SpoolDamaged, str], None]


def open_whole(path: Path, tell: Tell) -> Segment:
    """Open the file *path*, which the caller has locked; mend it first if need be.

    Args:
        tell: Called with what was found, and why it was thought damaged.

    Raises:
        SpoolError: it cannot be opened, for a reason that is no damage.
    """
    asides = [_swap(path, mended) for mended in disk.names_like(path, MENDED + ".*")]  # its mender has died
    try:
        segment = Segment(path)
    except Damaged as damage:
        segment = mend(path, str(damage), tell)
    for aside in asides:
        tell(damage_of(path, aside, segment.books.messages, 0), "mended before")
    return segment


def renewed(path: Path, books: Books, notes: Iterable[Note]) -> Segment:
    """Put a new file in the place of *path*, all of whose messages are gone, with what is known besides.

    Raises:
        SpoolError: it cannot be written: others have taken the space, perhaps.
    """
    remove_file(path)  # now there is space
    with _just_written(path):
        new = Segment(path)
        try:
            new.begin(is_durable=True)
            new.write("serial", b"", books.reserved)
            for queue, tally in books.tallies.items():
                if tally.dropped:
                    new.write("dropped", queue.encode("utf-8", "surrogatepass"), tally.dropped)
            for note in notes:
                new.write(note.kind, note.name, note.number)
            new.commit()
        except BaseException:
            new.roll_back()
            new.close()
            raise
    return new


def mend(path: Path, why: str, tell: Tell, known: int = 0) -> Segment:
    """Set the damaged file *path* aside; what can be read of it goes on in a new one of that name.

    Positions, ids and order stay. Whenever the process ends meanwhile, the
    next ``open_whole`` begins again or goes on.

    Args:
        known: How many messages it should hold, if that is known.
    """
    draft = path.with_name(path.name + ".mending")
    remove_file(draft)
    with ExitStack() as files:
        database, log = (files.enter_context(disk.reading(part)) for part in (path, log_of(path)))
        try:
            recovered, lost = _write(draft, Salvage(database, log))
        except Exception:
            remove_file(draft)  # it may be what fills the disk
            raise
    mended = _free_name(path)
    disk.rename(draft, mended)  # from here on it is this one that counts
    tell(damage_of(path, _swap(path, mended), recovered, max(lost, known - recovered)), why)
    with _just_written(path):
        return Segment(path)


def rescue(segment: Segment, path: Path, late: Iterable[int]) -> Path:
    """Copy what the open *segment* holds, whose file is gone, to *path*, which the caller has locked.

    Args:
        late: Positions of messages that were removed, and are still in it.

    Returns:
        What the file that had that name is called now, if there was one.
    """
    draft = path.with_name(path.name + ".mending")
    remove_file(draft)
    try:
        segment.copy_to(draft, late)
    except SpoolError:
        remove_file(draft)
        raise
    mended = _free_name(path)
    disk.rename(draft, mended)
    for earlier in disk.names_like(path, MENDED + ".*"):
        if earlier != mended:  # an interrupt has kept it from being swapped
            disk.remove(earlier)
    if path == segment.path:
        segment.remove_rest()
    return _swap(path, mended)


def remove_file(path: Path) -> None:
    """Remove *path* and what belongs to it."""
    remove_attached(path)
    disk.remove(path)


def remove_attached(path: Path) -> None:
    """Remove what SQLite keeps beside *path*, which is closed and needs none of it."""
    for ending in ATTACHED:
        disk.remove(path.with_name(path.name + ending))


def damage_of(path: Path, aside: Path, recovered: int, lost: int) -> SpoolDamaged:
    """The event that tells of it."""
    is_there = any(disk.size_of(aside.with_name(aside.name + each)) is not None for each in (*ATTACHED, ""))
    return SpoolDamaged("", clock.now(), str(path), str(aside) if is_there else "", recovered, lost)


def _write(draft: Path, found: Salvage) -> tuple[int, int]:
    """Fill the new file *draft*; returns how many messages that are, and how many are lost."""
    with _just_written(draft):
        segment = Segment(draft)
        try:
            return _fill(segment, found)
        finally:
            segment.close()


@contextmanager
def _just_written(path: Path) -> Iterator[None]:
    """Blame the disk, not the file, for whatever is damaged of the new one *path*."""
    try:
        with Told(path):
            yield
    except Damaged as damage:
        raise UnwritableError(f"spool {path}: the disk does not keep what is written: {damage}") from damage


def _fill(segment: Segment, found: Salvage) -> tuple[int, int]:
    with Told(segment.path):
        notes: dict[tuple[str, bytes], int] = {}
        queues: dict[int, bytes] = {}
        rows = found.rows()
        while chunk := list(itertools.islice(rows, CHUNK)):
            segment.begin(is_durable=False)
            for item in chunk:
                if isinstance(item, Note):
                    key = item.kind, item.name
                    notes[key] = max(notes.get(key, 0), item.number)
                else:
                    segment.restore(_placed(item, queues))
            segment.commit()
        segment.begin(is_durable=True)
        for (kind, name), number in notes.items():
            segment.write(kind, name, number)
        segment.commit()
        recovered = segment.number("SELECT count(*) FROM message")
        lost = sum(segment.size_at(position) is None for position in found.suspects)
        segment.settle()
    return recovered, lost


def _placed(row: Row, queues: dict[int, bytes]) -> Row:
    """*row*, in a lane of its queue's own: what is found may be from the time of another."""
    lane = lane_of(row.position)
    while queues.setdefault(lane, row.queue) != row.queue:
        lane = (lane + 1) % LANES
    position = first_of(lane) + serial_of(row.position)
    return row if position == row.position else sealed(position, *row[1:5])


def _free_name(path: Path) -> Path:
    """What the mended file is called until it is swapped; it says what the damaged one will be called."""
    stamp = clock.stamp()
    endings = itertools.chain([stamp], (f"{stamp}-{n}" for n in itertools.count(2)))
    free = next(e for e in endings if disk.size_of(path.with_name(path.name + ASIDE + e)) is None)
    return path.with_name(path.name + MENDED + free)


def _swap(path: Path, mended: Path) -> Path:
    """Call *mended* *path*, and what had that name something else; returns what. It may have been begun."""
    aside = path.with_name(path.name + ASIDE + mended.name.removeprefix(path.name + MENDED))
    # The log first: without the file it would be taken for the log of the next one.
    for ending in (*ATTACHED, ""):
        old = path.with_name(path.name + ending)
        if disk.size_of(old) is not None:
            disk.rename(old, aside.with_name(aside.name + ending))
    disk.rename(mended, path)
    return aside
