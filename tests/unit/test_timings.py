"""What a pool's percentiles are made of, counted in long after it happened."""

from __future__ import annotations

import pytest

from connpool.pool.timings import Timings


def caught_up(*ends: float, until: float) -> Timings:
    """Waits that ended then, each of as many seconds; counted in at the last end, and looked at later."""
    timings = Timings(0.0)
    timings.new_waits = [(at, at) for at in ends]
    timings.catch_up(ends[-1], len(ends))
    timings.catch_up(until, len(ends))
    return timings


@pytest.mark.parametrize("ends", [(1.0, 2.0), (59.0, 61.0), (10.0, 59.9, 60.0, 61.0), (130.0, 131.0)])
def test_each_wait_belongs_to_the_minute_in_which_it_ended(ends: tuple[float, ...]) -> None:
    """However late it is counted in: a minute later the last ones are still among the recent ones."""
    last = ends[-1]
    assert caught_up(*ends, until=last + 58).waits.percentiles(len(ends)).max == last


def test_what_ended_two_minutes_ago_is_forgotten() -> None:
    assert caught_up(59.0, 61.0, until=61.0 + 60).waits.percentiles(2).max == 61.0
    assert caught_up(59.0, 61.0, until=61.0 + 120).waits.percentiles(2).max == 0.0


@pytest.mark.parametrize("ends", [(1.0, 2.0, 3.0), (59.0, 61.0, 62.0)])
def test_each_is_counted_once(ends: tuple[float, ...]) -> None:
    found = caught_up(*ends, until=ends[-1]).waits.percentiles(len(ends))
    assert found.p50 == pytest.approx(ends[1], rel=0.07)
    assert found.max == ends[2]
