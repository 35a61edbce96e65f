"""What Ctrl-C costs: W13."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import peers, strikes
from benchmarks.peers.apart import Apart
from benchmarks.plan import Plan, Workload
from benchmarks.report import Finding, Row, Unit, at_most

LONGEST = 60.0  # seconds that one pool's process may take


def w13(plan: Plan) -> list[Finding]:
    """Of 1,000 interrupts, each at another bytecode of a turn, how many lose a place or leave a lock held?"""
    told = {"ours": strike("benchmarks.adapters", "OursHeld", plan.strikes)}
    for name, file in peers.PEERS.items() if plan.peers else ():
        if name in peers.here():
            told[name] = strike(f"benchmarks.peers.{file}", "Pool", plan.strikes)
    if plan.peers and Apart.python is not None:
        told[Apart.name] = strike("benchmarks.peers.pypi_connpool", "Pool", plan.strikes, python=Apart.python)
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


def strike(module: str, name: str, most: int, *, python: str = sys.executable) -> dict[str, int]:
    """What came of strikes at that pool, in a process of its own."""
    answer = subprocess.run(
        [python, "-P", str(Path(strikes.__file__)), module, name, str(most)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST,
    )
    told: dict[str, int] = json.loads(answer.stdout)
    return told


WORKLOADS: Mapping[str, Workload] = {"W13": w13}
