"""What may take long: closing channels and opening them again, on threads that live no longer than that."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from connpool import clock as real
from connpool.calls.channel import rest_of
from connpool.calls.line import Key, Line, Phase
from connpool.clock import Gate, shut_gate, wait
from connpool.model.call_events import ChannelClosed, ChannelDown, ChannelOpened
from connpool.model.states import CloseReason
from connpool.pool.backoff import retry_after
from connpool.pool.closing import CLOSE_GRACE, close_all
from connpool.wire import threads

if TYPE_CHECKING:
    from connpool.calls.switch import Switch

__all__ = ["Workers"]

logger = logging.getLogger("connpool.calls")

MOST: Final = 4  # threads that open channels at a time
PATIENCE: Final = 5.0  # seconds after which one that hangs counts no more: others must not wait for it


class Workers:
    """Carries out what was decided, with no lock held.

    A close runs on a thread of its own, for which the caller waits only a moment: as a rule it is
    over by then, and one that hangs holds up nobody.
    """

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self.openings: deque[Key] = deque()  # to be opened again, now
        self._free: deque[None] = deque([None] * MOST)  # one for each thread more that may open
        self._at_it: dict[object, float] = {}  # openings under way that have one of these, and since when

    # -- closing

    def close_all(self, *, apart: bool) -> None:
        """Close what has been doomed. *apart*: do not wait for it."""
        close_all(self._switch.ledger.todo, self._close_one, self._start, apart=apart)

    def _start(self, target: Callable[..., None], *args: Any) -> bool:
        """Have *target* run on a thread of its own, then open what is due; False: none can be had."""
        name = f"connpool-close-{self._switch.name}"
        thread = threading.Thread(target=self._run_apart, args=(target, *args), name=name, daemon=True)
        return threads.start(thread)

    def _run_apart(self, target: Callable[..., None], *args: Any) -> None:
        target(*args)
        self._open_in_turn()

    def _close_one(self, key: Key) -> None:
        line, switch = key.line, self._switch
        line.take_in_hand()
        try:
            if self.close_channel(line) and line.resource is not None:
                reason = line.fate or CloseReason.BROKEN
                switch.tell(ChannelClosed, line.id, line.resource.name, reason)
        finally:  # an interrupt, or a listener that ends its thread, keeps nothing from being recorded
            with switch._lock:
                if switch.ledger.record_close(key, switch.clock.now()):
                    self.openings.append(key)

    def close_channel(self, line: Line) -> bool:
        """Close it unless somebody has; errors are only logged. Returns whether it was open."""
        try:
            line.unclosed.pop()
        except IndexError:
            return False
        try:
            line.channel.close()
        except Exception:
            logger.exception("call pool %r: closing channel %d failed", self._switch.name, line.id)
        return True

    def cut_off(self, lines: Iterable[Line]) -> None:
        """Close channels under the calls that run on them, and wait a moment for that."""
        gates = [(line, shut_gate()) for line in lines]
        for line, done in gates:
            if not self._start(self._cut_off, line, done):
                self._cut_off(line, done)
        until = real.now() + CLOSE_GRACE
        for _, done in gates:
            wait(done, until - real.now())

    def _cut_off(self, line: Line, done: Gate) -> None:
        try:
            if self.close_channel(line):
                self._switch.tell(ChannelClosed, line.id, line.home().name, CloseReason.POOL_CLOSED)
        finally:
            done.release()

    # -- opening again

    def open_all(self) -> None:
        """Open what is due, on threads of their own. Without a thread the next turn tries again."""
        now = self._switch.clock.now()
        for opening, began in self._at_it.copy().items():
            if now - began >= PATIENCE:
                self._is_past(opening)
        for _ in range(min(len(self.openings), len(self._free))):
            name = f"connpool-open-{self._switch.name}"
            threads.start(threading.Thread(target=self._open_in_turn, name=name, daemon=True))

    def _open_in_turn(self) -> None:
        while self.openings:
            try:
                self._free.pop()
            except IndexError:  # as many as may are at it, and look again after each
                return
            opening = object()
            self._at_it[opening] = self._switch.clock.now()
            try:
                self._open_next()
            finally:
                self._is_past(opening)

    def _is_past(self, opening: object) -> None:
        """*opening* is over, or has gone on for too long: another thread may open."""
        if self._at_it.pop(opening, None) is not None:  # one step: of two that say so one is heard
            self._free.append(None)

    def _open_next(self) -> None:
        try:
            key = self.openings.popleft()
        except IndexError:  # another thread took it
            return
        try:
            self._open(key)
        except Exception:
            logger.exception("call pool %r: recording an opening failed", self._switch.name)

    def _open(self, key: Key) -> None:
        """Open a channel again and record what came of it."""
        line, switch = key.line, self._switch
        began = switch.clock.now()
        with switch._lock:
            if not (switch.is_wanted() and line.revive):  # an ``update`` may have taken that wish back
                switch.ledger.part(line)
                switch.ledger.serve(line.home(), began)
                return
            line.move(Phase.OPENING)
        line.take_in_hand()
        try:
            rest = rest_of(line.channel.open(*line.args))
        except BaseException as error:  # noqa: BLE001 - foreign code on a thread of ours
            with switch._lock:
                until = switch.ledger.record_failure(key, retry_after(error), switch.clock.now())
            again = "for good" if until is None else f"next try in {until - switch.clock.now():.1f} s"
            logger.info("call pool %r: channel %d is down (%s): %r", switch.name, line.id, again, error)
            if until is not None:
                switch.remind(until)
            switch.tell(ChannelDown, line.id, line.home().name, error, until)
            return
        line.unclosed.append(None)
        now = switch.clock.now()
        switch.tell(ChannelOpened, line.id, line.home().name, now - began)
        with switch._lock:
            if switch.is_wanted():
                switch.ledger.admit(key, rest, now)
                switch.ledger.serve(line.home(), now)
            else:
                switch.ledger.doom(key, CloseReason.POOL_CLOSED)
        switch.carry_out()
        switch.remind(line.expires_at)
