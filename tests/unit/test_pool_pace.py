"""What hand-offs cost, and how brief a loan must be for others to overtake who waits."""

from __future__ import annotations

import pytest

from connpool.pool.pace import BRIEF, MEMORY, Pace

GRACE = 5e-4


def after(*lags: float, grace: float = GRACE) -> Pace:
    pace = Pace(grace)
    for lag in lags:
        pace.note(lag)
    return pace


def test_at_first_hand_offs_cost_nothing() -> None:
    assert Pace(GRACE).brief == BRIEF


@pytest.mark.parametrize("lag", [30e-6, 60e-6, 140e-6])
def test_a_loan_is_brief_that_is_shorter_than_three_lags(lag: float) -> None:
    assert after(*[lag] * 200).brief == pytest.approx(3 * lag, rel=0.01)


@pytest.mark.parametrize("lag", [0.0, 1e-6, 16e-6])
def test_loans_of_next_to_nothing_are_always_brief(lag: float) -> None:
    assert after(*[lag] * 200).brief == BRIEF


@pytest.mark.parametrize("lag", [3e-4, 1e-3, 60.0])
def test_nobody_is_overtaken_by_loans_longer_than_the_time_for_it(lag: float) -> None:
    assert after(*[lag] * 200).brief == 1.5 * GRACE


def test_where_nobody_may_be_overtaken_lags_count_for_nothing() -> None:
    assert after(*[1e-3] * 200, grace=0.0).brief == BRIEF


@pytest.mark.parametrize("stop", [0.01, 3600.0])
def test_one_thread_that_was_stopped_does_not_make_all_loans_brief(stop: float) -> None:
    pace = after(*[20e-6] * 200, stop)
    assert pace.brief < 300e-6
    for _ in range(40):
        pace.note(20e-6)
    assert pace.brief < 80e-6


def test_a_change_is_noticed_within_some_dozens_of_hand_offs() -> None:
    assert after(*[20e-6] * 1_000, *[150e-6] * 32).brief > 300e-6
    assert after(*[150e-6] * 1_000, *[20e-6] * 48).brief < 100e-6


def test_after_a_long_loan_lags_count_for_nothing_for_a_while() -> None:
    pace = after(*[1e-3] * 200)
    before = pace.brief
    pace.note_long()
    assert pace.brief == BRIEF < before
    pace.brief = before  # by a note that was under way
    for _ in range(MEMORY):
        pace.note(1e-3)
        assert pace.brief == BRIEF
    pace.note(1e-3)
    assert pace.brief == before


def test_two_who_note_the_last_strict_hand_off_at_once_do_not_make_all_others_strict() -> None:
    pace = after(*[1e-3] * 200)
    pace.strict_for = -1
    pace.note(1e-3)
    assert pace.brief > BRIEF
