"""What a call pool says of its channels. With the pool's lock held."""

from __future__ import annotations

from collections.abc import Sequence

from connpool.calls.forecast import n_queued
from connpool.calls.line import Line, Phase
from connpool.model.channel import ChannelInfo, ChannelState

__all__ = ["describe", "describe_all"]


def describe(line: Line, now: float) -> ChannelInfo:
    """A snapshot of *line*."""
    return describe_all([line], now)[0]


def describe_all(lines: Sequence[Line], now: float) -> list[ChannelInfo]:
    """Snapshots of *lines*, all of one resource."""
    queued = n_queued(lines[0].home(), now) if lines else {}
    return [_describe(line, now, queued.get(line, 0)) for line in lines]


def _describe(line: Line, now: float, queued: int) -> ChannelInfo:
    stats = {method: tally.stats() for method, tally in line.took.items()}
    rest = max(0.0, line.rest_until - now)
    return ChannelInfo(
        line.channel,
        id=line.id,
        resource=line.home().name,
        methods=line.took,
        args=line.args,
        ttl=line.ttl,
        revive=line.revive,
        extra=line.extra,
        state=_state(line, rest),
        stats={method: found for method, found in stats.items() if found is not None},
        queued=queued,
        rest_left=rest,
        opened_at=line.opened_at,
        last_called_at=line.last_called_at(),
        failures=line.failures,
    )


def _state(line: Line, rest: float) -> ChannelState:
    if line.phase is not Phase.OPEN or not line.unclosed:
        return ChannelState.DOWN
    if line.run is not None:
        return ChannelState.BUSY
    return ChannelState.RESTING if rest > 0 else ChannelState.IDLE
