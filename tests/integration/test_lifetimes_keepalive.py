"""Idle connections are validated now and then, so that dead ones are gone before a user meets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from connpool import CheckoutTimeoutError, CloseReason, ConnectionPool
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Line, Switchboard, check_books, until
from tests.helpers.upkeep import OFTEN, fill, settle, sweep_until, turn
from tests.helpers.wire import taking

QUIET: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None, "look_after_idle": None}


def test_each_idle_one_is_validated_once_per_interval(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=10, **QUIET) as pool:
        fill(pool, 3)
        settle(pool)
        assert board.looked_at == []
        clock.advance(9.9)
        settle(pool)
        assert board.looked_at == []
        for round_ in (1, 2, 3):
            clock.advance(10.1)
            sweep_until(pool, lambda n=3 * round_: len(board.looked_at) >= n)
            settle(pool)
            assert len(board.looked_at) == 3 * round_
            assert set(board.looked_at[-3:]) == set(board.lines)
        assert pool.stats().idle == 3
        assert (pool.stats().checkouts, pool.stats().closed) == (3, {})


def test_without_an_interval_none_is_validated(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, **QUIET) as pool:
        fill(pool, 2)
        clock.advance(1e6)
        settle(pool)
        assert board.looked_at == []


def test_one_that_is_in_use_or_was_just_used_is_not_validated(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=10, **QUIET) as pool:
        fill(pool, 3)
        loan = pool.try_connect()
        clock.advance(9)
        used = turn(pool)
        clock.advance(2)
        settle(pool)
        assert len(board.looked_at) == 1
        assert board.looked_at[0] not in (loan.raw, used)
        loan.release()


def test_dead_ones_are_dropped_before_a_user_meets_them(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=10, **QUIET) as pool:
        fill(pool, 4)
        board.lines[1].is_alive = board.lines[2].is_alive = False
        clock.advance(11)
        sweep_until(pool, lambda: pool.stats().closed == {CloseReason.BROKEN: 2})
        settle(pool)
        assert [line.is_open for line in board.lines] == [True, False, False, True]
        until(lambda: pool.stats().idle == 2, "the end of the last look")
        check_books(pool)


def test_one_whose_validation_raises_is_dropped(clock: FakeClock) -> None:
    class Grumpy(Switchboard):
        def is_usable(self, line: Line) -> bool:
            super().is_usable(line)
            raise RuntimeError("cannot tell")

    board = Grumpy()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=10, **QUIET) as pool:
        fill(pool, 2)
        clock.advance(11)
        sweep_until(pool, lambda: pool.stats().closed == {CloseReason.BROKEN: 2})
        assert board.n_open == 0


@pytest.mark.parametrize("revive", [False, True])
def test_dead_ones_are_replaced_if_revived(revive: bool, clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"keepalive_interval": 10, "revive": revive, **QUIET}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        fill(pool, 2)
        board.lines[0].is_alive = False
        clock.advance(11)
        sweep_until(pool, lambda: not board.lines[0].is_open)
        settle(pool)
        assert pool.stats().idle == 1 + revive


def test_validation_is_no_use_idleness_goes_on(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {**QUIET, "keepalive_interval": 3, "idle_timeout": 10}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        fill(pool, 1)
        since = pool.connections()[0].idle_since
        for _ in range(3):
            clock.advance(3.1)
            settle(pool)
        assert len(board.looked_at) == 3
        assert pool.connections()[0].idle_since == since
        assert pool.connections()[0].uses == 1
        clock.advance(1)
        settle(pool)
        assert pool.stats().closed == {CloseReason.IDLE: 1}


def test_validation_does_not_change_who_is_lent_next(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=10, **QUIET) as pool:
        fill(pool, 3)
        clock.advance(1)
        last = turn(pool)
        for _ in range(3):
            clock.advance(10.5)
            settle(pool)
            until(lambda: pool.stats().idle == 3)
            assert turn(pool) is last
        clock.advance(5.5)  # the others are due, the one last used is not
        settle(pool)
        until(lambda: pool.stats().idle == 3)
        assert turn(pool) is last


def test_real_connections_are_validated_by_the_thread_and_dead_ones_noticed() -> None:
    settings: dict[str, Any] = {**QUIET, "keepalive_interval": 0.1, "reap_interval": OFTEN}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        fill(pool, 3)
        server.until_accepts(3)
        server.until_accepts(1).close()
        server.until_accepts(2).reset()
        server.until_accepts(3).send(b"stray")
        until(lambda: pool.stats().size == 0)
        assert pool.stats().closed == {CloseReason.BROKEN: 3}
        server.until_open(0)


# -- one that hangs -----------------------------------------------------------------------------


class Stuck(Switchboard):
    """A switchboard whose first line hangs when it is looked at."""

    prompt = False

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def is_usable(self, line: Line) -> bool:
        if line is self.lines[0] and not self.go_on.is_set():
            self.inside.set()
            assert self.go_on.wait(20)
        return super().is_usable(line)


@contextmanager
def stuck_pool(**settings: Any) -> Iterator[tuple[Stuck, ConnectionPool]]:
    """A pool of four idle ones, in real time, whose validation hangs at one of them."""
    board = Stuck()
    settings = {**QUIET, "keepalive_interval": 0.05, "reap_interval": OFTEN, "max_size": 4, **settings}
    try:
        with ConnectionPool("a:1", connector=board, **settings) as pool:
            fill(pool, 4)
            assert board.inside.wait(10)
            yield board, pool
    finally:
        board.go_on.set()


def test_a_validation_that_hangs_does_not_hold_up_the_others_of_its_pool() -> None:
    with stuck_pool() as (board, pool):
        n = len(board.looked_at)
        until(lambda: len(board.looked_at) >= n + 6, "two more rounds of the other three")
        assert pool.stats().closed == {}


def test_a_validation_that_hangs_does_not_hold_up_other_pools() -> None:
    other = Switchboard()
    with stuck_pool(), ConnectionPool("b:1", connector=other, idle_timeout=0.05, reap_interval=OFTEN) as pool:
        turn(pool)
        until(lambda: other.n_open == 0, "the end of one that is idle")


def test_a_validation_that_hangs_does_not_hold_up_checkouts() -> None:
    with stuck_pool() as (board, pool):
        with taking(0, 5):
            loans = [pool.try_connect(timeout=5) for _ in range(3)]
        assert board.lines[0] not in [loan.raw for loan in loans], "it is in the validator's hands"
        for loan in loans:
            loan.release()


def test_a_validation_that_hangs_does_not_hold_up_sweep(clock: FakeClock) -> None:
    board = Stuck()
    with ConnectionPool("a:1", connector=board, clock=clock, keepalive_interval=5, **QUIET) as pool:
        fill(pool, 2)
        clock.advance(6)
        try:
            with taking(0, 5):
                pool.sweep()
                pool.sweep()
            assert board.inside.wait(10)
            until(lambda: board.lines[1] in board.looked_at)
        finally:
            board.go_on.set()
        until(lambda: pool.stats().idle == 2, "the return of the one that hung")


def test_a_validation_that_hangs_does_not_hold_up_close() -> None:
    with stuck_pool() as (board, pool):
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 5
        board.go_on.set()
        until(lambda: board.n_open == 0, "the end of the one that hung")
        until(lambda: pool.stats().size == 0)


def test_one_that_hung_and_was_well_is_lent_again_and_serves_who_waits() -> None:
    with stuck_pool(max_size=4) as (board, pool):
        loans = [pool.try_connect(timeout=5) for _ in range(3)]
        got: list[object] = []
        waiter = threading.Thread(target=lambda: got.append(turn(pool)), daemon=True)
        waiter.start()
        until(lambda: pool.stats().waiting == 1)
        board.go_on.set()
        waiter.join(10)
        assert got == [board.lines[0]]
        for loan in loans:
            loan.release()


def test_who_had_it_last_does_not_hold_what_is_being_validated() -> None:
    with stuck_pool(max_size=4) as (_, pool):
        loans = [pool.try_connect(timeout=5) for _ in range(3)]
        looked_at = min(pool.connections(), key=lambda info: info.id)
        assert (looked_at.id, looked_at.uses, looked_at.holder) == (1, 1, None)
        with pytest.raises(CheckoutTimeoutError, match="longest held: connection") as caught:
            pool.try_connect(timeout=0.01)
        assert "connection 1 to" not in str(caught.value)
        for loan in loans:
            loan.release()
