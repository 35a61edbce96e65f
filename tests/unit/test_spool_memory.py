"""The spool in memory."""

from __future__ import annotations

import pytest

from connpool import MemorySpool, UsageError
from connpool.delivery import memory_spool
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
