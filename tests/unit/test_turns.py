"""Turns at one thing: who is interrupted on its way to one holds up nobody."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import NoReturn

import pytest

import connpool.pool.turns
from connpool.delivery.errand import Errand
from connpool.pool.turns import Turn, Turns
from connpool.wire import threads


def strike(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Struck(deque):
    """A queue in which whoever joins is interrupted just then."""

    def append(self, gate):
        super().append(gate)
        strike()


def test_who_is_interrupted_while_it_waits_holds_up_nobody_though_its_error_is_kept(monkeypatch):
    turns = Turns()
    first = turns.take(None)
    with monkeypatch.context() as patch:
        patch.setattr(connpool.pool.turns, "wait", strike)
        with pytest.raises(KeyboardInterrupt) as caught:
            turns.take(None)
    first.end()
    assert turns.try_take(0) is not None
    assert caught.value


def test_who_is_interrupted_when_it_joins_holds_up_nobody_though_its_error_is_kept():
    gates = Struck()
    with pytest.raises(KeyboardInterrupt) as caught:
        Turn(gates)
    assert not gates
    assert caught.value


def test_a_timeout_that_is_not_a_number_is_none_at_all():
    turns = Turns()
    first = turns.take(math.nan)
    assert turns.try_take(math.nan) is None
    first.end()
    assert turns.are_free()


def no_thread(thread: threading.Thread) -> bool:
    return False


@pytest.mark.parametrize("start", [no_thread, strike])
def test_an_errand_for_which_no_thread_was_started_is_nobodys_turn(monkeypatch, start):
    errand, done = Errand(), threading.Event()

    def run(turn: Turn) -> None:
        turn.end()
        done.set()

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start", start)
        try:
            errand.do_apart(run, "in vain")
        except KeyboardInterrupt:
            assert start is strike
    assert not errand.is_under_way()
    errand.do_apart(run, "on an errand")
    assert done.wait(10)
    errand.thread.join()
    assert errand.thread.name == "on an errand"


def test_an_errand_is_under_way_for_others_than_the_thread_that_is_at_it_and_not_done_twice():
    errand, may_end, mine, n_runs = Errand(), threading.Event(), [], []

    def run(turn: Turn) -> None:
        mine.append(errand.is_under_way())
        n_runs.append(None)
        may_end.wait(10)
        turn.end()

    assert not errand.is_under_way()
    errand.do_apart(run, "first")
    first = errand.thread
    errand.do_apart(run, "second")
    assert errand.thread is first
    assert errand.is_under_way()
    may_end.set()
    first.join()
    assert not errand.is_under_way()
    assert (mine, len(n_runs)) == ([False], 1)
