"""How long what failed is left alone."""

from __future__ import annotations

import math
import random
import threading
from typing import Any, Final

from connpool.model.checks import is_number
from connpool.model.config import PoolConfig

__all__ = ["delay_after", "doubling", "pause_after", "retry_after"]

LEAST_PAUSE: Final = 0.02  # seconds
JITTER: Final = 0.1  # a delay lasts between 90 % and 100 % of its nominal time


def delay_after(failures: int, error: BaseException | None, config: PoolConfig, rng: random.Random) -> float:
    """Seconds to wait after the *failures*-th failure in a row; inf: there is no next attempt.

    It doubles up to ``blacklist_max``. Where *error*, or what it was raised from, has an attribute
    ``retry_after`` (seconds), that is taken as it is: the server has said when.
    """
    for source in (error, None if error is None else error.__cause__):
        if (wanted := retry_after(source)) is not None:
            return wanted
    return doubling(failures, config.blacklist_initial, config.blacklist_max, rng)


def pause_after(failures: int, error: BaseException | None, config: PoolConfig, rng: random.Random) -> float:
    """As ``delay_after``, but never nothing: for who dials again as soon as that is over."""
    return max(LEAST_PAUSE, delay_after(failures, error, config, rng))


def retry_after(source: object) -> float | None:
    """The seconds that *source*, an error or a reply, asks for; None: it does not.

    Longer than anybody can wait (a server may have said anything) is for ever.
    """
    try:
        seconds: Any = getattr(source, "retry_after", None)
    except Exception:  # noqa: BLE001 - foreign code
        return None
    if not is_number(seconds) or not seconds >= 0:
        return None
    return float(seconds) if seconds <= threading.TIMEOUT_MAX else math.inf


def doubling(failures: int, initial: float, most: float, rng: random.Random) -> float:
    """Seconds that double with each of *failures* in a row, from *initial* up to *most*."""
    return min(initial * 2.0 ** min(failures - 1, 64), most) * (1 - JITTER * rng.random())
