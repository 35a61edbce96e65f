"""What a pool takes besides time: W12."""

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.adapters import bytes_per_idle_connection
from benchmarks.compare import interleave
from benchmarks.peers.base import Peer
from benchmarks.plan import Plan, Workload
from benchmarks.report import Finding, Gap, Row, Unit, at_most

ROOT = Path(__file__).parents[1]
FEWER = 10  # times; the time in which one peer opens connections grows with the square of their number
IMPORT = "from time import perf_counter as t; began = t(); import {}; print(t() - began)"


def w12(plan: Plan) -> list[Finding]:
    """What does an idle connection take in memory, and importing the package in time?"""
    keepers: dict[str, Callable[[int], float]] = {"ours": bytes_per_idle_connection}
    imports = {"ours, the package alone": "connpool", "ours": "connpool.pool.pool, connpool.upkeep"}
    findings: list[Finding] = []
    for name, peer in peers.here().items() if plan.peers else ():
        imports[name] = peer.module
        if peer.one_per_thread:
            findings.append(Gap(name, "one thread cannot open many, so their memory is not measured"))
        else:
            keepers[name] = partial(their_bytes_per_idle_connection, peer)
    limits = {"ours": at_most(400)}
    kept = interleave(keepers, lambda keeper: keeper(plan.idle), min(plan.repeats, 2))
    seconds = interleave(imports, import_time, plan.repeats)
    return [
        *(
            Row(who, "per idle connection", Unit.BYTES, tuple(values), limits.get(who))
            for who, values in kept.items()
        ),
        *(Row(who, "import", Unit.SECONDS, tuple(values)) for who, values in seconds.items()),
        *findings,
    ]


def their_bytes_per_idle_connection(make: type[Peer], count: int) -> float:
    """What *make*'s pool keeps for each of its idle connections, in bytes, with fewer than *count* of them.

    With what stands for a connection in it: a library of its own protocol makes that itself.
    What a pool costs once is taken off, by a pool with one connection.
    """

    count //= FEWER

    def kept_by(size: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            pool = make(size)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        pool.close()
        return kept

    kept_by(1)  # what is made once, at the first use
    return (kept_by(count) - kept_by(1)) / (count - 1)


def import_time(module: str) -> float:
    """Seconds that ``import`` takes in a fresh process, once an earlier one has compiled what is imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", IMPORT.format(module)]
    answers = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)
    ]
    return float(answers[-1].stdout)


WORKLOADS: Mapping[str, Workload] = {"W12": w12}
