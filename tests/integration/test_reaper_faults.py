"""What goes wrong in a turn of the reaper, or keeps its threads from starting, ends with that turn."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import Broadcaster, CloseReason, ConnectionClosed, ConnectionPool, ConnPoolError
from connpool.testing import FakeClock, ScriptedServer
from connpool.upkeep.reaper import Reaper
from tests.helpers.switchboard import Line, Switchboard, check_books, until
from tests.helpers.together import together
from tests.helpers.upkeep import OFTEN, REAPER, fill, let_pass, reapers, settle, sweep_until, the_reaper, turn
from tests.helpers.wire import taking

ERRORS = [SystemExit, MemoryError, KeyboardInterrupt, GeneratorExit, RuntimeError, RecursionError]


class Bomb(Switchboard):
    """A switchboard that raises at one place, a few times."""

    def __init__(self, place: str, error: type[BaseException], times: int = 2) -> None:
        super().__init__()
        self._place, self._error, self.left = place, error, times

    def explode(self, place: str) -> None:
        if place == self._place and self.left:
            self.left -= 1
            raise self._error("bang")

    def open(self, endpoint: Any, timeout: float | None, cancel: Any) -> Line:
        self.explode("open")
        return super().open(endpoint, timeout, cancel)

    def is_usable(self, line: Line) -> bool:
        self.explode("is_usable")
        return super().is_usable(line)

    def close(self, line: Line) -> None:
        super().close(line)
        self.explode("close")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["open", "is_usable", "close"])
def test_the_reaper_survives_what_a_connector_raises(place: str, error: type[BaseException]) -> None:
    board, other = Bomb(place, error), Switchboard()
    settings: dict[str, Any] = {
        "min_idle": 1,
        "max_size": 3,
        "keepalive_interval": 0.02,
        "max_lifetime": 0.08,
        "blacklist_initial": 0.01,
        "blacklist_max": 0.01,
        "reap_interval": 0.01,
    }
    with (
        ConnectionPool("a:1", connector=board, **settings) as pool,
        ConnectionPool("b:1", connector=other, **settings),
    ):
        until(lambda: board.left == 0, "the explosions")
        n, m = len(board.lines), len(other.lines)
        until(lambda: len(board.lines) > n + 2 and len(other.lines) > m + 2, "more turns after them")
        the_reaper()
        pool.configure(reap_interval=None, max_lifetime=None, keepalive_interval=None)  # two looks, one state
        settle(pool)
        until(lambda: pool.stats().idle == 1, "a pool that is whole again")
        check_books(pool)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", ERRORS)
def test_the_reaper_survives_what_a_listener_raises(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    board, other, left = Switchboard(), Switchboard(), [0, 0, 0]

    def explode(event: object) -> None:
        if left:
            left.pop()
            raise error("bang")

    settings: dict[str, Any] = {"idle_timeout": 0.04, "reap_interval": 0.01}
    with (
        ConnectionPool("a:1", connector=board, listeners=[], **settings) as pool,
        ConnectionPool("b:1", connector=other, **settings) as second,
    ):
        fill(pool, 3)
        pool.listen(explode, ConnectionClosed)
        turn(second)
        until(lambda: not left and board.n_open == other.n_open == 0)
        until(lambda: pool.stats().size == second.stats().size == 0, "places that are free again")
        fill(pool, 3)
        until(lambda: board.n_open == 0, "the turns after that")
        if issubclass(error, Exception):
            assert any("bang" in str(record.exc_info) for record in caplog.records)


def test_the_reaper_survives_a_log_handler_that_raises() -> None:
    class Broken(logging.Handler):
        n = 0

        def emit(self, record: logging.LogRecord) -> None:
            Broken.n += 1
            raise SystemExit

    handler, logger, board = Broken(), logging.getLogger("connpool"), Switchboard()
    logger.addHandler(handler)
    try:
        settings: dict[str, Any] = {"warn_after": 0.03, "idle_timeout": 0.05, "reap_interval": 0.01}
        with ConnectionPool("a:1", connector=board, **settings) as pool:
            loans = [pool.try_connect(), pool.try_connect()]
            loans.pop().release()
            until(lambda: Broken.n)
            until(lambda: board.n_open == 1, "the expiry of the idle one all the same")
            with contextlib.suppress(SystemExit):  # the handler may strike this thread too
                loans.pop().release()
            until(lambda: board.n_open == 0)
    finally:
        logger.removeHandler(handler)


def test_a_turn_that_fails_is_followed_by_another_though_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board, failures = Switchboard(), [MemoryError()]
    with ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        turn_of_it = pool._chores.turn

        def fail_once(**how: bool) -> int:
            if failures:
                raise failures.pop()
            return turn_of_it(**how)

        monkeypatch.setattr(pool._chores, "turn", fail_once)
        fill(pool, 1)
        until(lambda: not failures and board.n_open == 0)


# -- no thread can be started ------------------------------------------------------------------------


class NoThreads:
    """Keeps threads from starting while it is closed, and counts who tried."""

    def __init__(self, patch: pytest.MonkeyPatch, is_meant: Callable[[str], bool]) -> None:
        self.is_closed = True
        self.refused: list[str] = []
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if self.is_closed and is_meant(thread.name):
                self.refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        patch.setattr(threading.Thread, "start", refuse)


def test_a_reaper_that_cannot_start_disturbs_nobody_and_starts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = NoThreads(monkeypatch, lambda name: name == REAPER)
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        fill(pool, 3)
        turn(pool)
        pool.resize(max_size=5)
        pool.blacklist("a:1", 0.01)
        until(lambda: gate.refused)
        assert reapers() == []
        let_pass(0.1)
        gate.is_closed = False
        turn(pool)
        until(lambda: board.n_open == 0, "the reaper after all")


def test_without_any_thread_checkouts_dial_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        NoThreads(monkeypatch, lambda name: not name.startswith("scripted-server"))
        with ConnectionPool(server.endpoint, min_idle=1, reap_interval=OFTEN) as pool:
            for _ in range(3):
                pool.try_connect(timeout=5).terminate()
            turn(pool)
            assert reapers() == []
            check_books(pool)
        server.until_open(0)


def test_a_dialler_that_cannot_start_costs_no_place_and_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Switchboard()
    gate = NoThreads(monkeypatch, lambda name: name != REAPER)
    with ConnectionPool("a:1", connector=board, min_idle=2, max_size=2, reap_interval=OFTEN) as pool:
        let_pass(0.3)
        assert len(gate.refused) <= 2 * (0.3 / OFTEN + 10), "it does not spin"
        check_books(pool)
        gate.is_closed = False
        until(lambda: pool.stats().idle == 2, "what is to be kept ready")
        assert len(pool.connections()) == 2


def test_a_sweep_by_hand_that_can_start_no_thread_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    board = Switchboard()
    gate = NoThreads(monkeypatch, lambda name: True)
    settings: dict[str, Any] = {"min_idle": 2, "keepalive_interval": 5, "idle_timeout": 20, "revive": True}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        pool.sweep()
        pool.try_connect(timeout=5).terminate(OSError("gone"))
        clock.advance(6)
        settle(pool)
        gate.is_closed = False
        sweep_until(pool, lambda: pool.stats().idle >= 2)
        settle(pool)
        assert pool.stats().size == board.n_open
        check_books(pool)


def test_an_interrupt_in_the_close_of_one_reaches_the_caller_and_all_are_closed() -> None:
    class Struck(Switchboard):
        def close(self, line: Line) -> None:
            super().close(line)
            if line is self.lines[1]:
                raise KeyboardInterrupt

    with ConnectionPool("a:1", connector=Struck(), reap_interval=None) as pool:
        fill(pool, 3)
        with pytest.raises(KeyboardInterrupt):
            pool.clear()
        assert (pool.stats().size, pool.stats().closed) == (0, {CloseReason.STALE: 3})


@pytest.mark.parametrize("revive", [False, True])
def test_a_look_or_a_replacement_that_finds_no_thread_loses_no_connection(
    revive: bool, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Switchboard):
        prompt = False

    board = Slow()
    settings: dict[str, Any] = {
        "keepalive_interval": 5,
        "max_lifetime": 20,
        "lifetime_jitter": 0,
        "idle_timeout": None,
    }
    with ConnectionPool("a:1", connector=board, clock=clock, revive=revive, **settings) as pool:
        fill(pool, 3)
        gate = NoThreads(monkeypatch, lambda name: True)
        for _ in range(3):
            clock.advance(6)
            pool.sweep()
            pool.sweep()
        assert gate.refused
        assert (pool.stats().lost, pool.stats().closed) == (0, {}), "they are well, and nobody's loss"
        assert pool.stats().idle + pool.stats().closing == 3
        clock.advance(6)
        sweep_until(pool, lambda: not any(line.is_open for line in board.lines[:3]), "their end")
        assert pool.stats().lost == 0
        assert set(pool.stats().closed) == {CloseReason.EXPIRED}
        gate.is_closed = False
        settle(pool)
        check_books(pool)
    assert "not given back" not in caplog.text


def test_a_close_that_finds_no_thread_happens_all_the_same(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    class Slow(Switchboard):
        prompt = False

    board = Slow()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=5) as pool:
        fill(pool, 3)
        NoThreads(monkeypatch, lambda name: True)
        clock.advance(6)
        sweep_until(pool, lambda: board.n_open == 0)
        until(lambda: pool.stats().size == 0)


# -- failures that last ---------------------------------------------------------------------------------


def test_an_endpoint_that_is_down_for_long_is_no_reason_to_spin() -> None:
    board = Switchboard("a:1")
    settings: dict[str, Any] = {"min_idle": 3, "revive": True, "reap_interval": 0.005}
    with ConnectionPool("a:1", connector=board, blacklist_initial=0.1, blacklist_max=0.1, **settings) as pool:
        let_pass(0.6)
        assert 2 <= len(board.dialled) <= 10 + 2, "one dial each time the blacklisting ends"
        with pytest.raises(ConnPoolError):
            pool.try_connect(timeout=1)
        board.mend("a:1")
        until(lambda: pool.stats().idle == 3)


def test_an_open_that_never_ends_leaves_the_refill_to_the_other_endpoint() -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, min_idle=4, reap_interval=OFTEN) as pool:
        board.until_dialling("a:1", 2)
        until(lambda: pool.stats().idle >= 2, "those to the other endpoint")
        board.let_go("a:1")
        until(lambda: pool.stats().idle == 4)


def test_what_is_owed_is_owed_until_a_thread_can_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Switchboard()
    gate = NoThreads(monkeypatch, lambda name: name.startswith("connpool-dial"))
    settings: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None, "connect_timeout": 60}
    with ConnectionPool("a:1", connector=board, revive=True, reap_interval=OFTEN, **settings) as pool:
        conn = pool.try_connect()
        n_refused = len(gate.refused)
        conn.terminate(ConnectionResetError("it broke"))
        until(lambda: len(gate.refused) > n_refused)
        gate.is_closed = False
        until(lambda: pool.stats().idle == 1)


def test_a_place_that_no_thread_could_use_is_for_who_has_come_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, has_come = threading.Thread.start, threading.Event()
    settings: dict[str, Any] = {"min_idle": 1, "connect_timeout": 60, "reap_interval": None}
    with ConnectionPool("a:1", connector=Switchboard(), max_size=1, **settings) as pool:

        def refuse_once(thread: threading.Thread) -> None:
            if thread.name.startswith("connpool-dial") and not has_come.is_set():
                has_come.set()
                until(lambda: pool.stats().waiting == 1)
                raise RuntimeError("can't start new thread")
            start(thread)

        def wait() -> None:
            assert has_come.wait(10)
            pool.try_connect(timeout=20).release()

        monkeypatch.setattr(threading.Thread, "start", refuse_once)
        with taking(0, 8):
            together(wait, pool.sweep)


def test_upkeep_goes_on_after_an_error_between_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, hear = [MemoryError()], Reaper._hear

    def without_memory(reaper: Reaper) -> None:
        if failures:
            raise failures.pop()
        hear(reaper)

    monkeypatch.setattr("connpool.upkeep.reaper.BREATH", 0.01)
    monkeypatch.setattr(Reaper, "_hear", without_memory)
    with ConnectionPool("a:1", connector=Switchboard(), min_idle=1, reap_interval=OFTEN) as pool:
        until(lambda: pool.stats().idle == 1)
    assert not failures


@pytest.mark.parametrize("step", ["heapq.heappush", "Reaper._take_due"])
def test_a_turn_that_is_lost_for_want_of_memory_is_given_all_the_same(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kept:
        name = "kept"
        has_had_it = threading.Event()

        def _pace(self) -> float:
            return 0.0

        def _take_turn(self, *, is_leap: bool) -> None:
            self.has_had_it.set()

    failures, push, take_due = [MemoryError()], heapq.heappush, Reaper._take_due

    def without_memory(*args: Any) -> Any:
        if step == "heapq.heappush":
            fail()
            return push(*args)
        due = take_due(*args)
        fail()  # whose turn it is is forgotten
        return due

    def fail() -> None:
        if failures:
            raise failures.pop()

    reaper, kept = Reaper(), Kept()
    monkeypatch.setattr("connpool.upkeep.reaper.BREATH", 0.01)
    monkeypatch.setattr(f"connpool.upkeep.reaper.{step}", without_memory)
    reaper.watch(kept, -math.inf)
    assert kept.has_had_it.wait(2)
    assert not failures
    reaper.end()


@pytest.mark.parametrize("call", [Broadcaster.wait_ready, Broadcaster.recv, Broadcaster.check_event])
def test_links_for_which_there_were_no_threads_are_opened_for_who_waits_for_them(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Broadcaster, float], object]
) -> None:
    monkeypatch.setattr("connpool.delivery.admin.LOOK", 0.01)
    with ScriptedServer() as server, ConnectionPool(str(server.endpoint)) as pool:
        gate = NoThreads(monkeypatch, lambda name: name.startswith("connpool"))
        with Broadcaster(pool) as broadcaster:
            call(broadcaster, 0.1)
            assert REAPER in gate.refused
            assert not broadcaster.ready
            n_refused = len(gate.refused)
            if call is Broadcaster.wait_ready:  # may wait all the time
                with taking(0, 8):
                    together(lambda: broadcaster.wait_ready(10), lambda: open_when_tried(gate, n_refused + 2))
            else:
                gate.is_closed = False
                call(broadcaster, 0.1)
            until(lambda: broadcaster.ready)


def open_when_tried(gate: NoThreads, times: int) -> None:
    until(lambda: len(gate.refused) >= times)
    gate.is_closed = False
