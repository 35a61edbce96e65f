"""Dials on the caller's own thread, for drivers that are bound to theirs."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from typing import Any

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    ConnectTimeoutError,
    EndpointDown,
    NoEndpointError,
    PoolClosedError,
    Request,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, down, info_of, until
from tests.helpers.together import together
from tests.helpers.wire import taking


def caller_pool(route: str, board: Switchboard, **settings: Any) -> ConnectionPool:
    return ConnectionPool(route, connector=board, dial_in_caller=True, **settings)


def test_on_request_every_dial_is_the_callers_own_failover_and_all(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1")
    with caller_pool("a:1 && b:1 || c:1", board, clock=clock) as pool:
        with pool.try_connect() as conn:
            assert str(conn.endpoint) == "c:1"
        assert sorted(board.dialled) == ["a:1", "b:1", "c:1"]
        assert set(board.threads) == {threading.current_thread()}
        board.fail("c:1")
        pool.clear()
        pool.unblacklist("a:1")
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect()
        assert [str(endpoint) for endpoint, _ in caught.value.causes] == ["a:1", "b:1", "c:1"]
        check_books(pool)


def test_a_failure_that_is_remembered_keeps_nothing_of_who_dialled(clock: FakeClock) -> None:
    class Thing:
        pass

    def ask() -> weakref.ref[Thing]:
        mine = Thing()
        with contextlib.suppress(NoEndpointError):
            pool.try_connect()
        return weakref.ref(mine)

    with caller_pool("a:1", Switchboard("a:1"), clock=clock) as pool:
        seen = ask()
        gc.collect()
        assert info_of(pool, "a:1").last_error is not None
        assert seen() is None


def test_nothing_is_opened_in_the_background(clock: FakeClock) -> None:
    board = Switchboard()
    with caller_pool("a:1", board, clock=clock, min_idle=2, revive="force") as pool:
        pool.sweep()
        pool.try_connect().terminate()
        pool.sweep()
        assert board.threads == [threading.current_thread()]


def test_a_waiter_for_whom_a_place_becomes_free_dials_on_its_own_thread(clock: FakeClock) -> None:
    board = Switchboard()
    with caller_pool("a:1", board, clock=clock, max_size=1) as pool:
        loan = pool.try_connect()
        mine: list[threading.Thread] = []

        def wait() -> None:
            mine.append(threading.current_thread())
            with pool.try_connect() as conn:
                assert conn.uses == 0

        def give_back() -> None:
            clock.until_waiting(1)
            loan.terminate()

        together(wait, give_back)
        assert board.threads[1] is mine[0]


def test_the_callers_dial_gets_the_smaller_of_its_deadline_and_the_connect_timeout(clock: FakeClock) -> None:
    board = Switchboard()
    with caller_pool("a:1", board, clock=clock, connect_timeout=5) as pool:
        for timeout in (2, 50, 0, 0.5):
            pool.try_connect(timeout=timeout).terminate()
        assert board.timeouts == [2, 5, 5, 0.5]


def test_a_callers_short_deadline_blames_nobody_and_is_no_connect_timeout() -> None:
    with ScriptedServer() as hole:
        hole.black_hole()
        with ConnectionPool(hole.endpoint, dial_in_caller=True, connect_timeout=5) as pool:
            for _ in range(2):
                with taking(0.1, 3), pytest.raises(CheckoutTimeoutError):
                    pool.try_connect(timeout=0.1)
            assert down(pool) == []
            assert pool.stats().size == 0
            check_books(pool)


def test_a_time_out_that_comes_long_before_its_callers_deadline_blames_the_endpoint() -> None:
    opened = []

    def open_late() -> None:
        opened.append(None)
        raise TimeoutError("the login server does not answer")

    with ConnectionPool.of(open_late, dial_in_caller=True, blacklist_initial=60) as pool:
        with taking(0, 1), pytest.raises(ConnectTimeoutError, match="login server"):
            pool.try_connect(timeout=2)
        assert len(opened) == 1
        assert len(down(pool)) == 1


def test_the_full_connect_timeout_blames_the_endpoint() -> None:
    with ScriptedServer() as hole:
        hole.black_hole()
        with ConnectionPool(hole.endpoint, dial_in_caller=True, connect_timeout=0.1) as pool:
            with taking(0.1, 3), pytest.raises(ConnectTimeoutError):
                pool.try_connect(timeout=5)
            assert info_of(pool, hole.endpoint).failures == 1


def test_a_dial_that_succeeds_after_the_deadline_is_kept_and_its_caller_is_told_the_truth(
    clock: FakeClock,
) -> None:
    """The connection is open: either it is lent after all, or it lies idle. It is never lost."""

    class Late(Switchboard):
        def open(self, endpoint: Any, timeout: float | None, cancel: Any) -> Any:
            line = super().open(endpoint, timeout, cancel)
            clock.advance(3)
            return line

    board = Late()
    with caller_pool("a:1", board, clock=clock, max_size=1) as pool:
        try:
            pool.try_connect(timeout=2).release()
        except CheckoutTimeoutError:
            assert pool.stats().idle == 1
        with pool.try_connect(timeout=2):
            assert len(board.dialled) == 1
        check_books(pool)


@pytest.mark.parametrize("blow", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_in_open_frees_the_place_and_blames_nobody(
    blow: type[BaseException], clock: FakeClock
) -> None:
    board = Switchboard()
    board.fail("a:1", blow())
    with caller_pool("a:1", board, clock=clock, max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(blow):
                pool.try_connect()
            assert pool.stats().size == 0
            assert down(pool) == []
        board.mend("a:1")
        pool.try_connect(timeout=0).release()
        check_books(pool)


def test_an_interrupt_in_open_lets_the_next_waiter_dial(clock: FakeClock) -> None:
    struck = threading.Event()

    class Striking(Switchboard):
        def open(self, endpoint: Any, timeout: float | None, cancel: Any) -> Any:
            if not struck.is_set():
                clock.until_waiting(1)
                struck.set()
                raise KeyboardInterrupt
            return super().open(endpoint, timeout, cancel)

    board = Striking()
    with caller_pool("a:1", board, clock=clock, max_size=1) as pool:

        def dial() -> None:
            with pytest.raises(KeyboardInterrupt):
                pool.try_connect()

        def wait() -> None:
            until(lambda: pool.stats().opening == 1)
            pool.try_connect().release()

        together(dial, wait)
        assert (pool.stats().idle, pool.stats().in_use) == (1, 0)


def test_a_foreign_error_in_open_is_the_endpoints_failure_and_the_cause(clock: FakeClock) -> None:
    board = Switchboard()
    board.fail("a:1", ZeroDivisionError("in the driver"))
    with caller_pool("a:1", board, clock=clock) as pool:
        with pytest.raises(NoEndpointError, match="in the driver") as caught:
            pool.try_connect()
        cause: BaseException | None = caught.value.causes[0][1]
        while cause is not None and not isinstance(cause, ZeroDivisionError):
            cause = cause.__cause__
        assert isinstance(cause, ZeroDivisionError)
        assert down(pool) == ["a:1"]


def test_callers_dial_no_more_at_a_time_than_allowed(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with caller_pool("a:1", board, clock=clock, max_connecting=2) as pool:

        def watch() -> None:
            board.until_dialling("a:1", 2)
            clock.until_waiting(3)
            board.let_go("a:1")

        together(*[lambda: pool.try_connect().release()] * 5, watch)
        assert board.peak["a:1"] == 2


def test_a_probe_in_the_caller_leaves_the_others_to_be_served_elsewhere(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with caller_pool("a:1 || b:1", board, clock=clock) as pool:
        pool.try_connect().terminate()
        clock.advance(100)
        board.hold("a:1")

        def probe() -> str:
            with pool.try_connect() as conn:
                return str(conn.endpoint)

        def others() -> str:
            board.until_dialling("a:1")
            for _ in range(3):
                with pool.try_connect() as conn:
                    assert str(conn.endpoint) == "b:1"
            board.let_go("a:1")
            return ""

        assert together(probe, others) == ["b:1", ""]
        assert board.dialled.count("a:1") == 2


def test_the_cancel_flag_of_the_request_reaches_the_callers_dial(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    cancel = threading.Event()
    with caller_pool("a:1", board, clock=clock) as pool:

        def ask() -> None:
            with pytest.raises(CancelledError):
                pool.try_connect(Request(cancel=cancel))

        def end() -> None:
            board.until_dialling("a:1")
            cancel.set()

        together(ask, end, limit=5)
        assert down(pool) == []
        assert pool.stats().size == 0


@pytest.mark.parametrize("end", [ConnectionPool.close, ConnectionPool.shutdown])
def test_ending_the_pool_ends_the_callers_dial(end: Any, clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with caller_pool("a:1", board, clock=clock) as pool:

        def ask() -> None:
            with pytest.raises(PoolClosedError):
                pool.try_connect()

        def finish() -> None:
            board.until_dialling("a:1")
            end(pool)

        together(ask, finish, limit=5)
        until(lambda: pool.stats().size == 0)
        assert board.n_open == 0


def test_what_comes_back_first_serves_who_waits_to_dial(clock: FakeClock) -> None:
    board = Switchboard()
    with caller_pool("a:1", board, clock=clock, max_connecting=1) as pool:
        loan = pool.try_connect()
        board.hold("a:1")

        def dial() -> None:
            pool.try_connect().release()

        def wait() -> int:
            board.until_dialling("a:1")
            with pool.try_connect() as conn:
                return conn.uses

        def give_back() -> None:
            board.until_dialling("a:1")
            clock.until_waiting(1)
            loan.release()

        def watch() -> None:
            until(lambda: pool.stats().checkouts == 2)
            board.let_go("a:1")

        assert together(dial, wait, give_back, watch)[1] == 1


def test_a_dial_that_its_caller_need_not_run_any_more_frees_its_place() -> None:
    board = Switchboard("a:1")
    with caller_pool("a:1, b:1", board, max_size=2) as pool:
        held = pool.try_connect("b:1")
        number = held.info.id

        def serve_it_meanwhile(_: object) -> None:  # a:1 has failed, and b:1 is to be dialled next
            assert pool.stats().opening == 1
            held.release()

        pool.listen(serve_it_meanwhile, EndpointDown)
        first = pool.try_connect(timeout=5)
        if not pool.stats().connect_failures:  # it was b:1's turn
            first.terminate()
            first = pool.try_connect(timeout=5)
        assert first.info.id == number
        assert pool.stats().opening == 0
        first.release()
        check_books(pool)


class Wordy(Switchboard):
    """Says what failed in words of its own, and drops no context."""

    def open(self, *args: Any) -> Any:
        try:
            return super().open(*args)
        except ConnectionRefusedError:
            raise ConnectionRefusedError("no, thank you")  # noqa: B904 - as many drivers do


@pytest.mark.parametrize("kind", [Switchboard, Wordy])
def test_a_loan_is_found_lost_though_a_failure_from_the_same_stack_is_remembered(
    kind: type[Switchboard],
) -> None:
    board = kind("a:1")
    with caller_pool("a:1, b:1", board, max_size=2) as pool:

        def forget() -> None:
            conn = pool.try_connect(timeout=5)
            assert str(conn.endpoint) == "b:1"

        for n in (1, 2):
            with pytest.warns(ResourceWarning, match="was not given back"):
                forget()
            pool.sweep()
            assert pool.stats().lost == n
        assert info_of(pool, "a:1").last_error is not None
        check_books(pool)


def test_what_no_network_does_is_remembered_with_its_place() -> None:
    def open_wrongly() -> Any:
        return {}["no such key"]

    with ConnectionPool.of(open_wrongly, dial_in_caller=True) as pool:
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect()
        cause = caught.value.__cause__
        assert isinstance(cause, KeyError)
        assert any("in open_wrongly" in note for note in cause.__notes__)


def test_one_error_that_is_raised_again_and_again_does_not_grow() -> None:
    same = ValueError("the client is closed")

    def open_wrongly() -> Any:
        raise same

    with ConnectionPool.of(open_wrongly, dial_in_caller=True, blacklist_initial=0) as pool:
        for _ in range(10):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
    assert len(same.__notes__) == 1


def test_who_has_dialled_in_vain_is_not_taken_to_be_dialling_still() -> None:
    board = Switchboard("a:1")
    with caller_pool("a:1, b:1", board, max_size=1) as pool:
        pool.try_connect("b:1").release()
        with pytest.raises(ConnectError):
            pool.try_connect("a:1")
        with pool.try_connect("b:1"), pytest.raises(CheckoutTimeoutError):
            pool.try_connect("b:1", timeout=0.05)
