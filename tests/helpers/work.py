"""How much work something is: counted, not timed, so that a busy machine changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def n_steps(do: Callable[[], object]) -> int:
    """How many bytecodes of this thread it takes to *do* it, each turn of each loop included."""
    count = 0

    def on_step(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal count
        count += what == "opcode"
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return on_step

    traced = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 tells nobody of bytecodes before somebody has asked
    sys.settrace(on_step)
    try:
        do()
    finally:
        sys.settrace(traced)
    return count


def grows_no_faster_than_n(work: Callable[[int], Callable[[], object]], n: int = 40) -> None:
    """See that what *work* prepares for four times as many takes about four times as long, not sixteen."""
    few, many = n_steps(work(n)), n_steps(work(4 * n))
    assert many < 8 * few, f"{few} steps for {n}, {many} for {4 * n}"
