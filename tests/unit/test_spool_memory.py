"""The spool in memory."""

from __future__ import annotations

import pytest

from connpool import MemorySpool, Spooled, UsageError
from connpool.delivery import backlog, batch, memory_spool
from connpool.delivery.batch import BATCH, BATCH_BYTES, Batch
from tests.helpers.interrupts import SignalStrike, at_every_bytecode

ID = bytes(range(16))
ALL = 1_000, 1_000_000


def texts(spool: MemorySpool, queue: str = "a") -> list[bytes]:
    return [item.message for item in spool.peek(queue, *ALL)]


def filled(*messages: bytes, **limits: object) -> MemorySpool:
    spool = MemorySpool(**limits)  # type: ignore[arg-type]
    for message in messages:
        spool.put(["a"], message, ID)
    return spool


STAGES = [
    {"a": [b"1", b"22", b"333"], "b": [], "c": []},
    {"a": [b"1", b"22", b"333", b"4444"], "b": [b"4444"], "c": []},  # the next put drops one more
    {"a": [b"22", b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [], "b": [b"4444", b"333", b"4444"], "c": [b"333", b"4444"]},
]
UNLIMITED = [
    {"a": [b"1", b"22", b"333"], "b": [], "c": []},
    {"a": [b"1", b"22", b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [b"22", b"333", b"4444"], "b": [b"4444"], "c": []},
    {"a": [b"4444"], "b": [b"4444", b"22", b"333"], "c": [b"22", b"333"]},
]


@pytest.mark.parametrize("chunk", [2, BATCH])
@pytest.mark.parametrize("stages", [STAGES, UNLIMITED])
def test_ctrl_c_at_any_moment_leaves_a_message_whole_or_out_and_the_counts_right(
    monkeypatch, stages, chunk
) -> None:
    monkeypatch.setattr(batch, "BATCH", chunk)
    for strike in at_every_bytecode(memory_spool, backlog, batch, kind=SignalStrike):
        spool = filled(b"1", b"22", b"333", max_messages=4 if stages is STAGES else None)
        with strike:
            spool.put(["a", "b"], b"4444", ID)
            spool.remove([spool.peek("a", 1, 1)[0].position])
            spool.move("a", ["b", "c"], 2)
        for queue, count in spool.counts().items():
            held = texts(spool, queue)
            assert (count.messages, count.bytes) == (len(held), sum(map(len, held))), strike
        held = {queue: texts(spool, queue) for queue in "abc"}
        assert held in stages, strike


def numbers(spool: MemorySpool, queue: str = "a") -> list[int]:
    """All that waits, told by the first four bytes of each."""
    return [int(item.message[:4]) for item in spool.peek(queue, 1_000_000, 1 << 30)]


def many(n: int, size: int = 4, **limits: object) -> MemorySpool:
    return filled(*(b"%04d" % number + bytes(size - 4) for number in range(n)), **limits)


@pytest.mark.parametrize("n_gone", [0, 1, 511, 512, 513])
@pytest.mark.parametrize("size", [4, 700, 5_000])
def test_a_long_queue_is_looked_at_in_order_within_both_limits_wherever_it_begins(size, n_gone) -> None:
    spool = many(1_300, size)
    spool.remove([item.position for item in spool.peek("a", 1_300, 1 << 30)[:n_gone]])
    for most in (1, 511, 512, 513, 1_300 - n_gone):
        found = spool.peek("a", most, 1 << 30)
        assert [int(item.message[:4]) for item in found] == list(range(n_gone, min(n_gone + most, 1_300)))
    for n in (1, 10, 511, 512, 600):
        for extra in (0, 1, size - 1):
            assert len(spool.peek("a", 1_300, n * size + extra)) == n


@pytest.mark.parametrize("step", [1, 7, 512, 600])
def test_a_long_queue_can_be_removed_by_pieces_of_any_length(step: int) -> None:
    spool = many(1_300)
    for n in range(0, 1_300, step):
        found = spool.peek("a", step, 1 << 30)
        assert int(found[0].message) == n
        spool.remove([item.position for item in found])
        counts = spool.counts().get("a")
        left = 1_300 - n - len(found)
        assert (counts.messages, counts.bytes) == (left, 4 * left) if counts else left == 0


def test_messages_leave_the_midst_of_a_long_queue() -> None:
    spool = many(1_300)
    items = spool.peek("a", 1_300, 1 << 30)
    gone = {0, 5, 511, 512, 1_023, 1_024, 1_299}
    spool.remove([items[n].position for n in sorted(gone, reverse=True)])
    assert numbers(spool) == [n for n in range(1_300) if n not in gone]
    assert spool.counts()["a"].bytes == 4 * (1_300 - len(gone))


def test_a_queue_never_counts_less_than_what_stays_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted without a lock, and who is told that nothing waits may send at once."""
    told: list[int] = []

    class Telling(backlog.Backlog):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "messages":
                told.append(self.messages)

    monkeypatch.setattr(memory_spool, "Backlog", Telling)
    spool = filled(*(b"%d" % n for n in range(100)))
    positions = [item.position for item in spool.peek("a", *ALL)]
    told.clear()
    spool.remove(positions[:1])
    spool.remove(positions[50:51])
    assert told == [99, 98]


def test_unknown_positions_do_nothing_whatever_they_are() -> None:
    spool = many(3)
    spool.remove([0, -1, 4, 2**64, -(2**64)])
    assert numbers(spool) == [0, 1, 2]


def test_what_was_looked_at_does_not_change_with_the_queue() -> None:
    """A worker sends it meanwhile."""
    spool = many(BATCH)
    first = spool.peek("a", BATCH, 1 << 30)
    assert isinstance(first, Batch)
    view = memoryview(first.data)
    later = spool.put(["a"], b"9999", ID)
    spool.remove(later)  # what was looked at is the last chunk again
    spool.put(["a"], b"8888", ID)
    assert (len(first), len(first.data), len(view)) == (BATCH, 4 * BATCH, 4 * BATCH)
    spool.remove(first.positions)
    assert numbers(spool) == [8888]


def test_a_few_messages_are_lent_as_they_lie_and_what_comes_then_is_kept_apart() -> None:
    spool = many(2)
    first = spool.peek("a", BATCH, BATCH_BYTES)
    spool.put(["a"], b"0002", ID)
    assert [item.message for item in first] == [b"0000", b"0001"]
    assert numbers(spool) == [0, 1, 2]


def test_a_large_message_is_kept_once_for_all_queues() -> None:
    spool, message = MemorySpool(), bytes(10_000)
    spool.put(["a", "b"], message, ID)
    spool.put(["a", "b"], b"small", ID)
    for queue in "ab":
        (item,) = spool.peek(queue, 1, 1)
        assert item.message is message


def test_a_move_of_many_goes_to_each_queue_in_order_and_costs_the_oldest_of_all_first() -> None:
    spool = many(600, max_messages=1_300)
    spool.put(["b"], b"7777", ID)
    assert spool.move("a", ["b", "c"], 600) == 600
    assert (numbers(spool, "b"), numbers(spool, "c")) == ([7777, *range(600)], list(range(600)))
    for queue in "bc":
        spool.release([item.position for item in spool.peek(queue, 1_000, 1 << 30)])
    for n in range(99 + 5):  # four places too many for what is there, and then one each
        spool.put(["d"], b"%04d" % n, ID)
    assert (numbers(spool, "b")[0], numbers(spool, "c")[0]) == (2, 2)


def test_what_was_moved_grows_apart_from_its_copies() -> None:
    spool = many(3)
    spool.move("a", ["b", "c"], 3)
    spool.put(["b"], b"0003", ID)
    spool.put(["c"], b"0004", ID)
    assert (numbers(spool, "b"), numbers(spool, "c")) == ([0, 1, 2, 3], [0, 1, 2, 4])


def test_a_queue_that_is_moved_to_twice_has_both_copies_at_places_that_ascend() -> None:
    spool = many(3)
    spool.move("a", ["b", "b"], 3)
    items = spool.peek("b", 10, 1 << 30)
    assert sorted(item.message for item in items) == sorted([b"0000", b"0001", b"0002"] * 2)
    positions = [item.position for item in items]
    assert positions == sorted(set(positions))
    spool.remove(positions)
    assert spool.counts() == {}


def test_a_batch_is_a_sequence_of_messages() -> None:
    found = filled(b"1", b"", b"333").peek("a", *ALL)
    assert isinstance(found, Batch)
    assert all(isinstance(item, Spooled) and item.id == ID for item in found)
    assert [item.message for item in found] == [b"1", b"", b"333"]
    assert found[-1] == found[2] == list(found)[2]
    assert found[1:] == list(found)[1:]
    assert found == list(found)
    assert found != list(found)[1:]
    assert found != 3
    assert "b'333'" in repr(found)
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(TypeError):
        hash(found)


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


def test_what_leaves_takes_its_claim_with_it() -> None:
    spool = MemorySpool(max_messages=10)
    for _ in range(3):
        spool.put(["a"], b"1", bytes(16))
    spool.peek("a", 2, 100)
    spool.remove([item.position for item in spool.peek("a", 1, 100)])
    spool.move("a", ["b"], 1)
    assert spool._claimed == set()
    spool.close()
