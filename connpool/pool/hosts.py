"""What the pool knows of one endpoint."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter, deque
from typing import NamedTuple

from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.states import CloseReason, EndpointState
from connpool.pool.backoff import delay_after
from connpool.pool.piles import look_through
from connpool.pool.record import Key, Phase, Record

__all__ = ["Host", "Underway"]


class Underway(NamedTuple):
    """A dial that goes on."""

    cancel: threading.Event
    blames: bool  # whether its failure counts against the host


class Host:
    """One endpoint: its idle stack, its records, and whether it may be dialled.

    The stack is used without the lock, by single pops and appends. All the
    rest changes under the pool's lock.
    """

    __slots__ = (
        "by_hand",
        "closed",
        "dialable",
        "down_at",
        "endpoint",
        "failures",
        "hung",
        "idle",
        "last_error",
        "looks",
        "n_failed",
        "n_failed_up",
        "on_route",
        "opened",
        "opening",
        "owed",
        "past_uses",
        "records",
        "retry_at",
        "since",
        "was_up",
    )

    def __init__(self, endpoint: Endpoint, *, now: float, dialable: bool = True) -> None:
        self.endpoint = endpoint
        self.idle: deque[Key] = deque()  # the right end was released last
        self.records: set[Record] = set()  # opening + open + closing: what the server may see
        self.opening: dict[Record, Underway] = {}  # dials under way
        self.hung: dict[Record, Underway] = {}  # those that should long have ended
        self.looks: dict[Record, float] = {}  # being looked at, and since when
        self.on_route = False  # see ``Fleet.follow``
        self.dialable = dialable  # else it has only what is added to it
        self.retry_at: float | None = None  # blacklisted until then; None: up
        self.by_hand = False  # blacklisted by the user: nothing but time or the user lifts it
        self.failures = 0  # in a row
        self.since = now  # up, or down, since
        self.last_error: BaseException | None = None
        self.was_up = True  # as listeners know it
        self.down_at = now  # the last time it went down
        self.n_failed = 0  # dials
        self.n_failed_up = 0  # of them, those before it was up the last time
        self.opened = 0
        self.closed: Counter[CloseReason] = Counter()
        self.past_uses = 0  # loans of connections that are gone
        self.owed = 0  # connections to be opened in place of ones that were lost

    def __repr__(self) -> str:
        return f"<Host {self.endpoint} {self.state.value}: {len(self.records)} open, {len(self.idle)} idle>"

    @property
    def state(self) -> EndpointState:
        if self.retry_at is None:
            return EndpointState.UP
        return EndpointState.PROBING if self.opening else EndpointState.BLACKLISTED

    @property
    def next_try_at(self) -> float | None:
        """When it may be dialled again; None: now, or not by itself."""
        return None if self.retry_at is None or self.retry_at == math.inf else self.retry_at

    @property
    def reason_down(self) -> BaseException | None:
        """What it is down for; None: it was taken out by hand."""
        return None if self.by_hand else self.last_error

    def is_up(self) -> bool:
        return self.retry_at is None

    def is_due(self, now: float) -> bool:
        """Blacklisted, but the time is up and nobody probes it yet."""
        return self.retry_at is not None and now >= self.retry_at and not self.opening

    def may_serve(self, now: float, max_connecting: int) -> bool:
        """Whether checkouts may turn to it: it is up, or due with a dial to spare beside those that hang."""
        return self.is_up() or (self.is_due(now) and len(self.hung) < max_connecting)

    def is_for_dialling(self, pinned: Endpoint | None) -> bool:
        """Whether a checkout that pins *pinned* may have it dialled; without a pin it keeps to the route."""
        return self.dialable and (self.on_route or pinned is not None)

    def n_staying(self) -> int:
        """How many of its places are not about to be free."""
        return sum(record.phase is not Phase.CLOSING for record in self.records)

    def blacklist(self, now: float, delay: float, *, by_hand: bool) -> None:
        if self.retry_at is None:
            self.since = now
        self.retry_at = now + delay
        self.by_hand = by_hand

    def withdraw(self, key: Key) -> bool:
        """Take *key* out of the middle of the stack. False: a checkout was faster."""
        try:
            self.idle.remove(key)
        except ValueError:
            return False
        return True

    def put_back(self, key: Key) -> None:
        """Lay *key* where it belongs in the stack: beneath what was released after it."""
        since = key.record.since
        above = sum(1 for other in look_through(self.idle) if other.record.since > since)
        if above:
            self.idle.insert(max(0, len(self.idle) - above), key)
        else:
            self.idle.append(key)

    def fail(self, error: BaseException, now: float, config: PoolConfig, rng: random.Random) -> None:
        """A dial failed. Dials that were under way together count as one failure."""
        self.last_error = error
        if self.retry_at is not None and now < self.retry_at:
            return
        self.failures += 1
        self.blacklist(now, delay_after(self.failures, error, config, rng), by_hand=False)

    def rely_on(self, dials: dict[Record, Underway]) -> bool:
        """Somebody else has to wait for its *dials*: should they fail, it is down. False: so it was."""
        others = [record for record, underway in dials.items() if not underway.blames]
        for record in others:
            dials[record] = dials[record]._replace(blames=True)
        return bool(others)

    def succeed(self, now: float) -> None:
        """A dial succeeded: the endpoint is up, unless the user said otherwise."""
        self.failures = 0
        self.last_error = None
        if self.retry_at is not None and not (self.by_hand and now < self.retry_at):
            self.lift(now)

    def lift(self, now: float) -> None:
        self.retry_at = None
        self.by_hand = False
        self.failures = 0
        self.last_error = None
        self.since = now
