"""Ctrl-C taken note of, instead of striking half-way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["INTERRUPTED_STATUS", "CtrlC", "watching_for_ctrl_c"]

INTERRUPTED_STATUS: Final = 130  # what shells report for a program that Ctrl-C ended


class CtrlC:
    """Whether Ctrl-C was pressed. Asked between two ticks, so that it never strikes half-way."""

    def __init__(self) -> None:
        self._was_pressed = False

    def press(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self._was_pressed = True

    def was_pressed(self) -> bool:
        """Whether it is time to end."""
        return self._was_pressed


@contextmanager
def watching_for_ctrl_c() -> Iterator[CtrlC]:
    """Take note of Ctrl-C inside the block instead of being interrupted by it."""
    ctrl_c = CtrlC()
    before = signal.signal(signal.SIGINT, ctrl_c.press)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)
