"""A damaged file: the spool opens, gives what can be read and nothing else, and says so."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from connpool import SpoolDamaged, SpoolError, SQLiteSpool
from connpool.delivery import mend
from connpool.delivery.checkup import log_of
from connpool.delivery.rows import PAGE_SIZE
from connpool.delivery.salvage import FRAME_SIZE, LOG_HEADER

ALL: Final = 1_000, 10_000_000
QUEUES: Final = ("", "a:1", "b:2")
LARGE: Final = bytes(range(256)) * 100
MESSAGES: Final = [b"%d " % n + bytes([n]) * (n % 7) for n in range(40)] + [LARGE, b"last"]
MEMORY: Final = Path("/dev/shm")  # a disk takes its time for each of hundreds of files

Message = tuple[bytes, bytes]  # id and content


class Original(NamedTuple):
    """A file, what is in it, and all that ever was."""

    path: Path
    waiting: dict[str, list[Message]]
    sent: dict[str, list[Message]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def in_log(folder: Path) -> Original:
    """A file as a killed process leaves it: one half in its place, all that came later in the log."""
    path = folder / "original" / "spool.db"
    path.parent.mkdir()
    sent: dict[str, list[Message]] = {queue: [] for queue in QUEUES}
    spool = SQLiteSpool(path, durable=False)
    for n, message in enumerate(MESSAGES):
        queue = QUEUES[n % len(QUEUES)]
        spool.put([queue], message, n.to_bytes(16))
        sent[queue].append((n.to_bytes(16), message))
        if n == 20:
            spool.close()
            spool = SQLiteSpool(path, durable=False)
    spool.remove([item.position for item in spool.peek(QUEUES[1], 3, 1_000)])
    left = copy(path, folder / "killed")
    spool.close()
    return Original(left, sent | {QUEUES[1]: sent[QUEUES[1]][3:]}, sent)


@pytest.fixture(scope="module")
def in_place(folder: Path, in_log: Original) -> Original:
    """The same, closed: there is no log."""
    path = copy(in_log.path, folder / "closed")
    SQLiteSpool(path).close()
    assert not log_of(path).exists()
    return in_log._replace(path=path)


def copy(path: Path, folder: Path) -> Path:
    """Copy *path* and its log, into *folder* and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in filter(Path.exists, (path, log_of(path))):
        shutil.copy(part, folder)
    return folder / path.name


def flip(part: Path, at: int, bits: int = 0xFF) -> None:
    """Make one byte wrong."""
    with part.open("rb+") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bits]))


def content(spool: SQLiteSpool) -> dict[str, list[Message]]:
    found = {}
    for queue in spool.counts():
        items = spool.peek(queue, *ALL)
        assert len(items) == spool.count(queue)
        found[queue] = [(item.id, item.message) for item in items]
    return found


def is_in_order(some: list[Message], everything: list[Message]) -> bool:
    """Whether *some* is *everything* without a part of it."""
    rest = iter(everything)
    return all(item in rest for item in some)


def lost(path: Path, original: Original) -> int:
    """Open the file, see that it gives nothing but what was put, in order; count what is missing."""
    spool = SQLiteSpool(path, durable=False)
    try:
        found = content(spool)
        for queue, items in found.items():
            assert is_in_order(items, original.sent[queue]), (queue, items)
        missing = sum(len(set(original.waiting[queue]) - set(found.get(queue, []))) for queue in QUEUES)
        assert spool.damage is not None or not missing, f"{missing} are missing, and nothing is said"
        assert spool.damage is None or os.path.exists(spool.damage.aside)
        spool.put([QUEUES[1]], b"new", b"\xff" * 16)
        assert spool.peek(QUEUES[1], *ALL)[-1].message == b"new"
    finally:
        spool.close()
    return missing


def bytes_that_matter(path: Path, seed: int, n: int) -> list[int]:
    """Offsets: half of them in headers of pages and rows near them, half anywhere."""
    dice, size = random.Random(seed), path.stat().st_size
    heads = [at for at in range(size) if at % PAGE_SIZE < 100]
    return sorted(dice.sample(heads, n // 2) + dice.sample(range(size), n // 2))


@pytest.mark.parametrize("bits", [0xFF, 0x01, 0x80])
def test_one_wrong_byte_in_the_file_costs_one_message_at_most(in_place, folder, bits) -> None:
    for at in [63, *bytes_that_matter(in_place.path, bits, 40)]:
        path = copy(in_place.path, folder / "copy")
        flip(path, at, 0xFF if at == 63 else bits)
        assert lost(path, in_place) <= 1, at


@pytest.mark.parametrize("bits", [0xFF, 0x01, 0x80])
def test_one_wrong_byte_in_the_log_costs_one_message_at_most(in_log, folder, bits) -> None:
    size = log_of(in_log.path).stat().st_size
    headers = list(range(32)) + [at for at in range(size) if (at - 32) % (PAGE_SIZE + 24) < 24]
    dice = random.Random(bits)
    for at in dice.sample(headers, 14) + dice.sample(range(size), 14):
        path = copy(in_log.path, folder / "copy")
        flip(log_of(path), at, bits)
        assert lost(path, in_log) <= 1, at


@pytest.mark.parametrize("rubbish", [bytes(512), b"rubbish." * 64], ids=["zeros", "rubbish"])
def test_a_sector_of_the_log_that_cannot_be_read_is_noticed_wherever_it_is(in_log, folder, rubbish) -> None:
    frames = (log_of(in_log.path).stat().st_size - LOG_HEADER.size) // FRAME_SIZE
    most = 0
    for frame in range(0, frames - 8, 3):  # not the last commit: it would be one that was never written
        path = copy(in_log.path, folder / "copy")
        with log_of(path).open("rb+") as log:
            log.seek((LOG_HEADER.size + frame * FRAME_SIZE) // 512 * 512)
            log.write(rubbish)
        most = max(most, lost(path, in_log))
    assert frames > 20
    assert most <= 2


def test_a_file_cut_short_anywhere_gives_what_is_left_of_it(in_place, folder) -> None:
    counts = set()
    for at in [0, 1, 15, 16, 99, 100, *range(1_000, in_place.path.stat().st_size, 997)]:
        path = copy(in_place.path, folder / "copy")
        os.truncate(path, at)
        try:
            counts.add(lost(path, in_place))
        except AssertionError:
            assert at == 0  # an empty file without a log is a new one
    assert min(counts) <= 1
    assert max(counts) == sum(map(len, in_place.waiting.values()))


def test_a_log_cut_short_anywhere_gives_what_was_committed_before(in_log, folder) -> None:
    size = log_of(in_log.path).stat().st_size
    before = [0] * len(QUEUES)
    for at in [0, 1, 31, 32, 55, 56, *range(100, size, 4_001), size - 1]:
        path = copy(in_log.path, folder / "copy")
        os.truncate(log_of(path), at)
        spool = SQLiteSpool(path, durable=False)
        found = content(spool)
        spool.close()
        for i, queue in enumerate(QUEUES):
            items = found.get(queue, [])
            assert items in (in_log.sent[queue][: len(items)], in_log.sent[queue][3:]), at
            assert len(items) >= before[i] - 3
            before[i] = len(items)
    assert before[0] == len(in_log.sent[QUEUES[0]])


@pytest.mark.parametrize("n_known", [1, 2, 3])
@pytest.mark.parametrize("torn", [2, 3])
def test_the_end_of_a_log_that_no_commit_has_reached_is_no_damage(folder, torn, n_known) -> None:
    """Of three commits one is *torn*; the index of the log, which outlives the process, knows so many."""
    path = folder / "growing" / "spool.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    log, indices, ends = log_of(path), [], []
    spool = SQLiteSpool(path)
    for n in range(3):
        spool.put(["a"], b"%d" % n, n.to_bytes(16))
        indices.append(path.with_name("spool.db-shm").read_bytes())
        ends.append(log.stat().st_size)
    left = copy(path, folder / "torn")
    spool.close()
    left.with_name("spool.db-shm").write_bytes(indices[n_known - 1])
    with log_of(left).open("r+b") as file:
        file.seek(ends[torn - 1] - PAGE_SIZE // 2)
        file.write(bytes(PAGE_SIZE // 2))

    spool = SQLiteSpool(left)
    found = [int(item.message) for item in spool.peek("a", *ALL)]
    assert (spool.damage is None) == (torn == 3 and n_known == 2)
    if spool.damage is None:
        assert found == [0, 1]
        spool.put(["a"], b"3", bytes(16))
        assert [int(item.message) for item in spool.peek("a", *ALL)] == [0, 1, 3]
    else:
        assert set(found) >= {0, 1, 2} - {torn - 1}
    spool.close()


@pytest.mark.parametrize("garbage", [b"\0", b"x", b"no database", random.Random(1).randbytes(50_000)])
def test_garbage_in_the_place_of_the_file_is_set_aside(tmp_path, garbage) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(garbage)
    spool = SQLiteSpool(path)

    assert spool.counts() == {}
    assert spool.damage is not None
    assert Path(spool.damage.aside).read_bytes() == garbage
    spool.close()


def test_an_empty_file_is_a_new_one(tmp_path) -> None:
    path = tmp_path / "spool.db"
    path.touch()
    spool = SQLiteSpool(path)
    assert spool.damage is None
    spool.close()


def test_an_emptied_file_beside_a_log_loses_nothing_that_is_in_the_log(in_log, folder) -> None:
    path = copy(in_log.path, folder / "copy")
    os.truncate(path, 0)

    spool = SQLiteSpool(path)
    assert spool.counts()["a:1"].messages == len(in_log.waiting["a:1"])
    spool.close()


def test_damage_is_loud(in_place, folder, caplog) -> None:
    path = copy(in_place.path, folder / "copy")
    flip(path, 0)
    told: list[SpoolDamaged] = []
    spool = SQLiteSpool(path, listener=told.append)

    waiting = sum(map(len, in_place.waiting.values()))
    assert told == [spool.damage]
    assert (told[0].pool, told[0].path, told[0].recovered, told[0].lost) == ("", str(path), waiting, 0)
    assert Path(told[0].aside).name.startswith("spool.db.damaged-20")
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "connpool.spool")
    assert str(path) in record.message
    assert f"{waiting} message(s) recovered" in record.message
    spool.close()


def test_a_second_damage_in_the_same_second_has_a_name_of_its_own(in_place, folder, monkeypatch) -> None:
    monkeypatch.setattr(mend.clock, "stamp", lambda: "20261121T183000Z")
    path = copy(in_place.path, folder / "copy")
    for _ in range(3):
        flip(path, 0)
        SQLiteSpool(path).close()

    assert sorted(name for name in os.listdir(path.parent) if "damaged" in name) == [
        "spool.db.damaged-20261121T183000Z",
        "spool.db.damaged-20261121T183000Z-2",
        "spool.db.damaged-20261121T183000Z-3",
    ]


def test_counters_and_positions_go_on_after_damage(folder) -> None:
    path = folder / "counters" / "spool.db"
    path.parent.mkdir()
    spool = SQLiteSpool(path, max_messages=2, durable=False)
    for n in range(5):
        (last,) = spool.put(["a"], b"%d" % n, bytes(16))
    spool.close()
    flip(path, 0)

    spool = SQLiteSpool(path, durable=False)
    assert spool.counts()["a"].dropped == 3
    assert [item.position for item in spool.peek("a", *ALL)][-1] == last
    (next_one,) = spool.put(["a"], b"5", bytes(16))
    assert next_one > last
    spool.close()


# -- while it runs -------------------------------------------------------------


@pytest.fixture
def large(folder: Path) -> Path:
    """A file of which SQLite keeps only the beginning in memory."""
    path = folder / "large" / "spool.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    spool = SQLiteSpool(path, durable=False)
    for n in range(60):
        spool.put(["a"], b"message %d " % n * 5_000, n.to_bytes(16))
    spool.close()
    return path


def damage_message(path: Path, n: int) -> None:
    flip(path, path.read_bytes().index(b"message %d message" % n) + 30_000)


def numbers(spool: SQLiteSpool) -> list[int]:
    return [int(item.message.split()[1]) for item in spool.peek("a", *ALL)]


def test_damage_found_while_running_is_mended_in_the_same_call(large, caplog) -> None:
    spool = SQLiteSpool(large, durable=False)
    damage_message(large, 50)

    assert numbers(spool) == [n for n in range(60) if n != 50]
    assert spool.damage is not None
    assert (spool.damage.recovered, spool.damage.lost) == (59, 1)
    assert spool.count("a") == 59
    spool.put(["a"], b"message 60", bytes(16))
    spool.close()
    again = SQLiteSpool(large, durable=False)
    assert numbers(again)[-2:] == [59, 60]
    assert again.damage is None
    again.close()


def test_a_put_into_a_file_that_was_cut_short_meanwhile_is_kept(large) -> None:
    spool = SQLiteSpool(large, durable=False)
    os.truncate(large, 200_000)

    spool.put(["a"], b"message 60", bytes(16))
    found = numbers(spool)

    assert found == sorted(found)
    assert found[-1] == 60
    assert spool.damage is not None
    assert spool.damage.recovered + spool.damage.lost in (60, 61)
    spool.close()


def test_claims_hold_through_the_mending(large) -> None:
    spool = SQLiteSpool(large, max_messages=60, durable=False)
    claimed = spool.peek("a", 2, 1_000_000)
    damage_message(large, 50)
    spool.release([item.position for item in spool.peek("a", *ALL)[2:]])
    for n in (60, 61, 62):
        spool.put(["a"], b"message %d" % n, bytes(16))

    assert numbers(spool) == [0, 1, *range(4, 50), *range(51, 63)]  # 2 and 3 were dropped
    assert spool.peek("a", 2, 1_000_000) == claimed
    spool.close()


def test_what_was_lost_while_it_was_claimed_is_not_counted_out_a_second_time(large) -> None:
    spool = SQLiteSpool(large, durable=False)
    claimed = spool.peek("a", *ALL)
    damage_message(large, 50)
    assert spool.peek("a", *ALL) == [item for item in claimed if item != claimed[50]]

    spool.remove([item.position for item in claimed[:55]])
    assert numbers(spool) == [55, 56, 57, 58, 59]
    assert spool.count("a") == 5
    spool.remove([item.position for item in claimed])
    spool.put(["a"], b"message 60", bytes(16))
    assert numbers(spool) == [60]
    spool.close()


def test_positions_are_not_given_out_again_though_all_was_lost_while_it_ran(large) -> None:
    spool = SQLiteSpool(large, durable=False)
    claimed = [item.position for item in spool.peek("a", *ALL)]
    os.truncate(large, 0)
    assert spool.peek("a", *ALL) == []

    (position,) = spool.put(["a"], b"message 60", bytes(16))
    assert position > max(claimed)
    spool.remove(claimed)
    assert numbers(spool) == [60]
    spool.close()


def test_what_was_claimed_may_be_removed_though_all_of_its_queue_was_lost(tmp_path) -> None:
    spool = SQLiteSpool(tmp_path / "spool.db", durable=False)
    spool.put(["a"], b"message 0 " * 500_000, bytes(16))
    (claimed,) = spool.peek("a", *ALL)
    damage_message(spool.path, 0)
    assert spool.peek("a", *ALL) == []

    spool.remove([claimed.position])
    assert spool.counts() == {}
    spool.close()


# -- no damage, but not to be opened -------------------------------------------


def test_what_is_the_operators_to_mend_is_refused_and_left_as_it_is(tmp_path, in_place) -> None:
    later = copy(in_place.path, tmp_path / "later")
    foreign = tmp_path / "foreign.db"
    for path, statement in ((later, "PRAGMA user_version = 2"), (foreign, "CREATE TABLE accounts (id)")):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    (tmp_path / "folder").mkdir()

    for path, words in (
        (later, "its format is 2, of a later release; this one reads 1"),
        (foreign, "the database of another program"),
        (tmp_path / "folder", "it is a directory"),
        (tmp_path / "nowhere" / "spool.db", "there is no directory .*nowhere"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(SpoolError, match=f"spool {re.escape(str(path))}: .*{words}"):
            SQLiteSpool(path)
        assert before == (path.read_bytes() if path.is_file() else None)
    assert sorted(os.listdir(tmp_path)) == ["folder", "foreign.db", "later"]


@pytest.mark.parametrize(
    "statements",
    [
        ["PRAGMA journal_mode = WAL", "CREATE TABLE account (id)", "INSERT INTO account VALUES (1)"],
        ["CREATE TABLE message (id, body)", "INSERT INTO message VALUES (1, 'hello')"],
        ["PRAGMA page_size = 8192", "CREATE TABLE message (id, body)"],
        ["CREATE TABLE account (id)", "DROP TABLE account"],
    ],
    ids=["with a log", "with messages", "with our pages", "without tables"],
)
def test_the_database_of_another_program_is_left_to_it_while_that_uses_it(tmp_path, statements) -> None:
    path = tmp_path / "foreign.db"
    other = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        other.execute(statement)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    with pytest.raises(SpoolError, match="the database of another program"):
        SQLiteSpool(path)
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    other.close()


def test_a_file_that_is_just_begun_is_known_for_ours_though_its_size_of_pages_is_wrong(tmp_path) -> None:
    path = tmp_path / "spool.db"
    spool = SQLiteSpool(path)
    spool.put(["a"], b"message", bytes(16))
    begun = copy(path, tmp_path / "copy")
    spool.close()
    flip(begun, 16)

    again = SQLiteSpool(begun)
    assert [item.message for item in again.peek("a", *ALL)] == [b"message"]
    again.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path) -> None:
    path = tmp_path / "spool.db"
    path.touch(mode=0)
    with pytest.raises(SpoolError, match=f"spool {re.escape(str(path))}: Permission denied"):
        SQLiteSpool(path)


# -- interrupted mending -------------------------------------------------------


@pytest.mark.parametrize("step", range(8))
def test_a_process_that_ends_while_it_mends_leaves_it_to_the_next(folder, in_log, monkeypatch, step) -> None:
    path = copy(in_log.path, folder / "copy")
    flip(log_of(path), 5_000)
    left, real = [step], mend.disk.rename

    def rename(old: Path, new: Path) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(old, new)

    monkeypatch.setattr(mend.disk, "rename", rename)
    is_cut_short = False
    try:
        SQLiteSpool(path).close()
    except KeyboardInterrupt:
        assert left == [0]
        is_cut_short = True
    monkeypatch.undo()

    spool = SQLiteSpool(path, durable=False)
    assert (spool.damage is not None) == is_cut_short
    spool.close()
    assert lost(path, in_log) == 0
    assert not [name for name in os.listdir(path.parent) if name.endswith(("mending", "mended"))]


def test_what_a_later_image_of_its_page_no_longer_has_does_not_come_back_from_a_bad_one(folder) -> None:
    path = folder / "sent" / "spool.db"
    path.parent.mkdir()
    spool = SQLiteSpool(path, durable=False)
    for n in range(3):
        spool.put(["a:1"], b"message %d" % n, bytes([n] * 16))
    spool.remove([spool.peek("a:1", *ALL)[1].position])
    left = copy(path, folder / "killed with one sent")
    spool.close()
    log = log_of(left).read_bytes()
    at = log.find(b"message 1")
    page = at - (at - LOG_HEADER.size) % FRAME_SIZE
    free = log.index(bytes(64), page + 24 + 512, page + FRAME_SIZE)
    flip(log_of(left), free + 32)
    spool = SQLiteSpool(left, durable=False)
    assert spool.damage is not None
    assert [message for _, message in content(spool)["a:1"]] == [b"message 0", b"message 2"]
    spool.close()
