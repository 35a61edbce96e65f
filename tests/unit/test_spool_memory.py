"""The spool in memory."""

from __future__ import annotations

import pytest

from connpool import MemorySpool, MessagesDropped, SpoolCount, SpoolError, SpoolFullError, UsageError
from connpool.delivery import memory_spool
from tests.helpers.forks import in_child
from tests.helpers.interrupts import SignalStrike, at_every_bytecode, needs_monitoring

ID = bytes(range(16))
ALL = 1_000, 1_000_000


def texts(spool: MemorySpool, queue: str = "a") -> list[bytes]:
    return [item.message for item in spool.peek(queue, *ALL)]


def filled(*messages: bytes, **limits: object) -> MemorySpool:
    spool = MemorySpool(**limits)  # type: ignore[arg-type]
    for message in messages:
        spool.put(["a"], message, ID)
    return spool


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(memory_spool.clock, "wall", lambda: self.now)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


STAGES = [
    {"a": [b"1", b"22", b"333"], "b": [], "c": []},
    {"a": [b"1", b"22", b"333", b"4444"], "b": [b"4444"], "c": []},  # the next put drops one more
    {"a": [b"22", b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [], "b": [b"4444", b"333", b"4444"], "c": [b"333", b"4444"]},
]


@needs_monitoring
def test_ctrl_c_at_any_moment_leaves_a_message_whole_or_out_and_the_counts_right() -> None:
    for strike in at_every_bytecode(memory_spool, kind=SignalStrike):
        spool = filled(b"1", b"22", b"333", max_messages=4)
        with strike:
            spool.put(["a", "b"], b"4444", ID)
            spool.remove([spool.peek("a", 1, 1)[0].position])
            spool.move("a", ["b", "c"], 2)
        for queue, count in spool.counts().items():
            held = texts(spool, queue)
            assert (count.messages, count.bytes) == (len(held), sum(map(len, held))), strike
        held = {queue: texts(spool, queue) for queue in "abc"}
        assert held in STAGES, strike


def test_a_copy_goes_to_the_tail_of_each_queue_with_positions_that_ascend() -> None:
    spool = filled(b"1")
    first, second = spool.put(["a", "b"], b"2", ID)

    assert texts(spool) == [b"1", b"2"]
    assert [(item.position, item.id) for item in spool.peek("b", *ALL)] == [(second, ID)]
    assert [item.position for item in spool.peek("a", *ALL)][1] == first
    assert spool.put([], b"3", ID) == []


def test_a_look_stays_within_both_limits_but_gives_one_at_least() -> None:
    spool = filled(b"1", b"22", b"333")

    assert [item.message for item in spool.peek("a", 2, 100)] == [b"1", b"22"]
    assert [item.message for item in spool.peek("a", 10, 3)] == [b"1", b"22"]
    assert [item.message for item in spool.peek("a", 10, 0)] == [b"1"]
    assert [item.message for item in spool.peek("a", 0, 10)] == [b"1"]
    assert spool.peek("b", 10, 10) == []


def test_what_arrived_is_removed_once_and_what_did_not_stays_where_it_is() -> None:
    spool = filled(b"1", b"2", b"3")
    one, two, three = (item.position for item in spool.peek("a", *ALL))

    spool.remove([two, 999])
    spool.remove([two])
    spool.release([one, three])

    assert texts(spool) == [b"1", b"3"]
    assert spool.count("a") == 2
    assert spool.counts() == {"a": SpoolCount(2, 2, 0)}


def test_moved_messages_keep_their_order_and_id_and_leave_all_at_once(wall: Clock) -> None:
    spool = filled(b"1", b"2", b"3")
    spool.put(["b"], b"0", bytes(16))
    wall.now += 5

    assert spool.move("a", ["b", "c"], 2) == 2

    assert texts(spool) == [b"3"]
    assert texts(spool, "b") == [b"0", b"1", b"2"]
    assert [(item.id, item.spooled_at) for item in spool.peek("c", *ALL)] == [(ID, 1_000.0)] * 2
    assert spool.move("a", [], 10) == 1
    assert spool.move("a", ["b"], 10) == 0
    assert spool.move("nobody", ["b"], 10) == 0


def test_of_fifteen_the_ten_newest_stay_and_the_five_are_counted_and_told(caplog) -> None:
    told: list[MessagesDropped] = []
    spool = filled(*(b"%0100d" % n for n in range(15)), max_bytes=1_000, listener=told.append)

    assert texts(spool) == [b"%0100d" % n for n in range(5, 15)]
    assert spool.counts() == {"a": SpoolCount(10, 1_000, 5)}
    assert [(event.pool, event.queue, event.count) for event in told] == [("", "a", 1)] * 5
    assert caplog.messages == ["spool in memory: 1 message(s) dropped to keep within its limits"]
    spool.close()
    assert caplog.messages[1:] == ["spool in memory: 4 message(s) dropped to keep within its limits"]


def test_the_oldest_of_all_queues_goes_first() -> None:
    spool = MemorySpool(max_messages=3)
    for n, queue in enumerate("abab"):
        spool.put([queue], b"%d" % n, ID)

    assert (texts(spool, "a"), texts(spool, "b")) == ([b"2"], [b"1", b"3"])


def test_what_is_claimed_is_not_dropped_until_it_is_released() -> None:
    spool = filled(b"1", b"2", b"3", max_messages=3)
    claimed = [item.position for item in spool.peek("a", 2, 100)]
    spool.put(["a"], b"4", ID)
    assert [item.message for item in spool.peek("a", *ALL)] == [b"1", b"2", b"4"]

    with pytest.raises(
        SpoolFullError, match=r"no room for 1 of 1 bytes \(it holds 3 messages of 3 bytes; limit 3 m"
    ):
        spool.put(["a"], b"5", ID)
    spool.release(claimed)
    spool.put(["a"], b"5", ID)

    assert texts(spool) == [b"2", b"4", b"5"]


def test_on_request_a_full_spool_refuses_and_keeps_what_it_has() -> None:
    spool = filled(b"1", b"2", max_messages=3, on_full="raise")

    with pytest.raises(SpoolFullError):
        spool.put(["a", "b"], b"3", ID)
    spool.put(["b"], b"3", ID)

    assert (texts(spool), texts(spool, "b")) == ([b"1", b"2"], [b"3"])
    assert not any(count.dropped for count in spool.counts().values())


@pytest.mark.parametrize("on_full", ["drop-oldest", "raise"])
def test_what_is_larger_than_the_spool_is_refused_and_drops_nothing(on_full) -> None:
    spool = filled(b"1", max_bytes=10, on_full=on_full)

    for queues, message in ((["a"], bytes(11)), (["a", "b"], bytes(6))):
        with pytest.raises(SpoolFullError):
            spool.put(queues, message, ID)

    assert texts(spool) == [b"1"]


def test_what_is_too_old_is_dropped_by_every_look(wall: Clock) -> None:
    told: list[MessagesDropped] = []
    spool = filled(b"1", b"2", max_age=10, listener=told.append)
    claimed = spool.peek("a", 1, 1)[0].position
    wall.now += 10
    spool.put(["b"], b"3", ID)
    assert spool.counts() == {"a": SpoolCount(1, 1, 1), "b": SpoolCount(1, 1, 0)}
    spool.release([claimed])
    assert texts(spool) == []
    wall.now += 10
    assert spool.adopt() == {}
    assert [(event.queue, event.count) for event in told] == [("a", 1), ("a", 1), ("b", 1)]


def test_a_listener_may_use_the_spool_and_may_fail(caplog) -> None:
    seen = []

    def listen(event: MessagesDropped) -> None:
        seen.append(spool.count("a"))
        raise LookupError("no such ear")

    spool = MemorySpool(max_messages=1, listener=listen)
    spool.put(["a"], b"1", ID)
    spool.put(["a"], b"2", ID)

    assert seen == [1]
    assert "the listener failed" in caplog.text


def test_a_closed_spool_says_so_to_every_call_but_close() -> None:
    spool = filled(b"1")
    spool.close()
    spool.close()

    calls = [
        lambda: spool.put(["a"], b"1", ID), lambda: spool.peek("a", 1, 1), lambda: spool.remove([1]),
        lambda: spool.release([1]), lambda: spool.move("a", [], 1), lambda: spool.count("a"),
        spool.counts, spool.adopt,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(SpoolError, match="closed"):
            call()


def test_a_forked_child_has_nothing_of_the_parents() -> None:
    spool = filled(b"1")

    def child() -> list[bytes]:
        before = texts(spool)
        spool.put(["a"], b"child", ID)
        return [*before, *texts(spool)]

    assert in_child(child) == [b"child"]
    assert texts(spool) == [b"1"]


def test_a_call_from_within_a_call_is_turned_away() -> None:
    class Nosy(str):
        __slots__ = ()

        def __hash__(self) -> int:  # runs while the spool looks the queue up
            with pytest.raises(UsageError, match="from within"):
                spool.peek("a", 1, 1)
            return super().__hash__()

    spool = MemorySpool()
    spool.put([Nosy("a")], b"1", ID)
    assert texts(spool) == [b"1"]


@pytest.mark.parametrize(
    ("message", "id"), [("text", ID), (b"1", b"short"), (b"1", "text"), (bytearray(b"1"), ID)]
)
def test_what_is_no_message_or_no_id_is_refused(message, id) -> None:
    with pytest.raises(UsageError):
        MemorySpool().put(["a"], message, id)
