"""Callers of channels: through a pool, and with the least that keeps two calls apart."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.compare import each, interleave, rates, spin_all, starved, versus
from benchmarks.floors import FloorC
from benchmarks.plan import Plan, Workload
from benchmarks.race import Running, TimedResult, Track, mean, spin, timed_sleep
from benchmarks.report import Row, Unit, at_least
from connpool import CallPool


class InMemory:
    """A channel that answers at once."""

    resource = "memory"
    methods = frozenset({"get"})

    def open(self) -> None:
        """Nothing is to be opened."""

    def call(self, method: Any, payload: Any) -> Any:
        return payload

    def close(self) -> None:
        """Nothing is open."""


class Working(InMemory):
    """A channel that takes its time, and notes how long that really was."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.held: list[float] = []

    def call(self, method: Any, payload: Any) -> Any:
        self.held.append(timed_sleep(self.seconds))
        return payload


class LockedCalls:
    """The floor of one channel: a direct call under a lock."""

    def __init__(self, size: int) -> None:
        self.channel = InMemory()
        self.lock = threading.Lock()

    def spin(self, running: Running, track: Track) -> None:
        lock, call = self.lock, self.channel.call
        bundle = track.bundle
        while running:
            for _ in bundle:
                with lock:
                    call("get", 1)
            track.turns += len(bundle)

    def close(self) -> None:
        """Nothing was opened."""


class PooledCalls:
    """Our pool, of channels that answer at once."""

    def __init__(self, size: int) -> None:
        self.pool = CallPool()
        for _ in range(size):
            self.pool.init(InMemory())

    def spin(self, running: Running, track: Track) -> None:
        call = self.pool.call
        bundle = track.bundle
        while running:
            for _ in bundle:
                call("memory", "get", 1)
            track.turns += len(bundle)

    def close(self) -> None:
        self.pool.close()


class PooledWork(PooledCalls):
    """Our pool, of channels that take 1 ms."""

    def __init__(self, size: int) -> None:
        super().__init__(0)
        self.channels = [Working(0.001) for _ in range(size)]
        for channel in self.channels:
            self.pool.init(channel)

    @property
    def hold(self) -> float:
        """Mean seconds that a call really took."""
        return mean(seconds for channel in self.channels for seconds in channel.held)


class QueuedWork:
    """The floor of several channels: floor C, which hands them out in the order of arrival."""

    def __init__(self, size: int) -> None:
        self.floor = FloorC(size)
        self.channel = Working(0.001)

    def spin(self, running: Running, track: Track) -> None:
        while running:
            give_back = self.floor.take()
            self.channel.call("get", 1)
            give_back()
            track.turns += 1

    @property
    def hold(self) -> float:
        return mean(self.channel.held)

    def close(self) -> None:
        """Nothing was opened."""


def c1(plan: Plan) -> list[Row]:
    """What does a call through the pool cost one thread, on a channel that answers at once?"""
    results = spin_all(plan, {"locked call": LockedCalls, "ours": PooledCalls}, threads=1, size=1)
    return [*rates(results), versus(results, "ours", "locked call", at_least(1 / 6))]


def c2(plan: Plan) -> list[Row]:
    """Do 8 threads keep 4 channels busy, whose calls take 1 ms?"""
    size = 4

    def run(contender: Callable[[int], PooledWork | QueuedWork]) -> TimedResult:
        worked = contender(size)
        try:
            result = spin(worked, 8, plan.seconds, plan.warm_up)
            return TimedResult(result.served, result.seconds, waits=(), hold=worked.hold, away=0.0)
        finally:
            worked.close()

    contenders: dict[str, Callable[[int], PooledWork | QueuedWork]] = {
        "floor C": QueuedWork,
        "ours": PooledWork,
    }
    results = interleave(contenders, run, plan.repeats)
    ideal = {"ours": at_least(0.95)}
    return [
        *rates(results),
        *each(results, "mean hold", Unit.SECONDS, lambda r: r.hold),
        *each(results, "x ideal rate", Unit.RATIO, lambda r: r.rate / r.ideal_rate(size), ideal),
        *starved(results),
    ]


WORKLOADS: Mapping[str, Workload] = {"C1": c1, "C2": c2}
