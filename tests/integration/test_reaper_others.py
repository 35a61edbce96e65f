"""The reaper gives turns to whatever asks for them, pool or not."""

from __future__ import annotations

import gc
import math
import threading
import weakref

import pytest

from connpool.clock import now
from connpool.pool.census import KEPT, watch, wink
from tests.helpers.forks import in_child
from tests.helpers.switchboard import until
from tests.helpers.upkeep import REAPER, let_pass, reapers


class Kettle:
    """Has something due now and then."""

    name = "kettle"

    def __init__(self, pace: float | None = 0.001) -> None:
        self.pace = pace
        self.turns: list[str] = []
        self.is_failing = False
        self.is_clean = False

    def _pace(self) -> float | None:
        return self.pace

    def _take_turn(self, *, is_leap: bool) -> None:
        assert not is_leap
        self.turns.append(threading.current_thread().name)
        if self.is_failing:
            raise OSError("boiled over")

    def _start_clean(self) -> None:
        self.is_clean = True

    def _close_at_exit(self, until: float) -> None:
        """Nothing is open."""


def test_whatever_asks_for_a_turn_is_given_one_when_it_is_due_and_no_more() -> None:
    kettle = Kettle()
    asked = now()
    assert watch(kettle, asked + 0.03)
    until(lambda: kettle.turns)
    assert now() >= asked + 0.03
    assert kettle.turns == [REAPER]
    until(lambda: not reapers(), "the end of the reaper, who has nothing left to do")
    assert len(kettle.turns) == 1


def test_what_is_dropped_may_ask_for_a_turn_at_once_and_without_a_lock() -> None:
    kettle = Kettle()
    wink(kettle)
    until(lambda: kettle.turns)


def test_what_is_turned_by_hand_is_given_no_turn() -> None:
    kettle = Kettle(pace=None)
    assert watch(kettle, now())
    wink(kettle)
    let_pass(0.03)
    assert kettle.turns == []


def test_a_turn_that_fails_is_logged_under_its_name(caplog: pytest.LogCaptureFixture) -> None:
    kettle = Kettle()
    kettle.is_failing = True
    watch(kettle, now())
    until(lambda: "'kettle': a turn of upkeep failed" in caplog.text)
    watch(kettle, math.inf)  # it would be given another


def test_one_that_is_forgotten_is_not_kept_alive_by_the_turns_it_has_asked_for() -> None:
    kettle = Kettle()
    watch(kettle, now() + 60)
    ref = weakref.ref(kettle)
    del kettle
    gc.collect()
    assert ref() is None
    until(lambda: not reapers(), "the end of the reaper with its last charge")


def test_whoever_is_in_the_census_starts_clean_in_a_forked_child() -> None:
    kettle = Kettle()
    KEPT.add(kettle)
    assert in_child(lambda: kettle.is_clean)
    assert not kettle.is_clean
