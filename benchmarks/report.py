"""What was measured: rows, a table of them, and the same as JSON."""

import enum
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from attrs import asdict, frozen


class Unit(enum.Enum):
    """What a figure counts."""

    RATE = "turns/s"
    RATIO = "ratio"
    SECONDS = "s"
    BYTES = "bytes"
    COUNT = "count"


@frozen
class Target:
    """What a figure should be.

    Attributes:
        sign: ``">="`` or ``"<="``.
        bound: In the figure's unit.
        always: True: every repeat should meet it; False: their median should.
    """

    sign: str
    bound: float
    always: bool = False

    def is_met(self, values: Sequence[float]) -> bool:
        judged = values if self.always else [statistics.median(values)]
        return all(value >= self.bound if self.sign == ">=" else value <= self.bound for value in judged)


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float, *, always: bool = False) -> Target:
    return Target("<=", bound, always)


@frozen
class Row:
    """One figure of one contender.

    Attributes:
        who: The contender.
        what: The figure's name.
        unit: What it counts.
        values: One for each repeat, in order.
        target: What it should be, if anything.
    """

    who: str
    what: str
    unit: Unit
    values: tuple[float, ...]
    target: Target | None = None


@frozen
class Gap:
    """Why a contender has no figure here."""

    who: str
    why: str


@frozen
class Curve:
    """Many figures of one contender, to be drawn.

    Attributes:
        who: The contender.
        what: What is drawn.
        points: Where, and how much there.
    """

    who: str
    what: str
    points: tuple[tuple[float, float], ...]


Finding: TypeAlias = Row | Gap | Curve


@frozen
class Section:
    """One workload's question and what answers it."""

    name: str
    question: str
    findings: tuple[Finding, ...]

    @property
    def rows(self) -> list[Row]:
        return [finding for finding in self.findings if isinstance(finding, Row)]

    @property
    def gaps(self) -> list[Gap]:
        return [finding for finding in self.findings if isinstance(finding, Gap)]

    @property
    def curves(self) -> list[Curve]:
        return [finding for finding in self.findings if isinstance(finding, Curve)]


def as_text(section: Section) -> str:
    """The section as a table: median, smallest and largest of the repeats; the target, and if it is met."""
    lines = [f"{section.name}  {section.question}"]
    for row in section.rows:
        spread = statistics.median(row.values), min(row.values), max(row.values)
        middle, low, high = (shown(value, row.unit) for value in spread)
        line = f"    {row.who:<25}{row.what:<27}{middle:>10}   ({low} to {high})"
        if row.target is not None:
            verdict = "met" if row.target.is_met(row.values) else "MISSED"
            line = f"{line:<92}{row.target.sign} {shown(row.target.bound, row.unit)}  {verdict}"
        lines.append(line)
    lines += [f"    {gap.who:<25}-  {gap.why}" for gap in section.gaps]
    return "\n".join(lines)


def shown(value: float, unit: Unit) -> str:
    """*value* in few digits, with a unit that a reader grasps."""
    match unit:
        case Unit.RATE if value >= 1e6:
            return f"{value / 1e6:.2f} M/s"
        case Unit.RATE if value >= 1e3:
            return f"{value / 1e3:.1f} k/s"
        case Unit.RATE:
            return f"{value:.0f} /s"
        case Unit.SECONDS if value < 1e-5:
            return f"{value * 1e6:.2f} us"
        case Unit.SECONDS if value < 1e-3:
            return f"{value * 1e6:.0f} us"
        case Unit.SECONDS:
            return f"{value * 1e3:.2f} ms"
        case Unit.RATIO:
            return f"{value:.2f}"
        case Unit.BYTES:
            return f"{value:.0f} B"
        case Unit.COUNT:
            return f"{value:.0f}"


def as_json(sections: Sequence[Section], plan: Mapping[str, float], where: Mapping[str, object]) -> str:
    """Everything measured, how and where. What is not finite is ``null``: JSON has no word for it."""
    document = {
        **where,
        "plan": plan,
        "workloads": {
            section.name: {
                "question": section.question,
                "rows": [row_as_dict(row) for row in section.rows],
                "gaps": {gap.who: gap.why for gap in section.gaps},
                "curves": [asdict(curve) for curve in section.curves],
            }
            for section in sections
        },
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def row_as_dict(row: Row) -> dict[str, object]:
    """*row* as JSON shows it."""
    return {
        "who": row.who,
        "what": row.what,
        "unit": row.unit.value,
        "median": finite(statistics.median(row.values)),
        "min": finite(min(row.values)),
        "max": finite(max(row.values)),
        "values": [finite(value) for value in row.values],
        "target": None
        if row.target is None
        else {"sign": row.target.sign, "bound": row.target.bound, "met": row.target.is_met(row.values)},
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def surroundings() -> dict[str, object]:
    """The time, the machine, the interpreter and the code: a figure means nothing without them."""
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.system(),
            "cpu": processor(),
            "cpus": os.cpu_count(),
            # What others ran in the last minute, if asked before the measuring begins.
            "load": os.getloadavg()[0] if sys.platform != "win32" else None,
        },
        "python": {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            # Before 3.13 there is a lock and no way to ask for it.
            "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
            "switch_interval": sys.getswitchinterval(),
        },
        "commit": commit(),
    }


def processor() -> str:
    """The processor's model, where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit the code stands at, marked if it was changed since; None without git or a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run(
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
