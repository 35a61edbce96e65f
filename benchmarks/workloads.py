"""The questions asked of the pool, and how each is answered."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from attrs import frozen

from benchmarks.adapters import (
    Ours,
    OursListenedTo,
    OursThreeEndpoints,
    OursThroughWith,
    bytes_per_idle_connection,
)
from benchmarks.calls import LockedCalls, PooledCalls, PooledWork, QueuedWork
from benchmarks.floors import FloorA, FloorB, FloorC
from benchmarks.race import Lender, Queue, Result, Spinner, TimedResult, ratio, spin, spin_timed
from benchmarks.report import Row, Target, Unit, at_least, at_most

MILLISECOND = 0.001

C = TypeVar("C")
R = TypeVar("R")


@frozen
class Plan:
    """How long to measure.

    Attributes:
        repeats: How often each contender runs; they take turns.
        seconds: How long turns are counted in each run.
        warm_up: Seconds that each run lasts before they are.
        idle: Connections whose memory is counted.
    """

    repeats: int
    seconds: float
    warm_up: float
    idle: int = 2_000


def w1(plan: Plan) -> list[Row]:
    """What does a turn cost one thread that has 10 connections to itself?"""
    results = spin_all(
        plan,
        {
            "floor A": FloorA,
            "floor B": FloorB,
            "ours": Ours,
            "ours, through with": OursThroughWith,
            "ours, three endpoints": OursThreeEndpoints,
            "ours, listened to": OursListenedTo,
        },
        threads=1,
        size=10,
    )
    return [
        *rates(results),
        versus(results, "ours", "floor A", at_least(0.55)),
        versus(results, "ours", "floor B"),
        versus(results, "ours, through with", "floor A", at_least(0.45)),
        versus(results, "ours, three endpoints", "ours", at_least(0.7)),
        versus(results, "ours, listened to", "floor A", at_least(0.25)),
    ]


def w2(plan: Plan) -> list[Row]:
    """Do 8 threads with a connection for each of them get in each other's way?"""
    results = spin_all(
        plan,
        {"floor A": FloorA, "floor B": FloorB, "ours": Ours, "ours, three endpoints": OursThreeEndpoints},
        threads=8,
        size=8,
    )
    return [
        *rates(results),
        versus(results, "ours", "floor A", at_least(2.5)),
        versus(results, "ours", "floor B"),
        versus(results, "ours, three endpoints", "ours", at_least(0.7)),
    ]


def w3(plan: Plan) -> list[Row]:
    """How fast do 8 threads take turns on 2 connections that nobody holds for long?"""
    results = spin_all(plan, {"floor B": FloorB, "ours": Ours}, threads=8, size=2)
    return [*rates(results), versus(results, "ours", "floor B", at_least(1.0))]


def w4(plan: Plan) -> list[Row]:
    """How fast do 64 threads take turns on 4 connections, and does each come to its turn?"""
    lenders: dict[str, Callable[[int], Lender]] = {"floor B": FloorB, "ours": Ours}
    results = spin_all(plan, lenders, threads=64, size=4)
    timed = spin_all_timed(plan, lenders, threads=64, size=4)
    return [
        *rates(results),
        versus(results, "ours", "floor B", at_least(2.5)),
        *waits(timed, {"ours": at_most(5 * MILLISECOND)}),
        *starved(results, {"ours": at_most(0, always=True)}),
    ]


def w5(plan: Plan) -> list[Row]:
    """Do 32 threads keep 8 connections busy, 1 ms at a time, and are all served alike?"""
    size = 8
    lenders: dict[str, Callable[[int], Queue]] = {"floor B": FloorB, "floor C": FloorC, "ours": Ours}
    results = spin_all_timed(plan, lenders, threads=32, size=size, hold=MILLISECOND)
    return [
        *rates(results),
        *each(results, "mean hold", Unit.SECONDS, lambda r: r.hold),
        *each(
            results,
            "x ideal rate",
            Unit.RATIO,
            lambda r: r.rate / r.ideal_rate(size),
            {"ours": at_least(0.97)},
        ),
        *waits(results),
        *each(
            results,
            "p99 wait x ideal",
            Unit.RATIO,
            lambda r: ratio(r.p99_wait, r.ideal_wait(size)),
            {"ours": at_most(1.3)},
        ),
        *each(results, "most / least served", Unit.RATIO, lambda r: r.most_to_least, {"ours": at_most(1.3)}),
        *starved(results),
    ]


def w6(plan: Plan) -> list[Row]:
    """The same, when each thread stays away for 1 ms after each turn: is nobody's wait long?"""
    size = 8
    lenders: dict[str, Callable[[int], Queue]] = {"floor B": FloorB, "floor C": FloorC, "ours": Ours}
    results = spin_all_timed(plan, lenders, threads=32, size=size, hold=MILLISECOND, away=MILLISECOND)
    return [
        *rates(results),
        *each(results, "mean hold", Unit.SECONDS, lambda r: r.hold),
        *each(results, "x ideal rate", Unit.RATIO, lambda r: r.rate / r.ideal_rate(size)),
        *waits(results),
        *each(
            results,
            "p99 wait x ideal",
            Unit.RATIO,
            lambda r: ratio(r.p99_wait, r.ideal_wait(size)),
            {"ours": at_most(1.5)},
        ),
        *each(results, "most / least served", Unit.RATIO, lambda r: r.most_to_least),
        *starved(results),
    ]


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


def memory(plan: Plan) -> list[Row]:
    """What does the pool keep for an idle connection, besides what the connector opened?"""
    kept = tuple(bytes_per_idle_connection(plan.idle) for _ in range(plan.repeats))
    return [Row("ours", "per idle connection", Unit.BYTES, kept, at_most(400))]


WORKLOADS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "W1": w1,
    "W2": w2,
    "W3": w3,
    "W4": w4,
    "W5": w5,
    "W6": w6,
    "C1": c1,
    "C2": c2,
    "memory": memory,
}


def spin_all(
    plan: Plan, contenders: Mapping[str, Callable[[int], Spinner]], *, threads: int, size: int
) -> dict[str, list[Result]]:
    """Count the turns of every contender, without a look at the clock.

    Where nobody waits a turn is so short that counting each would cost a floor a
    tenth of its speed. Where threads wait, one that is seldom served should show.
    """
    bundle = 10 if threads <= size else 1

    def run(open_contender: Callable[[int], Spinner]) -> Result:
        contender = open_contender(size)
        try:
            return spin(contender, threads, plan.seconds, plan.warm_up, bundle=bundle)
        finally:
            contender.close()

    return interleave(contenders, run, plan.repeats)


def spin_all_timed(
    plan: Plan,
    contenders: Mapping[str, Callable[[int], Queue]],
    *,
    threads: int,
    size: int,
    hold: float = 0.0,
    away: float = 0.0,
) -> dict[str, list[TimedResult]]:
    """Time every checkout of every contender."""

    def run(open_contender: Callable[[int], Queue]) -> TimedResult:
        contender = open_contender(size)
        try:
            return spin_timed(contender, threads, plan.seconds, plan.warm_up, hold=hold, away=away)
        finally:
            contender.close()

    return interleave(contenders, run, plan.repeats)


def interleave(contenders: Mapping[str, C], run: Callable[[C], R], repeats: int) -> dict[str, list[R]]:
    """Run the contenders in turn, *repeats* rounds of it: what slows the machine for a while slows all."""
    results: dict[str, list[R]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            results[name].append(run(contender))
    return results


def each(
    results: Mapping[str, Sequence[R]],
    what: str,
    unit: Unit,
    figure: Callable[[R], float],
    targets: Mapping[str, Target] | None = None,
) -> Iterable[Row]:
    """One row for each contender."""
    for who, runs in results.items():
        yield Row(who, what, unit, tuple(figure(run) for run in runs), (targets or {}).get(who))


def rates(results: Mapping[str, Sequence[Result]]) -> Iterable[Row]:
    return each(results, "turns", Unit.RATE, lambda result: result.rate)


def waits(
    results: Mapping[str, Sequence[TimedResult]], targets: Mapping[str, Target] | None = None
) -> Iterable[Row]:
    yield from each(results, "p99 wait", Unit.SECONDS, lambda result: result.p99_wait, targets)
    yield from each(results, "longest wait", Unit.SECONDS, lambda result: result.longest_wait)


def starved(
    results: Mapping[str, Sequence[Result]], targets: Mapping[str, Target] | None = None
) -> Iterable[Row]:
    return each(results, "starved threads", Unit.COUNT, lambda result: result.starved, targets)


def versus(results: Mapping[str, Sequence[Result]], who: str, base: str, target: Target | None = None) -> Row:
    """The rate of *who* for each turn of *base*, round by round: in a round both ran one after the other."""
    pairs = zip(results[who], results[base], strict=True)
    return Row(
        who, f"x {base}", Unit.RATIO, tuple(ratio(ours.rate, theirs.rate) for ours, theirs in pairs), target
    )
