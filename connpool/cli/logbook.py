"""What happened in the second act of ``demo``, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from connpool.cli.audit import Audit

__all__ = ["GROUPS", "NAMES", "Logbook", "Sample", "is_success", "live_line", "summary"]

NAMES: Final = ("A", "B", "C")
GROUPS: Final = (("A", "B"), ("C",))
SPAN: Final = 0.5  # seconds over which a rate is taken


@frozen
class Sample:
    """How things stood at one moment.

    Attributes:
        at: Seconds since the beginning.
        accepted: Lines accepted so far.
        alive: Of each server, whether the shipper has a connection to it; None: there is no shipper.
        unsent: Lines that wait for each server, and for ``"any"``; None likewise.
    """

    at: float
    accepted: int
    alive: Mapping[str, bool | None]
    unsent: Mapping[str, int | None]


@define
class Logbook:
    """What happened.

    Attributes:
        marks: What was done when.
        kills: How often each was killed.
        samples: How things stood meanwhile.
        status: With which the shipper ended; None: it has not.
    """

    marks: list[tuple[float, str]] = field(factory=list)
    kills: Counter[str] = field(factory=Counter)
    samples: list[Sample] = field(factory=list)
    status: int | None = None

    def draw(self, draw_delivery: Callable[..., object], path: Path) -> None:
        """Make a picture of it, in the file *path*."""
        draw_delivery(
            path,
            [sample.at for sample in self.samples],
            rate=rates(self.samples),
            unsent={
                f"for {name}": [sample.unsent[name] for sample in self.samples] for name in (*NAMES, "any")
            },
            alive={name: [sample.alive[name] for sample in self.samples] for name in NAMES},
            marks=self.marks,
        )


def live_line(samples: Sequence[Sample]) -> str:
    """The live line, no wider than 79 columns."""
    now = samples[-1]
    states = {None: "?", True: "alive", False: "dead"}
    unsent = {name: "?" if count is None else str(count) for name, count in now.unsent.items()}
    servers = "  ".join(f"{name} {states[now.alive[name]]:5} {unsent[name]:>5}" for name in NAMES)
    return f"{now.at:5.1f}s {rates(samples)[-1]:4.0f} lines/s  {servers}  any {unsent['any']:>5}"


def rates(samples: Sequence[Sample]) -> list[float]:
    """Lines accepted a second, at each sample: since half a second before."""
    found = []
    earlier = 0
    for now in samples:
        while now.at - samples[earlier].at > SPAN:
            earlier += 1
        before = samples[earlier]
        found.append((now.accepted - before.accepted) / (now.at - before.at) if now is not before else 0.0)
    return found


def is_success(log: Logbook, accepted: Mapping[int, int | None], found: Audit) -> bool:
    """Whether lines were accepted, and all of them have arrived in order."""
    return bool(accepted) and log.status == 0 and found.is_clean


def summary(log: Logbook, accepted: Mapping[int, int | None], found: Audit, seconds: float) -> str:
    """Everything there is to tell, a line per matter."""
    by_group = Counter(accepted.values())
    groups = [f"{by_group[number]:,} by {' && '.join(names)}" for number, names in enumerate(GROUPS)]
    most = max((sum(filter(None, sample.unsent.values())) for sample in log.samples), default=0)
    twice = {name: sum(n for (server, _), n in found.repeated.items() if server == name) for name in NAMES}
    matters = [
        ("lines", f"{len(accepted):,} accepted in {seconds:.1f} s, by {1 + log.kills['shipper']} processes"),
        ("taken", f"{', '.join(groups)}, {by_group[None]:,} by whichever came back first"),
        ("killed", ", ".join(f"{name} {times}x" for name, times in log.kills.items())),
        ("logs", ", ".join(f"{name} {found.received[name]:,} lines" for name in NAMES)),
        ("unsent", f"{most:,} copies at most; {'none' if log.status == 0 else 'some'} in the end"),
        ("duplicates", f"{sum(twice.values())} ({', '.join(f'{name} {n}' for name, n in twice.items())})"),
        ("missing", told(found.missing)),
        ("overtaken", told(found.disordered)),
        ("verdict", verdict(log, accepted, found)),
    ]
    return "\n".join(["", *(f"{title:<12}{text}" for title, text in matters)])


def told(offences: Sequence[str]) -> str:
    return f"{len(offences):,}" + (f", the first: {offences[0]}" if offences else "")


def verdict(log: Logbook, accepted: Mapping[int, int | None], found: Audit) -> str:
    if is_success(log, accepted, found):
        return "every accepted line is in each log where it was due, and none was overtaken"
    if not accepted:
        return "not as promised: no line was accepted"
    if log.status != 0:
        return f"not as promised: the shipper ended with status {log.status}"
    return "not as promised: see above"
