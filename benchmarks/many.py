"""What thousands of named pools cost: to find one, to keep them, and to look after them."""

import gc
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from itertools import cycle
from time import perf_counter, process_time, sleep
from typing import Any

from benchmarks.adapters import DummyConnector
from benchmarks.plan import Plan, Workload
from benchmarks.race import ratio
from benchmarks.report import Row, Unit, at_most
from connpool import Repository

COUNTS = (10, 100, 1_000, 10_000)
LOOKUPS = 20_000
EXPIRING = 10  # connections, in as many pools
LONG = 3_600.0
SHORT = 0.2
PACE = 0.05


def pools(plan: Plan) -> list[Row]:
    """What does it cost to look up one of 10 to 10,000 named pools, and to keep an empty one?"""
    rows = []
    least: tuple[float, ...] = ()
    for count in _counts(plan):
        timed = tuple(_lookup(count) for _ in range(plan.repeats))
        least = least or timed
        rows.append(Row(f"{count:,} pools", "lookup", Unit.SECONDS, timed))
        rows.append(_versus_few(count, "lookup", timed, least, 2.0))
    kept = tuple(_bytes_per_pool(1_000) for _ in range(plan.repeats))
    return [*rows, Row("empty pool", "memory", Unit.BYTES, kept, at_most(12 * 1024))]


def reaper(plan: Plan) -> list[Row]:
    """What does it cost to close 10 expired connections, when 10 to 10,000 pools hold one each?"""
    rows = []
    least: tuple[float, ...] = ()
    for count in _counts(plan):
        spent = tuple(_expiry(count) for _ in range(plan.repeats))
        least = least or spent
        rows.append(Row(f"{count:,} pools", "processor time per expiry", Unit.SECONDS, spent))
        rows.append(_versus_few(count, "processor time", spent, least, 3.0))
    threads = (float(threading.active_count()),)
    return [*rows, Row("all of them", "threads at the end", Unit.COUNT, threads)]


def _counts(plan: Plan) -> list[int]:
    return [count for count in COUNTS if count <= plan.pools]


def _versus_few(
    count: int, what: str, figures: tuple[float, ...], base: tuple[float, ...], bound: float
) -> Row:
    ratios = tuple(ratio(one, other) for one, other in zip(figures, base, strict=True))
    target = at_most(bound) if count != COUNTS[0] else None
    return Row(f"{count:,} pools", f"{what} x that of {COUNTS[0]}", Unit.RATIO, ratios, target)


def _with_pools(count: int, ask: Callable[[Repository], float], **settings: Any) -> float:
    repo = Repository(connector=DummyConnector(), dial_in_caller=True, **settings)
    for number in range(count):
        repo.new(f"pool {number}", "a.test:1")
    gc.collect()
    try:
        return ask(repo)
    finally:
        repo.close()


def _lookup(count: int) -> float:
    """Seconds for finding one pool by its name."""

    def ask(repo: Repository) -> float:
        names = cycle([f"pool {number * (count // 10)}" for number in range(10)])
        wanted = [next(names) for _ in range(LOOKUPS)]
        began = perf_counter()
        for name in wanted:
            repo[name]
        return (perf_counter() - began) / LOOKUPS

    return _with_pools(count, ask)


def _bytes_per_pool(count: int) -> float:
    """What an empty pool keeps, its name and its place in the repository included."""
    repo = Repository(connector=DummyConnector())
    repo.new("first", "a.test:1")  # what is made once is not laid on the others
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count):
            repo.new(f"pool {number}", "a.test:1")
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        repo.close()
    return kept / count


def _expiry(count: int) -> float:
    """Processor time, in seconds, for each connection that is closed because it has expired."""

    def ask(repo: Repository) -> float:
        names = list(repo)
        for name in names:
            repo[name].try_connect().release()
        expiring = [repo[name] for name in names[:: count // EXPIRING]]
        for pool in expiring:
            pool.configure(idle_timeout=SHORT)
            pool.try_connect().release()
        sleep(PACE)  # what the settings have caused is over
        began = process_time()
        while any(pool.stats().size for pool in expiring):
            sleep(2 * SHORT)
        return (process_time() - began) / len(expiring)

    return _with_pools(count, ask, idle_timeout=LONG, reap_interval=PACE)


WORKLOADS: Mapping[str, Workload] = {"pools": pools, "reaper": reaper}
