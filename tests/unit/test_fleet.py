"""Whose turn it is: asked without the lock, by who has taken a key without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from connpool import Endpoint, Route
from connpool.pool.fleet import Fleet
from connpool.pool.hosts import Host


class Shown(Fleet):
    """Keeps each rota that could be seen of it, and shows *others* first, one to each look."""

    def __init__(self, *others: tuple[Host, ...]) -> None:
        self.seen: list[tuple[Host, ...]] = []
        self._others = list(others)
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        return self._others.pop(0) if name == "rota" and self._others else super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "rota":
            self.seen.append(value)


def test_a_host_that_leaves_while_its_turn_is_asked_for_has_one_or_none() -> None:
    host = Host(Endpoint("a", 1), now=0.0)
    assert Shown((host,), ()).turn_of(host) == 0
    assert Shown((), (host,)).turn_of(host) is None


def test_who_looks_during_a_refresh_sees_the_hosts_of_before_or_those_of_after() -> None:
    fleet = Shown()
    fleet.follow(Route.parse("a:1, b:1 || c:1"), 0.0)
    fleet.refresh(0.0, 2, lends=True)
    a, b, c = fleet.hosts.values()
    a.blacklist(0.0, 9.0, by_hand=True)
    fleet.refresh(1.0, 2, lends=True)
    b.blacklist(1.0, 9.0, by_hand=True)
    fleet.refresh(2.0, 2, lends=True)
    assert fleet.seen == [(), (a, b), (b,), (c,)]


def test_what_is_put_back_lies_where_it_was_released() -> None:
    host = Host(Endpoint("a", 1), now=0.0)
    keys: dict[int, Any] = {n: SimpleNamespace(record=SimpleNamespace(since=n)) for n in (1, 2, 3, 4)}
    host.idle.extend(keys[since] for since in (1, 2, 4))
    host.put_back(keys[3])
    assert [key.record.since for key in host.idle] == [1, 2, 3, 4]
    host.withdraw(keys[4])
    host.put_back(keys[4])
    assert [key.record.since for key in host.idle] == [1, 2, 3, 4]


def test_a_host_off_the_route_is_not_forgotten_before_it_is_told_that_it_is_up() -> None:
    fleet = Fleet()
    host = fleet.host(Endpoint("a", 1), 0.0)
    host.blacklist(0.0, 9.0, by_hand=True)
    host.was_up = False
    host.lift(1.0)
    fleet.forget_empty()
    assert host.endpoint in fleet.hosts
    host.was_up = True
    fleet.forget_empty()
    assert host.endpoint not in fleet.hosts
