"""What came of a demo: who was right, who had to repeat, how long it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from attrs import define

from connpool.cli.crowd import Asker
from connpool.cli.screen import milliseconds, waits_text
from connpool.model.states import EndpointState
from connpool.model.stats import EndpointInfo, PoolStats

__all__ = ["Outage", "is_success", "summary"]


@define
class Outage:
    """The course of one server's absence; monotonic seconds, None: it has not come to that.

    Attributes:
        name: Of the server.
        killed_at: When the signal was sent.
        noticed_at: When the pool blacklisted it.
        back_at: When its successor listened.
        served_at: When its successor first answered.
        process: The number of its successor.
    """

    name: str
    killed_at: float | None = None
    noticed_at: float | None = None
    back_at: float | None = None
    served_at: float | None = None
    process: int = 0

    def observe(self, info: EndpointInfo, askers: Sequence[Asker]) -> None:
        """Take note of what *info* and *askers* show just now."""
        is_away = self.killed_at is not None and info.since >= self.killed_at
        if self.noticed_at is None and is_away and info.state is not EndpointState.UP:
            self.noticed_at = info.since
        if self.served_at is None and self.back_at is not None:
            seen = (asker.first_served_at.get(self.process) for asker in askers)
            self.served_at = min((at for at in seen if at is not None), default=None)


def is_success(askers: Sequence[Asker], outage: Outage) -> bool:
    """Whether every request was answered, every answer was right, and the killed server served again."""
    flaws = sum(asker.wrong + asker.lost for asker in askers)
    return flaws == 0 and outage.served_at is not None


def summary(askers: Sequence[Asker], stats: PoolStats, outage: Outage, seconds: float) -> str:
    """Everything there is to tell, a line per matter."""
    matters: list[tuple[str, str | Iterator[str]]] = [
        ("turns", _turns(askers, seconds)),
        ("fairness", _fairness(askers)),
        ("waits", waits_text(stats.wait)),
        ("failover", _failover(outage, askers)),
        ("fail-back", _fail_back(outage, askers)),
        ("errors", _errors(askers)),
        ("connections", _connections(stats)),
    ]
    if outage.back_at is not None:  # else it was interrupted, and nothing is decided
        matters.append(("verdict", _verdict(askers, outage)))
    lines = [""]
    for title, told in matters:
        first, *others = [told] if isinstance(told, str) else told
        lines += [f"{title:<12}{first}", *(f"{'':<12}{line}" for line in others)]
    return "\n".join(lines)


def _turns(askers: Sequence[Asker], seconds: float) -> str:
    right, wrong, lost = (sum(getattr(a, what) for a in askers) for what in ("right", "wrong", "lost"))
    turns = right + wrong
    return (
        f"{turns:,} in {seconds:.1f} s ({turns / seconds:,.0f} a second):"
        f" {right:,} right, {wrong:,} wrong; {lost:,} requests without an answer"
    )


def _fairness(askers: Sequence[Asker]) -> str:
    turns = [asker.turns for asker in askers]
    least, most = min(turns), max(turns)
    ratio = f"{most / least:.2f}" if least else "infinite"
    return f"{least:,} to {most:,} turns per thread (most to least: {ratio})"


def _failover(outage: Outage, askers: Sequence[Asker]) -> Iterator[str]:
    if outage.killed_at is None:
        yield "no server was killed"
    elif outage.noticed_at is None:
        yield f"{outage.name} was not blacklisted: nobody had to dial it while it was away"
    else:
        delay = milliseconds(outage.noticed_at - outage.killed_at)
        yield f"{outage.name} was blacklisted {delay} after it was killed"
    slowest = max(asker.slowest_repeated for asker in askers)
    if slowest:
        yield f"the slowest repeated request was answered within {milliseconds(slowest)}"


def _fail_back(outage: Outage, askers: Sequence[Asker]) -> str:
    if outage.back_at is None:
        return f"{outage.name} was not brought back"
    if outage.served_at is None:
        return f"{outage.name} was back for {time.monotonic() - outage.back_at:.1f} s, and nobody was served"
    answers = sum(asker.served[outage.process] for asker in askers)
    delay = milliseconds(max(0.0, outage.served_at - outage.back_at))
    return f"{outage.name} answered {delay} after it was back, {answers:,} requests by its new process"


def _errors(askers: Sequence[Asker]) -> Iterator[str]:
    """What a server's end looks like from a thread, for each of the two ways of asking."""
    for way, lets_pool_repeat in (("run(idempotent=True)", True), ("own retry loop", False)):
        these = [asker for asker in askers if asker.lets_pool_repeat is lets_pool_repeat]
        errors: Counter[str] = sum((asker.errors for asker in these), Counter())
        seen = ", ".join(f"{n} {kind}" for kind, n in errors.most_common()) or "none"
        by_pool = f"{sum(asker.repeated_by_pool for asker in these)} repeated by the pool; "
        yield (
            f"{way}, {len(these)} threads: {by_pool if lets_pool_repeat else ''}errors seen: {seen}"
            + (f" ({sum(asker.lost for asker in these)} given up)" if errors else "")
        )


def _connections(stats: PoolStats) -> str:
    reasons = ", ".join(f"{n} {reason.value}" for reason, n in stats.closed.items() if n)
    return f"{stats.opened} opened; closed: {reasons or 'none'}; {stats.connect_failures} dials failed"


def _verdict(askers: Sequence[Asker], outage: Outage) -> str:
    if is_success(askers, outage):
        return "every request was answered, every answer was right, and the killed server served again"
    flaws = [
        (sum(asker.wrong for asker in askers), "wrong answers"),
        (sum(asker.lost for asker in askers), "requests without an answer"),
        (int(outage.served_at is None), "server that did not come back into service"),
    ]
    return "not as promised: " + ", ".join(f"{n} {flaw}" for n, flaw in flaws if n)
