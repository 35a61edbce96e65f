"""Contenders that take turns at one workload, and the rows in which they are compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from benchmarks.peers import is_peer, waits_when_full
from benchmarks.plan import Plan
from benchmarks.race import Elsewhere, Queue, Result, Spinner, TimedResult, ratio, spin, spin_timed
from benchmarks.report import Curve, Row, Target, Unit, at_least, at_most

C = TypeVar("C")
R = TypeVar("R")

SLICES = 200  # of a curve that shows how waits are spread


def spin_all(
    plan: Plan, contenders: Mapping[str, Callable[[int], Spinner | Elsewhere]], *, threads: int, size: int
) -> dict[str, list[Result]]:
    """Count the turns of every contender, without a look at the clock.

    Where nobody waits a turn is so short that counting each would cost a floor a
    tenth of its speed. Where threads wait, one that is seldom served should show.
    """
    bundle = 10 if threads <= size else 1

    def run(open_contender: Callable[[int], Spinner | Elsewhere]) -> Result:
        contender = open_contender(size)
        try:
            return spin(contender, threads, plan.seconds, plan.warm_up, bundle=bundle)
        finally:
            contender.close()

    return interleave(contenders, run, plan.repeats)


def spin_all_timed(
    plan: Plan,
    contenders: Mapping[str, Callable[[int], Queue | Elsewhere]],
    *,
    threads: int,
    size: int,
    hold: float = 0.0,
    away: float = 0.0,
) -> dict[str, list[TimedResult]]:
    """Time every checkout of every contender."""

    def run(open_contender: Callable[[int], Queue | Elsewhere]) -> TimedResult:
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


def cpu(results: Mapping[str, Sequence[Result]]) -> Iterable[Row]:
    return each(results, "processor a turn", Unit.SECONDS, lambda result: result.cpu_a_turn)


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


def versus_peers(results: Mapping[str, Sequence[Result]], bound: float) -> Iterable[Row]:
    """Our turns for each turn of each peer: *bound* at least, for one that waits when all is lent."""
    for name in results:
        if is_peer(name):
            yield versus(results, "ours", name, at_least(bound) if waits_when_full(name) else None)


def versus_fair(results: Mapping[str, Sequence[TimedResult]]) -> Iterable[Row]:
    """Our p99 wait for each one of the best among the peers that starved nobody in that round.

    Where some threads are never served the others need not wait: that is no short wait to be measured by.
    """
    rounds = zip(results["ours"], *(results[name] for name in results if is_peer(name)), strict=True)
    values = [
        ratio(ours.p99_wait, min(fair))
        for ours, *theirs in rounds
        if (fair := [result.p99_wait for result in theirs if not result.starved])
    ]
    if values:
        yield Row("ours", "p99 wait x best fair", Unit.RATIO, tuple(values), at_most(1.0))


def spread(results: Mapping[str, Sequence[TimedResult]]) -> Iterable[Curve]:
    """For the pictures: which share of the checkouts waited how long, and how many turns each thread had.

    Waits are those of all rounds; turns are those of the first, for each one of the mean.
    """
    for who, runs in results.items():
        waits = sorted(wait for run in runs for wait in run.waits)
        last = len(waits) - 1
        shares = [number / SLICES for number in range(SLICES + 1)]
        shares[-1:] = [0.996, 0.997, 0.998, 0.999, 0.9995, 1.0]  # where the long waits are
        yield Curve(who, "waits", tuple((waits[round(share * last)], share) for share in shares))
        served = sorted(runs[0].served, reverse=True)
        mean_served = sum(served) / len(served)
        yield Curve(
            who,
            "turns of each thread",
            tuple((float(rank), ratio(turns, mean_served)) for rank, turns in enumerate(served, start=1)),
        )
