"""What lending itself costs, without a network: bare objects, lent and taken back."""

from collections.abc import Callable, Mapping

from benchmarks import peers
from benchmarks.adapters import (
    Ours,
    OursListenedTo,
    OursThreeEndpoints,
    OursThroughWith,
    bytes_per_idle_connection,
)
from benchmarks.compare import (
    cpu,
    each,
    rates,
    spin_all,
    spin_all_timed,
    spread,
    starved,
    versus,
    versus_fair,
    versus_peers,
    waits,
)
from benchmarks.floors import FloorA, FloorB, FloorC
from benchmarks.peers.base import Peer
from benchmarks.plan import Plan, Workload
from benchmarks.race import Elsewhere, Lender, Queue, ratio
from benchmarks.report import Finding, Gap, Row, Unit, at_least, at_most

MILLISECOND = 0.001


def others(plan: Plan, *, must_wait: bool) -> dict[str, Callable[[int], Peer | Elsewhere]]:
    """The peers that run beside ours."""
    return peers.lenders(must_wait=must_wait) if plan.peers else {}


def gaps(plan: Plan) -> list[Gap]:
    """Those that are here and cannot wait."""
    if not plan.peers:
        return []
    return [Gap(name, "raises instead of waiting") for name, peer in peers.here().items() if not peer.waits]


def w1(plan: Plan) -> list[Finding]:
    """What does a turn cost one thread that has 10 connections to itself?"""
    theirs = others(plan, must_wait=False)
    results = spin_all(
        plan,
        {
            "floor A": FloorA,
            "floor B": FloorB,
            "ours": Ours,
            "ours, through with": OursThroughWith,
            "ours, three endpoints": OursThreeEndpoints,
            "ours, listened to": OursListenedTo,
            **theirs,
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
        *versus_peers(results, 2.0),
        *cpu(results),
    ]


def w2(plan: Plan) -> list[Finding]:
    """Do 8 threads with a connection for each of them get in each other's way?"""
    theirs = others(plan, must_wait=False)
    results = spin_all(
        plan,
        {
            "floor A": FloorA,
            "floor B": FloorB,
            "ours": Ours,
            "ours, three endpoints": OursThreeEndpoints,
            **theirs,
        },
        threads=8,
        size=8,
    )
    return [
        *rates(results),
        versus(results, "ours", "floor A", at_least(2.5)),
        versus(results, "ours", "floor B"),
        versus(results, "ours, three endpoints", "ours", at_least(0.7)),
        *versus_peers(results, 2.0),
        *cpu(results),
    ]


def w3(plan: Plan) -> list[Finding]:
    """How fast do 8 threads take turns on 2 connections that nobody holds for long?"""
    theirs = others(plan, must_wait=True)
    results = spin_all(plan, {"floor B": FloorB, "ours": Ours, **theirs}, threads=8, size=2)
    return [
        *rates(results),
        versus(results, "ours", "floor B", at_least(1.0)),
        *versus_peers(results, 1.0),
        *cpu(results),
        *gaps(plan),
    ]


def w4(plan: Plan) -> list[Finding]:
    """How fast do 64 threads take turns on 4 connections, and does each come to its turn?"""
    theirs = others(plan, must_wait=True)
    lenders: dict[str, Callable[[int], Lender | Elsewhere]] = {"floor B": FloorB, "ours": Ours, **theirs}
    results = spin_all(plan, lenders, threads=64, size=4)
    timed = spin_all_timed(plan, lenders, threads=64, size=4)
    return [
        *rates(results),
        versus(results, "ours", "floor B", at_least(2.5)),
        *waits(timed, {"ours": at_most(5 * MILLISECOND)}),
        *starved(results, {"ours": at_most(0, always=True)}),
        *versus_peers(results, 1.0),
        *cpu(results),
        *gaps(plan),
    ]


def w5(plan: Plan) -> list[Finding]:
    """Do 32 threads keep 8 connections busy, 1 ms at a time, and are all served alike?"""
    size = 8
    theirs = others(plan, must_wait=True)
    lenders: dict[str, Callable[[int], Queue | Elsewhere]] = {
        "floor B": FloorB,
        "floor C": FloorC,
        "ours": Ours,
        **theirs,
    }
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
        *starved(results, {"ours": at_most(0, always=True)}),
        *versus_fair(results),
        *cpu(results),
        *spread(results),
        *gaps(plan),
    ]


def w6(plan: Plan) -> list[Finding]:
    """The same, when each thread stays away for 1 ms after each turn: is nobody's wait long?"""
    size = 8
    theirs = others(plan, must_wait=True)
    lenders: dict[str, Callable[[int], Queue | Elsewhere]] = {
        "floor B": FloorB,
        "floor C": FloorC,
        "ours": Ours,
        **theirs,
    }
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
        *starved(results, {"ours": at_most(0, always=True)}),
        *versus_fair(results),
        *cpu(results),
        *spread(results),
        *gaps(plan),
    ]


def memory(plan: Plan) -> list[Finding]:
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
