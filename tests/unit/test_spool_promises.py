"""What every spool promises, whether it keeps its messages in memory or in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connpool import (
    ConfigError,
    MemorySpool,
    MessagesDropped,
    Spool,
    SpoolCount,
    SpoolError,
    SpoolFullError,
    SQLiteSpool,
    UsageError,
    clock,
)
from tests.helpers.forks import in_child

ID = bytes(range(16))
ALL = 1_000, 1_000_000

Make = Callable[..., Spool]


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Spool] = []

    def make(**settings: Any) -> Spool:
        if request.param == "memory":
            made.append(MemorySpool(**settings))
        else:
            made.append(SQLiteSpool(tmp_path / "spool.db", durable=False, **settings))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


class Wall:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(clock, "wall", lambda: self.now)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


def fill(spool: Spool, *messages: bytes, queue: str = "a") -> Spool:
    for message in messages:
        spool.put([queue], message, ID)
    return spool


def texts(spool: Spool, queue: str = "a") -> list[bytes]:
    """All messages of *queue*; not claimed afterwards unless they were before."""
    items = spool.peek(queue, *ALL)
    spool.release([item.position for item in items])
    return [item.message for item in items]


# -- order and place -----------------------------------------------------------


def test_a_copy_goes_to_the_tail_of_each_queue_and_positions_ascend(make: Make) -> None:
    spool = fill(make(), b"1")
    first, second = spool.put(["a", "b"], b"2", ID)

    one, two = spool.peek("a", *ALL)
    assert (one.message, two.message) == (b"1", b"2")
    assert one.position < two.position == first
    assert [(item.position, item.id) for item in spool.peek("b", *ALL)] == [(second, ID)]
    assert list(spool.put([], b"3", ID)) == []


def test_positions_are_never_given_out_again(make: Make) -> None:
    spool = make()
    seen: set[int] = set()
    for _ in range(5):
        positions = spool.put(["a", "b"], b"1", ID)
        assert seen.isdisjoint(positions)
        seen.update(positions)
        spool.remove(positions)


def test_positions_ascend_in_each_queue_whichever_others_are_empty(make: Make) -> None:
    spool = make()
    last = dict.fromkeys("abc", 0)
    for staying in ("c", "", "b", "ac", "a", "bc"):
        for queue in last:
            (position,) = spool.put([queue], b"1", ID)
            assert position > last[queue], (queue, staying)
            last[queue] = position
        for queue in last.keys() - staying:
            spool.remove([item.position for item in spool.peek(queue, *ALL)])
            assert list(spool.peek(queue, *ALL)) == []


def test_a_look_stays_within_both_limits_but_gives_one_at_least(make: Make) -> None:
    spool = fill(make(), b"1", b"22", b"333")

    assert [item.message for item in spool.peek("a", 2, 100)] == [b"1", b"22"]
    assert [item.message for item in spool.peek("a", 10, 3)] == [b"1", b"22"]
    assert [item.message for item in spool.peek("a", 10, 0)] == [b"1"]
    assert [item.message for item in spool.peek("a", 0, 10)] == [b"1"]
    assert list(spool.peek("b", 10, 10)) == []


def test_a_look_gives_the_oldest_again_until_they_are_removed(make: Make) -> None:
    spool = fill(make(), b"1", b"2")

    assert spool.peek("a", 1, 1) == spool.peek("a", 1, 1)


def test_what_arrived_is_removed_once_and_what_did_not_stays_where_it_is(make: Make) -> None:
    spool = fill(make(), b"1", b"2", b"3")
    one, two, three = (item.position for item in spool.peek("a", *ALL))

    spool.remove([two, two, 999])
    spool.remove([two])
    spool.release([one, three, 999])

    assert texts(spool) == [b"1", b"3"]
    assert spool.count("a") == 2
    assert spool.counts() == {"a": SpoolCount(2, 2, 0)}


def test_a_message_may_be_removed_that_nobody_has_looked_at(make: Make) -> None:
    spool = fill(make(), b"1")
    positions = spool.put(["a", "b"], b"22", ID)

    spool.remove(positions)

    assert spool.counts() == {"a": SpoolCount(1, 1, 0)}


def test_an_empty_message_is_a_message(make: Make) -> None:
    spool = fill(make(), b"")

    assert texts(spool) == [b""]
    assert spool.counts() == {"a": SpoolCount(1, 0, 0)}


@pytest.mark.parametrize("queue", ["", "a:1", "h\u00e4user", "tab\tnul\0", "unix:/tmp/\udcff", "q" * 70_000])
def test_any_text_names_a_queue(make: Make, queue: str) -> None:
    spool = fill(make(), b"1", queue=queue)

    assert texts(spool, queue) == [b"1"]
    assert list(spool.counts()) == [queue]


# -- moving --------------------------------------------------------------------


def test_moved_messages_keep_order_id_and_time(make: Make, wall: Wall) -> None:
    spool = fill(make(), b"1", b"2", b"3")
    spool.put(["b"], b"0", bytes(16))
    wall.now += 5

    assert spool.move("a", ["b", "c"], 2) == 2

    assert texts(spool) == [b"3"]
    assert texts(spool, "b") == [b"0", b"1", b"2"]
    assert [(item.id, item.spooled_at) for item in spool.peek("c", *ALL)] == [(ID, 1_000.0)] * 2
    assert spool.counts() == {"a": SpoolCount(1, 1, 0), "b": SpoolCount(3, 3, 0), "c": SpoolCount(2, 2, 0)}


def test_a_move_says_how_many_have_left_and_nothing_is_left_of_none(make: Make) -> None:
    spool = fill(make(), b"1", b"2")

    assert spool.move("a", ["b"], 0) == 0
    assert spool.move("a", [], 10) == 2
    assert spool.move("a", ["b"], 10) == 0
    assert spool.move("nobody", ["b"], 10) == 0
    assert spool.counts() == {}


def test_a_move_to_its_own_queue_puts_the_oldest_last(make: Make) -> None:
    spool = fill(make(), b"1", b"2", b"3")

    assert spool.move("a", ["a"], 1) == 1
    assert texts(spool) == [b"2", b"3", b"1"]


# -- limits --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_bytes": 1_000}, {"max_messages": 10}])
def test_of_fifteen_the_ten_newest_stay_and_the_five_are_counted_and_told(make: Make, limit, caplog) -> None:
    told: list[MessagesDropped] = []
    messages = [b"%0100d" % n for n in range(15)]
    spool = fill(make(**limit, listener=told.append), *messages)

    assert texts(spool) == messages[5:]
    assert spool.counts() == {"a": SpoolCount(10, 1_000, 5)}
    assert [(event.pool, event.queue, event.count) for event in told] == [("", "a", 1)] * 5
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 message(s) dropped to keep within its limits"
    ]
    spool.close()
    assert caplog.messages[1:] == [caplog.messages[0].replace("1 m", "4 m")]


def test_the_oldest_of_all_queues_goes_first(make: Make) -> None:
    spool = make(max_messages=3)
    for n, queue in enumerate("abab"):
        spool.put([queue], b"%d" % n, ID)

    assert (texts(spool, "a"), texts(spool, "b")) == ([b"2"], [b"1", b"3"])


def test_as_few_as_possible_are_dropped_for_a_large_message(make: Make) -> None:
    spool = fill(make(max_bytes=10), b"1", b"222", b"333", b"444")

    spool.put(["b"], b"55555", ID)

    assert (texts(spool), texts(spool, "b")) == ([b"444"], [b"55555"])
    assert spool.counts()["a"].dropped == 3


def test_what_is_claimed_is_not_dropped_until_it_is_released(make: Make) -> None:
    spool = fill(make(max_messages=3), b"1", b"2", b"3")
    claimed = [item.position for item in spool.peek("a", 2, 100)]
    spool.put(["a"], b"4", ID)
    last = spool.peek("a", *ALL)
    assert [item.message for item in last] == [b"1", b"2", b"4"]

    with pytest.raises(SpoolFullError, match=r"1 of 1 bytes \(it holds 3 messages of 3 bytes; limit 3 mess"):
        spool.put(["a"], b"5", ID)
    spool.release(claimed)
    spool.put(["a"], b"5", ID)

    assert texts(spool) == [b"2", b"4", b"5"]


def test_a_removed_message_leaves_no_claim_behind(make: Make) -> None:
    spool = fill(make(max_messages=1), b"1")
    spool.remove([spool.peek("a", 1, 1)[0].position])
    fill(spool, b"2", b"3")

    assert texts(spool) == [b"3"]


def test_on_request_a_full_spool_refuses_and_keeps_what_it_has(make: Make) -> None:
    spool = fill(make(max_messages=3, on_full="raise"), b"1", b"2")

    with pytest.raises(SpoolFullError):
        spool.put(["a", "b"], b"3", ID)
    spool.put(["b"], b"3", ID)

    assert (texts(spool), texts(spool, "b")) == ([b"1", b"2"], [b"3"])
    assert not any(count.dropped for count in spool.counts().values())


@pytest.mark.parametrize("on_full", ["drop-oldest", "raise"])
def test_what_is_larger_than_the_spool_is_refused_and_drops_nothing(make: Make, on_full: str) -> None:
    spool = fill(make(max_bytes=10, on_full=on_full), b"1")

    for queues, message in ((["a"], bytes(11)), (["a", "b"], bytes(6))):
        with pytest.raises(SpoolFullError, match="limit 10 bytes"):
            spool.put(queues, message, ID)

    assert texts(spool) == [b"1"]


def test_what_is_too_old_is_dropped_by_every_call_that_looks(make: Make, wall: Wall) -> None:
    told: list[MessagesDropped] = []
    spool = fill(make(max_age=10, listener=told.append), b"1", b"2")
    claimed = spool.peek("a", 1, 1)[0].position
    wall.now += 9.9
    assert texts(spool) == [b"1", b"2"]
    (claimed,) = (item.position for item in spool.peek("a", 1, 1))
    wall.now += 0.1
    spool.put(["b"], b"3", ID)
    assert spool.counts() == {"a": SpoolCount(1, 1, 1), "b": SpoolCount(1, 1, 0)}
    spool.release([claimed])
    assert texts(spool) == []
    wall.now += 10
    assert spool.adopt() == {}
    assert [(event.queue, event.count) for event in told] == [("a", 1), ("a", 1), ("b", 1)]


def test_what_is_too_old_makes_room_once(make: Make, wall: Wall) -> None:
    spool = fill(make(max_messages=3, max_age=10), b"1")
    wall.now += 9
    fill(spool, b"2", b"3")
    wall.now += 1
    spool.put(["a", "b"], b"4", ID)

    assert (texts(spool), texts(spool, "b")) == ([b"3", b"4"], [b"4"])
    assert spool.counts()["a"].dropped == 2


def test_the_bytes_of_what_is_too_old_are_room_for_as_many(make: Make, wall: Wall) -> None:
    spool = fill(make(max_bytes=10, max_age=10), b"123456")
    wall.now += 9
    fill(spool, b"7890")
    wall.now += 1
    spool.put(["a"], b"abcdef", ID)

    assert texts(spool) == [b"7890", b"abcdef"]
    assert spool.counts()["a"].dropped == 1


def test_what_is_moved_grows_no_younger(make: Make, wall: Wall) -> None:
    spool = fill(make(max_age=10), b"1")
    wall.now += 5
    spool.put(["b"], b"2", ID)
    spool.move("a", ["b"], 1)
    wall.now += 5

    assert texts(spool, "b") == [b"2"]


def test_what_grows_too_old_after_another_did_is_counted_no_more_then(make: Make, wall: Wall) -> None:
    spool = fill(make(max_age=10), b"1")
    wall.now += 5
    fill(spool, b"2", queue="b")
    wall.now += 5.5
    fill(spool, b"3", queue="c")
    assert [spool.count(queue) for queue in "abc"] == [0, 1, 1]
    wall.now += 5
    fill(spool, b"4", queue="c")
    assert [spool.count(queue) for queue in "abc"] == [0, 0, 2]


def test_what_is_claimed_is_given_again_however_old_it_is(make: Make, wall: Wall) -> None:
    spool = fill(make(max_age=10), b"1", b"2")
    claimed = spool.peek("a", 1, 1)
    wall.now += 20
    spool.put(["a"], b"3", ID)

    assert [item.message for item in spool.peek("a", *ALL)] == [b"1", b"3"]
    assert spool.peek("a", 1, 1) == claimed


def test_a_clock_that_goes_back_drops_nothing(make: Make, wall: Wall) -> None:
    spool = fill(make(max_age=10), b"1")
    wall.now -= 500
    spool.put(["a"], b"2", ID)

    assert texts(spool) == [b"1", b"2"]


def test_a_clock_that_goes_back_keeps_nothing_beyond_its_age(make: Make, wall: Wall) -> None:
    told: list[Any] = []
    spool = fill(make(max_age=10, listener=told.append), b"1")
    wall.now -= 500
    spool.put(["a"], b"2", ID)
    spool.put(["b"], b"3", ID)
    wall.now += 9
    assert texts(spool) == [b"1", b"2"]
    assert texts(spool, "b") == [b"3"]

    wall.now += 1
    assert texts(spool, "b") == []
    assert texts(spool) == [b"1"]
    spool.remove([item.position for item in spool.peek("a", *ALL)])
    assert texts(spool) == []
    assert spool.counts() == {"a": SpoolCount(0, 0, 1), "b": SpoolCount(0, 0, 1)}
    assert [(type(event), event.queue) for event in told] == [(MessagesDropped, "b"), (MessagesDropped, "a")]


def test_a_listener_may_use_the_spool_and_may_fail(make: Make, caplog) -> None:
    seen = []

    def listen(event: MessagesDropped) -> None:
        seen.append(texts(spool))
        raise LookupError("no such ear")

    spool = make(max_messages=1, listener=listen)
    fill(spool, b"1", b"2")

    assert seen == [[b"2"]]
    assert "the listener failed" in caplog.text


# -- mistakes ------------------------------------------------------------------


def test_a_closed_spool_says_so_to_every_call_but_close(make: Make) -> None:
    spool = fill(make(), b"1")
    spool.close()
    spool.close()

    calls: list[Callable[[], object]] = [
        lambda: spool.put(["a"], b"1", ID),
        lambda: spool.peek("a", 1, 1),
        lambda: spool.remove([1]),
        lambda: spool.release([1]),
        lambda: spool.move("a", [], 1),
        lambda: spool.count("a"),
        spool.counts,
        spool.adopt,
    ]
    for call in calls:
        with pytest.raises(SpoolError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("message", "id"), [("text", ID), (b"1", b"short"), (b"1", "text"), (bytearray(b"1"), ID)]
)
def test_what_is_no_message_or_no_id_is_refused(make: Make, message, id) -> None:
    spool = make()

    with pytest.raises(UsageError):
        spool.put(["a"], message, id)
    assert spool.counts() == {}


def test_one_text_is_no_list_of_queues(make: Make) -> None:
    with pytest.raises(UsageError, match="got the text 'ab'"):
        make().put("ab", b"1", ID)


@pytest.mark.parametrize(
    "setting",
    [{"max_messages": 0}, {"max_bytes": True}, {"max_age": 0}, {"on_full": "wait"}, {"listener": 1}],
)
def test_a_setting_out_of_range_is_refused_with_its_name(make: Make, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="listener" if "listener" in setting else next(iter(setting))):
        make(**setting)


def test_a_forked_child_has_nothing_of_the_parents(make: Make) -> None:
    spool = fill(make(), b"1")
    before = spool.peek("a", 1, 1)

    def child() -> tuple[list[bytes], int, list[bytes]]:
        held = texts(spool), spool.count("a")
        spool.remove([item.position for item in before])
        fill(spool, b"child")
        return *held, texts(spool)

    assert in_child(child) == ([], 0, [b"child"])
    assert texts(spool) == [b"1"]
