"""Calls in which the system waits are looked at twice, and ended if they still go on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from connpool.wire.modes import Minded


class Waiting:
    """Stands for a stream in a call."""

    def __init__(self) -> None:
        self.n_cut = 0

    def cut_short(self) -> None:
        self.n_cut += 1


@pytest.fixture
def minded() -> Any:
    return Minded()


def test_a_call_is_ended_at_the_second_look_and_not_at_the_first(minded: Any) -> None:
    one = Waiting()
    minded.calls[one] = 1
    minded.cut_short()
    assert one.n_cut == 0
    minded.cut_short()
    assert one.n_cut == 1


def test_calls_one_after_the_other_are_not_taken_for_one_that_lasts(minded: Any) -> None:
    one = Waiting()
    for number in range(5):
        minded.calls[one] = number
        minded.cut_short()
    assert one.n_cut == 0


def test_what_was_ended_is_looked_at_no_more_and_not_kept(minded: Any) -> None:
    """Even if it was interrupted before it could take itself off the list."""
    one = Waiting()
    minded.calls[one] = 1
    minded.cut_short()
    minded.cut_short()
    assert not minded.calls
    known = weakref.ref(one)
    del one
    gc.collect()
    assert known() is None
