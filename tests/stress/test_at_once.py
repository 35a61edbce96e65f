"""Two threads at one thing in the same instant, with nothing but the GIL between them, or not even that."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from connpool import (
    CallPool,
    CloseReason,
    Connection,
    ConnectionPool,
    Endpoint,
    PoolConfig,
    Route,
    UsageError,
)
from connpool.pool import core
from connpool.pool.failures import timed_out
from connpool.pool.record import Record
from tests.helpers.together import together

WHILE = 1.0  # seconds that the threads of a test are at it

pytestmark = pytest.mark.usefixtures("quick_switches")


class Meeting:
    """Two threads that wait for each other before each step; not at a lock, which lets one go first."""

    def __init__(self) -> None:
        self._at = [0, 0]

    def meet(self, me: int, step: int) -> None:
        self._at[me] = step
        while self._at[1 - me] < step:
            pass

    def leave(self, me: int) -> None:
        self._at[me] = sys.maxsize


@pytest.mark.parametrize("way", ["release", "terminate", "release a share"])
def test_of_two_threads_that_give_back_one_loan_one_is_refused_every_time(way: str) -> None:
    give, _, shares = way.partition(" a ")
    meeting, until = Meeting(), time.monotonic() + WHILE
    given_back: list[list[int]] = [[], []]  # the steps in which each of the two was let
    with ConnectionPool.of(object, sharable=True, max_size=4, dial_in_caller=True) as pool:
        loans: list[Connection] = []

        def give_back(me: int) -> None:
            step = 0
            try:
                while me or time.monotonic() < until:
                    if me == 0:
                        loans.append(pool.share() if shares else pool.try_connect())
                    step += 1
                    meeting.meet(me, step)
                    if len(loans) < step:
                        return
                    try:
                        getattr(loans[step - 1], give)()
                    except UsageError:
                        pass
                    else:
                        given_back[me].append(step)
            finally:
                meeting.leave(me)

        together(lambda: give_back(0), lambda: give_back(1), limit=60)
        assert sorted(given_back[0] + given_back[1]) == list(range(1, len(loans) + 1))
        assert pool.stats().in_use == pool.stats().shared == 0


def test_a_pool_is_described_while_endpoints_come_and_go() -> None:
    """An error that tells the numbers, the text of a pool, its upkeep: none of them stumbles."""
    until = time.monotonic() + WHILE
    with ConnectionPool("busy:1", connector=Instant(), max_size=6, min_idle=1) as pool, pool.try_connect():

        def come_and_go() -> None:
            number = 0
            while time.monotonic() < until:
                number += 1
                pool.try_connect(Endpoint(f"guest-{number}", 1), timeout=5).terminate()

        def describe() -> None:
            while time.monotonic() < until:
                assert "of 6 open" in repr(pool)
                assert "longest held" in str(timed_out(pool._lender.books, limit=1, now=0))

        def lend() -> None:
            while time.monotonic() < until:
                pool.try_connect(timeout=5).release()

        together(come_and_go, describe, lend)


class Follower:
    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.route: Route | None = None

    def _follow(self) -> None:
        self.route = self.pool.route


def test_two_who_begin_to_follow_a_pool_in_the_same_instant_are_both_told_of_its_new_route() -> None:
    meeting, until = Meeting(), time.monotonic() + WHILE
    pools: list[ConnectionPool] = []
    followers: list[list[Follower]] = [[], []]

    def follow(me: int) -> None:
        step = 0
        try:
            while me or time.monotonic() < until:
                if me == 0:
                    pools.append(ConnectionPool("a:1", connector=Instant(), reap_interval=None))
                step += 1
                meeting.meet(me, step)
                if len(pools) < step:
                    return
                followers[me].append(Follower(pools[step - 1]))
                pools[step - 1]._lead(followers[me][-1])
        finally:
            meeting.leave(me)

    together(lambda: follow(0), lambda: follow(1), limit=60)
    for pool, *both in zip(pools, *followers, strict=True):
        pool.route = "b:1"
        assert [str(follower.route) for follower in both] == ["b:1", "b:1"]
        pool.close()


@pytest.mark.parametrize("kind", [ConnectionPool, CallPool])
def test_two_who_stop_listening_in_the_same_instant_are_both_let(kind: type[Any]) -> None:
    meeting, until = Meeting(), time.monotonic() + WHILE
    stops: list[Callable[[], None]] = []
    with kind() as pool:

        def stop(me: int) -> None:
            step = 0
            try:
                while me or time.monotonic() < until:
                    if me == 0:
                        stops.append(pool.listen(repr))
                    step += 1
                    meeting.meet(me, step)
                    if len(stops) < step:
                        return
                    stops[step - 1]()
            finally:
                meeting.leave(me)

        together(lambda: stop(0), lambda: stop(1), limit=60)


def test_a_connection_that_breaks_in_the_instant_in_which_lifetimes_change_is_not_lent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ConnectionPool("a:1", connector=Instant(), max_lifetime=60) as pool:
        held = pool.try_connect()

        def end_of_life(config: PoolConfig, record: Record, rng: Random) -> float:
            record.condemn(CloseReason.BROKEN)  # its holder's, without the lock
            return record.opened_at + 120

        monkeypatch.setattr(core, "end_of_life", end_of_life)
        pool.configure(max_lifetime=120)
        held.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


class Instant:
    """Opens anything at once."""

    def open(self, endpoint: Endpoint, timeout: float, cancel: object) -> object:
        return object()
