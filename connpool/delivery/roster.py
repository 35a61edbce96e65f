"""The links of a route: which group is active, and which links come and go when the route changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from typing import TypeVar

from connpool.delivery.link import Link
from connpool.delivery.spool import Spool
from connpool.errors import SpoolError
from connpool.model.delivery import GLOBAL, LinkState, member_of, queue_of
from connpool.model.endpoint import Endpoint
from connpool.model.route import Member, Route

__all__ = ["Roster"]

T = TypeVar("T")


def _is_astray(link: Link) -> bool:
    strand = link.strand
    return strand is not None and strand.endpoint not in link.member


def kin_of(members: Mapping[T, Member | None]) -> Callable[[Member | None], list[T]]:
    """What tells which of *members* have an endpoint in common with another, in their order."""
    places: dict[Endpoint, list[tuple[int, T]]] = {}
    for place, (whose, member) in enumerate(members.items()):
        for endpoint in member or ():
            places.setdefault(endpoint, []).append((place, whose))

    def find(member: Member | None) -> list[T]:
        found = dict(at for endpoint in member or () for at in places.get(endpoint, ()))
        return [found[place] for place in sorted(found)]

    return find


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

    def follow(
        self, route: Route | None, now: float, waiting: Iterable[str] = ()
    ) -> tuple[list[Link], list[Link]]:
        """Take *route* as the new one. Returns the links to open and those to take down.

        A member that was edited, and has an endpoint in common with what it was, keeps its link, whose queue
        goes before what is to come. If it has lost the endpoint that it is connected to, the link is both to
        be taken down and to be opened.

        Args:
            waiting: The queues in which messages wait. What no member of the route has is for the first
                that has an endpoint in common with it, if there is one. So is what has an heir already: who
                follows at the same time may know of more.
        """
        inherited = [queue for link in self.links.values() for queue in link.heirlooms]
        before = dict.fromkeys(self.links.values())
        members = {queue_of(member): member for group in (route.groups if route else ()) for member in group}
        after = self._kept_for(members)
        staying = set(after.values())
        gone = [link for link in before if link not in staying]
        owned = {link.queue for link in after.values()}
        full = dict.fromkeys(queue for queue in (*waiting, *inherited) if queue not in owned)
        fresh = members.keys() - after.keys()
        left = {queue: member_of(queue) for queue in full if queue not in fresh}
        formers = kin_of(left)
        for name, member in members.items():
            if name not in after:
                queue = self._queue_for(member, owned, formers(member) if name not in full else [])
                owned.add(queue)
                after[name] = Link(member, now, self._spool, queue)
        self.route, self.links = route, {name: after[name] for name in members}
        self.groups = tuple(
            tuple(after[queue_of(member)] for member in group) for group in (route.groups if route else ())
        )
        self._bequeath({queue: member for queue, member in left.items() if queue not in owned})
        numbers: dict[Link, list[int]] = {link: [] for link in (*after.values(), *gone)}
        for number, links in enumerate(self.groups):
            for link in links:
                numbers[link].append(number)
        for link, its in numbers.items():
            link.groups = tuple(its)
        new = [link for link in self.links.values() if link not in before]
        astray = [link for link in after.values() if _is_astray(link)]
        return [*new, *astray], [*gone, *astray]

    def _kept_for(self, members: Mapping[str, Member]) -> dict[str, Link]:
        """The links that stay, by the names of the *members* to which they lead from now on."""
        kept = {name: self.links[name] for name in members if name in self.links}
        free = {link: link.member for name, link in self.links.items() if name not in kept}
        formers = kin_of(free)
        for name, member in members.items():
            link = next((link for link in formers(member) if name not in kept and link in free), None)
            if link is not None:
                del free[link]
                link.lead_to(member)
                kept[name] = link
        return kept

    def waiting(self) -> list[str]:
        """The queues in which messages wait, but for that of all. To be asked without the lock."""
        with suppress(SpoolError):  # it is closed
            counts = {} if self._spool is None else self._spool.counts()
            return [queue for queue, count in counts.items() if count.messages and queue != GLOBAL]
        return []

    def by_member(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """*counts* of queues, by the present names of those who are on the route."""
        names = {link.queue: link.name for link in list(self.links.values())}
        totals = Counter[str]()
        for queue, count in counts.items():
            totals[names.get(queue, queue)] += count
        return dict(totals)

    @staticmethod
    def _queue_for(member: Member, owned: Set[str], left: Iterable[str]) -> str:
        """The queue of a new link: that of its name, unless one that is *left* is to be its."""
        queue = next((queue for queue in left if queue not in owned), queue_of(member))
        while queue in owned:
            queue += f", {member.endpoints[0]}"  # has its name from earlier times, when this was part of it
        return queue

    def _bequeath(self, left: Mapping[str, Member | None]) -> None:
        """Give the messages in queues that are nobody's to links that may send them."""
        for link in self.links.values():
            link.heirlooms = ()
        heirs = kin_of({link: link.member for link in self.links.values()})
        for queue, former in left.items():
            for heir in heirs(former)[:1]:
                heir.heirlooms += (queue,)

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
        return self.links.get(link.name) is link

    def _is_living(self, number: int) -> bool:
        return any(link.state is LinkState.ALIVE for link in self.groups[number])
