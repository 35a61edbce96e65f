"""How the reaper finds fallen endpoints again, so that no user pays for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from connpool import (
    CheckoutTimeoutError,
    CloseReason,
    ConnectionPool,
    ConnPoolError,
    Endpoint,
    EndpointDown,
    EndpointState,
    EndpointUp,
    NoEndpointError,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, down, endpoints_of, info_of, until
from tests.helpers.together import together
from tests.helpers.upkeep import OFTEN, fill, let_pass, reapers, settle, sweep_until, turn
from tests.helpers.wire import taking
from tests.stress.works import A, Works, door

STEP = 0.005  # seconds between two turns


def attempts(pool: ConnectionPool, board: Switchboard, clock: FakeClock, seconds: float) -> list[float]:
    """When the reaper dials during the next *seconds*, counted from now."""
    began, n, found = clock.now(), len(board.dialled), []
    while clock.now() < began + seconds:
        clock.advance(STEP)
        settle(pool, 1)
        if len(board.dialled) > n:
            assert len(board.dialled) == n + 1, "one at a time"
            n += 1
            found.append(clock.now() - began)
    return found


def gaps(instants: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *instants], instants, strict=False)]


def fallen(clock: FakeClock, board: Switchboard, route: str = "a:1", **settings: Any) -> ConnectionPool:
    """A pool whose endpoint a:1 has just been found down."""
    settings = {"blacklist_initial": 0.1, "blacklist_max": 0.4, **settings}
    pool = ConnectionPool(route, connector=board, clock=clock, **settings)
    board.fail("a:1")
    while not down(pool):
        with contextlib.suppress(NoEndpointError, CheckoutTimeoutError):
            pool.try_connect(timeout=0).release()
    return pool


def refuse_the_first(endpoint: Endpoint) -> None:
    if endpoint == A:
        raise ConnectionRefusedError


# -- the back-off ---------------------------------------------------------------------------


def test_attempts_double_their_distance_up_to_a_true_cap(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board) as pool:
        waits = gaps(attempts(pool, board, clock, 3))
        nominal = [0.1, 0.2, *[0.4] * 20]
        assert 7 <= len(waits) <= 10, waits
        for wait, full in zip(waits, nominal, strict=False):
            assert 0.8 * full <= wait <= full + 2 * STEP, waits
        assert info_of(pool, "a:1").failures == 1 + len(waits)


def test_after_a_success_and_a_new_loss_the_first_wait_is_short_again(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board) as pool:
        attempts(pool, board, clock, 2)
        board.mend("a:1")
        clock.advance(0.5)
        sweep_until(pool, lambda: not down(pool))
        assert info_of(pool, "a:1").failures == 0
        pool.clear()
        board.fail("a:1")
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        waits = gaps(attempts(pool, board, clock, 0.5))
        assert 0.08 <= waits[0] <= 0.1 + 2 * STEP


def test_once_it_is_up_it_is_probed_no_more(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, idle_timeout=None, max_lifetime=None) as pool:
        board.mend("a:1")
        clock.advance(0.2)
        sweep_until(pool, lambda: not down(pool))
        n = len(board.dialled)
        clock.advance(1_000)
        settle(pool, 5)
        assert len(board.dialled) == n


def test_two_pools_with_the_same_settings_do_not_dial_in_step(clock: FakeClock) -> None:
    boards = [Switchboard() for _ in range(4)]
    pools = [fallen(clock, board, blacklist_initial=10, blacklist_max=10) for board in boards]
    retries = {info_of(pool, "a:1").retry_at for pool in pools}
    assert len(retries) == 4
    for pool in pools:
        pool.close()


def test_blacklisting_for_a_time_ends_in_a_probe(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1", 0.4)
        clock.advance(0.2)
        settle(pool)
        assert board.dialled == []
        loans = [pool.try_connect(), pool.try_connect()]
        assert endpoints_of(loans) == ["b:1", "b:1"]
        clock.advance(0.3)
        sweep_until(pool, lambda: not down(pool))
        assert board.dialled == ["b:1", "b:1", "a:1"]
        for loan in loans:
            loan.release()


def test_blacklisted_until_lifted_means_no_attempt_ever(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1")
        for _ in range(5):
            clock.advance(1e6)
            settle(pool)
        assert board.dialled == []
        pool.unblacklist("a:1")
        assert not down(pool)


def test_without_reconnect_nothing_is_probed_until_somebody_asks(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, reconnect=False) as pool:
        board.mend("a:1")
        clock.advance(100)
        settle(pool, 5)
        assert (len(board.dialled), pool.stats().opened) == (1, 0)
        turn(pool)


def test_an_endpoint_that_is_off_the_route_is_probed_no_more(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board) as pool:
        pool.route = "b:1"
        clock.advance(10)
        settle(pool, 5)
        assert board.dialled == ["a:1"]


def test_a_paused_pool_begins_no_probe(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board) as pool:
        pool.pause()
        clock.advance(10)
        settle(pool, 5)
        assert board.dialled == ["a:1"]
        board.mend("a:1")
        pool.resume()
        sweep_until(pool, lambda: not down(pool))


# -- half-open ------------------------------------------------------------------------------------


def test_one_probe_at_a_time_whoever_asks(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 && b:1", max_connecting=5) as pool:
        n = board.dialled.count("a:1")
        board.mend("a:1")
        board.hold("a:1")
        clock.advance(10)
        for _ in range(5):
            pool.sweep()
        board.until_dialling("a:1")
        assert info_of(pool, "a:1").state is EndpointState.PROBING
        loans = together(*[pool.try_connect] * 4)
        assert endpoints_of(loans) == ["b:1"] * 4
        pool.sweep()
        assert (board.peak["a:1"], board.dialled.count("a:1")) == (1, n + 1)
        board.let_go("a:1")
        for loan in loans:
            loan.release()


def test_several_fallen_endpoints_are_probed_side_by_side(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1", "c:1")
    with ConnectionPool("a:1 && b:1 || c:1", connector=board, clock=clock) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        for endpoint in ("a:1", "b:1", "c:1"):
            board.hold(endpoint)
        clock.advance(10)
        pool.sweep()
        for endpoint in ("a:1", "b:1", "c:1"):
            board.until_dialling(endpoint)
        for endpoint in ("a:1", "b:1", "c:1"):
            board.mend(endpoint)
            board.let_go(endpoint)
        until(lambda: not down(pool))


def test_a_probe_that_hangs_costs_no_user_anything(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 && b:1") as pool:
        board.hold("a:1")
        clock.advance(10)
        pool.sweep()
        board.until_dialling("a:1")
        with taking(0, 2):
            for _ in range(50):
                pool.try_connect(timeout=1).terminate()
        board.let_go("a:1")


def test_the_connection_of_a_probe_is_kept_idle(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board) as pool:
        board.mend("a:1")
        clock.advance(0.2)
        sweep_until(pool, lambda: pool.stats().idle == 1)
        assert turn(pool) is board.lines[0]
        assert board.dialled == ["a:1", "a:1"]


def test_the_probe_of_the_reaper_serves_who_waits_for_an_endpoint(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, blacklist_initial=5, blacklist_max=5) as pool:
        pool.configure(fail_fast=False)
        got: list[object] = []
        waiter = threading.Thread(target=lambda: got.append(turn(pool)), daemon=True)
        waiter.start()
        clock.until_waiting(1)
        board.mend("a:1")
        clock.advance(5.1)
        until(lambda: pool.sweep() >= 0 and got)
        waiter.join(10)
        assert got == board.lines


# -- fail-back, and a full pool ------------------------------------------------------------------


def test_traffic_goes_back_to_the_earlier_group_as_soon_as_it_lives(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 || c:1") as pool:
        loan = pool.try_connect()
        assert str(loan.endpoint) == "c:1"
        loan.release()
        board.mend("a:1")
        clock.advance(1)
        sweep_until(pool, lambda: not down(pool))
        with pool.try_connect() as conn:
            assert str(conn.endpoint) == "a:1"
            assert conn.uses == 0


def test_in_a_full_pool_an_idle_one_elsewhere_makes_room_for_the_probe(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 || c:1", max_size=2) as pool:
        fill(pool, 2)
        board.mend("a:1")
        clock.advance(1)
        sweep_until(pool, lambda: not down(pool))
        settle(pool)
        assert pool.stats().closed == {CloseReason.EVICTED: 1}
        assert (pool.stats().size, board.n_open) == (2, 2)
        check_books(pool)


def test_one_makes_room_for_the_probe_however_long_closing_it_takes(clock: FakeClock) -> None:
    works, settings = Works(), {"max_size": 4, "clock": clock}
    works.opening = refuse_the_first
    with ConnectionPool("a:1 || c:1", connector=works, **settings) as pool, door() as closing:
        fill(pool, 4)
        works.opening = lambda _: None
        works.closing = closing
        clock.advance(2)
        for _ in range(3):
            pool.sweep()
        assert (pool.stats().closing, pool.stats().idle) == (1, 3)
        closing.let_go()
        sweep_until(pool, lambda: info_of(pool, "a:1").idle == 1)
        assert pool.stats().closed == {CloseReason.EVICTED: 1}


def test_it_is_another_endpoint_that_makes_room_for_the_probe_and_not_the_one_that_is_probed(
    clock: FakeClock,
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || c:1", connector=board, clock=clock, max_size=4) as pool:
        loans = [pool.try_connect() for _ in range(2)]
        board.fail("a:1")
        loans += [pool.try_connect() for _ in range(2)]
        for loan in loans:
            loan.release()
            clock.advance(0.1)
        board.mend("a:1")
        clock.advance(2)
        sweep_until(pool, lambda: not down(pool))
        assert (info_of(pool, "a:1").idle, info_of(pool, "c:1").idle) == (3, 1)


def test_what_expires_in_the_same_turn_is_room_enough_for_the_probe(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 || c:1", max_size=3, idle_timeout=5) as pool:
        fill(pool, 3)
        board.mend("a:1")
        clock.advance(3)
        fill(pool, 2)
        clock.advance(2)
        settle(pool)
        assert (pool.stats().closed, down(pool)) == ({CloseReason.IDLE: 1}, [])


def test_a_close_that_hangs_and_was_to_make_no_room_keeps_nothing_from_the_probe(clock: FakeClock) -> None:
    works, settings = Works(), {"max_size": 3, "clock": clock}
    works.opening = refuse_the_first
    with ConnectionPool("a:1 || c:1", connector=works, **settings) as pool, door() as closing:
        fill(pool, 3)
        works.opening, works.closing = lambda _: None, closing
        pool.try_connect().terminate()
        works.closing = lambda _: None
        clock.advance(2)
        sweep_until(pool, lambda: not down(pool))
        assert pool.stats().closing == 1


def test_in_a_pool_full_of_loans_the_probe_waits_for_a_place(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 || c:1", max_size=2) as pool:
        loans = [pool.try_connect(), pool.try_connect()]
        board.mend("a:1")
        clock.advance(10)
        settle(pool, 5)
        assert (board.dialled.count("a:1"), pool.stats().size) == (1, 2)
        loans.pop().release()
        sweep_until(pool, lambda: not down(pool))
        assert pool.stats().size <= 2
        loans.pop().release()


# -- what is told ---------------------------------------------------------------------------------


def test_down_and_up_are_told_once_however_many_probes_fail(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    board = Switchboard("a:1")
    told: list[Any] = []
    caplog.set_level("INFO", "connpool.endpoint")
    settings: dict[str, Any] = {"blacklist_initial": 1, "blacklist_max": 2}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        pool.listen(told.append, EndpointDown, EndpointUp)
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        began = clock.now()
        for _ in range(20):
            clock.advance(1)
            settle(pool, 1)
        board.mend("a:1")
        clock.advance(2)
        sweep_until(pool, lambda: not down(pool))
        until(lambda: len(told) == 2)
        assert [type(event) for event in told] == [EndpointDown, EndpointUp]
        assert told[1].seconds == pytest.approx(clock.now() - began, abs=0.01)
        lines = [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if "a:1" in record.getMessage()
        ]
        assert [level for level, _ in lines] == ["WARNING", "INFO"], lines
        failed = pool.stats().connect_failures
        assert failed >= 8
        assert str(failed) in lines[1][1]


# -- no time to wait --------------------------------------------------------------------------------


def test_with_no_time_to_wait_nobody_waits_for_an_endpoint_that_is_down() -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, fail_fast=False, blacklist_initial=30) as pool:
        for _ in range(3):
            with taking(0, 2), pytest.raises(ConnPoolError):
                pool.try_connect(timeout=0)


# -- real time -------------------------------------------------------------------------------------


def test_the_thread_finds_a_server_again_that_nobody_asks_for() -> None:
    settings: dict[str, Any] = {"blacklist_initial": 0.05, "blacklist_max": 0.1, "reap_interval": OFTEN}
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, **settings) as pool:
            with pytest.raises(NoEndpointError):
                pool.try_connect()
            until(lambda: info_of(pool, server.endpoint).failures >= 4, "some probes that fail")
            server.start()
            server.until_accepts(1)
            until(lambda: info_of(pool, server.endpoint).state is EndpointState.UP)
            let_pass(0.2)
            assert server.accepts == 1
            assert pool.stats().idle == 1


def test_a_probe_into_a_black_hole_delays_nobody() -> None:
    settings: dict[str, Any] = {"blacklist_initial": 0.05, "blacklist_max": 0.05, "reap_interval": OFTEN}
    with ScriptedServer() as hole, ScriptedServer() as server:
        hole.black_hole()
        route = [hole.endpoint, server.endpoint]
        with ConnectionPool(route, connect_timeout=0.3, **settings) as pool:
            pool.blacklist(hole.endpoint, 0.01)
            until(lambda: info_of(pool, hole.endpoint).state is EndpointState.PROBING)
            began = time.monotonic()
            for _ in range(20):
                with pool.try_connect(timeout=5) as conn:
                    assert conn.endpoint == server.endpoint
            assert time.monotonic() - began < 2
            until(lambda: info_of(pool, hole.endpoint).failures >= 2)


def test_the_thread_serves_a_waiter_when_the_server_is_back() -> None:
    settings: dict[str, Any] = {"blacklist_initial": 0.05, "blacklist_max": 0.1, "reap_interval": OFTEN}
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, fail_fast=False, **settings) as pool:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.2)
            together(lambda: pool.try_connect(timeout=10).release(), server.start)


@pytest.mark.parametrize(
    ("rest", "go_on"),
    [(ConnectionPool.pause, ConnectionPool.resume), (ConnectionPool.shutdown, ConnectionPool.reopen)],
)
def test_after_a_rest_the_thread_goes_on_to_look_for_what_is_down(
    rest: Callable[[ConnectionPool], object], go_on: Callable[[ConnectionPool], object]
) -> None:
    board = Switchboard("a:1")
    settings = {"blacklist_initial": 0.01, "blacklist_max": 0.01, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=board, **settings) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=5)
        rest(pool)
        until(lambda: not reapers(), "the end of a thread that has nothing to do")
        board.mend("a:1")
        go_on(pool)
        until(lambda: not down(pool))


def test_the_last_connection_elsewhere_makes_no_room_for_a_probe(clock: FakeClock) -> None:
    board = Switchboard()
    with fallen(clock, board, "a:1 || c:1", max_size=1) as pool:
        fill(pool, 1)
        board.mend("a:1")
        clock.advance(1)
        settle(pool)
        assert (pool.stats().idle, info_of(pool, "c:1").idle) == (1, 1)


def test_the_place_made_for_a_probe_is_not_taken_for_what_is_to_be_ready(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, max_size=3, min_idle=2) as pool:
        settle(pool)
        with pool.try_connect():
            settle(pool)
            assert pool.stats().size == 3
            board.mend("a:1")
            clock.advance(5)
            settle(pool)
            assert info_of(pool, "a:1").state is EndpointState.UP
            assert pool.stats().closed == {CloseReason.EVICTED: 1}
            assert pool.stats().idle == 2


def test_who_is_blacklisted_for_good_and_then_for_a_time_is_up_when_that_is_over() -> None:
    with ConnectionPool("a:1", connector=Switchboard(), reap_interval=OFTEN) as pool:
        pool.blacklist("a:1")
        pool.blacklist("a:1", 0.05)
        until(lambda: info_of(pool, "a:1").state is EndpointState.UP)
