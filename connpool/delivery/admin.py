"""The operator's half of a broadcaster's public methods: its links, and the route they follow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from connpool import clock as real
from connpool.delivery.words import links_of, require_open
from connpool.errors import ConfigError
from connpool.model.checks import is_whole, require_seconds
from connpool.model.delivery import LinkInfo, LinkState
from connpool.model.endpoint import Endpoint
from connpool.model.route import Group, Member, Route
from connpool.model.uncopied import Uncopied

if TYPE_CHECKING:
    from connpool.delivery.keeping import Keeping
    from connpool.delivery.link import Link
    from connpool.delivery.office import Office
    from connpool.pool.pool import ConnectionPool

__all__ = ["Admin", "require_places"]

LOOK: Final = 1.0  # seconds after which a waiting thread sees to it that upkeep runs


def require_places(pool: ConnectionPool, route: Route | None) -> None:
    """Refuse a route some of whose members could never be connected.

    Raises:
        ConfigError: *pool* has not a place for each.
    """
    n_members = 0 if route is None else len({m for g in route.groups for m in g.members})
    if n_members > pool.config.max_size:
        raise ConfigError(
            f"pool {pool.name!r}: max_size={pool.config.max_size} is too little for {n_members} members",
            pool=pool.name,
        )


class Admin(Uncopied):
    """What a program's operator calls; ``Broadcaster`` adds what its threads call."""

    pool: ConnectionPool
    _office: Office
    _keeping: Keeping

    def links(self) -> tuple[LinkInfo, ...]:
        """Each link as it stands, in the order of the route."""
        return links_of(self._office)

    @property
    def ready(self) -> bool:
        """Whether a message would be sent at once to somebody."""
        takes_any = self._office.settings.failover
        return any(link.state is LinkState.ALIVE and (takes_any or 0 in link.groups) for link in self.links())

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until a member lives that messages may go to. False: none does within *timeout* seconds.

        Like a message it has a later group dialled, where that is done on demand, if all before it are dead.
        """
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        office = self._office
        office.rouse()
        until = math.inf if timeout is None else real.now() + timeout
        left, is_woken = math.inf, True
        while (is_woken or left > LOOK) and not (self.ready or office.is_closed):
            for link in self._untried():
                office.want(link)
            office.expect_soon()  # there were no threads, perhaps, and upkeep has none either
            left = max(0.0, until - real.now())
            with office.settled:
                is_woken = office.settled.wait_for(
                    lambda: self.ready or office.is_closed or bool(self._untried()), min(left, LOOK)
                )
        return self.ready

    def _untried(self) -> list[Link]:
        """The links that a message would have opened now, and nobody has."""
        groups = self._office.roster.groups
        for links in groups if self._office.settings.failover else groups[:1]:
            if any(link.state is not LinkState.DEAD for link in links):
                return [link for link in links if link.state is LinkState.NEW and not link.is_wanted]
        return []

    def mark_dead(self, endpoint: Endpoint | str) -> None:
        """Close the link to *endpoint*; it is opened again after the back-off. Does nothing if it is dead.

        Nor does it if its member is a list and has a connection to another endpoint of that.

        Raises:
            UnknownEndpointError: no member of the route leads there.
        """
        if self._keeping.links_to(endpoint):
            self._office.fail_endpoint(Endpoint.of(endpoint), None)

    def mark_alive(self, endpoint: Endpoint | str) -> None:
        """Try at once to open the link to *endpoint*. Does nothing if it lives.

        Raises:
            UnknownEndpointError: no member of the route leads there.
        """
        for link in self._keeping.links_to(endpoint):
            self._office.want(link)

    def add(self, endpoint: Endpoint | str, group: int = 0) -> None:
        """Make *endpoint* a member of group number *group* of the pool's route.

        Args:
            group: From 0; as many as there are: of a new group.

        Raises:
            ConfigError: there is no such group, or the pool has not a place for one more member.
            PoolClosedError: the broadcaster is closed.
        """
        require_open(self._office)
        member = Member((Endpoint.of(endpoint),))

        def joined(route: Route | None) -> Route:
            groups = [] if route is None else list(route.groups)
            if not is_whole(group) or not 0 <= group <= len(groups):
                raise ConfigError(f"group must be 0 to {len(groups)}, got {group!r}")
            if group == len(groups):
                groups.append(Group((member,)))
            else:
                groups[group] = Group((*groups[group].members, member))
            longer = Route(tuple(groups))
            require_places(self.pool, longer)
            return longer

        self.pool._reroute(joined)

    def remove(self, endpoint: Endpoint | str) -> None:
        """Take *endpoint* out of the pool's route. What is spooled for it stays, in case it is added again.

        What is spooled for a list that it is taken out of is for the rest of that list.

        Raises:
            UnknownEndpointError: it is not on the route.
            PoolClosedError: the broadcaster is closed.
        """
        require_open(self._office)
        self._keeping.links_to(endpoint)
        gone = Endpoint.of(endpoint)

        def left(route: Route | None) -> Route | None:
            kept = [
                [[each for each in member.endpoints if each != gone] for member in group.members]
                for group in (route.groups if route else ())
            ]
            groups = [Group(tuple(Member(tuple(member)) for member in group)) for group in kept if any(group)]
            return Route(tuple(groups)) if groups else None

        self.pool._reroute(left)

    @property
    def required_permission(self) -> frozenset[str]:
        """What a peer must grant before its link is used; see ``SocketConnector.permissions``.

        It may be set to a single text as well.
        """
        return frozenset(self.pool.config.required_permissions)

    @required_permission.setter
    def required_permission(self, value: Any) -> None:
        self.pool.configure(required_permissions=[value] if isinstance(value, str) else value)
