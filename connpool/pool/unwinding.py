"""Keys in the frames of a traceback: an error that somebody keeps must not keep them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from connpool.errors import ConnPoolError

__all__ = ["drop_keys", "is_from_outside", "keeping_no_key"]

P = ParamSpec("P")
R = TypeVar("R")
PACKAGES: Final = "connpool.pool", "connpool.calls"  # whose frames have keys
_OWN: Final = frozenset((__name__.partition(".")[0], "socket", "ssl"))  # what our calls call in Python


def is_from_outside(error: BaseException) -> bool:
    """Whether a function of others has raised *error*, or let it pass."""
    trace = error.__traceback__
    while trace is not None:  # no generator, which takes three times as long: a refused checkout asks, too
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _OWN:
            return True
        trace = trace.tb_next
    return False


def drop_keys(error: BaseException) -> None:
    """Have the frames of ours that *error* has ended forget what they had in hand, however long it is kept.

    It came from outside: Ctrl-C, a signal handler, foreign code. Errors of our own are raised with nothing
    in hand, and keep their frames; unless one has come through a signal handler that uses a pool.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while not (current is None or id(current) in seen):
        if isinstance(current, ConnPoolError) and not is_from_outside(current):
            break
        seen.add(id(current))
        for frame, _ in traceback.walk_tb(current.__traceback__):
            if frame.f_globals.get("__package__") in PACKAGES:
                with suppress(RuntimeError):  # it goes on: it is on the way out
                    frame.clear()
        current = current.__context__


def keeping_no_key(method: Callable[P, R]) -> Callable[P, R]:
    """Have *method* drop what it has in hand when it raises: an interrupt may come while it has a key."""

    @wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            del args, kwargs  # this frame is kept, too
            drop_keys(error)
            raise

    return wrapper
