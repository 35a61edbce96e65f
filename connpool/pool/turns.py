"""Turns at one thing: first come, first served, with a deadline."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from connpool import clock as real
from connpool.clock import Gate, shut_gate, wait

__all__ = ["Turn", "Turns"]


class Turns:
    """Who is at it, and who comes next.

    There is no lock: to join, to look who is first and to leave are one call on
    a deque each. Whoever leaves opens the gate of the one that is first then; whoever joins
    looks whether that is itself, after it has joined. So one of the two sees the other.
    """

    __slots__ = ("_gates",)

    def __init__(self) -> None:
        self._gates: deque[Gate] = deque()  # the left end is at it

    def are_free(self) -> bool:
        """Whether nobody is at it."""
        return not self._gates

    def take(self, timeout: float | None) -> Turn:
        """Wait for a turn.

        Raises:
            TimeoutError: it did not come within *timeout* seconds.
        """
        turn = self.try_take(timeout)
        if turn is None:
            raise TimeoutError("others were writing on the shared connection all the time")
        return turn

    def try_take(self, timeout: float | None) -> Turn | None:
        """Wait for a turn. None: it did not come within *timeout* seconds."""
        until = None if timeout is None else real.now() + timeout
        turn = Turn(self._gates)
        try:
            while self._gates[0] is not turn.gate:
                left = None if until is None else max(0.0, until - real.now())  # so not a number is 0, too
                if left == 0 or not wait(turn.gate, left):
                    if self._gates[0] is turn.gate:  # it came at the last moment
                        break
                    turn.end()
                    return None
        except BaseException:
            turn.end()  # a traceback must not keep it from its finaliser
            raise
        return turn


class Turn:
    """One turn. It ends with ``end``, or when it is dropped: an interrupt loses none."""

    __slots__ = ("_gates", "gate")

    def __init__(self, gates: deque[Gate]) -> None:
        self.gate = shut_gate()
        self._gates = gates
        try:
            gates.append(self.gate)
        except BaseException:  # as in ``try_take``
            self.end()
            raise

    def end(self) -> None:
        """Let the next one begin; more than once does nothing."""
        with suppress(ValueError):
            self._gates.remove(self.gate)
        try:
            self._gates[0].release()
        except (IndexError, RuntimeError):  # nobody waits; or it is told already
            pass

    def __del__(self) -> None:
        if hasattr(self, "_gates"):
            self.end()
