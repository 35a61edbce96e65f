"""What an error that is kept must not keep: keys, in the frames that it has ended."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from connpool.errors import ConnPoolError

__all__ = ["drop_keys", "keeping_no_key"]

P = ParamSpec("P")
R = TypeVar("R")
PACKAGES: Final = "connpool.pool", "connpool.calls"  # whose frames have keys


def drop_keys(error: BaseException) -> None:
    """Have frames of ours that *error* has ended forget what they had in hand, however long it is kept.

    It came from without: Ctrl-C, a signal handler, foreign code. Errors of our own are raised with nothing
    in hand, and keep their frames.
    """
    seen: set[int] = set()
    blow: BaseException | None = error
    while not (blow is None or isinstance(blow, ConnPoolError) or id(blow) in seen):
        seen.add(id(blow))
        for frame, _ in traceback.walk_tb(blow.__traceback__):
            if frame.f_globals.get("__package__") in PACKAGES:
                with suppress(RuntimeError):  # it goes on: it is on the way out
                    frame.clear()
        blow = blow.__context__


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
