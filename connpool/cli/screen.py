"""What people see of a running command: one line that is kept up to date, and what happens above it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from connpool.model.stats import Percentiles

__all__ = ["Screen", "at_rank", "milliseconds", "waits_text"]

CLEAR_LINE = "\r\x1b[K"


class Screen:
    """Standard output, with or without a line that is painted over.

    Args:
        plain: Paint nothing over: every line is a line.
    """

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain
        self._live = ""

    def say(self, text: str = "") -> None:
        """Print a line that stays, above the live one."""
        if self._live:
            print(CLEAR_LINE, end="")
        print(text)
        self._paint()

    def show(self, text: str) -> None:
        """Make *text* the live line."""
        if self._plain:
            print(text, flush=True)
            return
        self._live = text
        self._paint()

    def let_go(self) -> None:
        """Leave the live line where it stands: from now on there is none."""
        if self._live:
            print()
        self._live = ""

    def _paint(self) -> None:
        if self._live:  # a line longer than the window would wrap, and could not be painted over
            width = shutil.get_terminal_size().columns - 1
            print(CLEAR_LINE + self._live[:width], end="")
        sys.stdout.flush()


def at_rank(ordered: Sequence[float], part: float) -> float:
    """The value below which *part* (0 to 1) of *ordered* lies; 0 if there is none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def milliseconds(seconds: float) -> str:
    """*seconds* with as many digits as anybody reads."""
    ms = seconds * 1_000
    return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.1f} ms"


def waits_text(waits: Percentiles) -> str:
    """The distribution of waits in one line."""
    return f"p50 {milliseconds(waits.p50)}, p99 {milliseconds(waits.p99)}, longest {milliseconds(waits.max)}"
