"""Starting a thread, where none may be had and an interrupt may strike."""

from __future__ import annotations

import threading

__all__ = ["start"]


def start(thread: threading.Thread) -> bool:
    """Start *thread*. False: none can be had.

    Raises:
        BaseException: an interrupt that struck while it was starting; then it runs, or never will.
    """
    try:
        thread.start()
    except RuntimeError as error:
        interrupt = error.__context__
        if "new thread" in str(error):  # can't start new thread
            return False
        # An interrupt struck while we waited for the thread, and left a lock of its in disorder: it runs.
        try:
            raise (
                interrupt if interrupt is not None and not isinstance(interrupt, Exception) else error
            ) from None
        finally:
            del interrupt  # its traceback leads back here: a circle would keep what the caller has in hand
    return True
