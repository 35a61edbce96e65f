"""The links of a route: which group is active, and who joins or leaves when the route changes."""

from __future__ import annotations

import math

from connpool.delivery.link import Link
from connpool.delivery.spool import Spool
from connpool.model.delivery import LinkState
from connpool.model.endpoint import Endpoint
from connpool.model.route import Route

__all__ = ["Roster"]


class Roster:
    """All links of one broadcaster, by group. With the office's lock held.

    Args:
        fail_back_after: Seconds for which a link of an earlier group has to live before that takes over
            from a later one that lives, too.
        failover: Whether any group but the first is used.
    """

    def __init__(self, spool: Spool | None, *, fail_back_after: float, failover: bool) -> None:
        self._spool = spool
        self._fail_back_after = fail_back_after
        self._failover = failover
        self.route: Route | None = None
        self.links: dict[str, Link] = {}
        self.groups: tuple[tuple[Link, ...], ...] = ()
        self.active: int | None = None  # the number of the group that messages go to
        self.switch_at = math.inf  # when an earlier group will have lived long enough

    def follow(self, route: Route | None, now: float) -> tuple[list[Link], list[Link]]:
        """Take *route* as the new one. Returns the links that have come and those that have gone."""
        before = self.links
        after: dict[str, Link] = {}
        groups = []
        for group in route.groups if route else ():
            links = []
            for member in group.members:
                fresh = Link(member, now, self._spool)
                links.append(after.setdefault(fresh.queue, before.get(fresh.queue, fresh)))
            groups.append(tuple(links))
        self.route, self.links, self.groups = route, after, tuple(groups)
        gone = [link for queue, link in before.items() if queue not in after]
        for link in (*after.values(), *gone):
            link.groups = tuple(number for number, links in enumerate(groups) if link in links)
        return [link for queue, link in after.items() if queue not in before], gone

    def refresh(self, now: float) -> None:
        """Find the active group: the first that has a link that lives, unless it has just come back."""
        self.switch_at = math.inf
        living = [number for number in range(len(self.groups)) if self._is_living(number)]
        if not self._failover:
            living = [number for number in living if number == 0]
        if not living:
            return  # the last one stays it in name: nobody can take its place
        best = living[0]
        if self.active in living and best < self.active:
            ripe_at = min(link.since for link in self.groups[best] if link.state is LinkState.ALIVE)
            ripe_at += self._fail_back_after
            if now < ripe_at:
                self.switch_at = ripe_at
                return
        self.active = best

    def in_turn(self) -> list[tuple[int, tuple[Link, ...]]]:
        """The groups in the order in which a message tries them."""
        numbers = list(range(len(self.groups)))
        if not self._failover:
            numbers = numbers[:1]
        elif self.active is not None and self.active < len(numbers) and self._is_living(self.active):
            numbers.remove(self.active)
            numbers.insert(0, self.active)
        return [(number, self.groups[number]) for number in numbers]

    def find(self, endpoint: Endpoint) -> list[Link]:
        """The links that lead to *endpoint*, or may."""
        return [link for link in self.links.values() if endpoint in link.member.endpoints]

    def has(self, link: Link) -> bool:
        """Whether *link* is on the route. One whose member left and came back is not: that has another."""
        return self.links.get(link.queue) is link

    def _is_living(self, number: int) -> bool:
        return any(link.state is LinkState.ALIVE for link in self.groups[number])
