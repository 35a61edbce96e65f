"""Limits that change while the pool runs."""

from __future__ import annotations

import pytest

from connpool import CloseReason, ConfigError, ConnectionPool, PoolExhaustedError, PoolPausedError
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, until
from tests.helpers.together import together
from tests.stress.works import A, B, Caller, Works, door


def test_a_lower_limit_closes_idle_ones_now_and_lent_ones_as_they_come_back() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=8) as pool:
        loans = [pool.try_connect() for _ in range(8)]
        for loan in loans[:3]:
            loan.release()
        server.until_accepts(8)
        pool.resize(max_size=2)
        server.until_open(5)
        sizes = []
        for loan in loans[3:]:
            loan.sendall(b"x")
            assert loan.recv_exactly(1) == b"x"
            loan.release()
            sizes.append(pool.stats().size)
        assert sizes == [4, 3, 2, 2, 2]
        server.until_open(2)
        assert pool.stats().closed == {CloseReason.SURPLUS: 6}
        assert pool.stats().max_size == pool.config.max_size == 2
        check_books(pool)


@pytest.mark.parametrize("n_lent", [0, 2])
def test_a_lower_limit_closes_no_more_than_it_must_though_closing_takes_long(
    n_lent: int,
) -> None:
    works = Works()
    with door() as closing, ConnectionPool("a:1", connector=works, max_size=4, reap_interval=None) as pool:
        loans = [pool.try_connect() for _ in range(4)]
        for loan in loans[n_lent:]:
            loan.release()
        works.closing = closing
        pool.resize(max_size=2)
        for loan in loans[:n_lent]:
            loan.release()
        assert (pool.stats().idle, pool.stats().closing) == (2, 2)
        closing.let_go()
        until(lambda: pool.stats().size == 2)
        assert pool.stats().closed == {CloseReason.SURPLUS: 2}


def test_who_may_not_wait_is_told_when_what_was_dialled_for_it_is_too_much(clock: FakeClock) -> None:
    works = Works()
    with ConnectionPool("a:1", connector=works, clock=clock, max_size=2) as pool, door() as dial:
        loan = pool.try_connect()
        works.opening = dial
        caller = Caller(pool, timeout=0)
        dial.until_entered()
        pool.resize(max_size=1)
        dial.let_go()
        caller.failure(PoolExhaustedError)
        loan.release()


def test_who_may_not_wait_is_told_when_what_makes_room_for_it_is_closed_too_late(clock: FakeClock) -> None:
    works = Works()
    with ConnectionPool("a:1, b:1", connector=works, clock=clock, max_size=1) as pool, door() as closing:
        pool.try_connect(A).release()
        works.closing = closing
        caller = Caller(pool, B, timeout=0)
        closing.until_entered()
        pool.pause()
        closing.let_go()
        caller.failure(PoolPausedError)


def test_above_a_lowered_limit_nothing_more_is_opened(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_size=4) as pool:
        loans = [pool.try_connect() for _ in range(4)]
        pool.resize(max_size=2)
        loans.pop().terminate()
        loans.pop().terminate()
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        loans.pop().terminate()
        loans.append(pool.try_connect(timeout=0))
        for loan in loans:
            loan.release()
        assert board.n_open == pool.stats().size == 2


def test_a_lowered_limit_with_waiters_serves_them_with_what_may_stay(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=4) as pool:
        loans = [pool.try_connect() for _ in range(4)]

        def wait() -> None:
            with pool.try_connect():
                assert pool.stats().in_use <= 1

        def shrink() -> None:
            clock.until_waiting(3)
            pool.resize(max_size=1)
            for loan in loans[:3]:
                loan.release()
                assert pool.stats().waiting == 3, "above the limit what comes back is closed"
            loans[3].release()

        together(*[wait] * 3, shrink)
        assert board.n_open == pool.stats().size == 1
        assert len(board.dialled) == 4


def test_a_higher_limit_serves_waiters_at_once(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=1) as pool:
        with pool.try_connect():

            def grow() -> None:
                clock.until_waiting(3)
                pool.resize(max_size=4)

            together(*[lambda: pool.try_connect().release()] * 3, grow)
        assert pool.stats().waiting == 0
        assert 2 <= board.n_open <= 4


def test_a_higher_limit_per_endpoint_serves_waiters_at_once(clock: FakeClock) -> None:
    with (
        ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_per_endpoint=1) as pool,
        pool.try_connect(),
    ):

        def grow() -> None:
            clock.until_waiting(2)
            pool.configure(max_per_endpoint=None)

        together(*[lambda: pool.try_connect().release()] * 2, grow)


def test_a_lower_limit_per_endpoint_closes_what_is_idle_now_and_what_is_lent_when_it_comes_back() -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, max_size=10, reap_interval=None) as pool:
        loans = [pool.try_connect(at) for at in ("a:1", "b:1") for _ in range(4)]
        for conn in loans[::2]:
            conn.release()
        pool.configure(max_per_endpoint=1)
        until(lambda: [info.size for info in pool.endpoints()] == [2, 2])
        for conn in loans[1::2]:
            conn.release()
        until(lambda: [(info.size, info.idle) for info in pool.endpoints()] == [(1, 1), (1, 1)])
        assert pool.stats().closed == {CloseReason.SURPLUS: 6}
        with pool.try_connect("a:1"), pytest.raises(PoolExhaustedError):
            pool.try_connect("a:1", timeout=0)


def test_a_lower_limit_per_endpoint_closes_no_more_of_what_is_idle_than_is_too_many() -> None:
    """One that is lent, and will be closed when it comes back, is none that is too many."""
    with ConnectionPool("a:1", connector=Switchboard(), max_size=10, reap_interval=None) as pool:
        stale = pool.try_connect()
        pool.clear()
        for conn in [pool.try_connect() for _ in range(3)]:
            conn.release()
        pool.configure(max_per_endpoint=2)
        assert (pool.stats().idle, pool.stats().in_use) == (2, 1)
        pool.configure(max_per_endpoint=5)
        stale.release()
        assert pool.stats().closed == {CloseReason.SURPLUS: 1, CloseReason.STALE: 1}


def test_more_dials_at_a_time_begin_as_soon_as_they_are_allowed(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, max_connecting=1) as pool:

        def grow() -> None:
            until(lambda: pool.stats().waiting == 3)
            board.until_dialling("a:1", 1)
            pool.configure(max_connecting=3)
            board.until_dialling("a:1", 3)
            board.let_go("a:1")

        together(*[lambda: pool.try_connect().release()] * 3, grow)


@pytest.mark.parametrize("settings", [{"max_size": 0}, {"max_size": True}, {"max_sise": 3}, {"min_idle": 9}])
def test_a_setting_that_is_refused_changes_nothing(settings: dict[str, int], clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=4) as pool:
        before = pool.config
        with pytest.raises(ConfigError):
            pool.configure(**settings)
        assert pool.config is before


def test_a_shorter_queue_limit_refuses_newcomers_only(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=1) as pool:
        loan = pool.try_connect()

        def shorten() -> None:
            clock.until_waiting(2)
            pool.configure(max_waiters=1)
            with pytest.raises(PoolExhaustedError):
                pool.try_connect()
            loan.release()

        together(*[lambda: pool.try_connect().release()] * 2, shorten)
