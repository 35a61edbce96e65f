"""A spool whose files are removed or replaced while it is in use: it says so, and goes on in new ones."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from connpool import SpoolDamaged, SpoolError, SQLiteSpool
from connpool.delivery import keeper, mend
from connpool.delivery.segment import _FOREIGN


def put(spool: SQLiteSpool, *numbers: int) -> None:
    for n in numbers:
        spool.put(["a"], b"%d" % n, n.to_bytes(16))


def numbers(spool: SQLiteSpool) -> list[int]:
    return [int(item.message) for item in spool.peek("a", 1_000, 1_000_000)]


def left_by_a_kill(path: Path, folder: Path) -> list[int]:
    """What the next process would find if this one were killed now."""
    shutil.copytree(path.parent, folder)
    spool = SQLiteSpool(folder / path.name)
    found = numbers(spool)
    spool.close()
    return found


def remove(path: Path, endings: tuple[str, ...]) -> None:
    for ending in endings:
        os.remove(f"{path}{ending}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "spool.db"


@pytest.mark.parametrize("endings", [("", "-wal", "-shm", ".lock"), ("",), ("-wal",)])
def test_what_was_in_removed_files_goes_on_in_new_ones(path, tmp_path, caplog, endings) -> None:
    told: list[SpoolDamaged] = []
    spool = SQLiteSpool(path, listener=told.append)
    put(spool, 1, 2)
    positions = [item.position for item in spool.peek("a", 9, 9)]
    remove(path, endings)
    put(spool, 3)
    spool.adopt()
    put(spool, 4)

    assert sorted(os.listdir(path.parent)) == ["spool.db", "spool.db-shm", "spool.db-wal", "spool.db.lock"]
    assert left_by_a_kill(path, tmp_path / "copy") == [1, 2, 3, 4]
    assert [(event.path, event.recovered, event.lost) for event in told] == [(str(path), 3, 0)]
    assert "it was removed or replaced while it was in use" in caplog.text
    spool.remove(positions)
    spool.adopt()
    assert len(told) == 1
    spool.close()
    assert left_by_a_kill(path, tmp_path / "closed") == [3, 4]


def test_a_file_in_the_place_of_the_removed_one_is_set_aside_and_named(path, tmp_path) -> None:
    other = SQLiteSpool(tmp_path / "other.db")
    put(other, 8, 9)
    other.close()
    spool = SQLiteSpool(path)
    put(spool, 1)
    os.replace(tmp_path / "other.db", path)
    spool.adopt()

    assert spool.damage is not None
    aside = SQLiteSpool(spool.damage.aside)
    assert numbers(aside) == [8, 9]
    aside.close()
    assert left_by_a_kill(path, tmp_path / "copy") == [1]
    spool.close()


def test_if_all_is_removed_there_is_nothing_to_set_aside(path, caplog) -> None:
    spool = SQLiteSpool(path)
    remove(path, ("", "-wal", "-shm"))
    spool.adopt()
    assert spool.damage is not None
    assert spool.damage.aside == ""
    assert "nothing to set aside" in caplog.text
    spool.close()
    assert os.listdir(path.parent) == [path.name]


def test_a_spool_that_is_closed_leaves_what_it_holds_though_its_file_was_removed(path) -> None:
    spool = SQLiteSpool(path)
    put(spool, 1, 2)
    remove(path, ("", "-wal", "-shm", ".lock"))
    spool.close()

    heir = SQLiteSpool(path)
    assert numbers(heir) == [1, 2]
    heir.close()


def test_who_has_begun_at_the_path_meanwhile_keeps_its_own(path, tmp_path) -> None:
    first = SQLiteSpool(path)
    put(first, 1)
    remove(path, ("", "-wal", "-shm", ".lock"))
    second = SQLiteSpool(path)
    put(second, 2)
    first.adopt()
    put(first, 3)
    second.adopt()

    assert numbers(first) == [1, 3]
    assert numbers(second) == [2]
    assert left_by_a_kill(path, tmp_path / "copy") == [2, 1, 3]
    first.close()
    second.close()
    assert left_by_a_kill(path, tmp_path / "closed") == [2, 1, 3]
    _FOREIGN.pop().close()  # what is called like its log is nobody's any more


def test_a_lock_that_was_removed_is_taken_again(path) -> None:
    spool = SQLiteSpool(path)
    put(spool, 1)
    remove(path, (".lock",))
    spool.adopt()

    assert spool.damage is None
    other = SQLiteSpool(path)
    assert numbers(other) == []
    other.close()
    spool.close()


def test_a_spool_whose_directory_is_gone_says_so_until_it_is_back(path, tmp_path) -> None:
    spool = SQLiteSpool(path)
    put(spool, 1)
    shutil.rmtree(path.parent)
    for _ in range(2):
        with pytest.raises(SpoolError, match=f"there is no directory {re.escape(str(path.parent))}"):
            spool.adopt()
    put(spool, 2)
    path.parent.mkdir()
    spool.adopt()

    assert left_by_a_kill(path, tmp_path / "copy") == [1, 2]
    spool.close()


def test_a_spool_without_messages_that_is_closed_leaves_who_has_begun_at_its_path_alone(
    path, tmp_path
) -> None:
    first, second = SQLiteSpool(path), SQLiteSpool(path)
    remove(Path(f"{path}.2"), ("", "-wal", "-shm", ".lock"))
    third = SQLiteSpool(path)
    put(third, 1, 2)
    second.close()

    assert left_by_a_kill(path, tmp_path / "copy") == [1, 2]
    third.close()
    first.close()


def test_an_interrupt_in_a_close_that_brings_removed_files_back_leaves_it_to_the_next_close(
    path, monkeypatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    spool = SQLiteSpool(path)
    put(spool, 1, 2)
    remove(path, ("", "-wal", "-shm", ".lock"))
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "rescue", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spool.close()
    spool.close()

    heir = SQLiteSpool(path)
    assert numbers(heir) == [1, 2]
    heir.close()


def test_who_has_begun_at_the_path_and_left_meanwhile_leaves_its_messages_to_the_former_owner(path) -> None:
    first = SQLiteSpool(path)
    put(first, 1)
    remove(path, ("", "-wal", "-shm", ".lock"))
    second = SQLiteSpool(path)
    put(second, 8, 9)
    second.close()
    assert first.adopt() == {"a": 2}

    assert first.damage is not None
    assert first.damage.aside == ""
    assert numbers(first) == [1, 8, 9]
    first.close()
    _FOREIGN.pop().close()


def test_what_a_dead_owner_was_just_mending_is_not_taken_for_a_free_place(path, tmp_path) -> None:
    dead = SQLiteSpool(tmp_path / "dead.db")
    put(dead, 7)
    dead.close()
    first = SQLiteSpool(path)
    put(first, 1)
    remove(path, ("", "-wal", "-shm", ".lock"))
    second = SQLiteSpool(path)
    os.replace(tmp_path / "dead.db", f"{path}.2.mended-20261121T183000Z")
    first.adopt()

    assert numbers(first) == [1, 7]
    first.close()
    second.close()
    _FOREIGN.pop().close()


def test_a_file_that_could_not_be_begun_anew_takes_the_place_of_nobody_who_has_begun_there(
    path, tmp_path
) -> None:
    first = SQLiteSpool(path)
    owner = first._keeper
    segment, owner.ledger.segment = owner.ledger.segment, None
    assert segment is not None
    segment.close()
    owner._is_bare = True  # a full disk had no space for it
    remove(path, ("", ".lock"))
    second = SQLiteSpool(path)
    put(second, 8, 9)
    put(first, 1)

    assert left_by_a_kill(path, tmp_path / "copy") == [8, 9, 1]
    first.close()
    second.close()


def test_what_happens_after_an_interrupted_attempt_to_go_on_is_not_undone_by_the_next_one(
    path, monkeypatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stamps = iter(["20261121T183000Z", "20261121T183001Z"])
    monkeypatch.setattr(mend.clock, "stamp", lambda: next(stamps))
    spool = SQLiteSpool(path)
    put(spool, 1, 2)
    remove(path, ("", "-wal", "-shm", ".lock"))
    with monkeypatch.context() as patch:
        patch.setattr(mend, "_swap", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spool.adopt()
    spool.remove([item.position for item in spool.peek("a", 1, 1)])
    put(spool, 3)
    spool.adopt()

    assert numbers(spool) == [2, 3]
    spool.close()
    assert os.listdir(path.parent) == [path.name]
