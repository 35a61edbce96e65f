"""Limits per endpoint, room made by eviction, and how many dials go out at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from connpool import CheckoutTimeoutError, CloseReason, ConnectionPool, PoolExhaustedError, Request
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, down, endpoints_of, info_of, until
from tests.helpers.together import together
from tests.stress.works import Caller


def test_one_endpoint_takes_no_more_than_its_share_and_the_other_gets_the_rest() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}", max_size=4, max_per_endpoint=2) as pool,
    ):
        loans = [pool.try_connect(a.endpoint) for _ in range(2)]
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(a.endpoint, timeout=0)
        loans += [pool.try_connect(timeout=5) for _ in range(2)]
        assert endpoints_of(loans[2:]) == [str(b.endpoint)] * 2
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        assert down(pool) == []
        for loan in loans:
            loan.release()
        a.until_accepts(2)
        b.until_accepts(2)
        assert (a.peak, b.peak) == (2, 2)


def test_a_waiter_at_the_endpoints_limit_goes_on_when_one_comes_back(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock, max_per_endpoint=1) as pool:
        loan = pool.try_connect("a:1")

        def wait() -> int:
            with pool.try_connect("a:1") as conn:
                return conn.uses

        def give_back() -> int:
            clock.until_waiting(1)
            loan.release()
            return 0

        assert together(wait, give_back) == [1, 0]


def test_who_waits_for_a_full_endpoint_holds_up_nobody_who_wants_another(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock, max_per_endpoint=1) as pool:
        loan = pool.try_connect("a:1")

        def wait() -> None:
            pool.try_connect("a:1").release()

        def others() -> None:
            clock.until_waiting(1)
            for _ in range(3):
                pool.try_connect("b:1").release()
                with pool.try_connect() as conn:
                    assert str(conn.endpoint) == "b:1"
            loan.release()

        together(wait, others)


def test_who_waits_behind_another_for_a_free_endpoint_is_served_first(clock: FakeClock) -> None:
    """Both are queued; the release of b's connection is of no use to the older waiter."""
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock, max_per_endpoint=1) as pool:
        loans = {name: pool.try_connect(name) for name in ("a:1", "b:1")}
        served = threading.Event()

        def older() -> None:
            pool.try_connect("a:1").release()

        def younger() -> None:
            clock.until_waiting(1)
            pool.try_connect("b:1").release()
            served.set()

        def give_back() -> None:
            clock.until_waiting(2)
            loans["b:1"].release()
            assert served.wait(10)
            loans["a:1"].release()

        together(older, younger, give_back)


def test_the_limit_per_endpoint_counts_failover_too(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings = {"max_size": 8, "max_per_endpoint": 2}
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, **settings) as pool:
        loans = [pool.try_connect() for _ in range(2)]
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        assert info_of(pool, "b:1").size == 2
        for loan in loans:
            loan.release()


def test_a_group_that_is_full_but_lives_is_waited_for(clock: FakeClock) -> None:
    """The next group is for when the first is down, not for when it is busy."""
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, max_per_endpoint=1) as pool:
        with pool.try_connect(), pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        assert board.dialled == ["a:1"]


# -- eviction ------------------------------------------------------------------------------


def test_an_idle_connection_to_another_endpoint_makes_room() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint, max_size=1) as pool:
        pool.try_connect().release()
        served = a.until_accepts(1)
        with pool.try_connect(b.endpoint, timeout=5) as conn:
            conn.sendall(b"x")
            assert conn.recv_exactly(1) == b"x"
            served.until_eof()
            assert pool.stats().size == 1
        assert pool.stats().closed == {CloseReason.EVICTED: 1}


def test_a_loan_that_comes_back_makes_room_for_one_who_waits_for_another_endpoint() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint, max_size=1) as pool:
        loan = pool.try_connect()

        def wait() -> None:
            with pool.try_connect(b.endpoint, timeout=10) as conn:
                assert conn.endpoint == b.endpoint

        def give_back() -> None:
            until(lambda: pool.stats().waiting == 1)
            loan.release()

        together(wait, give_back)
        a.until_accepts(1).until_eof()
        assert pool.stats().size == 1


def test_no_more_is_evicted_than_is_needed_and_never_what_is_lent(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=4) as pool:
        loans = [pool.try_connect() for _ in range(4)]
        for loan in loans[:3]:
            loan.release()
        loans.append(pool.try_connect("b:1"))
        assert loans[3].raw.is_open
        assert pool.stats().closed == {CloseReason.EVICTED: 1}
        assert (info_of(pool, "a:1").size, info_of(pool, "b:1").size) == (3, 1)
        for loan in loans[3:]:
            loan.release()
        check_books(pool)


class SlowToClose(Switchboard):
    """Closes its first connections only when it may."""

    prompt = False

    def __init__(self, n_slow: int = 1) -> None:
        super().__init__()
        self.may_close = threading.Event()
        self.closes = iter([*[True] * n_slow, *[False] * 20])

    def close(self, raw: Any) -> None:
        if next(self.closes):
            self.may_close.wait(20)
        super().close(raw)


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("is_useful", [False, True])
@pytest.mark.parametrize("is_lent", [False, True])
def test_if_closing_one_takes_long_another_makes_room_that_nobody_would_get(
    clock: FakeClock, is_lent: bool, is_useful: bool, is_pinned: bool
) -> None:
    """Peers that are gone are slow to say goodbye to."""
    board = SlowToClose()
    route = ("a:1" if is_pinned else "b:1") if is_useful else "a:1 || b:1"
    settings = {"max_size": 3, "connect_timeout": 500}  # nobody looks for dials that hang meanwhile
    with ConnectionPool(route, connector=board, clock=clock, **settings) as pool:
        loans = [pool.try_connect("a:1") for _ in range(3)]
        if not is_useful:
            pool.blacklist("a:1")

        def give_back() -> None:
            while loans:
                loans.pop().release()

        if not is_lent:
            give_back()

        def ask() -> None:
            with pool.try_connect("b:1" if is_pinned else None, timeout=100) as conn:
                assert endpoints_of([conn]) == ["b:1"]

        def go_on() -> None:
            clock.until_waiting(1)
            give_back()
            until(lambda: pool.stats().closing == 1)
            if not is_useful:
                began = clock.now()
                until(passes_and_it_is_served, "a place")
                assert clock.now() < began + 50
                return
            for _ in range(20):
                clock.until_waiting(1)
                clock.advance(0.1)
            assert (pool.stats().closing, pool.stats().idle) == (1, 2)
            board.may_close.set()

        def passes_and_it_is_served() -> bool:
            clock.advance(0.05)
            return pool.stats().waiting == 0

        try:
            together(ask, go_on)
        finally:
            board.may_close.set()
        until(lambda: pool.stats().closing == 0)
        assert pool.stats().closed == {CloseReason.EVICTED: 1 if is_useful else 2}
        check_books(pool)


def test_while_one_is_being_closed_for_an_endpoint_that_has_none_no_other_one_is(clock: FakeClock) -> None:
    board = SlowToClose()
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, max_size=4) as pool:
        for loan in [pool.try_connect("a:1") for _ in range(4)]:
            loan.release()

        def ask() -> None:
            pool.try_connect("b:1", timeout=100).release()

        def go_on() -> None:
            until(lambda: pool.stats().closing == 1)
            for _ in range(3):
                clock.advance(0.5)
                pool.sweep()
            assert (pool.stats().closing, pool.stats().idle) == (1, 3)
            board.may_close.set()

        try:
            together(ask, go_on)
        finally:
            board.may_close.set()
        assert pool.stats().closed == {CloseReason.EVICTED: 1}
        check_books(pool)


def test_an_endpoint_gives_up_no_more_than_its_share_to_one_that_is_back_however_slowly_they_close(
    clock: FakeClock,
) -> None:
    board = SlowToClose(4)
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, max_size=4) as pool:
        for loan in [pool.try_connect("a:1") for _ in range(4)]:
            loan.release()
        try:
            for _ in range(8):
                pool.try_connect().release()
            assert (pool.stats().closing, pool.stats().idle) == (2, 2)
        finally:
            board.may_close.set()
        until(lambda: pool.stats().closing == 0)
        for _ in range(4):
            pool.try_connect().release()
        assert {str(info.endpoint): info.size for info in pool.endpoints()} == {"a:1": 2, "b:1": 1}
        check_books(pool)


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("giver", ["a:1", "c:1"])
def test_a_loan_makes_room_when_its_endpoint_has_more_than_its_share_and_it_is_the_turn_of_one_with_none(
    clock: FakeClock, giver: str, turn: int, is_pinned: bool
) -> None:
    with ConnectionPool("a:1, b:1, c:1", connector=Switchboard(), clock=clock, max_size=6) as pool:
        pool.blacklist("b:1")
        loans = {name: [pool.try_connect(name) for _ in range(n)] for name, n in (("a:1", 4), ("c:1", 2))}
        pool.unblacklist("b:1")
        while next(pool._lender.books.fleet.turns) % 3 != (turn - 1) % 3:
            pass
        caller = Caller(pool, giver if is_pinned else None)
        clock.until_waiting(1)
        loans[giver].pop().release()
        makes_room = (giver, turn, is_pinned) == ("a:1", 1, False)
        with caller.loan() as conn:
            assert (str(conn.endpoint), conn.uses) == (("b:1", 0) if makes_room else (giver, 1))
        for loan in (*loans["a:1"], *loans["c:1"]):
            loan.release()
        check_books(pool)


def test_nothing_makes_room_for_an_endpoint_that_was_lifted_while_its_dial_hangs(clock: FakeClock) -> None:
    board = Switchboard()
    settings = {"max_size": 4, "max_connecting": 1, "connect_timeout": 2}
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, **settings) as pool:
        board.hold("b:1")
        hung = Caller(pool, "b:1")
        until(lambda: clock.advance(1) is None and not hung.is_waiting)
        loans = [pool.try_connect("a:1") for _ in range(3)]
        for _ in range(2):
            caller = Caller(pool)
            clock.until_waiting(1)
            pool.unblacklist("b:1")
            loans.pop().release()
            loans.append(caller.loan())
        assert [loan.uses for loan in loans] == [0, 0, 2]
        for loan in loans:
            loan.release()


@pytest.mark.parametrize("is_back", [False, True])
def test_of_loans_that_return_one_makes_room_for_a_probe_and_as_many_as_it_takes_for_what_is_back(
    clock: FakeClock, is_back: bool
) -> None:
    board = SlowToClose(0)
    board.fail("b:1")
    with ConnectionPool("a:1, b:1", connector=board, clock=clock, max_size=4, blacklist_initial=1) as pool:
        while not down(pool):
            pool.try_connect().terminate()
        board.mend("b:1")
        clock.advance(2)
        if is_back:
            pool.unblacklist("b:1")
        pool.try_connect("a:1").release()  # the turn of who waits is one for b
        loans = [pool.try_connect("a:1") for _ in range(4)]
        board.closes = iter([True, True, *[False] * 20])

        def ask() -> None:
            pool.try_connect(timeout=100).release()

        def give_back() -> None:
            clock.until_waiting(1)
            for _ in range(2):
                loans.pop().release()
            assert pool.stats().closing == (2 if is_back else 1)
            board.may_close.set()

        try:
            together(ask, give_back)
        finally:
            board.may_close.set()
        while loans:
            loans.pop().release()
        until(lambda: pool.stats().closing == 0)
        check_books(pool)


def test_no_other_one_makes_room_while_it_is_dials_that_are_waited_for(clock: FakeClock) -> None:
    board = SlowToClose(2)
    with ConnectionPool(
        "a:1 || b:1", connector=board, clock=clock, max_size=5, max_connecting=1, reconnect=False
    ) as pool:
        loans = [pool.try_connect("a:1") for _ in range(5)]
        while len(loans) > 1:
            loans.pop().release()
        pool.blacklist("a:1")
        board.hold("b:1")

        def ask() -> None:
            pool.try_connect(timeout=100).release()

        def go_on() -> None:
            until(lambda: pool.stats().closing == 2)
            loans.pop().terminate()
            board.until_dialling("b:1")
            for _ in range(3):
                clock.advance(0.5)
                pool.sweep()
            assert (pool.stats().closing, pool.stats().idle) == (2, 2)
            board.may_close.set()
            until(lambda: pool.stats().closing == 0)  # else a place is short again when the dial is over
            board.let_go("b:1")

        try:
            together(ask, ask, go_on)
        finally:
            board.may_close.set()
            board.let_go("b:1")
        until(lambda: pool.stats().closing == 0)
        assert pool.stats().closed == {CloseReason.EVICTED: 2, CloseReason.TERMINATED: 1}
        check_books(pool)


def test_a_deadline_is_not_put_off_by_a_close_that_takes_longer(clock: FakeClock) -> None:
    board = SlowToClose()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=1) as pool:
        pool.try_connect().release()
        caller = Caller(pool, "b:1", timeout=0.1)
        try:
            until(lambda: pool.stats().closing == 1)
            clock.until_waiting(1)
            clock.advance(0.15)
            caller.failure(CheckoutTimeoutError)
        finally:
            board.may_close.set()


def test_who_may_not_wait_is_refused_when_the_place_made_for_it_goes_to_who_came_first(
    clock: FakeClock,
) -> None:
    board = SlowToClose()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=2, max_connecting=1) as pool:
        pool.try_connect("b:1").release()
        board.hold("a:1")
        callers = [Caller(pool, "a:1") for _ in range(2)]
        until(lambda: pool.stats().waiting == 2)
        try:
            hasty = Caller(pool, "c:1", timeout=0)
            until(lambda: pool.stats().closing == 1)
            board.let_go("a:1")
            until(lambda: pool.stats().waiting == 2)
            clock.until_waiting(2)
            assert hasty.is_waiting
        finally:
            board.may_close.set()
            board.let_go("a:1")
        hasty.failure(PoolExhaustedError)
        for caller in callers:
            caller.loan().release()


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_the_longest_idle_one_is_evicted_whichever_endpoint_it_leads_to(
    order: tuple[int, ...], clock: FakeClock
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && c:1", connector=board, clock=clock, max_size=3) as pool:
        loans = [pool.try_connect() for _ in range(3)]
        for i in order:
            loans[i].release()
            clock.advance(1)
        pool.try_connect("b:1").release()
        assert [line.is_open for line in board.lines].index(False) == order[0]
        assert board.n_open == 3


def test_nothing_is_evicted_for_an_endpoint_that_is_not_even_dialled(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, max_size=1) as pool:
        pool.try_connect("a:1").release()
        pool.blacklist("b:1")
        with pytest.raises(ConnectionError):
            pool.try_connect("b:1")
        assert board.dialled == ["a:1"]
        with pool.try_connect() as conn:
            assert conn.uses == 1


def test_nothing_is_evicted_for_who_likes_no_connection_to_the_endpoint(clock: FakeClock) -> None:
    """It has had one dialled, and none is dialled for it again."""
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_size=2) as pool:
        pool.try_connect("a:1").release()
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(Request("b:1", timeout=0, where=lambda _: False))
        assert board.dialled == ["a:1", "b:1"]
        assert pool.stats().idle == 2


def test_at_the_endpoints_own_limit_evicting_others_is_no_use_and_is_not_done(clock: FakeClock) -> None:
    board = Switchboard()
    settings = {"max_size": 2, "max_per_endpoint": 1}
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, **settings) as pool:
        pool.try_connect("a:1").release()
        with pool.try_connect("b:1"), pytest.raises(PoolExhaustedError):
            pool.try_connect("b:1", timeout=0)
        assert board.n_open == 2


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_the_servers_together_never_see_more_than_the_maximum(dial_in_caller: bool) -> None:
    """Four threads ask for two endpoints in turn, in a pool of two: each checkout may evict."""
    n_open, peak, lock = 0, 0, threading.Lock()

    class Counting(Switchboard):
        def open(self, endpoint: object, timeout: float | None, cancel: object) -> object:
            nonlocal n_open, peak
            with lock:
                n_open += 1
                peak = max(peak, n_open)
            return super().open(endpoint, timeout, cancel)  # type: ignore[arg-type]

        def close(self, line: object) -> None:
            nonlocal n_open
            super().close(line)  # type: ignore[arg-type]
            with lock:
                n_open -= 1

    settings = {"max_size": 2, "dial_in_caller": dial_in_caller}
    with ConnectionPool("a:1", connector=Counting(), **settings) as pool:

        def work() -> None:
            for i in range(60):
                pool.try_connect("ab"[i % 2] + ":1").release()

        together(*[work] * 4, limit=30)
        assert peak <= 2
        check_books(pool)
    assert n_open == 0


# -- dials at a time -------------------------------------------------------------------------


def test_no_more_dials_go_to_an_endpoint_at_a_time_than_allowed(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, max_connecting=2) as pool:
        gate = threading.Barrier(6)

        def work() -> None:
            with pool.try_connect():
                gate.wait(10)

        def watch() -> None:
            until(lambda: pool.stats().waiting == 6)
            board.until_dialling("a:1", 2)
            assert pool.stats().opening == 2
            board.let_go("a:1")

        together(*[work] * 6, watch)
        assert board.peak["a:1"] == 2
        assert len(board.dialled) == 6


def test_dials_that_hang_at_one_endpoint_hold_up_no_dial_to_another(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("b:1", connector=board, clock=clock, max_connecting=1) as pool:

        def hang() -> None:
            pool.try_connect("a:1").release()

        def others() -> None:
            board.until_dialling("a:1")
            until(lambda: pool.stats().waiting == 2)
            loans = [pool.try_connect() for _ in range(3)]
            for loan in loans:
                loan.release()
            assert pool.stats().waiting == 2
            board.let_go("a:1")

        together(hang, hang, others)
        assert board.peak["a:1"] == 1


def test_a_crowd_uses_all_endpoints_of_the_group_though_one_hangs(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_connecting=1) as pool:

        def work() -> None:
            pool.try_connect().release()

        together(*[work] * 6)
        until(lambda: pool.stats().waiting == 0)
        board.let_go("a:1")
