"""The reaper's thread: one for all pools, there while there is something to do, in nobody's way."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from connpool import ConnectionClosed, ConnectionOpened, ConnectionPool, PoolClosedError, PoolState
from connpool.pool import desk
from connpool.pool.census import watch
from connpool.testing import FakeClock, ScriptedServer
from connpool.upkeep.reaper import Reaper
from tests.helpers.switchboard import Line, Switchboard, until
from tests.helpers.upkeep import OFTEN, REAPER, fill, let_pass, reapers, the_reaper, turn

AGELESS: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None}
TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def no_reaper_before() -> Iterator[None]:
    until(lambda: not reapers(), "the end of the reaper of earlier tests")
    yield
    gc.collect()
    until(lambda: not reapers(), "the end of the reaper with the last pool")


# -- when there is one ------------------------------------------------------------------------


def test_making_a_pool_starts_no_thread() -> None:
    before = set(threading.enumerate())
    with ConnectionPool("a:1", connector=Switchboard()), ConnectionPool.of(object):
        assert set(threading.enumerate()) == before


def test_lending_what_never_grows_old_needs_no_reaper() -> None:
    with ConnectionPool("a:1", connector=Switchboard(), **AGELESS) as pool:
        fill(pool, 3)
        turn(pool)
        let_pass(0.05)
        assert reapers() == []


def test_the_first_thing_due_starts_one_daemon() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        fill(pool, 3)
        thread = the_reaper()
        assert thread.daemon
        assert thread.name == REAPER


@pytest.mark.parametrize("settings", [{"reap_interval": None}, {"clock": FakeClock()}], ids=str)
def test_pools_swept_by_hand_have_no_reaper(settings: dict[str, Any]) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), min_idle=2, idle_timeout=0.01, **settings) as pool:
        fill(pool, 3)
        let_pass(0.05)
        assert reapers() == []
        assert pool.stats().closed == {}


def test_a_pool_given_an_interval_at_run_time_is_watched_from_then_on() -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, reap_interval=None, idle_timeout=0.05) as pool:
        fill(pool, 2)
        pool.configure(reap_interval=OFTEN)
        until(lambda: board.n_open == 0)
        pool.configure(reap_interval=None)
        fill(pool, 2)
        let_pass(0.15)
        assert board.n_open == 2


def test_fifty_pools_have_one_thread_that_ends_with_the_last() -> None:
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ConnectionPool("a:1", connector=Switchboard(), min_idle=1)) for _ in range(50)
        ]
        until(lambda: all(pool.stats().idle == 1 for pool in pools))
        thread = the_reaper()
        for pool in pools[:-1]:
            pool.close()
        let_pass(0.05)
        assert reapers() == [thread]
        pools[-1].close()
        thread.join(5)
        assert not thread.is_alive()


def test_many_pools_in_steady_use_cost_one_thread() -> None:
    """Each with something due at another time; those that are due are served in the midst of the others."""
    with ExitStack() as stack:
        before = threading.active_count()
        for _ in range(300):
            turn(stack.enter_context(ConnectionPool("a:1", connector=Switchboard(), dial_in_caller=True)))
        assert threading.active_count() == before + 1
        board = Switchboard()
        brief = ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN)
        turn(stack.enter_context(brief))
        until(lambda: board.n_open == 0)
        the_reaper()


def test_it_ends_when_nothing_is_left_to_do_and_begins_anew_when_there_is() -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        for n in (1, 2, 3):
            turn(pool)
            until(lambda n=n: len(board.lines) == n and not board.lines[-1].is_open)
            until(lambda: not reapers(), "its end")


def test_a_sooner_deadline_of_another_pool_is_kept() -> None:
    late, soon = Switchboard(), Switchboard()
    with (
        ConnectionPool("a:1", connector=late, reap_interval=OFTEN) as first,
        ConnectionPool("b:1", connector=soon, reap_interval=OFTEN, idle_timeout=0.05) as second,
    ):
        turn(first)
        until(reapers)
        let_pass(0.05)  # it sleeps until the first pool's deadline, ten minutes from now
        turn(second)
        until(lambda: soon.n_open == 0)
        assert late.n_open == 1


def test_closing_and_making_pools_all_the_time_never_leaves_one_unwatched() -> None:
    for _ in range(60):
        board = Switchboard()
        pool = ConnectionPool("a:1", connector=board, idle_timeout=0.002, reap_interval=0.001)
        turn(pool)
        until(lambda board=board: board.n_open == 0, "the turn of a pool made as the thread was ending")
        pool.close()


# -- forgotten pools ------------------------------------------------------------------------------


def forgotten(**settings: Any) -> tuple[weakref.ref[ConnectionPool], Switchboard]:
    board = Switchboard()
    pool = ConnectionPool("a:1", connector=board, reap_interval=OFTEN, **settings)
    fill(pool, 2)
    until(reapers)
    return weakref.ref(pool), board


@pytest.mark.parametrize(
    "settings", [{}, {"min_idle": 2}, {"keepalive_interval": 0.03}, {"warn_after": 0.01}], ids=str
)
def test_the_running_reaper_keeps_no_forgotten_pool_alive(settings: dict[str, Any]) -> None:
    seen, board = forgotten(**settings)
    thread = the_reaper()

    def is_gone() -> bool:
        gc.collect()
        return seen() is None

    until(is_gone, "the end of the pool")  # a turn under way may hold it for a moment
    until(lambda: board.n_open == 0, "the end of its connections")
    thread.join(5)
    assert not thread.is_alive(), "the last pool is gone"


# The collector may come to a socket before its pool: then Python itself says that nobody closed it.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_forgotten_pool_closes_its_real_connections() -> None:
    with ScriptedServer() as server:
        ConnectionPool(server.endpoint, min_idle=2, reap_interval=OFTEN)
        server.until_accepts(2)
        until(lambda: gc.collect() >= 0 and server.open == 0)


def test_a_hung_dial_keeps_no_forgotten_pool_from_ending() -> None:
    board = Switchboard()
    board.hold("a:1")
    pool = ConnectionPool("a:1", connector=board, min_idle=1, reap_interval=OFTEN)
    board.until_dialling("a:1")
    seen = weakref.ref(pool)
    pool.close()
    del pool
    board.let_go("a:1")
    until(lambda: gc.collect() >= 0 and seen() is None)
    until(lambda: board.n_open == 0)


# -- what it does itself, and what it leaves to others ------------------------------------------------


class Telltale(Switchboard):
    """A switchboard that writes down who closed."""

    prompt = False

    def __init__(self) -> None:
        super().__init__()
        self.closers: list[str] = []

    def close(self, line: Line) -> None:
        self.closers.append(threading.current_thread().name)
        super().close(line)


def test_it_neither_dials_nor_closes_itself() -> None:
    board = Telltale()
    settings: dict[str, Any] = {"min_idle": 2, "max_lifetime": 0.05, "reap_interval": OFTEN, "revive": True}
    with ConnectionPool("a:1", connector=board, **settings):
        until(lambda: len(board.closers) >= 4)
        assert REAPER not in board.closers
        assert REAPER not in {thread.name for thread in board.threads}


def test_a_close_that_hangs_holds_up_no_other_turn() -> None:
    go_on = threading.Event()

    class Slow(Switchboard):
        prompt = False

        def close(self, line: Line) -> None:
            assert go_on.wait(20)
            super().close(line)

    slow, other = Slow(), Switchboard()
    brief: dict[str, Any] = {"idle_timeout": 0.05, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=slow, **brief) as first:
        fill(first, 3)
        until(lambda: first.stats().closing == 3)
        with ConnectionPool("b:1", connector=other, **brief) as second:
            turn(second)
            until(lambda: other.n_open == 0)
        assert first.stats().closing == 3
        go_on.set()
        until(lambda: slow.n_open == 0)


def test_a_close_that_hangs_keeps_no_other_of_its_turn_from_being_closed() -> None:
    go_on = threading.Event()

    class First(Switchboard):
        prompt = False
        n_closes = count(1)

        def close(self, line: Line) -> None:
            assert next(self.n_closes) > 1 or go_on.wait(20)
            super().close(line)

    board = First()
    with ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        fill(pool, 4)
        until(lambda: pool.stats().closing == 1 and board.n_open == 1, "the end of all others")
        go_on.set()
        until(lambda: board.n_open == 0)


def test_a_handler_called_in_a_turn_may_close_the_pool() -> None:
    board = Switchboard()
    pool = ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN)
    pool.listen(lambda event: pool.close(), ConnectionClosed)
    fill(pool, 3)
    until(lambda: board.n_open == 0)
    until(lambda: not reapers())


def test_turns_of_a_pool_are_an_interval_apart() -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"keepalive_interval": 0.001, "reap_interval": 0.2, **AGELESS}
    with ConnectionPool("a:1", connector=board, **settings) as pool:
        began = time.monotonic()
        turn(pool)
        until(lambda: len(board.looked_at) >= 3)
        assert len(board.looked_at) <= (time.monotonic() - began) / 0.2 + 2


# -- what is not due costs nothing --------------------------------------------------------------------


def wake_ups(thread: threading.Thread) -> int:
    """How often *thread* has gone to sleep so far."""
    status = (TASKS / str(thread.native_id) / "status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux counts a thread's sleeps")
@pytest.mark.parametrize(
    "settings",
    [{}, {"min_idle": 1}, {"keepalive_interval": 60, "revive": "force"}, {"warn_after": 60}, {"max_uses": 9}],
    ids=str,
)
def test_nothing_due_means_no_wake_up(settings: dict[str, Any]) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            pool = ConnectionPool("a:1", connector=Switchboard(), reap_interval=0.001, **settings)
            stack.enter_context(pool)
            fill(pool, 2)
            stack.enter_context(pool.try_connect())
        thread = the_reaper()
        let_pass(0.05)
        before = wake_ups(thread)
        let_pass(0.15)
        assert wake_ups(thread) - before <= 3, "twenty pools that tick would have woken it 3,000 times"


@pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux counts a thread's sleeps")
def test_steady_traffic_does_not_wake_it() -> None:
    with ConnectionPool("a:1", connector=Switchboard(), reap_interval=0.001) as pool:
        turn(pool)
        thread = the_reaper()
        let_pass(0.1)
        before = wake_ups(thread)
        for _ in range(2_000):
            turn(pool)
        assert wake_ups(thread) - before <= 200, "a release is no business of the reaper's"


def test_the_process_sleeps_while_nothing_is_due() -> None:
    with ConnectionPool("a:1", connector=Switchboard(), reap_interval=0.001, min_idle=1) as pool:
        until(lambda: pool.stats().idle == 1)
        let_pass(0.05)
        before = sum(os.times()[:2])
        let_pass(0.3)
        assert sum(os.times()[:2]) - before < 0.15


# -- two at once ------------------------------------------------------------------------------------------


class Ward:
    """Something to keep up. It writes down its turns, and does in them what the test says."""

    def __init__(self, deed: Callable[[], object] = lambda: None) -> None:
        self.name = "ward"
        self.turns = 0
        self._deed = deed

    def _pace(self) -> float | None:
        return 0.0

    def _take_turn(self, *, is_leap: bool) -> object:
        self.turns += 1
        return self._deed()

    def _start_clean(self) -> object:
        """It has nothing that a child would inherit."""

    def _close_at_exit(self, until: float) -> object:
        """Nothing is open."""


def test_of_two_threads_started_at_once_one_waits_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    reaper = Reaper()
    in_turn, may_end = threading.Event(), threading.Event()
    first = Ward(lambda: (in_turn.set(), may_end.wait(20)))
    second = Ward()
    reaper.watch(first, -math.inf)
    assert in_turn.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(reaper, "_is_running", lambda: False)  # who asks has looked just before it started
        reaper.watch(second, -math.inf)
    let_pass(0.05)
    assert second.turns == 0, "two at work at once"
    may_end.set()
    until(lambda: second.turns == 1)
    until(lambda: not reapers())


def test_one_asked_for_something_as_it_ends_leaves_it_to_who_was_started_for_it() -> None:
    """Both would go on otherwise, or one would wait for the other for ever."""
    reaper = Reaper()
    second, later = Ward(), Ward()

    class Asked(deque[Any]):
        """What is asked for; somebody asks just when the thread has said that it ends."""

        def __bool__(self) -> bool:
            if reaper._thread is None and not second.turns and not len(self):
                rival = threading.Thread(target=ask)
                rival.start()
                rival.join(10)
            return len(self) > 0

    def ask() -> None:
        reaper.watch(second, -math.inf)
        reaper.watch(later, time.monotonic() + 600)

    reaper._asked = Asked()
    first = Ward()
    reaper.watch(first, -math.inf)
    until(lambda: first.turns == second.turns == 1)
    until(lambda: len(reapers()) == 1, "the end of one of two")
    reaper.watch(later, math.inf)
    until(lambda: not reapers())


def test_a_dial_that_ends_after_its_pool_was_closed_makes_nothing_due() -> None:
    pool = ConnectionPool("a:1", connector=Switchboard(), idle_timeout=600, reap_interval=OFTEN)
    pool.listen(lambda _: pool.close(timeout=0), ConnectionOpened)  # too late to call the dial off
    with pytest.raises(PoolClosedError):
        pool.try_connect(timeout=5)
    until(lambda: pool.stats().size == 0, "the end of what it has brought")
    until(lambda: not reapers(), "the end of a thread that has nothing left to do")


def test_who_is_forgotten_is_kept_in_mind_no_longer() -> None:
    reaper, wards = Reaper(), [Ward(), Ward()]
    for at in (-math.inf, time.monotonic() + 600):
        reaper.watch(wards[0], at)
        until(lambda: wards[0].turns == 1)
    later = weakref.ref(wards.pop(0))
    until(lambda: not reaper._due)
    assert later() is None
    reaper.watch(wards[0], -math.inf)
    until(lambda: wards[0].turns == 1)
    until(lambda: not reapers())
    assert len(reaper._turned) == 1


def test_the_first_is_found_among_many_instants_that_hold_no_longer() -> None:
    reaper, wards = Reaper(), [Ward(), Ward(), Ward()]
    now = time.monotonic()
    for _ in range(20):
        for ward, at in zip(wards, (300, 200, 100), strict=True):
            reaper._due.clear()
            reaper._put_down(weakref.ref(ward), now + at, now)
    reaper._due.clear()
    for ward, at in zip(wards, (300, 200, 100), strict=True):
        reaper._put_down(weakref.ref(ward), now + at, now)
    nap = reaper._next_nap()
    assert nap is not None
    assert nap <= 100


def test_one_that_begins_when_another_has_taken_its_place_ends_though_that_one_goes_on() -> None:
    reaper, ward = Reaper(), Ward()
    reaper.watch(ward, time.monotonic() + 600)
    late = threading.Thread(target=reaper._run, name=REAPER)
    late.start()
    late.join(5)
    is_left = late.is_alive()
    reaper.watch(ward, math.inf)
    until(lambda: not reapers())
    assert not is_left, "two threads for as long as anything is due"


def test_a_turn_that_was_asked_for_at_once_is_given_though_nothing_is_due_any_more() -> None:
    """A finaliser has found something just before upkeep says that it has nothing left to do."""
    reaper = Reaper()

    def find() -> None:
        if ward.turns == 1:
            reaper.wink(ward)
            reaper.watch(ward, math.inf)

    ward = Ward(find)
    reaper.watch(ward, -math.inf)
    until(lambda: ward.turns == 2, "the turn that was asked for")
    until(lambda: not reapers())


def test_what_becomes_due_while_upkeep_says_that_nothing_is_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board, lent = Switchboard(), []

    def slow(kept: Any, at: float) -> bool:
        if at == math.inf and board.lines and not lent:  # upkeep has closed it; another is opened just now
            lent.append(turn(pool))
        return watch(kept, at)

    monkeypatch.setattr(desk, "watch", slow)
    with ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        turn(pool)
        until(lambda: len(board.lines) == 2 and board.n_open == 0, "the end of the second, too")
    assert len(lent) == 1


def test_a_pool_that_is_closed_while_upkeep_says_what_is_due_is_not_kept_in_mind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(kept: Any, at: float) -> bool:
        if math.isfinite(at) and pool.stats().state is PoolState.OPEN:
            pool.close()
        return watch(kept, at)

    monkeypatch.setattr(desk, "watch", slow)
    pool = ConnectionPool("a:1", connector=Switchboard(), idle_timeout=600, reap_interval=OFTEN)
    turn(pool)
    until(lambda: pool.stats().state is PoolState.CLOSED, "the first that is due")
    until(lambda: not reapers(), "the end of a thread that has nothing left to do")
