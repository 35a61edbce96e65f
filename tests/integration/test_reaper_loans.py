"""Loans that nobody gives back, and loans that last: found, and told with who and where."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import warnings
from typing import Any

import pytest

from connpool import CloseReason, Connection, ConnectionClosed, ConnectionPool, LoanHeldLong, LoanLost
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, until
from tests.helpers.together import together
from tests.helpers.upkeep import OFTEN, let_pass, settle, sweep_until, turn
from tests.helpers.wire import taking


def lose(pool: ConnectionPool, thread: str = "forgetful") -> int:
    """Take a loan on a thread of that name and forget it. Returns the line that took it."""
    taken_at: list[int] = []

    def forget() -> None:
        taken_at.append(sys._getframe().f_lineno + 1)
        pool.try_connect()

    def work() -> None:
        with warnings.catch_warnings():  # the warning is looked at in its own test
            warnings.simplefilter("ignore", ResourceWarning)
            forget()
            gc.collect()

    worker = threading.Thread(target=work, name=thread)
    worker.start()
    worker.join(10)
    return taken_at[0]


def warned(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "connpool.pool" and record.levelno >= level
    ]


# -- lost -----------------------------------------------------------------------------------------


def test_the_warning_comes_at_once_and_the_rest_with_the_next_turn(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[LoanLost] = []
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        pool.listen(told.append, LoanLost)
        held = [pool.try_connect()]
        id = held[0].info.id
        clock.advance(5)
        with pytest.warns(ResourceWarning, match=f"{pool.name}.* dropped 5.0 s after"):
            held.clear()
        assert told == []
        assert pool.sweep() == 1
        server.until_accepts(1).until_eof()
        until(lambda: pool.stats().size == 0)
        assert [(event.pool, event.at, event.id) for event in told] == [(pool.name, clock.now(), id)]
        assert threading.current_thread().name in told[0].where
        assert pool.stats().lost == 1
        assert pool.stats().closed == {CloseReason.LOST: 1}
        assert len(warned(caplog)) == 1
        assert threading.current_thread().name in warned(caplog)[0]
        settle(pool)
        assert len(told) == len(warned(caplog)) == 1, "each loss is told once"
        with pool.try_connect(timeout=0):
            check_books(pool)


@pytest.mark.parametrize(
    ("condemn", "settings", "reason"),
    [
        (lambda pool, conn: None, {"max_uses": 1}, CloseReason.USED_UP),
        (lambda pool, conn: pool.clear(), {}, CloseReason.STALE),
        (lambda pool, conn: conn.recv(1, timeout=0.001), {}, CloseReason.BROKEN),
        (lambda pool, conn: pool.shutdown(), {}, CloseReason.POOL_CLOSED),
    ],
    ids=["used up", "cleared", "broken", "shut down"],
)
def test_a_forgotten_loan_that_was_to_be_closed_on_its_return_is_reported_too(
    condemn: Any, settings: dict[str, Any], reason: CloseReason, clock: FakeClock
) -> None:
    told: list[LoanLost] = []
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, **settings) as pool:
        pool.listen(told.append, LoanLost)
        held = [pool.try_connect()]
        id = held[0].info.id
        with contextlib.suppress(TimeoutError):
            condemn(pool, held[0])
        with pytest.warns(ResourceWarning, match="was not given back"):
            held.clear()
        pool.sweep()
        server.until_accepts(1).until_eof()
        until(lambda: pool.stats().size == 0)
        assert [event.id for event in told] == [id]
        assert pool.stats().lost == 1
        assert pool.stats().closed == {reason: 1}


def test_a_loan_that_was_given_back_is_not_lost(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.listen(told.append, LoanLost)
        for _ in range(3):
            pool.try_connect().release()
            pool.try_connect().terminate()
            pool.try_connect().detach()
        gc.collect()
        settle(pool)
        assert (told, pool.stats().lost, warned(caplog)) == ([], 0, [])


def test_who_lost_it_is_named_though_that_thread_has_ended(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[LoanLost] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, track_origin=True) as pool:
        pool.listen(told.append, LoanLost)
        line = lose(pool)
        sweep_until(pool, lambda: told)
        assert "forgetful" in told[0].where
        assert f"{__file__}:{line}" in told[0].where.replace('", line ', ":"), told[0].where
        (text,) = warned(caplog)
        assert "forgetful" in text
        for function in ("in forget", "in work"):
            assert function in text, "the whole stack"


@pytest.mark.parametrize("how", ["try_connect", "share"])
def test_who_keeps_a_loan_in_a_threading_local_to_its_end_makes_up_no_other_thread(
    clock: FakeClock, how: str
) -> None:
    """It is dropped when the thread is no longer among those that ``threading`` knows."""
    told: list[LoanLost] = []
    mine = threading.local()
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, sharable=True) as pool:
        pool.listen(told.append, LoanLost)

        def work() -> None:
            mine.loan = getattr(pool, how)()

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            worker = threading.Thread(target=work, name="worker-7")
            worker.start()
            worker.join(10)
            until(lambda: pool.sweep() == 1)
        assert "after thread 'ended thread" in str(seen[0].message)
        assert "ended thread" in told[0].where
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("Dummy")]


def test_origins_are_kept_only_if_asked_for(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool, pool.try_connect():
        assert pool.config.track_origin is False
        assert pool.connections()[0].origin is None


def test_origins_that_are_no_longer_kept_are_not_those_of_later_loans(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, track_origin=True) as pool:
        turn(pool)
        pool.configure(track_origin=False)
        with pool.try_connect():
            assert pool.connections()[0].origin is None


@pytest.mark.parametrize("listeners", [[], [id]])
def test_who_waited_while_origins_were_kept_leaves_none(listeners: list[Any], clock: FakeClock) -> None:
    with ConnectionPool(
        "a:1", connector=Switchboard(), clock=clock, max_size=1, track_origin=True, listeners=listeners
    ) as pool:
        loan = pool.try_connect()

        def switch_off() -> None:
            clock.until_waiting(1)
            pool.configure(track_origin=False)
            loan.release()

        together(lambda: pool.try_connect().release(), switch_off)
        with pool.try_connect():
            assert pool.connections()[0].origin is None


def test_the_origin_of_a_loan_is_the_line_of_the_user_who_took_it(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, track_origin=True) as pool:
        for _ in range(2):  # a new connection, then the fast path
            with pool.try_connect():
                text = str(pool.connections()[0].origin)
                assert __file__ in text
                assert "test_the_origin_of_a_loan" in text
            assert pool.connections()[0].origin is None, "nobody has it now"

        def handed_over() -> None:
            with pool.try_connect(timeout=20):
                origins.append(str(pool.connections()[0].origin))

        origins: list[str] = []
        pool.resize(max_size=1)
        loan = pool.try_connect()
        waiter = threading.Thread(target=handed_over)
        waiter.start()
        clock.until_waiting(1)
        loan.release()
        waiter.join(10)
        assert "handed_over" in origins[0]


def test_origins_keep_no_local_variable_alive(clock: FakeClock) -> None:
    class Large:
        pass

    def take(pool: ConnectionPool, large: Large) -> Any:
        return pool.try_connect()

    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, track_origin=True) as pool:
        import weakref

        large = Large()
        seen = weakref.ref(large)
        loan = take(pool, large)
        del large
        gc.collect()
        assert seen() is None
        loan.release()


def test_the_thread_finds_a_lost_loan_for_who_waits() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_size=1, reap_interval=OFTEN) as pool,
    ):
        held = [pool.try_connect()]
        got: list[object] = []
        waiter = threading.Thread(target=lambda: got.append(turn(pool)), daemon=True)
        waiter.start()
        until(lambda: pool.stats().waiting == 1)
        with pytest.warns(ResourceWarning):
            held.clear()
        waiter.join(10)
        assert len(got) == 1
        server.until_accepts(1).until_eof()


def test_who_waits_finds_a_lost_loan_itself_where_there_is_no_thread() -> None:
    settings: dict[str, Any] = {"max_size": 1, "connect_timeout": 60, "reap_interval": None}
    with ConnectionPool("a:1", connector=Switchboard(), **settings) as pool:
        held: list[Connection] = []

        def wait() -> None:
            until(lambda: held)
            pool.try_connect(timeout=20).release()

        def forget() -> None:  # what another thread has made would wait for that one without the GIL
            held.append(pool.try_connect())
            until(lambda: pool.stats().waiting == 1)
            with pytest.warns(ResourceWarning):
                held.clear()

        with taking(0, 8):
            together(wait, forget)
        check_books(pool)


def test_the_thread_finds_a_lost_loan_though_nobody_waits_and_nothing_else_is_due() -> None:
    settings: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None, "reap_interval": OFTEN}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        held = [pool.try_connect()]
        with pytest.warns(ResourceWarning):
            held.clear()
        server.until_accepts(1).until_eof()
        until(lambda: pool.stats().lost == 1)


def test_loans_lost_in_cycles_are_found(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=3) as pool:
        for _ in range(3):
            knot: list[object] = [pool.try_connect()]
            knot.append(knot)
        del knot
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            gc.collect()
        assert [warning.category for warning in seen] == [ResourceWarning] * 3
        settle(pool)
        assert (pool.stats().lost, pool.stats().size) == (3, 0)


# -- held long ---------------------------------------------------------------------------------------


def test_a_long_loan_is_logged_once_with_the_stack_of_its_holder_and_once_when_it_is_back(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "connpool.pool")
    told: list[LoanHeldLong] = []
    over = threading.Event()

    def dawdle() -> None:
        with pool.try_connect() as conn:
            taken.append(conn.info.id)
            assert over.wait(10)

    taken: list[int] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        pool.listen(told.append, LoanHeldLong)
        holder = threading.Thread(target=dawdle, name="dawdler")
        holder.start()
        until(lambda: taken)
        clock.advance(4.9)
        settle(pool)
        assert told == []
        clock.advance(0.2)
        for _ in range(3):
            settle(pool)
            clock.advance(10)
        assert [(event.id, event.seconds) for event in told] == [(taken[0], pytest.approx(5.1))]
        assert "dawdler" in told[0].where
        (text,) = warned(caplog)
        for part in ("dawdler", "dawdle", "over.wait", f"{taken[0]}", "5.1"):
            assert part in text, part
        over.set()
        holder.join(10)
        settle(pool)
        back = warned(caplog, logging.INFO)
        assert len(back) == 2
        assert "35.1" in back[1]
        assert len(told) == 1


def test_a_long_loan_that_comes_back_while_it_is_told_is_told_as_it_was(clock: FakeClock) -> None:
    told: list[LoanHeldLong] = []
    settings: dict[str, Any] = {"warn_after": 5, "idle_timeout": 5, "clock": clock}
    with ConnectionPool("a:1", connector=Switchboard(), **settings) as pool:
        pool.listen(told.append, LoanHeldLong)
        loan = pool.try_connect()
        turn(pool)
        stop = pool.listen(lambda _: [stop(), loan.release()], ConnectionClosed)
        clock.advance(6)
        settle(pool)
        assert [event.seconds for event in told] == [6]


def test_a_long_loan_is_not_said_to_be_back_when_nobody_is_warned_any_more(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        loan = pool.try_connect()
        clock.advance(6)
        settle(pool)
        pool.configure(warn_after=None)
        settle(pool)
        assert len(warned(caplog)) == 1
        loan.release()
        settle(pool)
        assert ["is back after" in line for line in warned(caplog)] == [False, True]


def test_each_long_loan_is_logged_anew(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "connpool.pool")
    told: list[LoanHeldLong] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5, max_lifetime=None) as pool:
        pool.listen(told.append, LoanHeldLong)
        for n in (1, 2, 3):
            with pool.try_connect():
                clock.advance(6)
                settle(pool)
            assert len(told) == n
            with pool.try_connect():
                clock.advance(4)
                settle(pool)
            assert len(told) == n, "a short one in between"


def test_a_short_loan_is_not_logged_when_it_comes_back(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "connpool.pool")
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        for _ in range(3):
            turn(pool)
            clock.advance(100)
            settle(pool)
    assert warned(caplog, logging.INFO) == []


@pytest.mark.parametrize("end", ["release", "terminate"])
def test_the_return_of_a_long_loan_is_logged_however_it_ends(
    end: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "connpool.pool")
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        loan = pool.try_connect()
        clock.advance(6)
        settle(pool)
        getattr(loan, end)()
        settle(pool)
    assert len(warned(caplog, logging.INFO)) == 2


def test_the_return_of_a_long_loan_is_logged_though_the_pool_is_closed_at_once(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        loan = pool.try_connect()
        clock.advance(6)
        settle(pool)
        loan.release()
    assert ["is back after" in line for line in warned(caplog)] == [False, True]


def test_a_holder_that_has_ended_is_warned_about_all_the_same(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[Any] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, warn_after=5) as pool:
        holder = threading.Thread(target=lambda: taken.append(pool.try_connect()), name="gone-now")
        holder.start()
        holder.join(10)
        clock.advance(6)
        settle(pool)
        assert len(warned(caplog)) == 1
        taken.pop().release()


def test_the_thread_warns_in_real_time(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=Switchboard(), warn_after=0.1, **settings) as pool:
        with pool.try_connect():
            until(lambda: warned(caplog))
            let_pass(0.15)
        assert threading.current_thread().name in warned(caplog)[0]
    assert len(warned(caplog)) <= 2
