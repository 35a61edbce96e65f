"""Contenders that take turns at one workload, and the rows in which they are compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from benchmarks.plan import Plan
from benchmarks.race import Queue, Result, Spinner, TimedResult, ratio, spin, spin_timed
from benchmarks.report import Row, Target, Unit

C = TypeVar("C")
R = TypeVar("R")


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
