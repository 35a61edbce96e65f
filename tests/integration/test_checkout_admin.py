"""What a pool tells of itself, and what may be changed while it lends."""

from __future__ import annotations

import threading

import pytest

from connpool import (
    CloseReason,
    ConfigError,
    ConnectionPool,
    ConnState,
    Endpoint,
    EndpointState,
    NoEndpointError,
    PoolConfig,
    PoolExhaustedError,
)
from connpool.testing import Ending, FakeClock, ScriptedServer, Send
from tests.helpers.together import together


def test_the_numbers_of_a_story_add_up_per_endpoint(clock: FakeClock) -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint], clock=clock, name="orders") as pool,
    ):
        one, two = (pool.try_connect(a.endpoint, timeout=5) for _ in range(2))
        three = pool.try_connect(b.endpoint, timeout=5)
        one.release()
        two.terminate()
        told_a, told_b = pool.endpoints()
        assert (told_a.endpoint, told_a.size, told_a.idle, told_a.group) == (a.endpoint, 1, 1, 0)
        assert (told_b.endpoint, told_b.size, told_b.idle, told_b.group) == (b.endpoint, 1, 0, 0)
        assert told_a.state is told_b.state is EndpointState.UP
        stats = pool.stats()
        assert (stats.name, stats.size, stats.idle, stats.in_use) == ("orders", 2, 1, 1)
        assert (stats.checkouts, stats.opened, stats.closed) == (3, 3, {CloseReason.TERMINATED: 1})
        three.release()
        assert pool.stats().idle == 2
        assert stats.idle == 1, "a snapshot stays what it was"


def test_snapshots_are_copies_that_survive_what_comes_after() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(4)]
        for conn, _ in zip(conns, pool.connections(), strict=True):
            conn.terminate()
        before = pool.stats()
        assert pool.connections() == ()
        with pytest.raises(AttributeError):
            before.idle = 3  # type: ignore[misc]
        infos = [info.state for info in pool.connections()]
        assert infos == []


def test_lists_may_be_read_while_others_change_them() -> None:
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            assert all(isinstance(info.state, ConnState) for info in pool.connections())
            assert len(pool.endpoints()) == 1

    def change() -> None:
        try:
            for _ in range(100):
                pool.try_connect(timeout=5).terminate()
        finally:
            is_over.set()

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=4) as pool:
        together(read, read, change, limit=20)


def test_who_holds_what_since_when(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, max_size=1) as pool:
        lent, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with pool.try_connect(timeout=20):
                lent.set()
                assert go_on.wait(10)

        holder = threading.Thread(target=hold, name="worker-4", daemon=True)
        holder.start()
        assert lent.wait(10)
        clock.advance(12)
        (info,) = pool.connections()
        assert (info.holder, info.state, clock.now() - info.since) == ("worker-4", ConnState.IN_USE, 12)
        with pytest.raises(PoolExhaustedError) as told:
            pool.try_connect(timeout=0)
        assert "1 of 1" in str(told.value)
        for text in (repr(pool), str(pool.connections())):
            assert "worker-4" in text or pool.stats().name in text
        go_on.set()
        holder.join(10)


def test_the_lowered_limit_is_reached_as_loans_come_back() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=8) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(8)]
        server.until_accepts(8)
        pool.resize(max_size=2)
        assert pool.stats().size == 8, "nobody is cut off"
        sizes = []
        for conn in conns:
            conn.release()
            sizes.append(pool.stats().size)
        assert sizes[-1] == 2
        assert sizes == sorted(sizes, reverse=True)
        server.until_open(2)
        assert pool.stats().closed == {CloseReason.SURPLUS: 6}
        conns = [pool.try_connect(timeout=5) for _ in range(2)]
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        pool.resize(max_size=3)
        conns.append(pool.try_connect(timeout=5))
        for conn in conns:
            conn.release()


def test_idle_ones_too_many_are_closed_at_once() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=4) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(4)]
        server.until_accepts(4)
        for conn in conns:
            conn.release()
        pool.resize(max_size=1)
        server.until_open(1)
        assert (pool.stats().size, pool.config.max_size) == (1, 1)


def test_a_raised_limit_serves_who_waits(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        held = pool.try_connect(timeout=20)

        def raise_limit() -> None:
            clock.until_waiting(1)
            pool.resize(max_size=2)

        together(lambda: pool.try_connect(timeout=20).release(), raise_limit)
        held.release()


def test_ages_and_uses_may_be_changed_while_it_lends(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock) as pool:
        pool.try_connect(timeout=5).release()
        pool.configure(idle_timeout=5, lifetime_jitter=0)
        clock.advance(5.1)
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0
            pool.configure(max_lifetime=10)
            clock.advance(10.1)
        assert pool.stats().size == 0, "it expired in use, and was closed when it came back"
        pool.configure(max_uses=1)
        pool.try_connect(timeout=5).release()
        assert pool.stats().closed == {
            CloseReason.IDLE: 1,
            CloseReason.EXPIRED: 1,
            CloseReason.USED_UP: 1,
        }


def test_a_setting_that_is_wrong_changes_nothing() -> None:
    with ConnectionPool("h:1", max_size=3) as pool:
        for wrong in ({"max_size": 0}, {"max_sizes": 4}, {"max_uses": 2, "max_size": -1}):
            with pytest.raises(ConfigError):
                pool.configure(**wrong)
        assert pool.config == PoolConfig(max_size=3)


def test_a_new_route_takes_effect_at_once() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint) as pool:
        held = pool.try_connect(timeout=5)
        idle = pool.try_connect(timeout=5)
        a.until_accepts(2)
        idle.release()
        pool.route = b.endpoint
        a.until_open(1)
        with pool.try_connect(timeout=5) as conn:
            assert conn.endpoint == b.endpoint
        held.sendall(b"x", timeout=5)
        assert held.recv_exactly(1, timeout=5) == b"x", "a loan is not cut off"
        held.release()
        a.until_open(0)
        assert pool.stats().closed == {CloseReason.STALE: 2}
        assert [told.endpoint for told in pool.endpoints()] == [b.endpoint]
        assert pool.route.endpoints == (b.endpoint,)


def test_a_connection_to_an_endpoint_that_stays_on_the_route_serves_on() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint) as pool:
        pool.try_connect(timeout=5).release()
        pool.route = f"{b.endpoint}, {a.endpoint}"
        with pool.try_connect(a.endpoint, timeout=5) as conn:
            assert conn.uses == 1


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_cleared_pool_begins_anew(interrupt: bool, is_warm: bool) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        held, idle = (pool.try_connect(timeout=5) for _ in range(2))
        server.until_accepts(2)
        if is_warm:
            held.sendall(b"x", timeout=5)
            assert held.recv_exactly(1, timeout=5) == b"x"
        idle.release()
        pool.clear(interrupt=interrupt)
        server.until_open(0 if interrupt else 1)
        if interrupt:
            with pytest.raises(OSError, match="clear"):
                held.recv(1, timeout=5)
        held.release()
        server.until_open(0)
        assert set(server.closes) == {Ending.EOF}
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0


def test_the_time_on_the_blacklist_may_be_changed(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock) as pool:
        server.refuse()
        pool.configure(blacklist_initial=20, blacklist_max=20)
        with pytest.raises(NoEndpointError) as told:
            pool.try_connect(timeout=5)
        assert told.value.retry_at is not None
        assert 5 < told.value.retry_at - clock.now() <= 20
        server.start()
        clock.advance(20.1)
        pool.try_connect(timeout=5).release()


def test_a_pool_carries_what_its_user_attaches() -> None:
    with ConnectionPool("h:1", name="orders") as pool:
        assert pool.stats().name == "orders"
        assert "orders" in repr(pool)
        assert pool.route.endpoints == (Endpoint("h", 1),)


def test_secrets_of_a_connector_are_not_in_its_pools_text() -> None:
    class Secretive:
        password = "hunter2"

        def open(self, *args: object) -> object:
            return object()

        def __repr__(self) -> str:
            return f"Secretive({self.password})"

    with ConnectionPool("h:1", connector=Secretive()) as pool, pool.try_connect(timeout=5) as conn:
        for text in (repr(pool), repr(conn), str(pool.stats()), str(conn.info)):
            assert "hunter2" not in text


# -- the holder's own data, and what a snapshot tells


def test_extra_stays_with_the_connection_from_loan_to_loan() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        with pool.try_connect(timeout=5) as conn:
            assert conn.extra is None
            conn.extra = {"prepared": 3}
        with pool.try_connect(timeout=5) as conn:
            assert conn.extra == {"prepared": 3}
            assert pool.connections()[0].extra == {"prepared": 3}
            conn.terminate()
        with pool.try_connect(timeout=5) as conn:
            assert conn.extra is None


def test_a_snapshot_of_a_loan_says_where_it_leads_and_who_holds_it() -> None:
    with ScriptedServer(script=Send(b"hi")) as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            info = conn.info
            assert (info.state, info.endpoint) == (ConnState.IN_USE, server.endpoint)
            assert info.peer == str(server.endpoint)
            assert info.local == f"127.0.0.1:{conn.socket.getsockname()[1]}"
            assert (info.holder, info.tls, info.idle_since) == ("MainThread", None, None)
            assert conn.recv_exactly(2, timeout=5) == b"hi"
        (info,) = pool.connections()
        assert (info.state, info.holder, info.uses) == (ConnState.IDLE, None, 1)
        assert isinstance(info.idle_since, float)
        assert Endpoint.parse(str(info.peer)) == server.endpoint
        pool.close()
        server.until_accepts(1).until_ended()
        assert server.closes == [Ending.EOF]
