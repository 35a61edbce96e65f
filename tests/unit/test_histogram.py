"""The histogram: how far off its percentiles may be, and how much it may remember."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connpool.model.histogram import LONGEST, SHORTEST, Histogram, RecentHistogram
from connpool.model.stats import Percentiles

NOTHING = Percentiles(0.0, 0.0, 0.0, 0.0)
BOUND = 0.07


def recorded(*samples: float) -> Histogram:
    histogram = Histogram()
    for sample in samples:
        histogram.record(sample)
    return histogram


def exact(samples: list[float], percent: int) -> float:
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


def test_nothing_recorded_is_all_zero():
    assert Histogram().percentiles() == NOTHING


@pytest.mark.parametrize("exponent", range(-20, 14))
@pytest.mark.parametrize("part", [0.0, 0.001, 0.124, 0.125, 0.5, 0.999])
def test_any_duration_in_range_is_told_within_seven_percent(exponent, part):
    sample = min(max(2.0**exponent * (1 + part), SHORTEST), LONGEST)
    told = recorded(sample, sample, sample, 9_999.0).percentiles().p50
    assert abs(told - sample) <= BOUND * sample


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_near_the_exact_ones_whatever_the_distribution(seed):
    rng = random.Random(seed)
    samples = [rng.lognormvariate(-7, 2) for _ in range(2_000)]
    told = recorded(*samples).percentiles()
    for percent, value in (50, told.p50), (95, told.p95), (99, told.p99):
        assert value == pytest.approx(exact(samples, percent), rel=BOUND)
    assert told.max == max(samples)


def test_a_rank_between_two_samples_is_the_upper_one_and_not_before():
    assert recorded(*[1.0] * 50, *[2.0] * 50).percentiles().p50 == pytest.approx(1.0, rel=BOUND)
    assert recorded(*[1.0] * 49, *[2.0] * 51).percentiles().p50 == pytest.approx(2.0, rel=BOUND)
    assert recorded(*[1.0] * 95, *[2.0] * 5).percentiles().p95 == pytest.approx(1.0, rel=BOUND)
    assert recorded(*[1.0] * 98, *[2.0] * 2).percentiles().p99 == pytest.approx(2.0, rel=BOUND)


def test_no_percentile_is_beyond_the_longest_sample():
    assert recorded(1.0).percentiles() == Percentiles(1.0, 1.0, 1.0, 1.0)


def test_zeros_count_as_samples_of_no_time_at_all():
    histogram = recorded(1.0, 1.0)
    assert histogram.percentiles(zeros=2).p50 == 0.0
    assert histogram.percentiles(zeros=1).p50 == 1.0
    assert histogram.percentiles(zeros=1_000) == Percentiles(0.0, 0.0, 0.0, 1.0)
    assert Histogram().percentiles(zeros=5) == NOTHING


def test_what_is_too_short_or_negative_counts_as_zero():
    assert recorded(0.0, 5e-7, -3.0).percentiles() == Percentiles(0.0, 0.0, 0.0, 5e-7)


def test_what_is_too_long_is_told_by_the_maximum():
    assert recorded(1.0, 20_000.0, 30_000.0).percentiles() == Percentiles(
        30_000.0, 30_000.0, 30_000.0, 30_000.0
    )


def test_memory_does_not_grow_with_the_samples():
    histogram = Histogram()
    for _ in range(2):
        for n in range(100_000):
            histogram.record(math.exp(n / 100_000 * 60 - 30))
    assert len(histogram._buckets) < 300


@given(st.lists(st.one_of(st.floats(0, 20_000), st.floats(0, 2e-6), st.sampled_from([1e-6, 1e4, 0.5, 1.0]))))
@example([9216.0, 10_001.0])
def test_many_at_once_are_counted_as_one_by_one(durations):
    together, singly = Histogram(), Histogram()
    together.record_all(durations)
    for seconds in durations:
        singly.record(seconds)
    assert together.count == singly.count == len(durations)
    assert together._buckets == singly._buckets
    assert together.percentiles() == singly.percentiles()


def test_what_others_have_counted_is_counted_in_from_the_shortest_to_the_longest():
    both, other = recorded(1.0, 3.0), recorded(0.0, 2.0, 20_000.0, 30_000.0)
    both.add(other)
    assert both.count == 6
    assert both.percentiles() == recorded(1.0, 3.0, 0.0, 2.0, 20_000.0, 30_000.0).percentiles()


def test_what_took_no_time_counts_for_as_long_as_what_did():
    recent = RecentHistogram(0.0)
    recent.record(5.0)
    recent.turn(60.0, n_samples=10)
    assert recent.percentiles(n_samples=10).p50 == 0.0
    recent.turn(180.0, n_samples=20)
    recent.record(7.0)
    assert recent.percentiles(n_samples=21).p50 == 7.0
