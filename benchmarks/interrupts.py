"""What Ctrl-C costs: W13."""

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import peers, strikes
from benchmarks.peers.apart import Apart, without_paths
from benchmarks.plan import Plan, Workload
from benchmarks.report import Finding, Row, Unit, at_most

LONGEST = 120.0  # seconds that one pool's process may take
AT_ONCE = 8  # processes; they mostly wait


def w13(plan: Plan) -> list[Finding]:
    """Of 1,000 interrupts, each at another bytecode of a turn, how many lose a place or leave a lock held?"""
    victims = {"ours": (sys.executable, "benchmarks.adapters", "OursHeld")}
    for name, file in peers.PEERS.items() if plan.peers else ():
        if name in peers.here():
            victims[name] = (sys.executable, f"benchmarks.peers.{file}", "Pool")
    if plan.peers and Apart.python is not None:
        victims[Apart.name] = (Apart.python, "benchmarks.peers.pypi_connpool", "Pool")
    with ThreadPoolExecutor(AT_ONCE) as strikers:
        answers = strikers.map(lambda victim: strike(victim, plan.strikes), victims.values())
        told = dict(zip(victims, answers, strict=True))
    return [
        *(
            row(who, "lost by 1,000 anywhere", answer["lost"], answer["struck"])
            for who, answer in told.items()
        ),
        *(
            row(who, "lost by 1,000 signals", answer["lost by signals"], answer["struck by signals"])
            for who, answer in told.items()
        ),
        *(Row(who, "strikes", Unit.COUNT, (float(answer["struck"]),)) for who, answer in told.items()),
        *(
            Row(who, "bytecodes of a turn", Unit.COUNT, (float(answer["bytecodes"]),))
            for who, answer in told.items()
        ),
    ]


def row(who: str, what: str, lost: int, struck: int) -> Row:
    """So many of a thousand."""
    share = 1_000 * lost / struck if struck else 0.0
    return Row(who, what, Unit.COUNT, (share,), at_most(0) if who == "ours" else None)


def strike(victim: tuple[str, str, str], most: int) -> dict[str, int]:
    """What came of strikes at a pool (its interpreter, module and class), in a process of its own."""
    python, module, name = victim
    answer = subprocess.run(
        [python, "-P", str(Path(strikes.__file__)), module, name, str(most)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST,
        env=without_paths(),
    )
    told: dict[str, int] = json.loads(answer.stdout)
    return told


WORKLOADS: Mapping[str, Workload] = {"W13": w13}
