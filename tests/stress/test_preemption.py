"""Threads that give way before random lines of the pool: whatever they do, the books balance at the end."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
import time
from collections.abc import Callable

import pytest

import connpool.pool
from connpool import CancelledError, ConnectionPool, ConnPoolError, Request, UsageError
from connpool.testing import ScriptedServer
from tests.helpers.history import History
from tests.helpers.preemption import preempting
from tests.helpers.together import together
from tests.stress.works import (
    A,
    B,
    DoomError,
    Part,
    ResettingWorks,
    TellingClock,
    Works,
    assert_ended,
    assert_whole,
    balanced,
)

MODULES = [
    importlib.import_module(f"connpool.pool.{module.name}")
    for module in pkgutil.iter_modules(connpool.pool.__path__)
]
SIZE = 3


class Recorder(ResettingWorks):
    """A connector that writes the history of what it opens and closes, and fails now and then."""

    def __init__(self, history: History, dice: random.Random, *, prompt: bool, failures: float) -> None:
        super().__init__(prompt=prompt)
        self._history = history
        self._dice = dice
        self._failures = failures
        self.opening = self.looking = self.resetting = self.fail_sometimes

    def fail_sometimes(self, _: object) -> None:
        if self._dice.random() < self._failures:
            raise ConnectionResetError("bad luck")

    def open(self, endpoint: object, timeout: float | None, cancel: object) -> Part:
        part = super().open(endpoint, timeout, cancel)
        self._history.note("opened", part.number)
        return part

    def close(self, part: Part) -> None:
        self._history.note("closed", part.number)
        super().close(part)

    def behave(self) -> None:
        self._failures = 0.0


class Crowd:
    """Threads that do with one pool whatever can be done with it."""

    def __init__(self, seed: int, *, prompt: bool, failures: float, **settings: object) -> None:
        self.dice = random.Random(seed)
        self.history = History()
        self.works = Recorder(self.history, self.dice, prompt=prompt, failures=failures)
        self.clock = TellingClock()
        settings = {"max_size": SIZE, "blacklist_initial": 0, "reap_interval": None, **settings}
        self.pool = ConnectionPool(
            "a:1, b:1", connector=self.works, clock=self.clock, look_after_idle=0.1, **settings
        )
        self.grants = 0
        self.left = 0  # taken or detached: they left the pool open
        self.may_leave = False

    def request(self) -> Request:
        cancel = None
        if self.dice.random() < 0.1:
            cancel = threading.Event()
            if self.dice.random() < 0.5:
                cancel.set()
        return Request(
            endpoint=self.dice.choice([None, None, A, B]),
            timeout=self.dice.choice([0, 0.0005, 0.002, 0.01, 5]),
            cancel=cancel,
        )

    def lend(self) -> None:
        try:
            connection = self.pool.try_connect(self.request())
        except ConnPoolError:
            return
        self.grants += 1
        raw = connection.raw
        self.history.note("granted", raw.number)
        time.sleep(0)
        assert connection.raw is raw
        self.history.note("returned", raw.number)
        dice = self.dice.random()
        if dice < 0.75:
            connection.release()
        elif dice < 0.9:
            connection.terminate()
        elif dice < 0.95 and self.may_leave:
            self.works.disown(connection.detach())
            self.left += 1
        else:
            with pytest.raises(DoomError), connection:
                raise DoomError
        with pytest.raises(UsageError):
            connection.release()

    def meddle(self) -> None:
        """What an operator does."""
        action = self.dice.randrange(7 if self.may_leave else 6)
        if action == 0:
            self.pool.sweep()
        elif action == 1:
            self.pool.clear(self.dice.choice([None, A, B]))
        elif action == 2:
            self.pool.blacklist(A, 0.001)
        elif action == 3:
            self.pool.unblacklist(A)
        elif action == 4:
            self.pool.resize(max_size=self.dice.randint(1, SIZE))
        elif action == 5:
            self.clock.leap(1)
        else:
            raw = self.pool.take()
            if raw is not None:
                self.works.disown(raw)
                self.left += 1
        balanced(self.pool)

    def run(self, lenders: int, turns: int, *, meddlers: int = 1) -> None:
        def repeat(job: Callable[[], None]) -> None:
            for _ in range(turns):
                job()

        jobs = [self.lend] * lenders + [self.meddle] * meddlers
        with preempting(*MODULES, chance=0.1, seed=self.dice.randrange(10**6)):
            together(*(lambda job=job: repeat(job) for job in jobs), limit=40)

    def check(self) -> None:
        self.pool.resize(max_size=SIZE)
        self.pool.unblacklist(A)
        self.works.behave()
        # Who leaves the pool frees a place before the test can know of it: then the maximum goes unchecked.
        self.history.check(max_open=None if self.may_leave else SIZE)
        assert_whole(self.pool, self.works, may_drop=self.may_leave)
        stats = balanced(self.pool)
        assert stats.opened == sum(stats.closed.values()) + stats.idle + self.left
        assert stats.idle == self.works.n_open
        assert (stats.in_use, stats.opening, stats.waiting, stats.lost) == (0, 0, 0, 0)
        assert self.grants > 0


@pytest.mark.parametrize(
    ("seed", "prompt", "failures", "may_leave"),  # each two in all their combinations
    [(0, True, 0, False), (1, False, 0.05, False), (2, False, 0, True), (3, True, 0.05, True)],
)
def test_nothing_is_lost_and_nobody_shares(seed, prompt, failures, may_leave):
    crowd = Crowd(seed, prompt=prompt, failures=failures)
    crowd.may_leave = may_leave
    crowd.run(8, 15)
    crowd.check()
    assert_ended(crowd.pool, crowd.works)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_where_callers_dial_themselves(seed):
    crowd = Crowd(seed, prompt=bool(seed), failures=0.05, dial_in_caller=True)
    crowd.run(8, 15)
    crowd.check()
    assert_ended(crowd.pool, crowd.works)


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_that_is_closed_at_random_ends_everything(seed):
    crowd = Crowd(seed, prompt=bool(seed % 2), failures=0)
    after = crowd.dice.uniform(0, 0.1)

    def end() -> None:
        time.sleep(after)  # at random; nothing is waited for
        crowd.pool.close(timeout=crowd.dice.choice([None, 0.01, 5]))

    with preempting(*MODULES, chance=0.1, seed=seed):
        together(*[lambda: [crowd.lend() for _ in range(15)]] * 6, end, limit=40)
    crowd.works.until(lambda: crowd.works.n_open == 0)
    crowd.history.check(max_open=SIZE)
    stats = balanced(crowd.pool)
    assert (stats.size - stats.closing, stats.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_that_is_shut_down_and_reopened_at_random_goes_on(seed):
    crowd = Crowd(seed, prompt=True, failures=0)

    def flicker() -> None:
        for _ in range(10):
            crowd.pool.shutdown()
            crowd.pool.reopen()

    with preempting(*MODULES, chance=0.1, seed=seed):
        together(*[lambda: [crowd.lend() for _ in range(15)]] * 6, flicker, limit=40)
    crowd.pool.reopen()
    crowd.check()
    assert_ended(crowd.pool, crowd.works)


@pytest.mark.parametrize("seed", range(3))
def test_a_patient_crowd_is_served_to_the_last(seed):
    """Nobody times out, so that one wake-up lost is one thread that waits for ever."""
    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=2, reap_interval=None)
    dice = random.Random(seed)
    overtaken: list[float] = []

    def work() -> None:
        for i in range(30):
            began = time.monotonic()
            connection = pool.try_connect(timeout=None)
            overtaken.append(time.monotonic() - began)
            if i % 3 == 0:
                time.sleep(0)
            if dice.random() < 0.1:
                connection.terminate()
            else:
                connection.release()

    pool.configure(checkout_timeout=None)
    with preempting(*MODULES, chance=0.1, seed=seed):
        together(*[work] * 6, limit=30)
    assert len(overtaken) == 180
    assert balanced(pool).timeouts == 0
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("seed", range(3))
def test_two_who_give_the_same_loan_back_at_once_are_told_apart(seed):
    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=2, reap_interval=None)
    dice = random.Random(seed)
    with preempting(*MODULES, chance=0.2, seed=seed):
        for _ in range(30):
            connection = pool.try_connect()
            ends = [connection.release, dice.choice([connection.release, connection.terminate])]

            def attempt(end: Callable[[], None]) -> bool:
                try:
                    end()
                except UsageError:
                    return False
                return True

            assert sorted(together(*(lambda end=end: attempt(end) for end in ends))) == [False, True]
            stats = balanced(pool)
            assert stats.in_use == 0
            assert stats.idle <= 1
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_real_sockets_are_neither_lost_nor_shared():
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=4) as pool:

        def talk(who: int) -> None:
            dice = random.Random(who)
            for i in range(12):
                message = b"%d:%d" % (who, i)
                try:
                    connection = pool.try_connect(timeout=dice.choice([0.001, 5]))
                except (CancelledError, ConnPoolError):
                    continue
                connection.sendall(message, timeout=5)
                assert connection.recv_exactly(len(message), timeout=5) == message
                connection.terminate() if i % 6 == 5 else connection.release()

        with preempting(*MODULES, chance=0.05, seed=1):
            together(*(lambda who=who: talk(who) for who in range(8)), limit=40)
        assert server.peak <= 4
        stats = balanced(pool)
        assert stats.in_use == 0
        server.until_open(stats.idle)
    server.until(lambda: None not in server.closes)
