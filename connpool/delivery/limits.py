"""How much a spool may hold, and who is told when the oldest had to go."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

from attrs import field, frozen

from connpool import clock
from connpool.errors import ConfigError, SpoolFullError
from connpool.model.checks import count, one_of, seconds
from connpool.model.events import Event, MessagesDropped
from connpool.pool.listeners import Handler  # with it comes that the log is silent unless somebody reads it

__all__ = ["Limits", "Teller"]

logger = logging.getLogger("connpool.spool")

BURST: Final = 10.0  # seconds in which drops are told in one line of the log
MOST_UNREPORTED: Final = 100  # events that are kept for the broadcaster that is still to come


@frozen(kw_only=True)
class Limits:
    """How much one spool may hold, in all its queues together. None: no limit.

    Attributes:
        max_messages: Most messages.
        max_bytes: Most bytes of messages.
        max_age: Seconds after which a message is worth nothing any more.
        on_full: Whether the oldest are dropped for a new one, or the new one is refused.
    """

    max_messages: int | None = field(default=None, validator=count(1, or_none=True))
    max_bytes: int | None = field(default=None, validator=count(1, or_none=True))
    max_age: float | None = field(default=None, validator=seconds(or_none=True))
    on_full: Literal["drop-oldest", "raise"] = field(
        default="drop-oldest", validator=one_of("drop-oldest", "raise")
    )

    @property
    def are_any(self) -> bool:
        return self.max_messages is not None or self.max_bytes is not None

    @property
    def may_drop(self) -> bool:
        return self.on_full == "drop-oldest"

    def holds(self, messages: int, size: int) -> bool:
        """Whether that many *messages* of *size* bytes together are within the limits."""
        return (self.max_messages is None or messages <= self.max_messages) and (
            self.max_bytes is None or size <= self.max_bytes
        )

    def is_expired(self, spooled_at: float, now: float) -> bool:
        """Whether what was spooled at that moment is too old at *now*."""
        return self.max_age is not None and spooled_at <= now - self.max_age

    def full(self, spool: str, messages: int, size: int, copies: int, each: int) -> SpoolFullError:
        """Make the error for *copies* of *each* bytes that *spool* has no room for."""
        most = self.max_messages, self.max_bytes
        limits = [f"{limit} {what}" for limit, what in zip(most, ("messages", "bytes"), strict=True) if limit]
        return SpoolFullError(
            f"spool {spool}: no room for {copies} of {each} bytes "
            f"(it holds {messages} messages of {size} bytes; limit {', '.join(limits)})"
        )


class Teller:
    """Tells what a spool had to do, and writes it to the log. Never under a lock.

    It is told to the spool's own listener, and to the one of its broadcaster, which
    comes later: what happened before that is kept for it. Drops come in bursts: the
    first is logged at once, then one line every ``BURST`` seconds.
    """

    def __init__(self, spool: str, listener: Handler | None) -> None:
        if listener is not None and not callable(listener):
            raise ConfigError(f"spool {spool}: a listener must be callable, got {listener!r}")
        self._spool = spool
        self._listener = listener
        self._reporter: Handler | None = None
        self.start_clean()

    def start_clean(self) -> None:
        """Begin anew: in a forked child the events are the parent's, and so may be the lock."""
        self._unreported: deque[Event] = deque()
        self._lock = threading.RLock()  # guards the two below; re-entrant for signal handlers
        self._unlogged = 0
        self._log_at = -BURST

    def report_to(self, reporter: Handler) -> None:
        """Let *reporter*, too, have what was not reported yet, and what is to come."""
        self._reporter = reporter
        self._report()

    def tell(self, event: Event) -> None:
        """Let the listeners have *event*; what they raise is logged."""
        self._unreported.append(event)
        if self._listener is not None:
            self._call(self._listener, event)
        self._report()

    def _report(self) -> None:
        """Report what is not reported yet. Who takes an event out reports it, so each is reported once."""
        while self._reporter is not None or len(self._unreported) > MOST_UNREPORTED:
            try:
                event = self._unreported.popleft()
            except IndexError:
                return
            if self._reporter is not None:
                self._call(self._reporter, event)

    def _call(self, listener: Handler, event: Event) -> None:
        try:
            listener(event)
        except Exception:
            logger.exception("spool %s: the listener failed at %r", self._spool, event)

    def tell_dropped(self, dropped: Mapping[str, int]) -> None:
        """Tell how many messages each queue has lost to a limit."""
        if not dropped:
            return
        now = clock.now()
        for queue, messages in dropped.items():
            self.tell(MessagesDropped("", now, queue, messages))
        with self._lock:
            self._unlogged += sum(dropped.values())
        self.log_dropped(now)

    def log_dropped(self, now: float, *, is_last: bool = False) -> None:
        """Write the line that is due; *is_last*: now, since there will be no other chance."""
        with self._lock:
            if not self._unlogged or (now < self._log_at and not is_last):
                return
            messages, self._unlogged = self._unlogged, 0
            self._log_at = now + BURST
        logger.warning("spool %s: %d message(s) dropped to keep within its limits", self._spool, messages)
