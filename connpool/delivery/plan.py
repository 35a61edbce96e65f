"""The way of most messages: what holds until a link lives or dies, worked out once."""

from __future__ import annotations

from attrs import frozen

from connpool.delivery.link import Link
from connpool.model.delivery import Delivery, LinkState

__all__ = ["Plan", "plan_for"]


@frozen
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


def plan_for(number: int, links: tuple[Link, ...], *, may_spool: bool) -> Plan | None:
    """The plan while group *number* is active; None: each message has to look for itself."""
    living = tuple(link for link in links if link.state is LinkState.ALIVE)
    absent = tuple(link for link in links if link.state is LinkState.DEAD)
    is_settled = len(living) + len(absent) == len(links)
    if not living or not is_settled or (absent and not may_spool):
        return None
    return Plan(number, living, absent, Delivery(sent=tuple(link.endpoint for link in living), group=number))
