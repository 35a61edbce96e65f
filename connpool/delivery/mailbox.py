"""What has come and what has happened, for those who wait for it and those who are called."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from connpool import clock as real
from connpool.clock import Gate, open_gate, shut_gate, wait
from connpool.delivery.news import Ends, Letter, News
from connpool.model.delivery import LinkEvent
from connpool.model.endpoint import Endpoint

if TYPE_CHECKING:
    from connpool.delivery.broadcaster import Broadcaster
    from connpool.delivery.strand import Strand

__all__ = ["Handler", "Mailbox", "SetHandler"]

Handler = Callable[["Broadcaster", LinkEvent, Endpoint], object]
SetHandler = Callable[["Broadcaster", LinkEvent], object]

MOST_NEWS: Final = 1_000  # events, beside those of messages, that are kept for a handler that may come
MOST_LETTERS: Final = 1_000  # messages that are read before somebody takes them
A_LOOK: Final = 0.1  # seconds that a call without a wait gives the reading thread for one look

ALL: Final = LinkEvent.INPUT | LinkEvent.DEAD | LinkEvent.ALIVE
NONE: Final = LinkEvent(0)

logger = logging.getLogger("connpool.delivery")


class Mailbox:
    """Events and messages in the order of their arrival, each told or given out once.

    Methods that end in ``_locked`` are called with the office's lock held; the others take it.
    """

    def __init__(self, lock: threading.RLock, name: str, on_change: Callable[[], object]) -> None:
        self._lock = lock
        self._name = name
        # Called, with no lock held, when input is wanted or no longer; says whether somebody sees to it.
        self._on_change = on_change
        self._news: deque[News] = deque()
        self._ends = Ends()
        self._letters: deque[Letter] = deque()
        self._n_taken = 0  # letters whose events may lie among the news yet
        self._gates: list[Gate] = []  # of threads that wait for something to come
        self._each: tuple[tuple[LinkEvent, Handler], ...] = ()  # replaced as a whole
        self._sets: tuple[tuple[LinkEvent, SetHandler], ...] = ()
        self._hasty: list[Gate] = []  # of threads that wait for no more than one look at what has come
        self._readers: set[Gate] = set()  # of those that wait for messages: an interrupt makes no count wrong
        self._was_read = False  # there has been one
        self.is_polled = False  # somebody has called check_event: events are told in its calls
        self.is_closed = False
        self.is_over = False  # nobody waits for the thread of ours that tells: it calls no handler more

    # -- what comes

    def post_locked(self, kind: LinkEvent, endpoint: Endpoint, strand: Strand | None = None) -> None:
        """Something has happened on a link. *strand*: that which has ended, if one has."""
        self._ends.add(News(kind, endpoint), strand)
        self._admit_locked()

    def hear_no_more(self, strand: Strand) -> None:
        """*strand* was read to its end: now that may be told."""
        with self._lock:
            strand.is_heard = True
            self._admit_locked()
        self.wake()

    def _admit_locked(self) -> None:
        for news in self._ends.ripe():
            old = [] if self._mask() & news.kind else [each for each in self._news if each.letter is None]
            if len(old) >= MOST_NEWS:  # of messages that wait, each has its event
                self._news.remove(old[0])
            self._news.append(news)

    def deliver(self, endpoint: Endpoint, messages: list[bytes], strand: Strand | None = None) -> None:
        """Whole messages have come, over *strand*; of one that was taken down nothing comes any more."""
        with self._lock:
            if strand is not None and strand.is_taken_down:
                return
            if self._n_taken >= MOST_NEWS:  # and where no handler is installed, nobody takes their events
                self._n_taken = 0
                self._news = deque(news for news in self._news if not news.is_stale())
            for message in messages:
                letter = Letter(endpoint, message)
                self._letters.append(letter)
                self._news.append(News(LinkEvent.INPUT, endpoint, letter))
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again. No lock is held."""
        for gate in self._gates.copy():
            open_gate(gate)

    def wants_input(self, *, is_last: bool = False) -> bool:
        """Whether anybody would take a message, and there is room for one; the last of a peer: ever did."""
        if self.is_closed:
            return False
        is_told = bool(self._mask() & LinkEvent.INPUT)
        if is_last:
            return is_told or self._was_read
        return (is_told or bool(self._readers)) and len(self._letters) < MOST_LETTERS

    def _mask(self) -> LinkEvent:
        """The events that some installed handler wants."""
        wanted = NONE
        for mask, _ in (*self._each, *self._sets):
            wanted |= mask
        return wanted

    # -- who is told

    def install(self, mask: LinkEvent, handler: Handler) -> None:
        with self._lock:
            self._each = (*self._each, (mask, handler))
        self._on_change()

    def install_for_sets(self, mask: LinkEvent, handler: SetHandler) -> None:
        with self._lock:
            self._sets = (*self._sets, (mask, handler))
        self._on_change()

    def take_over(self, other: Mailbox) -> None:
        """In a forked child: those who were told by *other*, the parent's, are told by this one."""
        self._each, self._sets, self.is_polled = other._each, other._sets, other.is_polled

    def has_handlers(self) -> bool:
        return bool(self._each or self._sets)

    def has_set_handlers(self) -> bool:
        return bool(self._sets)

    # -- taking

    def recv(self, timeout: float | None) -> tuple[Endpoint, bytes] | None:
        """The oldest message; None: none has come within *timeout* seconds, or all is over."""
        if timeout == 0 and not self._letters:
            self._look()
        found: tuple[Endpoint, bytes] | None = self._wait_for(self._take_letter_locked, timeout, reads=True)
        return found

    def take_news(
        self, timeout: float | None, mask: LinkEvent | None, *, gives_way: bool = False
    ) -> list[News]:
        """All events of *mask*; waits for the first of them.

        *mask*: None: what handlers are installed for by then, and input as long as there are none.
        *gives_way*: return, with nothing, as soon as somebody polls.
        """

        def take_locked() -> list[News] | None:
            if gives_way and self.is_polled:
                return []
            return self._take_news_locked(mask or self._mask() or LinkEvent.INPUT) or None

        wanted = mask if mask is not None or self._mask() else LinkEvent.INPUT
        reads = wanted is not None and bool(wanted & LinkEvent.INPUT)
        if self._ends or (reads and not self._mask() & LinkEvent.INPUT):  # else all that comes is read anyway
            self._look(reads=reads)
        return self._wait_for(take_locked, timeout, reads=reads) or []

    def _look(self, *, reads: bool = True) -> None:
        """Have what has come by now read; a call without a wait would find none of it: nobody wanted it."""
        gate = shut_gate()
        try:
            with self._lock:
                self._hasty.append(gate)
                if reads:
                    self._readers.add(gate)
                    self._was_read = True
            if self._on_change():
                wait(gate, A_LOOK)
        finally:
            with self._lock:
                self._readers.discard(gate)
                if gate in self._hasty:
                    self._hasty.remove(gate)

    def take_hasty(self) -> list[Gate]:
        """The gates of those who wait for the look that now begins."""
        with self._lock:
            hasty, self._hasty = self._hasty, []
        return hasty

    def _take_letter_locked(self) -> tuple[Endpoint, bytes] | None:
        if not self._letters:
            return None
        letter = self._letters.popleft()
        letter.is_taken = True
        self._n_taken += 1
        return letter.endpoint, letter.message

    def _take_news_locked(self, mask: LinkEvent) -> list[News]:
        found = [news for news in self._news if news.kind & mask and not news.is_stale()]
        self._news = deque(news for news in self._news if not (news.kind & mask or news.is_stale()))
        return found

    def _wait_for(self, take_locked: Callable[[], Any], timeout: float | None, *, reads: bool) -> Any:
        until = None if timeout is None else real.now() + timeout
        gate = shut_gate()
        is_announced = False
        try:
            while True:
                with self._lock:
                    was_full = len(self._letters) >= MOST_LETTERS
                    found = take_locked()
                if found is not None or self.is_closed:
                    if was_full:
                        self._on_change()  # there is room again
                    return found
                if not is_announced:  # and look again after that
                    is_announced = True
                    with self._lock:
                        self._gates.append(gate)
                        if reads:
                            self._readers.add(gate)
                            self._was_read = True
                    if reads:
                        self._on_change()
                    continue
                left = None if until is None else until - real.now()
                if (left is not None and left <= 0) or not wait(gate, left):
                    with self._lock:
                        return take_locked()
        finally:
            with self._lock:
                self._readers.discard(gate)
                if gate in self._gates:
                    self._gates.remove(gate)

    # -- telling

    def tell(
        self,
        broadcaster: Broadcaster,
        news: list[News],
        handler: Handler | None = None,
        *,
        ours: bool = False,
    ) -> int:
        """Call the handlers for each of *news*, then those for sets. No lock is held.

        Args:
            handler: Called instead of all that are installed.
            ours: The thread is ours: when it is over, the rest is told to nobody.

        Returns:
            How many of *news* somebody was called for.
        """
        n_handled = 0
        everything = NONE
        for each in news:
            everything |= each.kind
            handlers = (
                [found for mask, found in self._each if mask & each.kind] if handler is None else [handler]
            )
            n_handled += bool(handlers) or any(mask & each.kind for mask, _ in self._sets)
            for found in handlers:
                if not (ours and self.is_over):
                    self._tell_one(broadcaster, found, each)
        if handler is None:
            for mask, for_set in self._sets:
                if mask & everything and not (ours and self.is_over):
                    try:
                        for_set(broadcaster, mask & everything)
                    except Exception:
                        logger.exception("broadcaster %r: a handler failed at %s", self._name, everything)
        return n_handled

    def _tell_one(self, broadcaster: Broadcaster, handler: Handler, news: News) -> None:
        try:
            answer = handler(broadcaster, news.kind, news.endpoint)
        except Exception as error:
            logger.exception(
                "broadcaster %r: a handler failed at %s of %s", self._name, news.kind.name, news.endpoint
            )
            if news.kind is LinkEvent.INPUT:
                broadcaster._office.fail_endpoint(news.endpoint, error)
        else:
            if news.kind is LinkEvent.INPUT and isinstance(answer, int) and answer < 0:
                broadcaster._office.fail_endpoint(news.endpoint, None)

    def close(self) -> None:
        """Nothing more comes; what has come may still be taken."""
        self.is_closed = True
        self.wake()
