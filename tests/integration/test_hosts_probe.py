"""Who may try a blacklisted endpoint again, who waits for it, and what it lends meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from connpool import CheckoutTimeoutError, ConnectionPool, Endpoint, EndpointState, NoEndpointError, Request
from connpool.testing import FakeClock
from tests.helpers.switchboard import (
    GUARD,
    Line,
    Switchboard,
    check_books,
    down,
    endpoints_of,
    info_of,
    until,
)
from tests.helpers.together import together
from tests.helpers.wire import taking
from tests.stress.works import Caller

# -- half-open: one probe at a time -------------------------------------------------


def test_when_the_time_is_up_one_probe_goes_out_and_all_others_are_served_elsewhere(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_connecting=5) as pool:
        pool.try_connect().terminate()
        pool.try_connect().terminate()
        assert down(pool) == ["a:1"]
        clock.advance(100)
        board.hold("a:1")
        before = board.dialled.count("a:1")
        loans = together(*[pool.try_connect] * 4, lambda: prober(pool, board))
        assert board.peak["a:1"] == 1
        assert board.dialled.count("a:1") == before + 1
        assert endpoints_of(loans).count("b:1") >= 4
        for loan in loans:
            loan.release()
        check_books(pool)


def prober(pool: ConnectionPool, board: Switchboard) -> object:
    """Check out too; when the others have been served, let the probe fail."""
    board.until_dialling("a:1")
    assert info_of(pool, "a:1").state is EndpointState.PROBING
    until(lambda: pool.stats().in_use >= 3, "serving the others elsewhere")
    conn = pool.try_connect()
    board.let_go("a:1")
    return conn


def test_with_no_other_endpoint_all_wait_for_the_one_probe(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, max_connecting=5) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        clock.advance(100)
        board.mend("a:1")
        board.hold("a:1")

        def watch() -> None:
            until(lambda: pool.stats().waiting == 4)
            board.until_dialling("a:1", 1)
            board.let_go("a:1")

        together(*[lambda: pool.try_connect().release()] * 4, watch)
        assert down(pool) == []


def test_a_probe_that_fails_fails_everybody_who_waited_for_it(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        clock.advance(100)
        board.hold("a:1")

        def ask() -> None:
            with pytest.raises(NoEndpointError):
                pool.try_connect()

        def watch() -> None:
            until(lambda: pool.stats().waiting == 4)
            board.let_go("a:1")

        together(*[ask] * 4, watch)
        assert len(board.dialled) == 2
        assert info_of(pool, "a:1").failures == 2
        assert pool.stats().waiting == 0


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_dial_that_fails_fails_none_for_whom_another_is_under_way(in_caller: bool) -> None:
    ends = [threading.Event(), threading.Event()]
    begun: list[int] = []

    def open_one() -> object:
        begun.append(number := len(begun))
        assert ends[number].wait(GUARD)
        if number == 1:
            raise ConnectionRefusedError("the second")
        return object()

    with ConnectionPool.of(open_one, max_size=2, dial_in_caller=in_caller) as pool:

        def ask() -> object:
            with pool.try_connect() as conn:
                return conn.raw

        def ask_too() -> None:
            until(lambda: len(begun) == 1)
            with pytest.raises(NoEndpointError, match="the second"):
                pool.try_connect()
            ends[0].set()

        def watch() -> None:
            until(lambda: len(begun) == 2)
            ends[1].set()

        served, *_ = together(ask, ask_too, watch)
        assert served is not None
        assert pool.stats().opened == 1


# -- all blacklisted: fail_fast ------------------------------------------------------


def test_failing_fast_neither_dials_nor_waits(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1", 30)
        pool.blacklist("b:1", 20)
        with taking(0, 2), pytest.raises(NoEndpointError) as caught:
            pool.try_connect(timeout=10)
        assert board.dialled == []
        assert caught.value.retry_at == pytest.approx(clock.now() + 20)


def test_not_failing_fast_waits_for_the_first_endpoint_whose_time_is_up(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, fail_fast=False) as pool:
        pool.blacklist("a:1", 20)
        pool.blacklist("b:1", 5)

        def wait() -> str:
            with pool.try_connect(timeout=15) as conn:
                return str(conn.endpoint)

        def move() -> str:
            clock.until_waiting(1)
            assert board.dialled == []
            clock.advance(5.5)
            return ""

        assert together(wait, move) == ["b:1", ""]


def test_not_failing_fast_ends_with_the_deadline_and_blames_nobody_more(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, fail_fast=False, blacklist_initial=9) as pool:

        def wait() -> None:
            with pytest.raises(CheckoutTimeoutError, match="a:1 is down"):
                pool.try_connect(timeout=2)

        def move() -> None:
            until(lambda: info_of(pool, "a:1").failures == 1)
            clock.until_waiting(1)
            clock.advance(2.1)

        together(wait, move)
        assert board.dialled == ["a:1"]
        assert info_of(pool, "a:1").failures == 1


def test_not_failing_fast_who_pins_an_endpoint_that_is_tried_again_gets_no_other(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings = {"fail_fast": False, "blacklist_initial": 1, "max_size": 2}
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, **settings) as pool:
        other = pool.try_connect("b:1")
        caller = Caller(pool, "a:1")
        until(lambda: pool.stats().connect_failures == 1)
        board.hold("a:1")
        board.mend("a:1")
        until(lambda: clock.advance(0.1) is None and board.dialled.count("a:1") == 2)
        other.release()
        clock.advance(1)
        board.let_go("a:1")
        with caller.loan() as conn:
            assert endpoints_of([conn]) == ["a:1"]


def test_not_failing_fast_ends_with_the_deadline_though_a_pinned_endpoint_rests_for_longer(
    clock: FakeClock,
) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, fail_fast=False, blacklist_initial=50) as pool:
        caller = Caller(pool, "a:1", timeout=2)
        until(lambda: pool.stats().connect_failures == 1)
        clock.until_waiting(1)
        clock.advance(3)
        caller.failure(CheckoutTimeoutError)


def test_not_failing_fast_goes_on_trying_until_one_lives(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, fail_fast=False) as pool:

        def move() -> None:
            until(lambda: len(down(pool)) == 2)
            board.mend("b:1")
            until(lambda: not clock.advance(0.2) and "b:1" not in down(pool))

        def wait() -> None:
            with pool.try_connect(timeout=1_000) as conn:
                assert str(conn.endpoint) == "b:1"

        together(wait, move)


class Slow(Switchboard):
    """Finds out only after the whole ``connect_timeout`` that an endpoint is down."""

    def __init__(self, clock: FakeClock, *down: str) -> None:
        super().__init__(*down)
        self._clock = clock

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: Any) -> Line:
        try:
            return super().open(endpoint, timeout, cancel)
        except ConnectionRefusedError:
            self._clock.advance(timeout or 0.0)
            raise


@pytest.mark.parametrize("timeout", [0, 1_000])
@pytest.mark.parametrize("sign", [",", "&&", "||"])
def test_not_failing_fast_tries_each_endpoint_once_before_any_of_them_again(
    sign: str, timeout: float, clock: FakeClock
) -> None:
    board = Slow(clock, "a:1", "b:1")
    options: dict[str, Any] = {"fail_fast": False, "dial_in_caller": True, "reap_interval": None}
    with ConnectionPool(f"a:1 {sign} b:1 {sign} c:1", connector=board, clock=clock, **options) as pool:
        with pool.try_connect(timeout=timeout) as conn:
            assert str(conn.endpoint) == "c:1"
        assert board.dialled == ["a:1", "b:1", "c:1"], "though a was due again before c was tried"


def test_who_may_not_wait_tries_each_endpoint_once_at_most(clock: FakeClock) -> None:
    board = Slow(clock, "a:1", "b:1")
    options: dict[str, Any] = {"fail_fast": False, "dial_in_caller": True, "reap_interval": None}
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, **options) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=0)
        assert board.dialled == ["a:1", "b:1"], "though a was due again when b had failed"


def test_lifting_a_blacklist_wakes_who_waits_for_it(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, fail_fast=False) as pool:
        pool.blacklist("a:1")

        def lift() -> None:
            clock.until_waiting(1)
            pool.unblacklist("a:1")

        together(lambda: pool.try_connect().release(), lift)


def test_lifting_a_blacklist_gives_an_endpoint_back_to_a_waiter_that_had_tried_it(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_per_endpoint=1) as pool:
        loan = pool.try_connect("b:1")

        def wait() -> str:
            with pool.try_connect() as conn:
                return str(conn.endpoint)

        def lift() -> str:
            until(lambda: down(pool) == ["a:1"])
            clock.until_waiting(1)
            board.mend("a:1")
            pool.unblacklist("a:1")
            return ""

        assert together(wait, lift) == ["a:1", ""]
        loan.release()


def test_a_waiter_whose_last_endpoint_is_blacklisted_meanwhile_fails_fast(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=1) as pool:
        loan = pool.try_connect()

        def wait() -> None:
            with pytest.raises(NoEndpointError):
                pool.try_connect()

        def take_away() -> None:
            clock.until_waiting(1)
            pool.blacklist("a:1")
            loan.terminate()

        together(wait, take_away)
        assert pool.stats().size == 0


# -- idle connections of a blacklisted endpoint ----------------------------------------


def with_idle_to_a(board: Switchboard, clock: FakeClock, route: str) -> ConnectionPool:
    """A pool with one idle connection to a:1, which is blacklisted."""
    pool = ConnectionPool(route, connector=board, clock=clock, look_after_idle=100, idle_timeout=None)
    pool.try_connect("a:1").release()
    pool.blacklist("a:1")
    return pool


def test_idle_ones_of_a_blacklisted_endpoint_rest_while_another_can_serve(clock: FakeClock) -> None:
    board = Switchboard()
    with with_idle_to_a(board, clock, "a:1 && b:1") as pool:
        loans = [pool.try_connect() for _ in range(4)]
        assert endpoints_of(loans) == ["b:1"] * 4
        for loan in loans:
            loan.release()
        assert board.n_open == 5


@pytest.mark.parametrize("route", ["a:1", "a:1 && b:1", "a:1 || b:1", "b:1 || a:1"])
def test_as_a_last_resort_they_are_lent_but_only_after_a_look(route: str, clock: FakeClock) -> None:
    board = Switchboard("b:1")
    with with_idle_to_a(board, clock, route) as pool:
        with pool.try_connect() as conn:
            assert str(conn.endpoint) == "a:1"
            assert conn.uses == 1
            assert board.looked_at[-1:] == [conn.raw]
        assert board.dialled.count("a:1") == 1


def test_as_a_last_resort_a_dead_one_is_not_lent(clock: FakeClock) -> None:
    board = Switchboard("b:1")
    with with_idle_to_a(board, clock, "a:1 && b:1") as pool:
        board.lines[0].is_alive = False
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        assert board.n_open == 0
        assert board.dialled.count("a:1") == 1


def test_pinned_to_a_blacklisted_endpoint_gets_an_idle_one_after_a_look_and_no_dial(clock: FakeClock) -> None:
    board = Switchboard()
    with with_idle_to_a(board, clock, "a:1 && b:1") as pool:
        with pool.try_connect(Request(endpoint="a:1")) as conn:
            assert board.looked_at == [conn.raw]
        assert board.dialled == ["a:1"]
