"""The file of a spool: reopened, shared by threads, limited, tidied, left behind."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from connpool import ConfigError, MessagesDropped, SpoolCount, SpoolError, SpoolFullError, SQLiteSpool
from connpool.delivery import books, heirs
from connpool.delivery.books import Draft
from connpool.delivery.desk import Job
from connpool.delivery.faults import Damaged
from connpool.delivery.keeper import Keeper
from connpool.delivery.ledger import Ledger
from connpool.delivery.rows import APPLICATION, PAGE_SIZE, Row
from connpool.delivery.segment import Segment
from connpool.pool.piles import look_through
from tests.conftest import open_files
from tests.helpers.scripts import run_program
from tests.helpers.together import together

ID = bytes(range(16))
ALL = 10_000, 100_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def texts(spool: SQLiteSpool, queue: str = "a") -> list[bytes]:
    items = spool.peek(queue, *ALL)
    spool.release([item.position for item in items])
    return [item.message for item in items]


def test_of_as_many_queues_as_can_be_an_empty_one_makes_room_for_another(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(books, "LANES", 3)
    spool = SQLiteSpool(path, durable=False)
    positions = [spool.put([queue], queue.encode(), bytes(16))[0] for queue in "abc"]
    with pytest.raises(SpoolFullError, match="no room for queue 'd': there are 3 already"):
        spool.put(["d"], b"d", bytes(16))
    spool.remove([positions[1]])
    spool.put(["d"], b"d", bytes(16))
    assert {queue: texts(spool, queue) for queue in "abcd"} == {
        "a": [b"a"],
        "b": [],
        "c": [b"c"],
        "d": [b"d"],
    }
    spool.close()


# -- reopening -----------------------------------------------------------------


def test_what_waits_is_there_again_with_its_id_order_and_time(path: Path) -> None:
    spool = SQLiteSpool(path)
    for n in range(5):
        spool.put(["a", ""], b"%d" % n, n.to_bytes(16))
    spool.remove([spool.peek("a", 1, 1)[0].position])
    before = {queue: list(spool.peek(queue, *ALL)) for queue in spool.counts()}
    spool.close()

    spool = SQLiteSpool(path)
    assert {queue: list(spool.peek(queue, *ALL)) for queue in spool.counts()} == before
    assert spool.counts() == {"a": SpoolCount(4, 4, 0), "": SpoolCount(5, 5, 0)}
    spool.close()


def test_positions_are_not_given_out_again_after_all_was_removed(path: Path) -> None:
    given: list[int] = []
    for _ in range(3):
        spool = SQLiteSpool(path)
        positions = spool.put(["a"], b"1", ID)
        spool.remove(positions)
        given += positions
        spool.close()

    assert given == sorted(set(given))


def test_what_a_limit_has_cost_is_remembered(path: Path) -> None:
    spool = SQLiteSpool(path, max_bytes=1_000)
    for n in range(15):
        spool.put(["a"], b"%0100d" % n, ID)
    spool.close()
    spool = SQLiteSpool(path, max_bytes=1_000)

    assert spool.counts() == {"a": SpoolCount(10, 1_000, 5)}
    assert texts(spool) == [b"%0100d" % n for n in range(5, 15)]
    spool.put(["a"], bytes(100), ID)
    spool.remove([item.position for item in spool.peek("a", *ALL)])
    spool.close()
    spool = SQLiteSpool(path)
    assert spool.counts() == {"a": SpoolCount(0, 0, 6)}
    spool.close()


def test_a_smaller_limit_is_made_good_at_opening(path: Path) -> None:
    spool = SQLiteSpool(path)
    for n in range(5):
        spool.put(["a"], b"%d" % n, ID)
    spool.close()

    refusing = SQLiteSpool(path, max_messages=3, on_full="raise")
    assert refusing.count("a") == 5, "what was accepted is not dropped where nothing may be"
    refusing.close()
    dropping = SQLiteSpool(path, max_messages=3)
    assert texts(dropping) == [b"2", b"3", b"4"]
    dropping.close()


def test_files_are_for_their_owner_only_and_a_closed_spool_leaves_one(path: Path) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)

    for name in os.listdir(path.parent):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name
    spool.close()
    assert os.listdir(path.parent) == ["spool.db"]


def test_the_path_stays_the_same_when_the_working_directory_changes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    spool = SQLiteSpool("spool.db")
    monkeypatch.chdir("/")
    spool.close()
    spool = SQLiteSpool(tmp_path / "spool.db")
    assert spool.path == tmp_path / "spool.db"
    assert repr(spool) == f"<SQLiteSpool {tmp_path}/spool.db: 0 message(s)>"
    spool.close()


@pytest.mark.parametrize("name", [":memory:", "file:spool?mode=memory", "100%20#1;a&b", "-wal", "a b"])
def test_a_name_that_means_something_elsewhere_is_that_of_a_file(tmp_path: Path, name: str) -> None:
    for n in range(2):
        spool = SQLiteSpool(tmp_path / name)
        spool.put(["a"], b"%d" % n, ID)
        spool.close()
    assert os.listdir(tmp_path) == [name]
    spool = SQLiteSpool(tmp_path / name)
    assert texts(spool) == [b"0", b"1"]
    spool.close()


# -- several spools ------------------------------------------------------------


def test_a_symbolic_link_stands_for_the_file_that_it_leads_to(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    spool, other = SQLiteSpool(path), SQLiteSpool(link)
    spool.put(["a"], b"1", bytes(16))
    other.put(["a"], b"2", bytes(16))
    assert [item.message for item in spool.peek("a", 9, 9)] == [b"1"]
    assert [item.message for item in other.peek("a", 9, 9)] == [b"2"]
    assert (other.path, other.damage) == (link, None)

    spool.close()
    assert other.adopt() == {"a": 1}
    other.close()


def test_a_path_that_cannot_be_that_of_a_file_is_refused_and_named(tmp_path: Path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpoolError, match=r"pipe: it is no regular file"):
        SQLiteSpool(tmp_path / "pipe")
    with pytest.raises(SpoolError, match=r"spool /x+: File name too long"):
        SQLiteSpool("/" + "x" * 300)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpoolError, match=r"spool spool\.db: No such file or directory"):
        SQLiteSpool("spool.db")
    assert os.listdir(tmp_path) == ["pipe"]


def test_two_spools_of_one_process_are_apart_until_one_is_closed(path: Path) -> None:
    one, other = SQLiteSpool(path), SQLiteSpool(path)
    one.put(["a"], b"one", ID)
    (claimed,) = one.peek("a", *ALL)
    other.put(["a"], b"other", ID)
    other.remove([claimed.position + 10])

    assert (texts(one), texts(other)) == ([b"one"], [b"other"])
    assert (one.adopt(), other.adopt()) == ({}, {})
    one.close()
    assert other.adopt() == {"a": 1}
    assert texts(other) == [b"other", b"one"]
    assert other.adopt() == {}
    other.close()
    again = SQLiteSpool(path)
    assert texts(again) == [b"other", b"one"]
    again.close()


def test_an_empty_second_file_is_removed(path: Path) -> None:
    one, other = SQLiteSpool(path), SQLiteSpool(path)
    (position,) = other.put(["a"], b"1", ID)
    other.remove([position])
    other.close()
    assert [name for name in os.listdir(path.parent) if ".2" in name] == []
    one.close()


def test_counters_and_order_are_adopted_with_the_messages(path: Path) -> None:
    one, other = SQLiteSpool(path), SQLiteSpool(path, max_messages=2)
    for n in range(5):
        other.put(["a"], b"%d" % n, n.to_bytes(16))
    one.put(["a"], b"mine", ID)
    other.close()

    assert one.adopt() == {"a": 2}
    assert [(item.message, item.id) for item in one.peek("a", *ALL)] == [
        (b"mine", ID),
        (b"3", (3).to_bytes(16)),
        (b"4", (4).to_bytes(16)),
    ]
    assert one.counts() == {"a": SpoolCount(3, 6, 3)}
    one.close()
    with closing(sqlite3.connect(path)) as file:
        assert dict(file.execute("SELECT kind, number FROM note WHERE kind != 'serial'")) == {"dropped": 3}
    one = SQLiteSpool(path)
    assert one.counts() == {"a": SpoolCount(3, 6, 3)}
    one.close()


def test_what_is_left_at_a_path_that_is_no_text_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"spool \xff.db")
    spool, other = SQLiteSpool(path), SQLiteSpool(path)
    other.put(["a"], b"message", bytes(16))
    other.close()

    assert spool.adopt() == {"a": 1}
    spool.close()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", ["1", "20261123", "002"])
def test_a_copy_that_somebody_has_made_is_not_adopted(path: Path, ending: str) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)
    spool.close()
    copied = path.with_name(f"{path.name}.{ending}")
    shutil.copy(path, copied)

    spool = SQLiteSpool(path)
    assert spool.adopt() == {}
    assert texts(spool) == [b"1"]
    spool.close()
    assert sorted(os.listdir(path.parent)) == [path.name, copied.name]


@pytest.mark.parametrize("ending", ["2", "10", "23", "23456"])
def test_what_any_number_of_owners_have_left_is_adopted(path: Path, ending: str) -> None:
    other = SQLiteSpool(path)
    other.put(["a"], b"1", ID)
    other.close()
    path.rename(path.with_name(f"{path.name}.{ending}"))

    spool = SQLiteSpool(path)
    assert texts(spool) == [b"1"]
    spool.close()


def test_an_empty_file_that_was_left_is_removed(path: Path) -> None:
    other = SQLiteSpool(path)
    other.remove(other.put(["a"], b"1", ID))
    other.close()
    path.rename(path.with_name(f"{path.name}.2"))

    spool = SQLiteSpool(path)
    assert spool.adopt() == {}
    spool.close()
    assert os.listdir(path.parent) == [path.name]


def test_many_messages_are_adopted_in_steps_that_others_need_not_wait_for(path: Path) -> None:
    one, other = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    for n in range(1_600):
        other.put([f"queue {n % 3}"], b"%d" % n, ID)
    other.close()

    runs: list[int] = []
    real = Keeper._attempt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "_attempt", lambda *a: (runs.append(1), real(*a)))
        adopted = one.adopt()
    assert sum(adopted.values()) == 1_600
    assert len(runs) > 4
    for queue in range(3):
        assert texts(one, f"queue {queue}") == [b"%d" % n for n in range(queue, 1_600, 3)]
    one.close()


@pytest.mark.parametrize("step", range(14))
def test_a_message_is_adopted_once_wherever_the_heir_dies(path: Path, monkeypatch, step: int) -> None:
    """Interrupted at each step in turn, which leaves the files as a killed process would."""
    first, second = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    for n in range(3):
        first.put(["a"], b"%d" % n, ID)
    second.put(["a"], b"second", ID)
    first.close()
    left = [step]

    def count(real):
        def counted(*arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(heirs.disk, "rename", count(heirs.disk.rename))
        patch.setattr(heirs, "remove_file", count(heirs.remove_file))
        patch.setattr(Keeper, "_settle", count(Keeper._settle))
        try:
            second.adopt()
        except KeyboardInterrupt:
            pass
    second.close()

    third = SQLiteSpool(path, durable=False)
    third.adopt()
    assert sorted(texts(third)) == [b"0", b"1", b"2", b"second"]
    assert [text for text in texts(third) if text != b"second"] == [b"0", b"1", b"2"]
    third.close()
    assert os.listdir(path.parent) == ["spool.db"]


def test_an_heir_that_is_closed_half_way_keeps_what_it_has_copied(path: Path, monkeypatch) -> None:
    """How far an inherited file is copied is noted in the heir's own, which must stay even if it is empty."""
    first, second = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    first.put(["a"], b"1", ID)
    first.close()
    monkeypatch.setattr(heirs, "remove_file", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        second.adopt()
    monkeypatch.undo()
    gc.collect()
    second.remove([item.position for item in second.peek("a", *ALL)])
    second.close()

    third = SQLiteSpool(path, durable=False)
    assert third.counts() == {}
    third.close()


def test_what_is_found_damaged_while_it_is_adopted_is_mended_and_adopted_once(
    path: Path, monkeypatch
) -> None:
    first, second = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    for n in range(1_200):
        first.put(["a"], b"%d" % n, ID)
    first.close()
    looks, real = [0], Segment.rows_of_all

    def rows_of_all(*arguments: Any) -> Iterator[Row]:
        looks[0] += 1
        if looks[0] == 2:
            raise Damaged("what was read was not what was written")
        return real(*arguments)

    monkeypatch.setattr(Segment, "rows_of_all", rows_of_all)
    assert second.adopt() == {"a": 1_200}
    assert texts(second) == [b"%d" % n for n in range(1_200)]
    assert second.damage is not None
    assert second.damage.recovered == 1_200
    second.close()


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_listener_that_adopts_while_it_is_told_of_an_adoption_gets_nothing(path: Path) -> None:
    seen: list[object] = []
    first = SQLiteSpool(path)
    second = SQLiteSpool(path, max_messages=1, listener=lambda _: seen.append(second.adopt()))
    first.put(["a"], b"1", ID)
    second.put(["a"], b"2", ID)
    first.close()

    assert second.adopt() == {"a": 1}
    assert seen == [{}]
    second.close()


def test_a_file_that_cannot_be_adopted_is_told_of_once_and_keeps_nobody_from_working(path, caplog) -> None:
    later = path.with_name("spool.db.2")
    connection = sqlite3.connect(later)
    connection.execute("CREATE TABLE message (id)")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)

    assert spool.adopt() == {}
    assert texts(spool) == [b"1"]
    (line,) = caplog.messages
    assert line.startswith(
        f"spool {path}: cannot take over what another has left: spool {later}: its format is 7"
    )
    spool.close()
    assert later.exists()


# -- threads -------------------------------------------------------------------


def test_what_waits_while_one_commits_is_committed_together(path: Path, monkeypatch) -> None:
    spool = SQLiteSpool(path, max_bytes=1_000)
    begun, go_on = threading.Event(), threading.Event()
    batches: list[int] = []
    real = Keeper._attempt

    def attempt(keeper, segment, jobs):
        batches.append(len(jobs))
        if len(batches) == 1:
            begun.set()
            assert go_on.wait(10)
        real(keeper, segment, jobs)

    monkeypatch.setattr(Keeper, "_attempt", attempt)

    def put(n: int, size: int) -> object:
        if n:
            assert begun.wait(10)
        try:
            return spool.put(["a"], b"%d" % n + bytes(size), n.to_bytes(16))
        except SpoolFullError as refusal:
            return refusal

    def watch() -> None:
        assert begun.wait(10)
        while len(spool._keeper.desk.jobs) < 9:
            threading.Event().wait(0.001)
        go_on.set()

    outcomes = together(*(lambda n=n: put(n, 2_000 if n == 5 else 10) for n in range(9)), watch)

    assert batches == [1, 8]
    assert isinstance(outcomes[5], SpoolFullError)
    positions = [outcome[0] for n, outcome in enumerate(outcomes[:9]) if n != 5]
    assert sorted(positions) == [item.position for item in spool.peek("a", *ALL)]
    assert {item.id[-1]: item.position for item in spool.peek("a", *ALL)} == {
        n: outcome[0] for n, outcome in enumerate(outcomes[:9]) if n != 5
    }
    spool.close()


def test_each_thread_finds_its_messages_in_its_own_order(path: Path) -> None:
    spool = SQLiteSpool(path, durable=False)

    def put(thread: int) -> None:
        for n in range(100):
            spool.put(["a"], b"%d %d" % (thread, n), ID)

    def take(taken: list[bytes]) -> None:
        while len(taken) < 800:
            items = spool.peek("a", 50, 1_000_000)
            taken += [item.message for item in items]
            spool.remove([item.position for item in items])

    taken: list[bytes] = []
    together(*(lambda n=n: put(n) for n in range(8)), lambda: take(taken), limit=30)

    for thread in range(8):
        own = [message for message in taken if message.startswith(b"%d " % thread)]
        assert own == [b"%d %d" % (thread, n) for n in range(100)]
    assert spool.counts() == {}
    spool.close()


def test_close_waits_for_what_is_under_way_and_refuses_what_comes_later(path: Path, monkeypatch) -> None:
    spool = SQLiteSpool(path)
    begun, go_on = threading.Event(), threading.Event()
    real = Keeper._attempt

    def attempt(keeper, segment, jobs):
        begun.set()
        assert go_on.wait(10)
        real(keeper, segment, jobs)

    monkeypatch.setattr(Keeper, "_attempt", attempt)

    def close() -> None:
        assert begun.wait(10)
        closer = threading.Thread(target=spool.close)
        closer.start()
        while not spool._keeper.is_closed:
            threading.Event().wait(0.001)
        with pytest.raises(SpoolError, match="closed"):
            spool.put(["a"], b"2", ID)
        go_on.set()
        closer.join(10)

    together(lambda: spool.put(["a"], b"1", ID), close)
    monkeypatch.undo()
    again = SQLiteSpool(path)
    assert texts(again) == [b"1"]
    again.close()


# -- durability ----------------------------------------------------------------


@pytest.mark.parametrize(("durable", "expected"), [(True, 2), (False, 1)])
def test_a_put_is_flushed_if_that_is_wanted_and_a_removal_never(path: Path, durable, expected) -> None:
    spool = SQLiteSpool(path, durable=durable)
    segment = spool._keeper.ledger.segment

    (position,) = spool.put(["a"], b"1", ID)
    assert segment.number("PRAGMA synchronous") == expected
    spool.peek("a", 1, 1)
    spool.remove([position])
    assert segment.number("PRAGMA synchronous") == 1
    spool.put(["a"], b"1", ID)
    assert segment.number("PRAGMA synchronous") == expected
    spool.close()


def test_durable_is_true_or_false_and_nothing_else(path: Path) -> None:
    with pytest.raises(ConfigError, match="durable must be True or False, got 'no'"):
        SQLiteSpool(path, durable="no")
    assert not path.exists()


@pytest.mark.parametrize("wrong", [None, 5, b"spool", "", "a\0b"])
def test_a_path_that_is_none_is_refused_with_its_value(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="path must be the path of a file") as refused:
        SQLiteSpool(wrong)
    assert repr(wrong) in str(refused.value)


def test_what_is_committed_together_is_flushed_if_one_of_them_wants_that(path: Path) -> None:
    spool = SQLiteSpool(path, durable=False)
    keeper = spool._keeper
    for wishes in ([True, False], [False, True], [False, False]):
        keeper._run([Job(lambda draft: None, is_durable) for is_durable in wishes])
        assert keeper.ledger.segment.number("PRAGMA synchronous") == (2 if any(wishes) else 1)
    spool.close()


def test_what_is_adopted_is_flushed_before_the_file_that_it_comes_from_is_removed(path, monkeypatch) -> None:
    spool, other = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    other.put(["a"], b"1", ID)
    other.close()
    segment, seen = spool._keeper.ledger.segment, []

    def remove_file(gone: Path, real=heirs.remove_file) -> None:
        seen.append((".inherited-" in gone.name, segment.number("PRAGMA synchronous")))
        real(gone)

    monkeypatch.setattr(heirs, "remove_file", remove_file)
    assert spool.adopt() == {"a": 1}
    assert seen == [(True, 2)]
    spool.close()


# -- space ---------------------------------------------------------------------


def size_of(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in os.listdir(directory))


@pytest.mark.parametrize(
    ("size", "limit"), [(700, 2_000_000), (4_000, 5_000_000), (10_000, 10_000_000), (100_000, 10_000_000)]
)
def test_a_limit_of_10_mb_keeps_the_directory_below_12_mb(path: Path, size: int, limit: int) -> None:
    spool = SQLiteSpool(path, max_bytes=limit, durable=False)
    largest = 0
    for _ in range(12):
        for n in range(limit // 5 // size):
            spool.put(["a"] if n % 2 else ["b"], bytes(size), ID)
            if n % 50 == 0:
                largest = max(largest, size_of(path.parent))
        items = spool.peek("a", 10_000, limit // 20)
        spool.remove([item.position for item in items])
    assert largest <= limit + 2_000_000
    held = sum(count.bytes for count in spool.counts().values())
    assert 0.6 * limit < held <= limit
    spool.close()


@pytest.mark.parametrize(("name", "size", "messages"), [("a" * 500, 1, 3_000), ("a" * 20, 5, 22_000)])
def test_what_a_message_takes_besides_its_own_bytes_costs_as_few_others_as_possible(
    path: Path, name: str, size: int, messages: int
) -> None:
    told: list[MessagesDropped] = []
    spool = SQLiteSpool(path, max_bytes=300_000, durable=False, listener=told.append)
    for _ in range(messages):
        spool.put([name], bytes(size), ID)

    assert spool.counts()[name].dropped > 500
    assert max(event.count for event in told) < 250
    spool.close()
    assert 1_200_000 < path.stat().st_size < 1_400_000


def test_messages_that_move_to_another_queue_hardly_take_more_space_meanwhile(path: Path) -> None:
    spool = SQLiteSpool(path, durable=False)
    for _ in range(300):
        spool.put(["a"], bytes(10_000), ID)
    largest = full = size_of(path.parent)
    while spool.move("a", ["b"], 512):
        largest = max(largest, size_of(path.parent))

    assert spool.count("b") == 300
    assert largest < full + 1_500_000
    spool.close()


def test_large_messages_are_taken_over_a_few_at_a_time(path: Path, monkeypatch) -> None:
    heir, other = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    messages = [n.to_bytes(100_000, "big") for n in range(40)]
    for message in messages:
        other.put(["a"], message, ID)
    other.close()
    in_hand: list[int] = []
    real = Ledger.take_in

    def take_in(self: Ledger, draft: Draft, leftovers: list[Row]) -> Counter[str]:
        in_hand.append(sum(len(row.message) for row in leftovers))
        return real(self, draft, leftovers)

    monkeypatch.setattr(Ledger, "take_in", take_in)
    assert heir.adopt() == {"a": 40}

    assert max(in_hand) < 1_200_000
    assert [item.message for item in heir.peek("a", 100, 10_000_000)] == messages
    heir.close()


def test_a_message_larger_than_what_is_taken_over_or_moved_at_a_time_is_so_by_itself(path: Path) -> None:
    heir, other = SQLiteSpool(path, durable=False), SQLiteSpool(path, durable=False)
    messages = [b"first", *(n.to_bytes(heirs.CHUNK_BYTES + 1, "big") for n in range(2)), b"last"]
    for message in messages:
        other.put(["a"], message, ID)
    other.close()
    assert heir.adopt() == {"a": 4}
    assert [item.message for item in heir.peek("a", 100, 10_000_000)] == messages

    assert [heir.move("a", ["b", "c"], 512) for _ in range(5)] == [1, 1, 1, 1, 0]
    for queue in ("b", "c"):
        assert [item.message for item in heir.peek(queue, 100, 10_000_000)] == messages
    heir.close()


def test_space_is_given_back_while_it_runs(path: Path) -> None:
    spool = SQLiteSpool(path, durable=False)
    for _ in range(400):
        spool.put(["a"], bytes(10_000), ID)
    full = size_of(path.parent)
    while items := spool.peek("a", 20, 1_000_000):
        spool.remove([item.position for item in items])
    for _ in range(20):
        spool.adopt()

    assert full > 4_000_000
    assert size_of(path.parent) < 2_000_000
    spool.close()
    assert size_of(path.parent) <= 34 * PAGE_SIZE


def test_what_was_removed_is_wiped_from_the_file(path: Path) -> None:
    spool = SQLiteSpool(path)
    for _ in range(100):
        spool.put(["a"], b"secret" * 100, ID)
    spool.remove([item.position for item in spool.peek("a", *ALL)])
    spool.close()

    assert b"secret" not in path.read_bytes()


def test_a_copy_of_the_file_is_without_what_is_still_to_be_taken_out(path: Path) -> None:
    spool = SQLiteSpool(path)
    positions = [spool.put(["a"], message, ID)[0] for message in (b"1", b"2", b"3")]
    other = path.with_name("other.db")
    spool._keeper.ledger.segment.copy_to(other, positions[1:2])
    assert texts(spool) == [b"1", b"2", b"3"]
    spool.close()
    copy = SQLiteSpool(other)
    assert texts(copy) == [b"1", b"3"]
    copy.close()


# -- trouble -------------------------------------------------------------------


def test_a_disk_without_space_refuses_and_takes_again_when_there_is_some(path: Path) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)
    segment = spool._keeper.ledger.segment
    pages = segment.number("PRAGMA page_count")
    segment.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(SpoolError, match=re.escape(f"spool {path}: database or disk is full")):
        spool.put(["a", "b"], bytes(100_000), ID)
    assert spool.counts() == {"a": SpoolCount(1, 1, 0)}
    assert texts(spool) == [b"1"]
    segment.execute("PRAGMA max_page_count = 1000000")
    spool.put(["a"], b"2", ID)
    assert texts(spool) == [b"1", b"2"]
    spool.close()


def test_one_too_large_message_fails_alone(path: Path, monkeypatch) -> None:
    spool = SQLiteSpool(path)
    spool._keeper.ledger.segment._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)

    outcomes = together(
        *(lambda n=n: put_or_error(spool, bytes(20_000 if n == 3 else 10)) for n in range(6)),
    )

    assert [isinstance(outcome, SpoolError) for outcome in outcomes] == [n == 3 for n in range(6)]
    assert spool.count("a") == 5
    spool.close()


def test_of_jobs_that_are_done_one_by_one_each_call_returns_when_its_own_is_done(path, monkeypatch) -> None:
    monkeypatch.setattr("connpool.delivery.desk.PATIENCE", 60.0)
    spool = SQLiteSpool(path)
    desk, transact = spool._keeper.desk, spool._keeper._transact
    done: list[int] = []
    has_returned = threading.Event()

    def transact_slowly(jobs: Sequence[Job]) -> None:
        if len(jobs) > 1:
            raise SpoolError("not all at once")
        if len(done) == 2:
            assert has_returned.wait(10), "it waits until all are done"
        transact(jobs)
        done.append(jobs[0].thread)

    def put() -> None:
        spool.put(["a"], b"x", ID)
        if threading.get_ident() == done[1]:
            has_returned.set()

    def let_go() -> None:
        while sum(job.gate is not None for job in look_through(desk.jobs)) < 3:
            threading.Event().wait(0.001)
        call.end()

    monkeypatch.setattr(spool._keeper, "_transact", transact_slowly)
    call = desk.hold()
    assert call is not None
    together(put, put, put, let_go)
    assert spool.count("a") == 3
    spool.close()


def test_a_file_that_may_not_grow_any_more_refuses_and_takes_again_when_it_may(path: Path) -> None:
    program = """
        import resource, sys
        from connpool import SpoolError, SQLiteSpool
        spool = SQLiteSpool(sys.argv[1])
        spool.put(["a"], b"1", bytes(16))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for _ in range(3):
            try:
                spool.put(["a", "b"], bytes(200_000), bytes(16))
            except SpoolError as error:
                print("refused" if sys.argv[1] in str(error) else error)
        print(spool.counts() if len(sys.argv) > 2 else [m.message for m in spool.peek("a", 9, 9)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        spool.put(["a"], b"2", bytes(16))
        print([m.message for m in spool.peek("a", 9, 9)], spool.count("b"))
    """
    ran = run_program(program, path)
    assert ran.out.splitlines() == ["refused"] * 3 + ["[b'1']", "[b'1', b'2'] 0"]


def put_or_error(spool: SQLiteSpool, message: bytes) -> object:
    try:
        return spool.put(["a"], message, ID)
    except SpoolError as error:
        return error


def test_another_program_that_writes_makes_it_wait_and_then_say_so(path: Path, monkeypatch) -> None:
    monkeypatch.setattr("connpool.delivery.segment.BUSY_TIMEOUT", 0.05)
    spool = SQLiteSpool(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolError, match=re.escape(f"spool {path}: database is locked")):
        spool.put(["a"], b"1", ID)
    other.execute("ROLLBACK")
    other.close()
    spool.put(["a"], b"2", ID)
    assert texts(spool) == [b"2"]
    spool.close()


def test_an_operator_may_look_into_it_while_it_runs(path: Path) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a:1"], b"1", ID)
    other = sqlite3.connect(path)
    assert other.execute("SELECT queue, count(*) FROM message GROUP BY queue").fetchall() == [(b"a:1", 1)]
    other.close()
    spool.put(["a:1"], b"2", ID)
    spool.close()
    again = SQLiteSpool(path)
    assert texts(again, "a:1") == [b"1", b"2"]
    again.close()


# -- endings -------------------------------------------------------------------


def test_a_spool_that_is_dropped_closes_its_file_at_once(path: Path) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)
    gc.disable()
    try:
        del spool
    finally:
        gc.enable()

    assert not path.with_name("spool.db-wal").exists()
    again = SQLiteSpool(path)
    assert texts(again) == [b"1"]
    again.close()


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "del spool", "spool.close()"])
def test_a_program_ends_without_a_warning_and_loses_nothing(path: Path, ending: str) -> None:
    program = f"""
        import sys, warnings
        warnings.simplefilter("error")
        from connpool import SQLiteSpool
        spool = SQLiteSpool(sys.argv[1])
        spool.put(["a"], b"1", bytes(16))
        {ending}
    """
    ran = run_program(program, path)

    assert ran.err == ""
    assert sorted(os.listdir(path.parent)) == ["spool.db"]
    spool = SQLiteSpool(path)
    assert texts(spool) == [b"1"]
    spool.close()


def test_a_spool_whose_directory_is_gone_leaves_nothing_open(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir()
    owners = [SQLiteSpool(folder / "spool.db") for _ in range(2)]
    shutil.rmtree(folder)
    with pytest.raises(SpoolError, match=re.escape(f"{folder / 'spool.db.2'}: No such file or directory")):
        owners[1].close()
    owners[0].close()
    assert not [name for _, name in open_files() if str(folder) in name]


def test_at_the_end_of_a_program_a_spool_that_cannot_be_closed_keeps_no_other_open(path: Path) -> None:
    program = """
        import logging, os, shutil, sys
        logging.basicConfig(format="%(levelname)s %(message)s")
        from connpool import SQLiteSpool
        spools = []
        for name in "abc":
            os.mkdir(os.path.join(sys.argv[1], name))
            path = os.path.join(sys.argv[1], name, "spool.db")
            spools += [SQLiteSpool(path), SQLiteSpool(path)]
        shutil.rmtree(os.path.join(sys.argv[1], "b"))
    """
    ran = run_program(program, path.parent)

    lost = path.parent / "b" / "spool.db"
    assert ran.err.startswith(f"ERROR spool {lost}: it could not be closed\nTraceback"), ran.err
    assert ran.err.endswith(f"SpoolError: spool {lost}.2: No such file or directory\n"), ran.err
    assert [os.listdir(path.parent / name) for name in "ac"] == [["spool.db"]] * 2
