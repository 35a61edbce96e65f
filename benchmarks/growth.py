"""How the cost of a turn grows: W11."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from benchmarks import peers
from benchmarks.adapters import DummyConnector, Ours, fill
from benchmarks.compare import interleave
from benchmarks.floors import FloorA, FloorB
from benchmarks.plan import Plan, Workload
from benchmarks.race import Elsewhere, Running, Spinner, Track, ratio, spin
from benchmarks.report import Curve, Finding, Row, Unit, at_least
from connpool import ConnectionPool, Repository

THREADS = (1, 8, 64, 256, 1024)
CONNECTIONS = (1, 4, 16, 64, 256, 1024)
ENDPOINTS = (1, 3, 10, 30, 100)
POOLS = (1, 10, 100, 1_000, 10_000)
CROWDS = (1, 2, 4, 8, 16, 32, 64)
FEW = 8
SETTINGS: Mapping[str, Any] = {"max_size": 1, "look_after_idle": 3600.0, "dial_in_caller": True}

OpenSpinner: TypeAlias = Callable[[int], Spinner | Elsewhere]
Rate: TypeAlias = Callable[[OpenSpinner, int, int], float]


class OursOfEndpoints(Ours):
    """A pool with one connection for each of its endpoints."""

    def open_pool(self, size: int) -> ConnectionPool:
        route = [f"host{number}.test:1" for number in range(size)]
        return ConnectionPool(route, connector=DummyConnector(), max_size=size)


class OursInRepository:
    """Many pools by name, each with one connection: a turn with one after the other.

    A pool whose turn comes seldom would look at its connection first. What that costs is no question of how
    many pools there are: here nobody looks.
    """

    def __init__(self, count: int) -> None:
        self.repository = Repository(f"growth to {count}", connector=DummyConnector(), **SETTINGS)
        self.names = [f"pool {number}" for number in range(count)]
        for name in self.names:
            fill(self.repository.new(name, "a.test:1"), 1)

    def spin(self, running: Running, track: Track) -> None:
        repository, bundle = self.repository, track.bundle
        names = itertools.cycle(self.names)
        while running:
            for _, name in zip(bundle, names, strict=False):
                conn = repository[name].try_connect()
                conn.release()
            track.turns += len(bundle)

    def close(self) -> None:
        self.repository.close()


def w11(plan: Plan) -> list[Finding]:
    """How does the cost of a turn grow with threads, connections, endpoints, pools and crowds?"""
    findings: list[Finding] = []

    def measure(what: str, who: str, sizes: Sequence[int], spinner: Callable[[int], float]) -> None:
        rates = interleave({str(size): size for size in sizes}, spinner, min(plan.repeats, 3))
        findings.extend(
            Row(who, f"{what}: {size}", Unit.RATE, tuple(values)) for size, values in rates.items()
        )
        findings.append(Curve(who, what, tuple((float(size), sum(v) / len(v)) for size, v in rates.items())))

    def rate(make: OpenSpinner, threads: int, size: int) -> float:
        contender = make(size)
        try:
            warm_up = max(plan.warm_up, threads / 2_000)  # a thousand threads take their time to start
            return spin(contender, threads, max(plan.seconds / 3, warm_up / 2), warm_up, bundle=10).rate
        finally:
            contender.close()

    each: Mapping[str, Callable[[int], Spinner]] = {"ours": Ours, "floor A": FloorA}
    compared = (FEW, THREADS[-1])
    for who, make in each.items():
        measure(
            "threads with a connection each",
            who,
            thinned(THREADS, plan, compared if who == "ours" else ()),
            partial(with_a_connection_each, rate, make),
        )
        measure(
            "connections for 8 threads", who, thinned(CONNECTIONS, plan), partial(of_few_threads, rate, make)
        )
    measure("endpoints", "ours", ENDPOINTS, partial(rate, OursOfEndpoints, 1))
    measure(
        "pools", "ours", [count for count in POOLS if count <= plan.pools], partial(rate, OursInRepository, 1)
    )
    crowds: dict[str, OpenSpinner] = {"ours": Ours, "floor B": FloorB}
    if plan.peers:
        crowds |= peers.lenders(must_wait=True)
    for who, crowd in crowds.items():
        measure(
            "threads on 8 connections", who, thinned(CROWDS, plan), partial(on_few_connections, rate, crowd)
        )
    few, many = (row_of(findings, f"threads with a connection each: {n}") for n in compared)
    return [
        *findings,
        Row(
            "ours",
            "1,024 threads x 8",
            Unit.RATIO,
            tuple(ratio(m, f) for m, f in zip(many.values, few.values, strict=True)),
            at_least(0.5),
        ),
    ]


def thinned(sizes: Sequence[int], plan: Plan, needed: Sequence[int] = ()) -> Sequence[int]:
    """As many of *sizes* as *plan* has time for, those that are *needed* in any case."""
    return [size for i, size in enumerate(sizes) if i % plan.stride == 0 or size in needed]


def with_a_connection_each(rate: Rate, make: OpenSpinner, threads: int) -> float:
    return rate(make, threads, threads)


def of_few_threads(rate: Rate, make: OpenSpinner, size: int) -> float:
    return rate(make, min(size, FEW), size)


def on_few_connections(rate: Rate, make: OpenSpinner, threads: int) -> float:
    return rate(make, threads, FEW)


def row_of(findings: Sequence[Finding], what: str) -> Row:
    """Our row of that name."""
    return next(
        found for found in findings if isinstance(found, Row) and (found.who, found.what) == ("ours", what)
    )


WORKLOADS: Mapping[str, Workload] = {"W11": w11}
