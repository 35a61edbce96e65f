"""Who dials: a thread of the pool, the caller's own where it must be, or where no thread can be had."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from connpool import (
    CheckoutTimeoutError,
    ConnectionPool,
    NoEndpointError,
    PoolClosedError,
)
from connpool.testing import FakeClock
from connpool.wire import threads
from tests.helpers.switchboard import Switchboard, check_books, down, until
from tests.helpers.together import together
from tests.helpers.wire import taking
from tests.stress.works import Caller


@contextlib.contextmanager
def no_threads(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no thread be started inside the block, as on a machine that has no more to give."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with patch.context() as inside:
        inside.setattr(threading.Thread, "start", refuse)
        yield


# -- on a thread of the pool ---------------------------------------------------------------


def test_by_default_the_caller_never_dials_itself(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:
        pool.try_connect().release()
        assert threading.current_thread() not in board.threads
        assert len(board.threads) == 2


def test_a_deadline_holds_though_open_ignores_its_timeout() -> None:
    let_go = threading.Event()
    with ConnectionPool.of(lambda: let_go.wait(20)) as pool:
        with taking(0.1, 3), pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.1)
        let_go.set()
        until(lambda: pool.stats().idle == 1)
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0, "a dial whose waiter has left is kept"


def test_a_dial_that_is_called_off_before_its_thread_runs_is_not_begun(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[threading.Thread] = []

    def put_off(thread: threading.Thread) -> bool:
        late.append(thread)
        return True

    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threads, "start", put_off)
            caller = Caller(pool)
            until(lambda: bool(late))
            pool.close(0.0)
        caller.failure(PoolClosedError)
        late[0].start()
        late[0].join()
        assert board.dialled == []
        assert pool.stats().opening == 0


# -- no thread to be had -----------------------------------------------------------------------


def test_where_no_thread_can_be_started_the_caller_dials(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:
        with no_threads(monkeypatch):
            loans = [pool.try_connect(timeout=5) for _ in range(3)]
            assert set(board.threads) == {threading.current_thread()}
            for loan in loans:
                loan.terminate()
        assert down(pool) == ["a:1"]
        check_books(pool)
        assert pool.stats().size == 0


def test_where_no_thread_can_be_started_a_place_set_free_is_dialled_by_the_waiter(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=1) as pool:
        loan = pool.try_connect()
        ready = threading.Event()

        def wait() -> threading.Thread:
            ready.set()
            with pool.try_connect():
                return threading.current_thread()

        def give_back() -> threading.Thread:
            assert ready.wait(10)
            clock.until_waiting(1)
            with no_threads(monkeypatch):
                until(lambda: pool.stats().opening == 0)
                loan.terminate()
                until(lambda: pool.stats().waiting == 0)
            return threading.current_thread()

        waiter, _ = together(wait, give_back)
        assert waiter in board.threads or board.threads[1] is board.threads[0]


def test_where_no_thread_can_be_started_everything_can_still_fail_in_order(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Switchboard("a:1", "b:1")
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock) as pool, no_threads(monkeypatch):
        for _ in range(2):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
        assert sorted(board.dialled) == ["a:1", "b:1"]
        assert pool.stats().size == 0
        board.mend("a:1")
        pool.unblacklist("a:1")
        pool.try_connect().release()
        pool.clear()
        assert board.n_open == 0


def test_a_dial_for_which_there_is_no_thread_keeps_nobody_from_one_who_was_to_have_what_it_opens(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had it begun has been given what came back meanwhile."""
    callers: list[Caller] = []

    def refuse(thread: threading.Thread) -> bool:
        monkeypatch.undo()
        callers.append(Caller(pool))
        until(lambda: pool.stats().waiting == 2)
        loan.release()
        return False

    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=2) as pool:
        loan = pool.try_connect()
        monkeypatch.setattr(threads, "start", refuse)
        with pool.try_connect() as conn:
            assert conn.uses == 1
            with callers[0].loan() as other:
                assert other.uses == 0
        assert len(board.dialled) == 2


def test_threads_are_used_again_once_there_are_some(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        with no_threads(monkeypatch):
            pool.try_connect().terminate()
        pool.try_connect().terminate()
        assert board.threads[0] is threading.current_thread()
        assert board.threads[1] is not threading.current_thread()
