"""Which endpoint a checkout gets, and where it turns when one fails."""

from __future__ import annotations

import itertools

import pytest

from connpool import (
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    ConnectTimeoutError,
    EndpointState,
    HandshakeError,
    NoEndpointError,
    Request,
    SocketConnector,
)
from connpool.testing import FakeClock, NoHandshake, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard, check_books, down, endpoints_of, info_of, until
from tests.helpers.wire import LOCALHOSTS, taking


def test_ten_dials_without_reuse_go_half_to_each_of_two_servers() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}") as pool,
    ):
        for _ in range(10):
            pool.try_connect().terminate()
        a.until_accepts(5)
        b.until_accepts(5)
        assert (a.accepts, b.accepts) == (5, 5)


@pytest.mark.parametrize("route", ["a:1 && b:1 && c:1", "a:1, b:1, c:1", "a:1, b:1 && c:1"])
def test_the_round_over_the_endpoints_of_a_group_is_a_stable_cycle(route: str, clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool(route, connector=board, clock=clock) as pool:
        for _ in range(12):
            pool.try_connect().terminate()
    assert set(board.dialled[:3]) == {"a:1", "b:1", "c:1"}
    assert board.dialled == board.dialled[:3] * 4


def test_the_round_goes_on_over_idle_connections_too() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}") as pool,
    ):
        seen = []
        for _ in range(10):
            with pool.try_connect() as conn:
                seen.append(conn.endpoint)
        assert seen.count(a.endpoint) == seen.count(b.endpoint) == 5
        assert pool.stats().opened == 2


def test_the_next_group_is_left_alone_while_one_member_of_the_first_lives(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 && b:1 || c:1 && d:1", connector=board, clock=clock) as pool:
        loans = [pool.try_connect() for _ in range(4)]
        assert endpoints_of(loans) == ["b:1"] * 4
        assert {"c:1", "d:1"}.isdisjoint(board.dialled)
        for loan in loans:
            loan.release()


def test_a_checkout_passes_over_to_the_next_endpoint_and_then_to_the_next_group() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ScriptedServer() as c:
        a.refuse()
        b.refuse()
        with ConnectionPool(f"{a.endpoint} && {b.endpoint} || {c.endpoint}") as pool:
            with pool.try_connect(timeout=5) as conn:
                assert conn.endpoint == c.endpoint
                conn.sendall(b"hello")
                assert conn.recv_exactly(5) == b"hello"
            assert [info.failures for info in pool.endpoints()] == [1, 1, 0]
            assert [info.state for info in pool.endpoints()] == [
                EndpointState.BLACKLISTED,
                EndpointState.BLACKLISTED,
                EndpointState.UP,
            ]
            assert [info.group for info in pool.endpoints()] == [0, 0, 1]
            check_books(pool)


@pytest.mark.parametrize("route", ["a:1 && b:1 && c:1", "a:1 || b:1 || c:1", "a:1, b:1 && a:1 || c:1 || a:1"])
@pytest.mark.parametrize("blacklist_initial", [0.0, 1.0])
def test_one_checkout_tries_each_endpoint_at_most_once(
    route: str, blacklist_initial: float, clock: FakeClock
) -> None:
    board = Switchboard("a:1", "b:1", "c:1")
    settings = {"blacklist_initial": blacklist_initial, "blacklist_max": blacklist_initial}
    with ConnectionPool(route, connector=board, clock=clock, **settings) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        assert sorted(board.dialled) == ["a:1", "b:1", "c:1"]
        until(lambda: pool.stats().size == 0)


@pytest.mark.parametrize("host", LOCALHOSTS)
def test_endpoints_that_all_refuse_fail_the_checkout_at_once_whatever_the_blacklist_time(host: str) -> None:
    with ScriptedServer(host=host) as a, ScriptedServer(host=host) as b:
        a.refuse()
        b.refuse()
        with ConnectionPool(f"{a.endpoint}, {b.endpoint}", blacklist_initial=0, reap_interval=None) as pool:
            for _ in range(3):
                with taking(0, 2), pytest.raises(NoEndpointError) as caught:
                    pool.try_connect(timeout=10)
                assert {endpoint for endpoint, _ in caught.value.causes} == {a.endpoint, b.endpoint}
            assert pool.stats().connect_failures == 6


def test_every_cause_is_told_in_the_order_of_the_route(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=Certificates().server()) as stranger,
        ScriptedServer() as hole,
        ScriptedServer() as none,
    ):
        hole.black_hole()
        none.refuse()
        route = f"{stranger.endpoint} && {hole.endpoint} || {none.endpoint}"
        with (
            ConnectionPool(route, connector=connector, connect_timeout=0.3, name="orders") as pool,
            pytest.raises(NoEndpointError) as caught,
        ):
            pool.try_connect()
        error = caught.value
        assert [endpoint for endpoint, _ in error.causes] == [stranger.endpoint, hole.endpoint, none.endpoint]
        assert [type(cause) for _, cause in error.causes] == [
            HandshakeError,
            ConnectTimeoutError,
            ConnectError,
        ]
        assert isinstance(error.causes[2][1].__cause__, ConnectionRefusedError)
        assert error.__cause__ is error.causes[2][1]
        assert [cause.pool for _, cause in error.causes] == ["orders"] * 3
        assert all(str(endpoint) in str(error) for endpoint, _ in error.causes)
        assert error.pool == "orders"
        assert "'orders'" in str(error)


def test_causes_name_endpoints_that_were_blacklisted_before_too(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1", 7)
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect()
        assert board.dialled == ["b:1"]
        assert [str(endpoint) for endpoint, _ in caught.value.causes] == ["a:1", "b:1"]
        assert caught.value.retry_at == info_of(pool, "b:1").retry_at


@pytest.mark.parametrize("times", [1, 2])
def test_traffic_returns_to_the_first_group_as_soon_as_it_can(times: int) -> None:
    """And again at the second outage."""
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} || {b.endpoint}", look_after_idle=0) as pool,
    ):
        for round_number in range(1, times + 1):
            a.refuse()
            a.kill()
            with pool.try_connect() as conn:
                assert conn.endpoint == b.endpoint
            a.start()
            with pool.try_connect() as conn:
                assert conn.endpoint == b.endpoint, "the blacklist has not ended"
            pool.unblacklist(a.endpoint)
            with pool.try_connect() as conn:
                assert conn.endpoint == a.endpoint
            a.until_accepts(round_number)
        assert pool.stats().opened == times + 1


@pytest.mark.parametrize("route", ["a:1 || b:1", "a:1 && b:1"])
def test_fail_back_needs_no_more_than_traffic_and_the_end_of_the_blacklist(
    route: str, clock: FakeClock
) -> None:
    """However many idle connections wait elsewhere, and without anybody in the background."""
    board = Switchboard("a:1")
    settings = {"blacklist_initial": 5, "reconnect": False, "reap_interval": None}
    with ConnectionPool(route, connector=board, clock=clock, **settings) as pool:
        loans = [pool.try_connect() for _ in range(3)]
        assert endpoints_of(loans) == ["b:1"] * 3
        for loan in loans:
            loan.release()
        board.mend("a:1")
        clock.advance(10)
        seen = []
        for _ in range(4):
            with pool.try_connect() as conn:
                seen.append(str(conn.endpoint))
            until(lambda: pool.stats().opening == 0)  # the first may be served elsewhere during the probe
        assert "a:1" in seen[:3]
        assert down(pool) == []


def test_an_idle_connection_found_dead_is_no_failure_of_its_endpoint() -> None:
    with ScriptedServer() as a, ConnectionPool(a.endpoint, look_after_idle=0) as pool:
        pool.try_connect().release()
        a.until_accepts(1).close()
        with pool.try_connect() as conn:
            assert conn.uses == 0
        assert down(pool) == []
        assert info_of(pool, a.endpoint).failures == 0


def test_a_pinned_checkout_fails_without_failover_and_with_the_cause_itself(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock) as pool:
        with pytest.raises(ConnectError) as caught:
            pool.try_connect("a:1")
        assert str(caught.value.endpoint) == "a:1"
        assert "a:1 is down" in str(caught.value)
        assert isinstance(root_of(caught.value), ConnectionRefusedError)
        assert board.dialled == ["a:1"]


def test_a_pinned_endpoint_need_not_be_on_the_route() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint) as pool:
        for _ in range(2):
            with pool.try_connect(Request(endpoint=b.endpoint)) as conn:
                conn.sendall(b"x")
                assert conn.recv_exactly(1) == b"x"
        assert pool.stats().opened == b.accepts == 1
        with pool.try_connect() as conn:
            assert conn.endpoint == a.endpoint, "what is off the route serves nobody unasked"
        assert info_of(pool, b.endpoint).group is None
        check_books(pool)


def test_a_server_that_never_speaks_tls_costs_one_connect_timeout_and_then_the_next_serves(
    certificates: Certificates,
) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server(), script=NoHandshake()) as mute,
        ScriptedServer() as b,
        ConnectionPool(f"{mute.endpoint} || {b.endpoint}", connector=connector, connect_timeout=0.2) as pool,
    ):
        with taking(0.2, 3), pool.try_connect() as conn:
            assert conn.endpoint == b.endpoint
        assert isinstance(info_of(pool, mute.endpoint).last_error, ConnectTimeoutError)


def test_with_one_endpoint_the_error_is_also_of_its_causes_class(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        with pytest.raises(ConnectError) as caught:
            pool.try_connect()
        assert isinstance(caught.value, NoEndpointError)
        assert isinstance(root_of(caught.value), ConnectionRefusedError)


def test_the_deadline_covers_every_endpoint_that_is_tried_together() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ScriptedServer() as c:
        for server in (a, b, c):
            server.black_hole()
        route = f"{a.endpoint} && {b.endpoint} && {c.endpoint}"
        with (
            ConnectionPool(route, connect_timeout=0.25) as pool,
            taking(0.4, 0.7),
            pytest.raises(CheckoutTimeoutError),
        ):
            pool.try_connect(timeout=0.4)


def test_many_checkouts_that_meet_an_outage_all_fail_over(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1")
    with ConnectionPool("a:1 && b:1 || c:1", connector=board, clock=clock, max_size=30) as pool:
        loans = [pool.try_connect() for _ in range(30)]
        assert set(endpoints_of(loans)) == {"c:1"}
        assert sorted(set(board.dialled)) == ["a:1", "b:1", "c:1"]
        assert board.dialled.count("a:1") == board.dialled.count("b:1") == 1
        for loan in loans:
            loan.release()
        check_books(pool)


def test_the_order_of_groups_is_kept_over_any_pattern_of_outages(clock: FakeClock) -> None:
    """Each of the 16 patterns of four endpoints, one checkout each, in a fresh pool."""
    names = ["a:1", "b:1", "c:1", "d:1"]
    for pattern in itertools.product([True, False], repeat=4):
        board = Switchboard(*(name for name, is_up in zip(names, pattern, strict=True) if not is_up))
        with ConnectionPool("a:1 && b:1 || c:1 && d:1", connector=board, clock=clock) as pool:
            first, second = set(names[:2]) - set(down_in(board)), set(names[2:]) - set(down_in(board))
            allowed = first or second
            if not allowed:
                with pytest.raises(NoEndpointError):
                    pool.try_connect()
                continue
            for _ in range(4):
                with pool.try_connect() as conn:
                    assert str(conn.endpoint) in allowed, pattern
            assert len(board.dialled) == len(set(board.dialled)), pattern


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_the_place_of_a_failed_dial_is_free_when_its_caller_learns_of_the_failure(
    dial_in_caller: bool, clock: FakeClock
) -> None:
    board = Switchboard("a:1")
    settings = {"max_size": 1, "dial_in_caller": dial_in_caller, "blacklist_initial": 0}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        for _ in range(100):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
            pool.try_connect("b:1", timeout=0).terminate()


def root_of(error: BaseException) -> BaseException:
    """What it all began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def down_in(board: Switchboard) -> list[str]:
    return list(board._errors)
