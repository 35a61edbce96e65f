"""The way of most messages: what holds until a link lives or dies, worked out once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from attrs import define, field

from connpool.delivery.link import Link
from connpool.delivery.strand import Parcel
from connpool.model.delivery import Delivery, LinkState
from connpool.model.endpoint import Endpoint

__all__ = ["Plan", "Shares", "plan_for", "shares_of", "who_have"]

Shares: TypeAlias = tuple[tuple[Endpoint, ...], tuple[str, ...], tuple[str, ...]]


@define(eq=False)
class Plan:
    """Where messages go for now: to these *links*, and to the queues of the *absent*.

    Attributes:
        number: Of the group.
        delivery: What becomes of a message that all of them take, where none is absent.
    """

    number: int
    links: tuple[Link, ...]
    absent: tuple[Link, ...]
    delivery: Delivery
    _last: tuple[tuple[Link, ...], Shares] = field(default=((), ((), (), ())), init=False)

    def shares(self, late: tuple[Link, ...], parcel: Parcel) -> Shares:
        """Who has *parcel*, for which *late* ones were not ready; their members and their queues.

        A link that is late for one message is late for the next, so the last answer is kept.
        """
        if parcel.reached:
            return shares_of(who_have(parcel, (link for link in self.links if link not in late)), late)
        last = self._last
        if last[0] != late:
            sent = tuple(link.endpoint for link in self.links if link not in late)
            last = self._last = late, shares_of(sent, late)
        return last[1]


def shares_of(sent: tuple[Endpoint, ...], late: Sequence[Link]) -> Shares:
    """What *sent* have, and links that are too *late* have to have from their queues."""
    return sent, tuple(link.name for link in late), tuple(link.queue for link in late)


def who_have(parcel: Parcel, links: Iterable[Link]) -> tuple[Endpoint, ...]:
    """The endpoints that have *parcel*, which was sent to *links*."""
    return tuple(parcel.reached.get(link.queue, link.endpoint) for link in links)


def plan_for(number: int, links: tuple[Link, ...], *, may_spool: bool) -> Plan | None:
    """The plan while group *number* is active; None: each message has to look for itself."""
    living = tuple(link for link in links if link.state is LinkState.ALIVE)
    absent = tuple(link for link in links if link.state is LinkState.DEAD)
    is_settled = len(living) + len(absent) == len(links)
    if not living or not is_settled or (absent and not may_spool):
        return None
    return Plan(number, living, absent, Delivery(sent=tuple(link.endpoint for link in living), group=number))
