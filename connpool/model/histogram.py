"""Durations counted in buckets that grow with them, so that memory stays the same."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from connpool.model.stats import Percentiles

SHORTEST: Final = 1e-6  # seconds; what is shorter counts as 0
LONGEST: Final = 1e4  # seconds; what is longer is told apart by the maximum alone

# Each power of two is cut into 8 equal buckets. A bucket is thus at most an
# eighth of its lower edge wide, and its middle at most 6.25 % off any sample.
_PARTS: Final = 8
_FIRST: Final = math.frexp(SHORTEST)[1]


def _middle(bucket: int) -> float:
    """Return the middle of a bucket: the value its samples are reported as."""
    octave, part = divmod(bucket, _PARTS)
    return math.ldexp(0.5 + (part + 0.5) / (2 * _PARTS), octave + _FIRST)


def _bucket(seconds: float) -> int:
    """Return the bucket that counts *seconds*."""
    mantissa, exponent = math.frexp(seconds)  # 0.5 <= mantissa < 1
    return (exponent - _FIRST) * _PARTS + int((mantissa - 0.5) * 2 * _PARTS)


def _lower_edge(bucket: int) -> float:
    """Return the shortest duration that *bucket* counts."""
    octave, part = divmod(bucket, _PARTS)
    return math.ldexp(0.5 + part / (2 * _PARTS), octave + _FIRST)


class Histogram:
    """Counts durations; tells their percentiles within 7 %, and their maximum exactly.

    It has no lock: to record and to read must exclude each other.
    """

    __slots__ = ("_buckets", "_longer", "_longest", "_shorter")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}  # those that have counted anything
        self._shorter = 0  # samples below SHORTEST
        self._longer = 0  # samples above LONGEST
        self._longest = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration. What a clock set back made negative counts as 0."""
        if seconds > self._longest:
            self._longest = seconds
        if seconds < SHORTEST:
            self._shorter += 1
        elif seconds > LONGEST:
            self._longer += 1
        else:
            bucket = _bucket(seconds)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def record_all(self, many: Iterable[float]) -> None:
        """Count several durations, at a quarter of the price each."""
        ordered = sorted(many)
        start = bisect_left(ordered, SHORTEST)
        self._shorter += start
        stop = bisect_right(ordered, LONGEST)
        while start < stop:
            bucket = _bucket(ordered[start])
            end = bisect_left(ordered, _lower_edge(bucket + 1), start, stop)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + end - start
            start = end
        self._longer += len(ordered) - stop
        if ordered:
            self._longest = max(self._longest, ordered[-1])

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return self._shorter + sum(self._buckets.values()) + self._longer

    def add(self, other: Histogram) -> None:
        """Count in all that *other* has counted."""
        for bucket, n in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + n
        self._shorter += other._shorter
        self._longer += other._longer
        self._longest = max(self._longest, other._longest)

    def percentiles(self, zeros: int = 0) -> Percentiles:
        """Tell how what was recorded is distributed.

        Args:
            zeros: Samples of exactly 0 seconds to count in addition: those that
                were too cheap to be recorded one by one.
        """
        total = zeros + self.count
        return Percentiles(
            p50=self._at_rank(math.ceil(total * 50 / 100), zeros),
            p95=self._at_rank(math.ceil(total * 95 / 100), zeros),
            p99=self._at_rank(math.ceil(total * 99 / 100), zeros),
            max=self._longest,
        )

    def _at_rank(self, rank: int, zeros: int) -> float:
        """Return about the value of the *rank*-th shortest sample, counted from 1."""
        reached = zeros + self._shorter
        if rank <= reached:
            return 0.0
        for bucket, n in sorted(self._buckets.items()):
            reached += n
            if rank <= reached:
                return min(_middle(bucket), self._longest)  # the middle may lie beyond the last sample
        return self._longest


class RecentHistogram:
    """Durations of the last minute or two; what is older is forgotten.

    Counts into one histogram and keeps the one before. Memory stays the same,
    however much is recorded.
    """

    __slots__ = ("_before", "_began", "_current", "_zeros_before", "_zeros_began")

    SPAN: Final = 60.0  # seconds that one histogram counts for

    def __init__(self, now: float) -> None:
        self._current = Histogram()
        self._before = Histogram()
        self._began = now
        self._zeros_began = 0  # how many there had been in all when the current one was begun
        self._zeros_before = 0  # samples of 0 seconds beside what the one before has counted

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._current.record(seconds)

    def record_all(self, many: Iterable[float]) -> None:
        """Count several durations."""
        self._current.record_all(many)

    def is_full_at(self, at: float) -> bool:
        """Whether a sample of that instant belongs to a new histogram."""
        return at - self._began >= self.SPAN

    def turn(self, now: float, n_samples: int = 0) -> None:
        """Begin a new histogram if the current one is full of days.

        Args:
            n_samples: How many there ever were, those included that took no time and were not
                recorded; 0 if every one was.
        """
        age = now - self._began
        if age < self.SPAN:
            return
        is_idle_since = age >= 2 * self.SPAN
        self._zeros_before = 0 if is_idle_since else self._zeros(n_samples)
        self._before = Histogram() if is_idle_since else self._current
        self._current = Histogram()
        self._began = now
        self._zeros_began = n_samples

    def percentiles(self, n_samples: int = 0) -> Percentiles:
        """Tell how the recent ones are distributed. *n_samples*: as for ``turn``."""
        both = Histogram()
        both.add(self._before)
        both.add(self._current)
        return both.percentiles(zeros=self._zeros_before + self._zeros(n_samples))

    def _zeros(self, n_samples: int) -> int:
        return max(0, n_samples - self._zeros_began - self._current.count)
