"""How long a connection lives, why it must not be lent again, and whether another takes its place."""

from __future__ import annotations

import math
import random
from typing import Final, Literal

from connpool.model.config import PoolConfig
from connpool.model.states import CloseReason
from connpool.pool.record import Record

__all__ = ["end_of_life", "horizon", "is_to_be_replaced", "pause_of", "verdict"]

WORN_OUT: Final = frozenset(
    {CloseReason.EXPIRED, CloseReason.USED_UP, CloseReason.BROKEN, CloseReason.DIRTY, CloseReason.LOST}
)
LEAST_PAUSE: Final = 0.05  # seconds
ON_PURPOSE: Final = frozenset({CloseReason.TERMINATED, CloseReason.STALE})


def verdict(config: PoolConfig, record: Record, now: float) -> CloseReason | None:
    """Why *record* must not be lent (again); None: it may be."""
    if record.fate is not None:
        return record.fate
    if now >= record.expires_at:
        return CloseReason.EXPIRED
    if config.max_uses is not None and record.uses >= config.max_uses:
        return CloseReason.USED_UP
    return None


def end_of_life(config: PoolConfig, record: Record, rng: random.Random) -> float:
    """When *record* expires; connections opened together do not expire together."""
    if config.max_lifetime is None:
        return math.inf
    return record.opened_at + config.max_lifetime * (1 - config.lifetime_jitter * rng.random())


def horizon(config: PoolConfig) -> float:
    """Seconds for which upkeep has nothing to do with a connection that was opened or lent just now."""
    lifetime = config.max_lifetime
    if lifetime is not None:
        lifetime *= 1 - config.lifetime_jitter
    limits = (lifetime, config.idle_timeout, config.keepalive_interval, config.warn_after)
    return min((limit for limit in limits if limit is not None), default=math.inf)


def pause_of(config: PoolConfig) -> float | None:
    """Seconds between two turns of upkeep at least; None: it comes only when it is called.

    Where connections are to end sooner than ``reap_interval``, a third of that, so that they end in time.
    """
    if config.reap_interval is None:
        return None
    shortest = min(config.idle_timeout or math.inf, config.max_lifetime or math.inf)
    return min(config.reap_interval, max(LEAST_PAUSE, shortest / 3))


def is_to_be_replaced(record: Record, policy: bool | Literal["force"]) -> bool:
    """Whether *policy* wants another connection in place of *record*, which is closed."""
    if not policy or record.fate is None or (record.notes is not None and record.notes.is_replaced):
        return False
    if record.fate in WORN_OUT:
        return True
    failed = record.notes is not None and record.notes.wants_another
    return record.fate in ON_PURPOSE and (policy == "force" or failed)
