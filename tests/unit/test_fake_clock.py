"""The clock that tests advance: whom it wakes, and that nobody who was forgotten hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from connpool.testing import FakeClock


class Hasty(FakeClock):
    GUARD = 0.05


def shut_gate() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


def waiting(clock: FakeClock, timeout: float | None) -> tuple[threading.Lock, Callable[[], bool]]:
    """A gate at which a thread of its own waits, and what gives its answer."""
    gate, answers = shut_gate(), []
    thread = threading.Thread(target=lambda: answers.append(clock.wait(gate, timeout)))
    thread.start()

    def answer() -> bool:
        thread.join(10)
        return answers[0]

    return gate, answer


def test_time_passes_for_whoever_it_is_over_for_and_for_nobody_else() -> None:
    clock = FakeClock(start=5.0)
    _, early = waiting(clock, 2.0)
    late_gate, late = waiting(clock, 3.0)
    endless_gate, endless = waiting(clock, None)
    clock.until_waiting(3)
    clock.advance(2.0)
    assert clock.now() == 7.0
    assert early() is False
    assert late_gate.locked()
    assert endless_gate.locked()
    clock.advance(1.0)
    assert late() is False
    clock.advance(1e9)
    assert endless_gate.locked()
    endless_gate.release()
    assert endless() is True


def test_who_finds_the_gate_open_in_time_is_told_so() -> None:
    clock = FakeClock()
    gate, answer = waiting(clock, 1.0)
    clock.until_waiting(1)
    gate.release()
    assert answer() is True


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_without_time_there_is_one_look(timeout: float) -> None:
    gate = shut_gate()
    assert FakeClock().wait(gate, timeout) is False
    gate.release()
    assert FakeClock().wait(gate, timeout) is True


def test_who_has_left_waits_no_more() -> None:
    clock = Hasty()
    gate, answer = waiting(clock, 1.0)
    gate.release()
    answer()
    with pytest.raises(AssertionError, match="0 of 1 threads wait on the clock"):
        clock.until_waiting(1)


def test_whom_nobody_wakes_fails() -> None:
    with pytest.raises(AssertionError, match=r"nobody woke this waiter for 0\.05 s"):
        Hasty().wait(shut_gate(), 1.0)
