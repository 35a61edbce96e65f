"""Threads that wait for a connection, in order of arrival."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from connpool.clock import open_gate, shut_gate
from connpool.errors import ConnectError
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.pool.record import Key, Phase, Record

if TYPE_CHECKING:
    from connpool.pool.jobs import Dial

__all__ = ["PATIENCE", "SERVED", "WAITING", "Outcome", "WaitQueue", "Waiter"]


class Outcome(enum.Enum):
    """How a wait stands. It is decided once, under the pool's lock."""

    WAITING = "waiting"
    SERVED = "served"  # ``key`` is the waiter's
    FAILED = "failed"  # ``error`` is to be raised
    LEFT = "left"  # timed out, cancelled or interrupted


PATIENCE: Final = 0.25  # seconds a waiter gives the endpoint whose turn it is before it looks elsewhere

WAITING: Final = Outcome.WAITING  # to ask an enum for its member costs 0.1 us on 3.11
SERVED: Final = Outcome.SERVED
NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


class Waiter:
    """One thread that wants one connection, with a gate of its own to sleep at.

    What it has tried in vain is kept in values that are replaced as a whole: most waiters have none
    of it, and so need no memory for it.
    """

    __slots__ = (
        "again_at",
        "attempt",
        "attempts",
        "dialled",
        "errands",
        "error",
        "evict_again_at",
        "eviction",
        "front_at",
        "gate",
        "handed_at",
        "is_asleep",
        "is_busy",
        "is_fresh_only",
        "is_plain",
        "key",
        "may_wait",
        "must_look",
        "n_in_vain",
        "number",
        "outcome",
        "patience_at",
        "pinned",
        "refused",
        "request",
        "since",
        "tried",
        "turn",
    )

    def __init__(
        self, request: Request, number: int, turn: int, now: float, fresh_only: bool = False
    ) -> None:
        self.request = request
        self.pinned: Endpoint | None = request.endpoint
        self.number = number  # in order of arrival
        self.turn = turn  # whose turn it is to serve it
        self.since = now
        self.may_wait = True  # for a place, or for an endpoint to come back
        self.is_fresh_only = fresh_only  # nothing that was lent before will do
        self.is_plain = self.pinned is None and not fresh_only  # any idle one of the active group will do
        self.gate = shut_gate()
        self.handed_at: float | None = None  # when what came back was given to it, past the stack
        self.outcome = WAITING
        self.key: Key | None = None
        self.error: BaseException | None = None
        self.front_at: float | None = None  # when it came to the front, and may be overtaken for a moment
        self.is_asleep = False  # is at the front, and gets the very next connection that comes back
        self.attempt: Record | None = None  # what is being opened or looked at for it
        self.attempts: tuple[Record, ...] = ()  # all that were, in order
        self.patience_at = now  # from then on it takes what is idle elsewhere, whatever its attempt does
        self.eviction: Record | None = None  # what is being closed to make room for it
        self.evict_again_at = now  # if that takes so long
        self.errands: tuple[Dial, ...] = ()  # dials it is to run itself, in order
        self.tried: Mapping[Endpoint, ConnectError] = NOTHING  # failed while it waited
        self.n_in_vain = 0  # failed dials in a row for which no endpoint was blacklisted
        self.again_at = now  # none that failed is dialled for it before
        self.must_look = False  # what it is given comes from a blacklisted endpoint
        self.is_busy = False  # dials on its own thread, and can take nothing till that is over
        self.dialled: frozenset[Endpoint] = frozenset()  # for ``Request.where``, which need not have liked it
        self.refused: Mapping[Record, float] = NOTHING  # did not pass ``Request.where``, as idle since then

    def is_waiting(self) -> bool:
        """Whether nothing was decided yet. Without the lock a True may be out of date, a False never."""
        return self.outcome is WAITING

    def note_failure(self, endpoint: Endpoint, error: ConnectError) -> None:
        """*endpoint* could not be dialled: it is tried no more, unless that is forgotten."""
        self.tried = {**self.tried, endpoint: error}
        self.is_plain = False

    def put_off(self, until: float) -> None:
        """What failed may be dialled again, but not before."""
        self.n_in_vain += 1
        self.again_at = until

    def forget_failures(self, endpoints: Collection[Endpoint]) -> None:
        """Forget that *endpoints* could not be dialled."""
        self.tried = {endpoint: error for endpoint, error in self.tried.items() if endpoint not in endpoints}
        self.is_plain = self.pinned is None and not (self.is_fresh_only or self.tried or self.refused)

    def refuse(self, record: Record) -> None:
        """It is not what the request wants, as it is now."""
        self.refused = {**self.refused, record: record.since}
        self.is_plain = False

    def next_errand(self) -> Dial:
        """Take the first of ``errands`` off it."""
        dial, self.errands = self.errands[0], self.errands[1:]
        return dial

    def sole_wish(self) -> Endpoint | None:
        """The endpoint that is all it asks for, while nothing was begun: all such may have the same."""
        if self.is_fresh_only or self.attempts or self.eviction is not None:
            return None
        return None if self.tried or self.request.shared or self.request.where is not None else self.pinned

    def has_something_coming(self) -> bool:
        """Whether a dial, a look or a close is under way on its behalf."""
        return self.attempt is not None or self.is_evicting()

    def is_evicting(self) -> bool:
        """Whether what was to make room for it is still being closed."""
        return self.eviction is not None and self.eviction.phase is Phase.CLOSING

    def wake(self) -> None:
        """Open its gate; harmless when it is open already."""
        open_gate(self.gate)


class WaitQueue:
    """First come, first served. Guarded by the pool's lock, except ``oldest``."""

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()  # the left end came first

    def __len__(self) -> int:
        return len(self.waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self.waiters))

    @property
    def oldest(self) -> Waiter | None:
        """The one to be served first. May be asked without the lock."""
        try:
            return self.waiters[0]
        except IndexError:
            return None

    def join(self, waiter: Waiter) -> None:
        """Queue up by number: one that comes back finds its old place."""
        queue = self.waiters
        if not queue or queue[-1].number < waiter.number:
            queue.append(waiter)
        else:
            n_before = sum(1 for other in queue if other.number < waiter.number)
            if n_before == 0:
                queue[0].front_at = None  # its alarm is for the front only: it would go off at once, for ever
            queue.insert(n_before, waiter)

    def leave(self, waiter: Waiter) -> None:
        queue = self.waiters
        if queue and queue[0] is waiter:
            queue.popleft()
            return
        with suppress(ValueError):  # served, and so removed, in the meantime
            queue.remove(waiter)

    def has_special(self) -> bool:
        """Whether one waits for something in particular, and so may be served though the oldest is not."""
        return any(not waiter.is_plain for waiter in self.waiters)

    def has_loner(self, before: Waiter | None = None) -> bool:
        """Whether one that came before *before* waits for a connection of its own.

        It would never get one, if others kept joining those that are shared.
        """
        for waiter in self:
            if waiter is before:
                break
            if not waiter.request.shared and waiter.is_waiting() and waiter.attempt is None:
                return True
        return False
