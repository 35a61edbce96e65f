"""What lending itself costs, without a network: bare objects, lent and taken back."""

from collections.abc import Callable, Mapping

from benchmarks.adapters import (
    Ours,
    OursListenedTo,
    OursThreeEndpoints,
    OursThroughWith,
    bytes_per_idle_connection,
)
from benchmarks.compare import each, rates, spin_all, spin_all_timed, starved, versus, waits
from benchmarks.floors import FloorA, FloorB, FloorC
from benchmarks.plan import Plan, Workload
from benchmarks.race import Lender, Queue, ratio
from benchmarks.report import Row, Unit, at_least, at_most

MILLISECOND = 0.001


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


def memory(plan: Plan) -> list[Row]:
    """What does the pool keep for an idle connection, besides what the connector opened?"""
    kept = tuple(bytes_per_idle_connection(plan.idle) for _ in range(plan.repeats))
    return [Row("ours", "per idle connection", Unit.BYTES, kept, at_most(400))]


WORKLOADS: Mapping[str, Workload] = {
    "W1": w1,
    "W2": w2,
    "W3": w3,
    "W4": w4,
    "W5": w5,
    "W6": w6,
    "memory": memory,
}
