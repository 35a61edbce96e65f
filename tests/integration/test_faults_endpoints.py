"""One endpoint of several misbehaves: it is slow, it flaps, its name moves."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from contextlib import ExitStack

import pytest

from connpool import ConnectionPool, ConnectTimeoutError, Endpoint, NoEndpointError
from connpool.testing import FakeClock, FaultProxy, ScriptedServer
from tests.helpers.faults import WatchedConnector, fill, turn, use
from tests.helpers.switchboard import check_books, down, info_of, until
from tests.helpers.together import together
from tests.helpers.wire import answer_names_with, fail_names_with, taking

# -- one slow endpoint of three -----------------------------------------------------


@contextlib.contextmanager
def three_proxies():
    with ExitStack() as stack, ScriptedServer() as server:
        yield [stack.enter_context(FaultProxy(server.endpoint)) for _ in range(3)]


def route_of(proxies: list[FaultProxy]) -> str:
    return " && ".join(str(proxy.endpoint) for proxy in proxies)


def test_an_endpoint_that_swallows_dials_holds_up_nobody_beyond_one_dial() -> None:
    connector = WatchedConnector()
    with three_proxies() as proxies:
        slow = proxies[0]
        slow.black_hole()
        settings = {"max_size": 9, "connect_timeout": 0.5, "blacklist_initial": 5, "reap_interval": None}
        with ConnectionPool(route_of(proxies), connector=connector, **settings) as pool:
            uses: list[Endpoint] = []

            def work() -> None:
                for _ in range(20):
                    with taking(0, 3), pool.try_connect(timeout=5) as conn:
                        use(conn)
                        uses.append(conn.endpoint)

            together(*[work] * 20)
            until(lambda: pool.stats().opening == 0, "the end of the slow dials")
            assert len(uses) == 400
            assert set(uses) == {proxy.endpoint for proxy in proxies[1:]}
            assert connector.n_dials(slow.endpoint) <= 2  # at a time, and it is blacklisted then
            assert down(pool) == [str(slow.endpoint)]
            check_books(pool)


def test_while_a_dial_to_the_slow_one_lasts_releases_serve_who_waits_for_it() -> None:
    with three_proxies() as proxies:
        proxies[0].black_hole()
        settings = {"max_size": 5, "connect_timeout": 3, "reap_interval": None}
        with ConnectionPool(route_of(proxies), **settings) as pool:
            fill(pool, 2, proxies[1].endpoint, proxies[2].endpoint)

            def work() -> None:
                for _ in range(20):
                    with taking(0, 2), pool.try_connect(timeout=5) as conn:
                        use(conn)

            with taking(0, 3):
                together(*[work] * 10)
            pool.shutdown()


def test_an_endpoint_that_answers_slowly_slows_only_its_own_users() -> None:
    with three_proxies() as proxies:
        settings = {"max_size": 9, "max_per_endpoint": 3, "reap_interval": None}
        with ConnectionPool(route_of(proxies), **settings) as pool:
            fill(pool, 9)
            proxies[0].delay(0.5)
            held = [pool.try_connect(proxies[0].endpoint) for _ in range(3)]

            def user_of_the_slow(loan: object) -> None:
                use(loan)  # type: ignore[arg-type]

            def work() -> None:
                for _ in range(30):
                    with taking(0, 1), pool.try_connect(timeout=1) as conn:
                        use(conn)

            together(*[lambda loan=loan: user_of_the_slow(loan) for loan in held], *[work] * 6)
            for loan in held:
                loan.release()
            assert down(pool) == []  # slow is not down
            check_books(pool)


def test_dials_to_the_slow_one_stay_within_their_limit_and_leave_places_to_the_others() -> None:
    connector = WatchedConnector()
    with three_proxies() as proxies:
        slow = proxies[0]
        slow.black_hole()
        settings = {"max_size": 12, "max_connecting": 2, "connect_timeout": 1.0, "reap_interval": None}
        with ConnectionPool(route_of(proxies), connector=connector, **settings) as pool:
            with taking(0, 3):
                loans = together(*[lambda: pool.try_connect(timeout=5)] * 10)
            assert slow.endpoint not in {loan.endpoint for loan in loans}
            assert max(connector.peak.values()) <= 2
            for loan in loans:
                use(loan)
                loan.release()
            pool.shutdown()


@pytest.mark.parametrize("gap", [0, 0.3, 0.6, 5])  # seconds; look_after_idle is 0.5
@pytest.mark.parametrize("n", [2, 3])
def test_light_traffic_goes_round_robin_too(n: int, gap: float, clock: FakeClock) -> None:
    with three_proxies() as proxies, ConnectionPool(route_of(proxies[:n]), clock=clock) as pool:
        used: Counter[Endpoint] = Counter()
        for _ in range(20 * n):
            clock.advance(gap)
            with pool.try_connect() as conn:
                use(conn)
                used[conn.endpoint] += 1
        assert sorted(used.values()) == pytest.approx([20] * n, abs=3)


# -- flapping ------------------------------------------------------------------------


def test_a_flapping_endpoint_is_dialled_as_often_as_its_delays_allow_and_not_as_often_as_asked(
    clock: FakeClock,
) -> None:
    connector = WatchedConnector(clock=clock)
    settings = {"max_size": 4, "blacklist_initial": 1, "blacklist_max": 4, "idle_timeout": None}
    served = failed = 0
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, clock=clock, **settings) as pool,
    ):
        for _ in range(100):
            server.refuse()
            server.kill()
            clock.advance(1)
            before = len(connector.dials)
            for _ in range(40):  # down for 10 s
                clock.advance(0.25)
                with pytest.raises(NoEndpointError):
                    pool.try_connect()
                failed += 1
            # at least 0.5, 1, 2, 2, 2, 2 seconds apart: half of the nominal, at the very least
            assert 3 <= len(connector.dials) - before <= 7
            server.start()
            clock.advance(4.1)
            before = len(connector.dials)
            for _ in range(20):  # up for 5 s
                clock.advance(0.25)
                turn(pool)
                served += 1
            assert len(connector.dials) - before == 1
            assert down(pool) == []
        assert (served, failed) == (2_000, 4_000)
        check_books(pool)


def test_probes_by_the_reaper_count_against_the_same_delays(clock: FakeClock) -> None:
    connector = WatchedConnector(clock=clock)
    settings = {"max_size": 4, "min_idle": 2, "blacklist_initial": 1, "blacklist_max": 4}
    with (
        ScriptedServer() as server,
        ConnectionPool(
            server.endpoint, connector=connector, clock=clock, keepalive_interval=0.2, **settings
        ) as pool,
    ):
        server.refuse()
        pool.sweep()
        until(lambda: down(pool) == [str(server.endpoint)], "notice of it")
        connector.peak.clear()
        for _ in range(400):  # down for 20 s
            clock.advance(0.05)
            pool.sweep()
            until(lambda: connector.n_under_way == 0 and pool.stats().opening == 0)
            with contextlib.suppress(NoEndpointError):
                pool.try_connect()
        # 0, 1, 3, 7, 11, 15, 19 s without chance; half of each at the very least
        assert 5 <= len(connector.dials) <= 14
        assert connector.peak[server.endpoint] == 1
        server.start()
        clock.advance(4.01)
        pool.sweep()
        until(lambda: info_of(pool, server.endpoint).failures == 0, "the probe's success")

        def is_warm() -> bool:
            pool.sweep()
            return pool.stats().idle == 2

        until(is_warm, "the refill")
        check_books(pool)


@pytest.mark.parametrize("reconnect", [True, False])
def test_no_endpoint_that_flaps_takes_a_healthy_one_along(reconnect: bool, clock: FakeClock) -> None:
    settings = {"max_size": 6, "blacklist_initial": 0.5, "blacklist_max": 2, "reconnect": reconnect}
    with ScriptedServer() as flapping, ScriptedServer() as healthy:
        route = f"{flapping.endpoint} && {healthy.endpoint}"
        with ConnectionPool(route, clock=clock, **settings) as pool:
            seen: Counter[Endpoint] = Counter()
            for cycle in range(50):
                if cycle % 2:
                    flapping.start()
                else:
                    flapping.refuse()
                    flapping.kill()
                for _ in range(10):
                    clock.advance(0.51)
                    pool.sweep()
                    with pool.try_connect() as conn:
                        use(conn)
                        seen[conn.endpoint] += 1
            assert seen.total() == 500
            assert seen[flapping.endpoint] >= 50  # it has its share again whenever it is up
            assert info_of(pool, healthy.endpoint).failures == 0
            check_books(pool)


# -- names ---------------------------------------------------------------------------


def test_new_connections_follow_a_name_that_moves_and_old_ones_serve_on(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    with ScriptedServer() as before, ScriptedServer() as after:
        answer_names_with(monkeypatch, ("127.0.0.1", before.port))
        with ConnectionPool("db.test:5432", clock=clock, max_size=4) as pool:
            fill(pool, 2)
            answer_names_with(monkeypatch, ("127.0.0.1", after.port))
            loans = [pool.try_connect() for _ in range(4)]
            for loan in loans:
                use(loan)
            assert (before.accepts, after.accepts) == (2, 2)
            for loan in loans:
                loan.release()
            before.stop()  # the old machine is switched off in the end
            clock.advance(1)
            for _ in range(100):
                turn(pool)
            assert down(pool) == []


def test_a_lifetime_moves_idle_connections_to_where_the_name_leads_now(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    settings = {"max_size": 4, "min_idle": 3, "max_lifetime": 60, "idle_timeout": None}
    with ScriptedServer() as before, ScriptedServer() as after:
        answer_names_with(monkeypatch, ("127.0.0.1", before.port))
        with ConnectionPool("db.test:5432", clock=clock, **settings) as pool:
            until(lambda: pool.sweep() == 0 and pool.stats().idle == 3, "the warm-up")
            before.until_accepts(3)
            answer_names_with(monkeypatch, ("127.0.0.1", after.port))
            clock.advance(61)

            def has_moved() -> bool:
                pool.sweep()
                return before.open == 0 and after.open == 3 and pool.stats().idle == 3

            until(has_moved, "the move")
            assert before.accepts == 3
            check_books(pool)


def test_a_name_that_cannot_be_looked_up_is_a_failure_that_passes(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    fail_names_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "no such name"))
    with ScriptedServer() as server, ConnectionPool("db.test:5432", clock=clock) as pool:
        for _ in range(3):
            clock.advance(10)
            with pytest.raises(NoEndpointError, match=r"db\.test"):
                pool.try_connect()
        assert info_of(pool, "db.test:5432").failures == 3
        answer_names_with(monkeypatch, ("127.0.0.1", server.port))
        clock.advance(10)
        turn(pool)
        assert info_of(pool, "db.test:5432").failures == 0


def test_one_of_a_names_addresses_that_is_a_black_hole_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as dead, ScriptedServer() as alive:
        dead.black_hole()
        answer_names_with(monkeypatch, ("127.0.0.1", dead.port), ("127.0.0.1", alive.port))
        with ConnectionPool("db.test:5432", connect_timeout=4) as pool, taking(0, 3):
            turn(pool)
        dead.refuse()
        alive.refuse()
        with ConnectionPool("db.test:5432", connect_timeout=4) as pool, pytest.raises(NoEndpointError):
            pool.try_connect()


def test_a_name_that_leads_only_into_black_holes_ends_with_the_dials_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer() as one, ScriptedServer() as two:
        for server in (one, two):
            server.black_hole()
        answer_names_with(monkeypatch, ("127.0.0.1", one.port), ("127.0.0.1", two.port))
        with (
            ConnectionPool("db.test:5432", connect_timeout=0.4) as pool,
            taking(0.39, 4),
            pytest.raises(ConnectTimeoutError),
        ):
            pool.try_connect()
