"""Calls in which the system waits are looked at twice, and ended if they still go on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from connpool.wire.modes import WatchedCalls


class Waiting:
    """Stands for a stream in a call."""

    def __init__(self) -> None:
        self.n_cut = 0

    def cut_short(self) -> None:
        self.n_cut += 1


@pytest.fixture
def watched() -> Any:
    return WatchedCalls()


def test_a_call_is_ended_at_the_second_look_and_not_at_the_first(watched: Any) -> None:
    one = Waiting()
    watched.calls[one] = 1
    watched.cut_short()
    assert one.n_cut == 0
    watched.cut_short()
    assert one.n_cut == 1


def test_calls_one_after_the_other_are_not_taken_for_one_that_lasts(watched: Any) -> None:
    one = Waiting()
    for number in range(5):
        watched.calls[one] = number
        watched.cut_short()
    assert one.n_cut == 0


def test_what_was_ended_is_looked_at_no_more_and_not_kept(watched: Any) -> None:
    """Even if it was interrupted before it could take itself off the list."""
    one = Waiting()
    watched.calls[one] = 1
    watched.cut_short()
    watched.cut_short()
    assert not watched.calls
    known = weakref.ref(one)
    del one
    gc.collect()
    assert known() is None
