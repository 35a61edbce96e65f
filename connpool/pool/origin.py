"""Where in the program a loan was taken."""

from __future__ import annotations

import sys
import traceback
from types import CodeType, FrameType

__all__ = ["Origin", "describe_thread", "origin_of"]

OWN = __name__.partition(".")[0]  # frames of the package itself say nothing to its users


class Origin:
    """A call stack, kept as code and positions: no frame, so that it keeps no variable alive."""

    __slots__ = ("_steps",)

    def __init__(self, frame: FrameType | None) -> None:
        steps: list[tuple[CodeType, int]] = []
        while frame is not None:
            steps.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self._steps = steps  # the innermost first

    def __str__(self) -> str:
        """The line that asked."""
        if not self._steps:
            return "an unknown place"
        code, line = self._steps[0]
        return f"{code.co_filename}:{line} in {code.co_name}"

    def stack(self) -> str:
        """All lines that led there, as a traceback lists them."""
        summary = traceback.StackSummary.from_list(
            [
                traceback.FrameSummary(code.co_filename, line, code.co_name)
                for code, line in reversed(self._steps)
            ]
        )
        return "".join(summary.format())


def origin_of(frame: FrameType | None) -> Origin:
    """The place in the user's program from which *frame* was reached."""
    while frame is not None and _is_own(frame):
        frame = frame.f_back
    return Origin(frame)


def _is_own(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name == OWN or str(name).startswith(OWN + ".")


def describe_thread(ident: int | str) -> str:
    """What a thread is doing at this moment, as a traceback lists it; empty if it has ended."""
    frame = None if isinstance(ident, str) else sys._current_frames().get(ident)
    return "" if frame is None else "".join(traceback.format_stack(frame))
