"""What became of a message, and what can be heard of the links that carry it."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import field, frozen

from connpool.model.endpoint import Endpoint
from connpool.model.route import Member

__all__ = ["GLOBAL", "Delivery", "LinkEvent", "LinkInfo", "LinkState", "Unsent", "member_of", "queue_of"]

GLOBAL: Final = ""  # the queue of messages that no group could take


class LinkEvent(enum.Flag):
    """What happens on a link."""

    INPUT = enum.auto()  # a whole message has come
    DEAD = enum.auto()  # it broke, or could not be opened at first
    ALIVE = enum.auto()  # it was opened


class LinkState(enum.Enum):
    """Where a link stands."""

    NEW = "new"  # not tried yet
    ALIVE = "alive"
    DEAD = "dead"


def queue_of(member: Member) -> str:
    """The name of the queue of what is to reach *member*: its endpoints as a text."""
    return str(member)


def member_of(queue: str) -> Member | None:
    """The member whose queue has that name; None: it is no member's."""
    try:
        return Member(tuple(Endpoint.parse(name) for name in queue.split(", ")))
    except ValueError:
        return None


class Names(tuple[str, ...]):
    """Names of queues. That of a member of one endpoint is found by its Endpoint, too."""

    __slots__ = ()

    def __contains__(self, queue: object) -> bool:
        return super().__contains__(str(queue))


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    return Names(names) if names else names  # as a rule there are none


@frozen
class Delivery:
    """What became of one message.

    Attributes:
        sent: The endpoints that have it: it was written to them, and confirmed where that is asked.
        spooled: The names of the queues in which copies wait: a member's endpoints, or ``""``, the queue
            of what no group could take. ``endpoint in delivery.spooled`` asks for an endpoint's.
        group: Number of the group that takes it, the first being 0; None: none could.
        refused: Members that got no copy, because it could neither be sent to them nor be spooled.
        id: 16 bytes, the same in every copy that is or was spooled, or sent with it; b"" if it needed none.
    """

    sent: tuple[Endpoint, ...] = ()
    spooled: tuple[str, ...] = field(default=(), converter=_names)
    group: int | None = None
    refused: tuple[str, ...] = field(default=(), converter=_names)
    id: bytes = b""


@frozen
class LinkInfo:
    """One link at one moment.

    Attributes:
        endpoint: Where it leads, or led last.
        member: All endpoints that it may lead to, as a text; what waits for it goes by that name.
        groups: Numbers of the groups that it belongs to.
        since: Monotonic instant since which it is in this state.
        failures: How often in a row it has broken or could not be opened, since it was opened last:
            1 once it is lost, and one more for each attempt that fails.
        retry_at: Monotonic instant of the next attempt; None: none is planned.
        last_error: Why it is dead; None: it is not, or it was taken down by hand.
        unsent: Messages that wait for it.
    """

    endpoint: Endpoint
    member: str
    groups: tuple[int, ...]
    state: LinkState
    since: float
    failures: int
    retry_at: float | None
    last_error: BaseException | None
    unsent: int


@frozen(eq=False, repr=False)  # equal to any mapping of the same numbers
class Unsent(Mapping[str, int]):
    """How many messages wait, by queue: ``unsent["a:1"]`` or ``unsent[endpoint]``.

    ``unsent[""]`` are those that no group could take. What is not among them is 0.
    """

    _queues: Mapping[str, int]

    def __getitem__(self, queue: str | Endpoint) -> int:
        return self._queues.get(str(queue), 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, queue: object) -> bool:
        return str(queue) in self._queues

    def __repr__(self) -> str:
        counts = (f"{queue or 'whoever is back first'}: {n}" for queue, n in self._queues.items())
        return f"<Unsent {', '.join(counts) or 'nothing'}>"

    @property
    def everywhere(self) -> int:
        """Those that no group could take."""
        return self[GLOBAL]

    @property
    def total(self) -> int:
        return sum(self._queues.values())
