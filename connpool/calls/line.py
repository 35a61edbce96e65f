"""A call pool's bookkeeping of one channel, and the one key that goes with it."""

from __future__ import annotations

import enum
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Final

from connpool.calls.channel import Channel, takes_timeout
from connpool.calls.tally import Tally
from connpool.errors import UsageError
from connpool.model.channel import Revive
from connpool.model.states import CloseReason

if TYPE_CHECKING:
    from connpool.calls.resource import Resource
    from connpool.calls.switch import Switch
    from connpool.calls.tickets import Ticket

__all__ = ["GONE", "OPEN", "Key", "Line", "Phase", "Run"]


class Phase(enum.Enum):
    """How far one channel has come. ``MOVES`` lists the only ways on.

    Whether an OPEN one is busy is not written down: it is idle exactly while its
    key lies among its resource's idle ones, and rests while it lies among the resting.
    """

    OPENING = "opening"  # for the first time or again
    OPEN = "open"
    CLOSING = "closing"
    DOWN = "down"  # closed, and to be opened again
    GONE = "gone"  # out of the pool


OPEN: Final = Phase.OPEN  # to ask an enum for its member costs 0.1 us on 3.11
GONE: Final = Phase.GONE

MOVES: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.DOWN, Phase.CLOSING, Phase.GONE}),
    Phase.OPEN: frozenset({Phase.CLOSING, Phase.GONE}),  # straight to GONE: it left the pool open
    Phase.CLOSING: frozenset({Phase.DOWN, Phase.GONE}),
    Phase.DOWN: frozenset({Phase.OPENING, Phase.GONE}),
    Phase.GONE: frozenset(),
}

Run = tuple[int, Hashable, float]  # ident of the thread, method, when it began

NEVER: Final = math.inf


class Line:
    """What the pool knows of one channel.

    ``took``, ``run`` and ``called_at`` belong to whoever holds the key; the rest changes under
    the pool's lock only.
    """

    __slots__ = (
        "args",
        "brisk_until",
        "called_at",
        "channel",
        "expires_at",
        "extra",
        "failures",
        "fate",
        "id",
        "idle",
        "invoke",
        "leaving",
        "open_until",
        "opened_at",
        "phase",
        "resource",
        "rest_until",
        "retry_at",
        "revive",
        "run",
        "switch",
        "takes_timeout",
        "took",
        "ttl",
        "unclosed",
        "version",
        "waiting",
    )

    def __init__(
        self,
        switch: Switch,
        channel: Channel,
        args: tuple[Any, ...],
        *,
        ttl: float | None,
        revive: Revive,
        extra: Any,
    ) -> None:
        self.id = 0  # it gets one when it is in the pool
        self.switch = switch
        self.channel = channel
        self.args = args
        self.ttl = ttl
        self.revive = revive
        self.extra = extra
        self.version = 0  # of what ``update`` may change
        self.phase = Phase.OPENING
        self.fate: CloseReason | None = None  # why it must be closed
        self.resource: Resource | None = None
        self.idle: deque[Key] = deque()  # its resource's, at hand for the fast path
        self.waiting: deque[Ticket] = deque()  # likewise
        self.invoke: Callable[..., Any] = channel.call
        self.takes_timeout = takes_timeout(channel.call)
        self.took: dict[Hashable, Tally] = {}  # what it can do, and how long that took
        self.run: Run | None = None  # the call that runs on it, or the thread that opens or closes it
        self.leaving: Ticket | None = None  # of a thread that wants to take it out of the pool
        self.opened_at: float | None = None
        self.called_at: float | None = None
        self.expires_at = NEVER
        self.open_until = -NEVER  # until then a call may begin without a look at anything else
        self.brisk_until = -NEVER  # and may end so
        self.rest_until = -NEVER
        self.retry_at = NEVER  # while DOWN: when it is opened again
        self.failures = 0  # to open it again, in a row
        self.unclosed: deque[None] = deque()  # holds one thing while it is open: whoever takes that closes it

    def move(self, to: Phase) -> None:
        """Go on to phase *to*.

        Raises:
            UsageError: ``MOVES`` does not allow it; nothing changed.
        """
        if to not in MOVES[self.phase]:
            raise UsageError(f"channel {self.id} is {self.phase.value}: it cannot become {to.value}")
        self.phase = to

    def home(self) -> Resource:
        """The resource that it belongs to; every line in the pool has one."""
        assert self.resource is not None
        return self.resource

    def offer(self, methods: frozenset[Hashable]) -> None:
        """Set what it can do; what is known of methods that stay is kept."""
        self.took = {method: self.took.get(method) or Tally() for method in methods}

    def condemn(self, reason: CloseReason) -> None:
        """See to it that it is closed when its key comes back. The first reason stands."""
        if self.fate is None:
            self.fate = reason
        self.brisk_until = self.open_until = -NEVER

    def take_in_hand(self) -> None:
        """This thread opens or closes it now, and tells of that: it must not wait for it meanwhile."""
        self.run = threading.get_ident(), None, NEVER

    def is_run_by(self, thread: int) -> bool:
        """Whether thread number *thread* has it in hand: for a call that runs or is about to, say."""
        run = self.run  # looked at once: a call may end meanwhile
        return run is not None and run[0] == thread

    def is_begun(self) -> bool:
        """Whether a call has begun on it, and its key was not merely given to one."""
        run = self.run  # looked at once: a call may end meanwhile
        return run is not None and run[2] != NEVER

    def last_called_at(self) -> float | None:
        """When its last call began."""
        run = self.run
        return self.called_at if run is None or run[2] == NEVER else run[2]

    def is_live(self, now: float) -> bool:
        """Whether it takes calls, now or when it is free again."""
        return self.phase is OPEN and self.fate is None and now < self.expires_at

    def is_to_be_revived(self) -> bool:
        """Whether it is opened again now that it is closed for its fate."""
        match self.fate:
            case CloseReason.POOL_CLOSED:
                return False
            case CloseReason.TERMINATED:
                return self.revive == "force"
            case _:
                return bool(self.revive)


class Key:
    """The right to call on one channel, to open and to close it. Exactly one exists per line.

    It lies among its resource's idle or resting ones, among those that are down, in a ticket, or in the
    hands of the thread that calls, opens or closes. Wherever an interrupt drops it, the finaliser
    reports the line, and the pool's next turn recovers it.
    """

    __slots__ = ("line",)

    def __init__(self, line: Line) -> None:
        self.line = line

    def __del__(self) -> None:
        line = getattr(self, "line", None)  # None: interrupted before it was anybody's
        if line is not None and line.phase is not GONE:
            line.switch.key_dropped(self)
