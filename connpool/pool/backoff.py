"""How long what failed is left alone."""

from __future__ import annotations

import random
from typing import Any, Final

from connpool.model.checks import is_number
from connpool.model.config import PoolConfig

__all__ = ["delay_after", "doubling"]

JITTER: Final = 0.1  # a delay lasts between 90 % and 100 % of its nominal time


def delay_after(failures: int, error: BaseException | None, config: PoolConfig, rng: random.Random) -> float:
    """Seconds to wait after the *failures*-th failure in a row; inf: there is no next attempt.

    It doubles up to ``blacklist_max``. Where *error*, or what it was raised from, has an attribute
    ``retry_after`` (seconds), that is taken as it is: the server has said when.
    """
    for source in (error, None if error is None else error.__cause__):
        wanted: Any = getattr(source, "retry_after", None)
        if is_number(wanted) and wanted >= 0:
            return float(wanted)
    return doubling(failures, config.blacklist_initial, config.blacklist_max, rng)


def doubling(failures: int, initial: float, most: float, rng: random.Random) -> float:
    """Seconds that double with each of *failures* in a row, from *initial* up to *most*."""
    return min(initial * 2.0 ** min(failures - 1, 64), most) * (1 - JITTER * rng.random())
