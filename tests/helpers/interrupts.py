"""Ctrl-C at any bytecode, and real signals at random moments."""

from __future__ import annotations

import contextlib
import dis
import gc
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any

import pytest

IS_MONITORED = sys.version_info >= (3, 12)
# Threads that an interrupt kept from starting: ``threading`` lists them for ever, as about to start.
NEVER_STARTED: set[threading.Thread] = set()
needs_monitoring = pytest.mark.skipif(
    not IS_MONITORED, reason="stopping at so many bytecodes needs sys.monitoring (Python 3.12)"
)

LOOKING = "CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME"  # bytecodes after which signals are looked for
# What a callback returns of a bytecode that it need not hear of again.
NOT_AGAIN: Any = sys.monitoring.DISABLE if sys.version_info >= (3, 12) else None


def codes_of(*things: Any) -> list[CodeType]:
    """Find the code of functions, of all methods of classes, and of everything defined in modules."""
    return list(dict.fromkeys(code for thing in things for code in _codes(thing)))


def _codes(thing: Any) -> Iterator[CodeType]:
    thing = getattr(thing, "__func__", thing)  # methods of all kinds
    thing = getattr(thing, "__wrapped__", thing)  # what a decorator hides: the code of a context manager
    if isinstance(thing, ModuleType):
        for member in vars(thing).values():
            if isinstance(member, type | FunctionType) and member.__module__ == thing.__name__:
                yield from _codes(member)
    elif isinstance(thing, type):
        for member in vars(thing).values():
            if not isinstance(member, type):  # a class that is merely referred to
                yield from _codes(member)
    elif isinstance(thing, property):
        yield from codes_of(thing.fget, thing.fset, thing.fdel)
    elif isinstance(thing, FunctionType):
        yield from _codes(thing.__code__)
    elif isinstance(thing, CodeType):
        yield thing
        yield from codes_of(*thing.co_consts)  # nested functions, comprehensions


class Strike:
    """Raises KeyboardInterrupt before the *n*-th bytecode that this thread executes in *codes*.

    A context manager. Its own interrupt ends with it; every other exception goes on. Before Python 3.12 it
    traces, which is slow.

    Attributes:
        where: Function and line that were struck; None: there were fewer bytecodes.
    """

    def __init__(self, n: int, codes: list[CodeType]) -> None:
        self.n = n
        self.where: str | None = None
        self._left = n
        self._codes = codes
        self._thread = 0
        self._raised: KeyboardInterrupt | None = None

    def __repr__(self) -> str:
        return f"<Strike {self.n}: {self.where or 'missed'}>"

    def __enter__(self) -> Strike:
        self._thread = threading.get_ident()
        if IS_MONITORED:
            self._monitor()
        else:
            self._traced_before = sys.gettrace()
            sys.settrace(self._on_call)
        return self

    def _monitor(self) -> None:
        self._tool = next(i for i in (4, 3, 2, 0) if sys.monitoring.get_tool(i) is None)
        sys.monitoring.use_tool_id(self._tool, "strike")
        instruction = sys.monitoring.events.INSTRUCTION
        sys.monitoring.register_callback(self._tool, instruction, self._on_instruction)
        for code in self._codes:
            sys.monitoring.set_local_events(self._tool, code, instruction)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        if IS_MONITORED:
            for code in self._codes:
                sys.monitoring.set_local_events(self._tool, code, 0)
            sys.monitoring.register_callback(self._tool, sys.monitoring.events.INSTRUCTION, None)
            sys.monitoring.free_tool_id(self._tool)
        else:
            sys.settrace(self._traced_before)
        return exc is not None and exc is self._raised

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code not in self._codes:
            return None
        frame.f_trace_opcodes = True
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self._on_instruction(frame.f_code, frame.f_lasti)
        return self._on_opcode

    def _on_instruction(self, code: CodeType, offset: int) -> Any:
        if self._raised is not None or threading.get_ident() != self._thread:
            return
        self._left -= 1
        if self._left == 0:
            lines = [line for start, end, line in code.co_lines() if start <= offset < end]
            self.where = f"{code.co_qualname}, line {lines[0] if lines else '?'}, offset {offset}"
            self._raised = KeyboardInterrupt(f"struck at bytecode {self.n}: {self.where}")
            raise self._raised


@cache
def signal_points(code: CodeType) -> frozenset[int]:
    """Offsets at which the interpreter, having looked for signals, may find one.

    It looks after calls, on entering a function and on going round a loop, and nowhere else: between
    the last line of a ``with lock`` and the call that unlocks there is no such point.
    """
    points, looked = set(), True
    for instruction in dis.get_instructions(code):
        if looked:
            points.add(instruction.offset)
        looked = instruction.opname in LOOKING
        if instruction.opname == "JUMP_BACKWARD" or instruction.opname.startswith("POP_JUMP_BACKWARD"):
            points |= {instruction.offset, instruction.argval}
    return frozenset(points)


Place = tuple[CodeType, int]


def worth_striking(places: Sequence[Place], known: set[Place], enough: int) -> Iterator[int]:
    """Number the *places* at which to strike: those not *known*, and every n-th besides, about *enough*.

    *known* learns all of them: who surveys several deeds strikes each place in one of them at least.
    """
    step = max(1, len(places) // enough)
    for n, place in enumerate(places, 1):
        if place not in known or n % step == 0:
            known.add(place)
            yield n


class SignalStrike(Strike):
    """Strikes where a real signal could."""

    def _on_instruction(self, code: CodeType, offset: int) -> Any:
        if offset not in signal_points(code):
            return NOT_AGAIN
        return super()._on_instruction(code, offset)


class Survey(SignalStrike):
    """Strikes nowhere, but notes where it could.

    Attributes:
        places: Code and offset of each bytecode, as often as this thread comes to it.
    """

    def __init__(self, codes: list[CodeType]) -> None:
        super().__init__(0, codes)
        self.places: list[Place] = []

    def _on_instruction(self, code: CodeType, offset: int) -> Any:
        if offset not in signal_points(code):
            return NOT_AGAIN
        if threading.get_ident() == self._thread:
            self.places.append((code, offset))
        return None

    def strikes(self, known: set[Place], enough: int) -> Iterator[SignalStrike]:
        """Give one strike after the other at what is worth it."""
        codes = list(dict.fromkeys(code for code, _ in self.places))
        return (SignalStrike(n, codes) for n in worth_striking(self.places, known, enough))


def at_every_bytecode(*things: Any, step: int = 1, kind: type[Strike] = Strike) -> Iterator[Strike]:
    """Give one ``Strike`` after the other until one finds no bytecode left to strike.

    ::

        for strike in at_every_bytecode(ConnectionPool, Connection):
            pool = ...
            with strike:
                pool.try_connect().release()
            assert pool.stats().in_use == 0, strike

    Args:
        things: Functions, classes, modules or code objects to strike in.
        step: 1 strikes at each bytecode, 7 at every seventh.
        kind: ``SignalStrike`` leaves out those before which no signal is looked for.
    """
    codes = codes_of(*things)
    n = 1
    while True:
        strike = kind(n, codes)
        yield strike
        if strike.where is None:
            return
        n += step


def struck(job: Callable[[], object], delay: float) -> bool:
    """Run *job* on the main thread; a real signal raises KeyboardInterrupt in it after *delay* seconds.

    SIGUSR1 serves, since test time-outs need SIGALRM.

    Returns:
        Whether it was struck before it was done.
    """
    is_armed = was_struck = False
    done = threading.Event()
    main = threading.main_thread().ident
    assert main == threading.get_ident(), "signals reach the main thread only"

    def on_signal(signum: int, frame: object) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise KeyboardInterrupt("struck")

    def shoot() -> None:
        if not done.wait(delay):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_signal)
    gun = threading.Thread(target=shoot, name="gun", daemon=True)
    onlookers = gc.callbacks.copy()  # hypothesis has one: what strikes there is lost
    try:
        gc.callbacks.clear()
        gun.start()
        try:
            is_armed = True
            job()
        finally:
            is_armed = False
    except KeyboardInterrupt as interrupt:
        if interrupt.args != ("struck",):
            raise
        was_struck = True
    finally:
        done.set()
        gun.join()
        signal.signal(signal.SIGUSR1, before)
        gc.callbacks.extend(onlookers)
        NEVER_STARTED.update(thread for thread in threading.enumerate() if thread.ident is None)
    return was_struck


def struck_at_random(job: Callable[[], object], *, times: int, longest: float, seed: int = 0) -> int:
    """Run *job* *times* times, each struck after a random delay; return how often that was in time."""
    dice = random.Random(seed)
    return sum(struck(job, dice.uniform(0.0, longest)) for _ in range(times))


@contextlib.contextmanager
def in_a_handler(deed: Callable[[], object], after: float) -> Iterator[None]:
    """Have a signal handler of the main thread do *deed*, *after* so many seconds."""
    before = signal.signal(signal.SIGALRM, lambda *_: deed())
    limit = signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *limit)  # the test's own time-out
