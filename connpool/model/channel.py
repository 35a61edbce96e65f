"""Snapshots: what a call pool says of one channel."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

from connpool.errors import UsageError

__all__ = ["ChannelInfo", "ChannelState", "MethodStats", "Revive", "method_set"]

Revive: TypeAlias = bool | Literal["force"]


class ChannelState(enum.Enum):
    """Where one channel stands."""

    IDLE = "idle"  # open; nothing runs on it
    BUSY = "busy"  # a call runs on it
    RESTING = "resting"  # open; it asked not to be called for a while
    DOWN = "down"  # closed or being closed; it will be opened again


@frozen
class MethodStats:
    """The calls of one method on one channel.

    Attributes:
        count: How many there were, failed ones included.
        mean: How long they took, in seconds.
        p99: 99 of 100 took no longer, within 7 %.
    """

    count: int
    mean: float
    p99: float


def method_set(methods: Any) -> frozenset[Hashable]:
    """*methods*, if they can be understood.

    Raises:
        UsageError: they cannot.
    """
    if isinstance(methods, str | bytes):
        raise UsageError(f"methods of a channel are a collection, not {methods!r}")
    try:
        return frozenset(methods)
    except TypeError:
        raise UsageError(f"methods of a channel are hashable things, not {methods!r}") from None


def _set_or_none(methods: Any) -> frozenset[Hashable] | None:
    return None if methods is None else method_set(methods)


@frozen
class ChannelInfo:
    """One channel at one instant. Instants are monotonic seconds of the pool's clock.

    Attributes:
        channel: The channel itself.
        id: Unique in its pool, never used again; None: it is in none yet.
        resource: What it offers. None, for ``CallPool.put``: what the channel says; likewise *methods*.
        args: What ``open`` is called with.
        ttl: Seconds that it is used for after it was opened; None: for ever.
        revive: Whether it is opened again; see ``CallPool.init``.
        extra: What its users attached to it.
        stats: Its calls, by method; a method that was never called is missing.
        queued: Calls that wait and will come to it, as far as can be foreseen.
        rest_left: Seconds for which it is not to be called.
        opened_at: When it was opened the last time.
        last_called_at: When its last call began; None: there was none.
        failures: Attempts to open it again that failed in a row.
    """

    channel: Any
    id: int | None = field(default=None, kw_only=True)
    resource: Hashable = field(default=None, kw_only=True)
    methods: frozenset[Hashable] | None = field(default=None, kw_only=True, converter=_set_or_none)
    args: tuple[Any, ...] = field(default=(), kw_only=True)
    ttl: float | None = field(default=None, kw_only=True)
    revive: Revive = field(default=False, kw_only=True)
    extra: Any = field(default=None, kw_only=True)
    state: ChannelState = field(default=ChannelState.IDLE, kw_only=True)
    stats: Mapping[Hashable, MethodStats] = field(factory=dict, kw_only=True)
    queued: int = field(default=0, kw_only=True)
    rest_left: float = field(default=0.0, kw_only=True)
    opened_at: float | None = field(default=None, kw_only=True)
    last_called_at: float | None = field(default=None, kw_only=True)
    failures: int = field(default=0, kw_only=True)
