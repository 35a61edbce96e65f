"""Threads that give way in the middle, so that a missing lock shows."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any


@contextmanager
def preempting(*modules: ModuleType, chance: float = 0.05, seed: int = 0) -> Iterator[None]:
    """Let this thread, and those started inside, give way at random before lines of *modules*.

    CPython hardly ever switches threads within a few short lines, so a lock that is
    missing around them goes unseen for years; with this it is found at once. A
    frame that is running already is not touched. Debuggers and coverage see nothing of
    the threads meanwhile.

    Args:
        modules: Whose lines.
        chance: Of each line, 0 to 1.
        seed: Of the dice. Which thread throws when remains the system's affair.
    """
    files = {module.__file__ for module in modules}
    dice = random.Random(seed)

    def on_line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and dice.random() < chance:
            time.sleep(0)  # not to wait: to let another thread run
        return on_line

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return on_line if frame.f_code.co_filename in files else None

    before, before_here = threading.gettrace(), sys.gettrace()
    threading.settrace(on_call)
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before_here)
        threading.settrace(before)
