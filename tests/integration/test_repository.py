"""Named pools: made once, found by name, gone when they are closed."""

from __future__ import annotations

import contextlib
import gc
import inspect
import socket
import sys
import threading
import weakref
from types import FrameType
from typing import Any

import pytest

import connpool
from connpool import (
    CloseReason,
    ConfigError,
    ConnectionPool,
    DuplicatePoolError,
    PoolClosed,
    PoolClosedError,
    PoolState,
    Repository,
    UnknownPoolError,
    UsageError,
    registry,
)
from connpool.testing import ScriptedServer
from tests.helpers.forks import held_by_another, in_child
from tests.helpers.switchboard import Switchboard, until
from tests.helpers.together import together


def test_a_name_and_the_same_settings_give_the_same_pool() -> None:
    with Repository(max_size=3) as repo:
        pool = repo.new("orders", "a:1 && b:1", min_idle=0)
        assert repo.new("orders", "a:1&&b:1") is repo["orders"] is pool
        assert repo.new("orders", "a:1 && b:1", max_size=3) is pool
        assert (pool.name, pool.config.max_size) == ("orders", 3)
        assert [*repo] == ["orders"]
        assert len(repo) == 1
        assert "orders" in repo
        assert "order" not in repo
        assert 7 not in repo


def test_a_repository_takes_every_route_that_a_pool_takes() -> None:
    kinds = [
        inspect.signature(takes).parameters["route"].annotation for takes in (Repository.new, ConnectionPool)
    ]
    assert kinds[0] == kinds[1]
    with Repository() as repo:
        assert str(repo.new("orders", ["a:1", "b:1"]).route) == "a:1, b:1"


@pytest.mark.parametrize(
    ("route", "settings", "said"),
    [
        ("b:1", {}, "route 'a:1', asked for 'b:1'"),
        (None, {}, "route 'a:1', asked for none"),
        ("a:1", {"max_size": 4}, "max_size 10, asked for 4"),
        (
            "a:1",
            {"max_size": 4, "revive": "force"},
            "max_size 10, asked for 4; revive False, asked for 'force'",
        ),
        ("a:1", {"connector": Switchboard()}, "another connector"),
    ],
)
def test_other_settings_are_an_error_that_names_the_difference(
    route: str | None, settings: dict[str, Any], said: str
) -> None:
    with Repository("mine") as repo:
        pool = repo.new("orders", "a:1")
        with pytest.raises(DuplicatePoolError) as caught:
            repo.new("orders", route, **settings)
        assert str(caught.value) == f"repository 'mine' has a pool 'orders' with {said}"
        assert isinstance(caught.value, ValueError)
        assert repo["orders"] is pool
        assert pool.stats().state is PoolState.OPEN


def test_what_was_changed_at_run_time_does_not_make_it_another_pool() -> None:
    with Repository() as repo:
        pool = repo.new("orders", "a:1")
        pool.resize(max_size=4)
        pool.route = "b:1"
        assert repo.new("orders", "a:1") is pool


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with Repository("mine") as repo:
        repo.new("orders", "a:1")
        for ask in (repo.__getitem__, repo.get_from_pool, repo.remove):
            with pytest.raises(
                UnknownPoolError, match=r"'mine' has no pool 'order' \(the nearest one is 'orders'\)"
            ):
                ask("order")
        with pytest.raises(KeyError):
            repo.add_to_pool("x", object())
        assert [] not in repo


def test_a_wrong_setting_takes_no_name() -> None:
    with pytest.raises(ConfigError, match="max_size"):
        Repository(max_size=0)
    with Repository() as repo:
        with pytest.raises(ConfigError, match="nearest known one is 'max_size'"):
            repo.new("orders", "a:1", max_sise=3)
        with pytest.raises(connpool.RouteSyntaxError):
            repo.new("orders", "a:1 &")
        assert len(repo) == 0
        repo.new("orders", "a:1", max_size=3)


def test_a_pool_that_is_closed_leaves_and_its_name_is_free() -> None:
    repo = Repository()
    for n in range(3):
        pool = repo.new("orders", "a:1", max_size=n + 1)
        assert pool.config.max_size == n + 1
        pool.close()
        assert "orders" not in repo
        assert [*repo] == []


def test_a_pool_that_is_closed_the_moment_it_can_be_found_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def close_at_once(entry: registry.Entry, name: str, value: Any) -> None:
        object.__setattr__(entry, name, value)
        if isinstance(value, ConnectionPool):
            value.close()

    monkeypatch.setattr(registry.Entry, "__setattr__", close_at_once)
    repo = Repository()
    assert repo.new("orders").stats().state is PoolState.CLOSED
    assert repo._entries == {}


def test_who_hears_that_a_pool_was_closed_finds_it_no_more_and_can_make_another_of_that_name() -> None:
    made = []

    def make_another(_: object) -> None:
        assert "orders" not in repo
        made.append(repo.new("orders", "b:1"))

    with Repository() as repo:
        old = repo.new("orders", "a:1")
        old.listen(make_another, PoolClosed)
        old.close()
        assert made == [repo["orders"]]
        assert made[0].stats().state is PoolState.OPEN


def test_at_the_end_of_its_block_a_repository_closes_its_pools() -> None:
    with Repository() as repo:
        pool = repo.new("orders", "a:1", connector=Switchboard())
    assert pool.stats().state is PoolState.CLOSED


def test_a_pool_that_is_removed_goes_on() -> None:
    with ScriptedServer() as server, Repository() as repo:
        pool = repo.new("orders", server.endpoint)
        assert repo.remove("orders") is pool
        assert "orders" not in repo
        assert repo.new("orders", server.endpoint) is not pool
        with pool, pool.try_connect(timeout=5) as conn:
            conn.sendall(b"x")
        assert "orders" in repo, "the end of the old one is not the new one's"


def test_the_end_of_all_has_one_deadline_and_says_what_is_still_lent() -> None:
    with ScriptedServer() as server:
        repo = Repository()
        loans = [repo.new(name, server.endpoint).try_connect(timeout=5) for name in "abc"]
        loans.pop().release()
        assert repo.stats()["a"].in_use == 1
        assert repo.close(timeout=0.1) == 2
        assert len(repo) == 0
        for loan in loans:
            loan.terminate()
        assert repo.close() == 0
        repo.new("a", server.endpoint)
        repo.close()


def test_what_one_pool_took_of_the_deadline_the_next_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given, close = [], ConnectionPool.close

    def note(pool: ConnectionPool, timeout: float | None = None) -> int:
        given.append(timeout)
        return close(pool, timeout)

    repo = Repository(connector=Switchboard())
    loans = [repo.new(name, "a:1").try_connect() for name in ("first", "second")]
    monkeypatch.setattr(ConnectionPool, "close", note)
    assert repo.close(timeout=0.1) == 2
    assert given[-1] == 0.0
    for loan in loans:
        loan.release()


def test_no_pool_lends_while_another_is_waited_for_and_each_has_its_grace() -> None:
    repo = Repository(connector=Switchboard())
    pools = [repo.new(name, "a:1") for name in ("first", "second", "third")]
    loans = [pool.try_connect() for pool in pools]
    left: list[int] = []
    closer = threading.Thread(target=lambda: left.append(repo.close(timeout=10)))
    closer.start()
    for pool in pools:
        until(lambda pool=pool: pool.stats().state is PoolState.CLOSED, "a pool that is closed")
        with pytest.raises(PoolClosedError):
            pool.try_connect(timeout=0)
    loans[2].release()  # not cut off, though two others are waited for before it
    loans[1].release()
    loans[0].release()
    closer.join(10)
    assert left == [0]
    assert [pool.stats().closed[CloseReason.POOL_CLOSED] for pool in pools] == [1, 1, 1]


def test_pools_are_made_with_the_connector_of_the_repository_if_they_name_none() -> None:
    common, own = Switchboard(), Switchboard()
    with Repository(connector=common) as repo:
        for n, settings in enumerate(({}, {"connector": own})):
            repo.new(f"pool {n}", "a:1", **settings).try_connect().release()
        assert (len(common.lines), len(own.lines)) == (1, 1)


def test_two_repositories_never_mix() -> None:
    with Repository("ab") as one, Repository("a") as other:
        pools = {one.new("c", "a:1"), other.new("bc", "a:1"), one.new("bc", "a:1"), other.new("c", "a:1")}
        assert len(pools) == 4
        one["c"].close()
        assert "c" in other


def test_thirty_two_threads_make_one_pool_and_one_repository() -> None:
    name = f"test-{threading.get_ident()}"
    for n in range(20):
        gone = threading.Barrier(32)

        def ask(n: int = n, gate: threading.Barrier = gone) -> tuple[Repository, ConnectionPool]:
            gate.wait(5)
            home = connpool.repository(f"{name}-{n}")
            return home, home.new("orders", "a:1")

        found = together(*[ask] * 32)
        assert len({id(home) for home, _ in found}) == 1
        assert len({id(pool) for _, pool in found}) == 1
        found[0][0].close()
    assert connpool.repository() is connpool.repository("default")


def test_threads_that_ask_while_a_repository_is_made_get_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str) -> Repository:
        threading.Event().wait(0.05)  # time for the others to come
        return Repository(name)

    monkeypatch.setattr(registry, "Repository", make)
    found = together(*[lambda: connpool.repository("slowly made")] * 4)
    assert len({id(home) for home in found}) == 1


def test_a_signal_handler_or_a_finaliser_may_ask_for_pools_wherever_it_comes() -> None:
    def interrupted_at(n: int) -> int:
        """Have the *n*-th line interrupted. Returns how many there are, or *n* at least."""
        name, lines, visits = f"interrupted {n}", 0, []

        def on_line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            if lines == n and not visits:
                home = connpool.repository(name)
                visits.append(home)
                with contextlib.suppress(UsageError):  # that very pool is being made
                    visits.append(home.new("orders", "a:1"))
                assert {*home.stats()} <= {"orders", "removed"}
                home.new("other", "a:1").close()
            return on_line

        sys.settrace(lambda frame, *_: on_line if frame.f_code.co_filename == registry.__file__ else None)
        try:
            home = connpool.repository(name)
            pool = home.new("orders", "a:1")
            assert [*home] == ["orders"]
            home.new("removed", "a:1").close()
            home.new("removed", "a:1")
            home.remove("removed").close()
            assert home["orders"] is pool
        finally:
            sys.settrace(None)
        assert visits in ([], [home], [home, pool])
        home.close()
        return lines

    def work() -> None:
        n = 1
        while interrupted_at(n) >= n:
            n += 1
        assert n > 50

    together(work, limit=20)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_who_asks_for_a_pool_while_it_is_made_waits_and_takes_over_if_that_fails(
    error: type[BaseException],
) -> None:
    repo, answers = Repository(), [threading.Event(), threading.Event()]

    class Slow(Switchboard):
        """Its first use, in the making of a pool, fails when the test says so."""

        n = 0

        def __getattr__(self, name: str) -> Any:
            if name == "handshake" and Slow.n == 0:
                Slow.n += 1
                answers[0].set()
                assert answers[1].wait(10)
                raise error("the connector is broken")
            raise AttributeError(name)

    connector = Slow()

    def first() -> None:
        with pytest.raises(error):
            repo.new("orders", "a:1", connector=connector)

    def second() -> None:
        assert answers[0].wait(10)
        assert "orders" not in repo
        assert [*repo] == []
        threading.Timer(0.05, answers[1].set).start()
        assert repo.new("orders", "a:1", connector=connector) is repo["orders"]

    together(first, second)
    repo.close()


def test_a_pool_that_asks_for_itself_while_it_is_made_is_told() -> None:
    repo = Repository()
    met: list[BaseException] = []

    class Curious(Switchboard):
        def __getattr__(self, name: str) -> Any:
            if name == "handshake" and not met:
                try:
                    repo.new("orders", "a:1", connector=self)
                except UsageError as error:
                    met.append(error)
            raise AttributeError(name)

    repo.new("orders", "a:1", connector=Curious())
    assert "being made by this very thread" in str(met[0])
    repo.close()


def test_sockets_go_in_and_out() -> None:
    with Repository() as repo:
        repo.new("pairs", max_size=2)
        ours, theirs = socket.socketpair()
        with theirs:
            repo.add_to_pool("pairs", ours)
            with pytest.raises(UsageError):
                repo.add_to_pool("pairs", ours)
            assert repo.get_from_pool("pairs") is ours
            assert repo.get_from_pool("pairs") is None
            ours.close()
            with pytest.raises(UsageError):
                repo.add_to_pool("pairs", ours)


def test_a_dead_one_on_the_way_is_dropped() -> None:
    with Repository() as repo:
        repo.new("pairs", max_size=2)
        pairs = [socket.socketpair() for _ in range(2)]
        for ours, _ in pairs:
            repo.add_to_pool("pairs", ours)
        pairs[1][1].close()
        assert repo.get_from_pool("pairs") is pairs[0][0]
        assert repo.stats()["pairs"].size == 0
        pairs[0][0].close()
        pairs[0][1].close()


def test_a_forgotten_repository_is_collected_with_its_pools() -> None:
    repo = Repository()
    seen = [weakref.ref(repo), weakref.ref(repo.new("orders", "a:1"))]
    del repo
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_a_pool_keeps_no_forgotten_repository_alive() -> None:
    repo = Repository()
    seen = weakref.ref(repo)
    with repo.new("orders", "a:1"):
        del repo
        gc.collect()
        assert seen() is None


def test_a_forked_child_has_the_repository_and_pools_of_its_own() -> None:
    with ScriptedServer() as server:
        home = connpool.repository("forked")
        pool = home.new("orders", server.endpoint)
        pool.try_connect(timeout=5).release()

        def job() -> tuple[bool, int]:
            mine = connpool.repository("forked")
            with mine["orders"].try_connect(timeout=5) as conn:
                conn.sendall(b"x")
            return mine is home, mine["orders"].stats().opened

        with held_by_another(home._lock):
            assert in_child(job) == (True, 1)
        home.close()


def test_a_forked_child_waits_for_nothing_that_the_parent_is_making() -> None:
    home, is_making, may_go = Repository(), threading.Event(), threading.Event()

    class Slow(Switchboard):
        """Its first use, in the making of a pool, lasts until the test says so."""

        def __getattr__(self, name: str) -> Any:
            is_making.set()
            assert may_go.wait(20)
            raise AttributeError(name)

    connector = Slow()

    def make() -> None:
        home.new("orders", "a:1", connector=connector)

    def ask() -> None:
        assert is_making.wait(10)

        def job() -> str:
            may_go.set()  # the child's own
            return home.new("orders", "a:1", connector=connector).name

        try:
            with held_by_another(connpool.registry._HOMES.lock):
                assert in_child(job) == "orders"
                assert in_child(lambda: connpool.repository("the child's").name) == "the child's"
        finally:
            may_go.set()

    together(make, ask, limit=60)
    home.close()


def test_ten_thousand_names_cost_one_thread() -> None:
    before = threading.active_count()
    with Repository(min_idle=0, keepalive_interval=600) as repo:
        for n in range(2_000):
            repo.new(f"pool {n}", f"a:{n + 1}", connector=None)
        assert len(repo) == 2_000
        assert threading.active_count() <= before + 1
