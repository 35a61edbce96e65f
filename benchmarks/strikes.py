"""Ctrl-C at each bytecode of a turn in turn, in a process of its own: what is lost by it?

``python -P benchmarks/strikes.py MODULE CLASS N`` strikes pools of that class with one connection N times at
most, each time another pool at another bytecode, and prints as JSON what came of it. After each strike
somebody wants the connection. Who is still waiting 2 seconds after the last strike waits for ever: a place is
lost, or a lock is held by nobody.
"""

import contextlib
import dis
import gc
import json
import os
import sys
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any, ClassVar, Final

ROOT: Final = Path(__file__).parents[1]
OURSELVES: Final = str(ROOT / "benchmarks")  # no bytecode in here is struck
HANG: Final = 0.5  # seconds after which a turn that was struck hangs
BRIEFLY: Final = 0.02  # seconds in which most are served that ever are
GRACE: Final = 2.0  # seconds after the last strike, in which upkeep may find what was lost
LOOKS: Final = ("RESUME", "JUMP_BACKWARD")
CALLS: Final = ("CALL", "CALL_FUNCTION_EX", "CALL_KW")


@cache
def operations(code: CodeType) -> bytes:
    return code.co_code


def name_of(code: CodeType, offset: int) -> str:
    """The name of one bytecode."""
    return dis.opname[operations(code)[offset]]


class Strike:
    """Raises KeyboardInterrupt before the *n*-th bytecode that this thread executes below our own code.

    A context manager.

    Attributes:
        seen: How many bytecodes there were so far.
        real: Those of them at which a signal could have raised it: CPython looks for signals when a
            function begins, when a loop begins again, and when a function written in C has returned.
    """

    active: "ClassVar[Strike | None]" = None

    def __init__(self, n: int) -> None:
        self.n = n
        self.seen = 0
        self.real: list[int] = []
        self._thread = threading.get_ident()
        self._before: tuple[CodeType, int] | None = None

    def __enter__(self) -> "Strike":
        Strike.active = self
        if sys.version_info < (3, 12):
            sys.settrace(trace)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.version_info < (3, 12):
            sys.settrace(None)
        Strike.active = None

    def see(self, code: CodeType, offset: int) -> None:
        """A bytecode is about to run."""
        if self.seen >= self.n or threading.get_ident() != self._thread:
            return
        if code.co_filename.startswith(OURSELVES):
            self._before = None
            return
        before, self._before = self._before, (code, offset)
        self.seen += 1
        if self.seen == self.n:
            raise KeyboardInterrupt
        if name_of(code, offset) in LOOKS or (
            before is not None and before[0] is code and before[1] < offset and name_of(*before) in CALLS
        ):
            self.real.append(self.seen)


def trace(frame: FrameType, event: str, argument: object) -> Any:
    """Before Python 3.12: tell of each bytecode of this thread."""
    frame.f_trace_opcodes = True
    frame.f_trace_lines = False
    if event == "opcode":
        see(frame.f_code, frame.f_lasti)
    return trace


def see(code: CodeType, offset: int) -> None:
    """Tell of a bytecode to whoever strikes now."""
    if (active := Strike.active) is not None:
        active.see(code, offset)


def watch() -> None:
    """From Python 3.12 on: tell of each bytecode of all threads."""
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, "strike")
        monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, see)
        monitoring.set_events(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION)


def turn(pool: Any) -> None:
    """One turn, as a careful user writes it."""
    handle = pool.get()
    try:
        pass
    finally:
        pool.put(handle)


def strike(pool: Any, n: int) -> Strike:
    """Strike one turn at its *n*-th bytecode, unless it has fewer."""
    blow = Strike(n)
    with contextlib.suppress(KeyboardInterrupt), blow:
        turn(pool)
    return blow


class Trial(threading.Thread):
    """One strike, and whether another thread gets the connection after it.

    On a thread of its own, because a turn that is struck may end in waiting for a lock that it holds.

    Attributes:
        is_served: Whether somebody had the connection after it.
    """

    def __init__(self, make: Any, n: int) -> None:
        super().__init__(daemon=True)
        self.is_served = False
        self.is_over = threading.Event()
        self._make = make
        self._n = n

    def run(self) -> None:
        pool = self._make(1)
        turn(pool)
        strike(pool, self._n)
        gc.collect()
        threading.Thread(target=self.want, args=(pool,), daemon=True).start()

    def want(self, pool: Any) -> None:
        """Another turn, by another thread."""
        with contextlib.suppress(Exception):
            pool.put(pool.get())
            self.is_served = True
        self.is_over.set()
        if self.is_served:
            pool.close()


def survey(make: Any) -> Strike:
    """A turn that is not struck, once everything is warm."""
    pool = make(1)
    turn(pool)
    blow = strike(pool, sys.maxsize)
    pool.close()
    return blow


def trials(make: Any, most: int) -> dict[str, int]:
    """Strike all over a turn, and count who is not served after it."""
    watch()
    whole = survey(make)
    spread = {1 + number * whole.seen // most for number in range(most)}  # all of them, if there are fewer
    held = {}
    for n in sorted(spread.union(whole.real[:most])):
        trial = held[n] = Trial(make, n)
        trial.start()
        trial.join(HANG)
        trial.is_over.wait(BRIEFLY)
    end = monotonic() + GRACE
    for trial in held.values():
        trial.is_over.wait(max(0.0, end - monotonic()))
    lost = {n for n, trial in held.items() if not trial.is_served}
    real = set(whole.real[:most])
    return {
        "bytecodes": whole.seen,
        "struck": len(spread),
        "lost": len(lost & spread),
        "struck by signals": len(real),
        "lost by signals": len(lost & real),
    }


def main() -> None:
    """Strike, tell, and end without waiting for anybody: some would wait for ever."""
    sys.path.append(str(ROOT))  # last, so that an environment's own packages come first
    sys.unraisablehook = lambda _: None
    module, name, most = sys.argv[1:]
    told = json.dumps(trials(getattr(import_module(module), name), int(most)))
    sys.stdout.write(told + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
