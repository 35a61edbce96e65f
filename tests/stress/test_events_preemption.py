"""What is told in a storm: each connection's life in order, each checkout on its thread, nothing twice."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
import time
from collections.abc import Callable

import pytest

import connpool.pool
import connpool.upkeep
from connpool import (
    CloseReason,
    ConnectionPool,
    ConnPoolError,
    PoolClosedError,
    PoolPausedError,
    Request,
)
from tests.helpers.preemption import preempting
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.stress.stage import (
    Ears,
    check_alternation,
    check_callers,
    check_lives,
    check_switches,
    kind,
    lives,
)
from tests.stress.works import A, B, C, DoomError, TellingClock, Works, assert_ended, assert_whole, balanced

MODULES = [
    importlib.import_module(module.name)
    for package in (connpool.pool, connpool.upkeep)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]
THREADS = 10
TURNS = 6
SIZE = 4


class Storm:
    """Many who borrow, some who meddle, and ears that hear it all."""

    def __init__(self, seed: int, *, prompt: bool = True, **settings: object) -> None:
        self.dice = random.Random(seed)
        self.works = Works(prompt=prompt)
        self.works.opening = self.works.looking = self.misbehave
        self.failures = 0.0
        self.clock = TellingClock()
        self.ears = Ears()
        settings = {"blacklist_initial": 0, "blacklist_max": 0, "max_uses": 12, **settings}
        self.pool = ConnectionPool(
            "a:1, b:1 || c:1",
            connector=self.works,
            clock=self.clock,
            max_size=SIZE,
            look_after_idle=0.1,
            idle_timeout=5,
            reap_interval=None,
            **{"listeners": [self.ears], **settings},
        )
        self.borrowers = 0

    def misbehave(self, _: object) -> None:
        if self.dice.random() < self.failures:
            raise ConnectionResetError("bad luck")

    def lend(self) -> None:
        request = Request(self.dice.choice([None, None, A, B]), timeout=self.dice.choice([0, 0.001, 0.01, 5]))
        try:
            conn = self.pool.try_connect(request)
        except ConnPoolError:
            return
        if self.dice.random() < 0.8:
            conn.release()
        else:
            conn.terminate()

    def meddle(self) -> None:
        pool = self.pool
        self.dice.choice(
            [
                pool.sweep,
                pool.clear,
                lambda: self.clock.leap(1),
                lambda: pool.blacklist(self.dice.choice([A, B, C]), 0.001),
                lambda: pool.unblacklist(A),
                lambda: pool.resize(max_size=self.dice.randint(1, SIZE)),
            ]
        )()
        time.sleep(0)

    def run(self, *others: Callable[[], object], chance: float = 0.1, lend: object = None) -> None:
        lock = threading.Lock()
        self.borrowers = THREADS

        def borrow() -> None:
            try:
                for _ in range(TURNS):
                    (lend or self.lend)()
            finally:
                with lock:
                    self.borrowers -= 1

        def repeat(job: Callable[[], object]) -> None:
            while self.borrowers:
                job()

        jobs = [borrow] * THREADS + [lambda job=job: repeat(job) for job in others]
        with preempting(*MODULES, chance=chance, seed=self.dice.randrange(10**6)):
            together(*jobs, limit=50)

    def end(self) -> None:
        """The pool must be whole; then it is closed, and all that was told is judged."""
        self.failures = 0.0
        self.pool.resize(max_size=SIZE)
        for endpoint in (A, B, C):
            self.pool.unblacklist(endpoint)
        assert_whole(self.pool, self.works)
        assert_ended(self.pool, self.works)
        self.works.until(lambda: balanced(self.pool).size == 0)
        self.ears.until("ConnectionClosed", len(self.ears.of("ConnectionOpening")))

    def judge(self) -> None:
        stats, heard = balanced(self.pool), self.ears.heard
        check_lives(heard)
        check_callers(self.ears)
        assert not any(check_alternation(heard).values())
        assert check_switches(heard) == 0
        assert all(life[-1] == "ConnectionClosed" for life in lives(heard).values())
        assert len(self.ears.of("CheckedOut")) == len(self.ears.of("CheckedIn")) == stats.checkouts
        opened = {event.id for event in self.ears.of("ConnectionOpened")}
        assert len(opened) == stats.opened
        ended = [event.reason for event in self.ears.of("ConnectionClosed") if event.id in opened]
        assert {reason: ended.count(reason) for reason in CloseReason} == {
            reason: stats.closed.get(reason, 0) for reason in CloseReason
        }
        failed = [event.reason.name for event in self.ears.of("CheckoutFailed")]
        assert failed.count("TIMEOUT") == stats.timeouts
        assert self.ears.kinds("PoolOpened", "PoolClosed") == ["PoolOpened", "PoolClosed"]


@pytest.mark.parametrize("seed", range(3))
def test_every_life_is_told_in_order_whatever_the_threads_do(seed):
    storm = Storm(seed, prompt=seed % 2 == 0, dial_in_caller=seed == 2)
    storm.failures = 0.05
    storm.run(storm.meddle)
    storm.end()
    storm.judge()


@pytest.mark.parametrize("seed", range(2))
def test_a_listener_that_gives_way_hears_the_same_order(seed):
    """A listener that dawdles in the middle of an event must not be overtaken by the next one."""
    storm = Storm(seed, listeners=[])
    dice = random.Random(seed)

    def dawdle(event: object) -> None:
        if dice.random() < 0.3:
            time.sleep(0.0002)
        storm.ears(event)

    storm.pool.listen(dawdle)
    storm.ears(connpool.PoolOpened(pool="", at=0.0, options={}))
    storm.failures = 0.05
    storm.run(storm.meddle, chance=0.02)
    storm.end()
    storm.judge()


def test_listeners_that_fail_at_random_change_nothing(caplog):
    storm = Storm(11)
    dice = random.Random(7)

    def fail(event: object) -> None:
        if dice.random() < 0.1:
            raise ValueError(event)

    storm.pool.listen(fail)
    storm.run(storm.meddle)
    storm.end()
    storm.judge()
    assert {record.name for record in caplog.records if record.exc_info} == {"connpool.events"}


@pytest.mark.parametrize("in_caller", [False, True])
def test_dooms_in_listeners_lose_no_place(in_caller):
    storm = Storm(12, dial_in_caller=in_caller)
    dice = random.Random(8)
    struck = []

    def doom(event: object) -> None:
        is_first = kind(event) not in struck  # which kinds chance alone would strike is the threads' affair
        if threading.current_thread().name.startswith("test-") and (is_first or dice.random() < 0.05):
            struck.append(kind(event))
            raise DoomError

    stop = storm.pool.listen(doom)

    def lend() -> None:
        try:
            storm.lend()
        except DoomError:
            pass

    storm.run(lend=lend)
    stop()
    storm.pool.sweep()
    assert len(set(struck)) >= 3, struck
    storm.end()
    check_lives(storm.ears.heard)


def test_listeners_that_come_and_go_hear_whole_stretches_of_each_life():
    storm = Storm(13)
    visitors: list[Ears] = []

    def visit() -> None:
        ears = Ears()
        stop = storm.pool.listen(ears)
        time.sleep(0.001)
        stop()
        visitors.append(ears)

    storm.run(visit, visit, storm.meddle)
    storm.end()
    storm.judge()
    assert len(visitors) > 3
    assert sum(len(ears.heard) for ears in visitors) > 0
    for ears in visitors:
        check_lives(ears.heard, from_the_start=False)


def test_a_listener_that_uses_the_pool_at_random_is_never_stuck():
    storm = Storm(14)
    inside = threading.local()
    dice = random.Random(9)

    def use(event: object) -> None:
        if getattr(inside, "now", False) or dice.random() > 0.1:
            return
        inside.now = True
        try:
            dice.choice([storm.pool.stats, storm.pool.sweep, storm.pool.clear, storm.pool.connections])()
        finally:
            inside.now = False

    storm.pool.listen(use)
    storm.run(storm.meddle)
    storm.end()
    storm.judge()


@pytest.mark.parametrize("fail", [False, True])
def test_a_pool_that_is_paused_and_resumed_at_random_forgets_nobody(fail):
    storm = Storm(15)
    outcomes: list[str] = []

    def flicker() -> None:
        storm.pool.pause(fail=fail)
        time.sleep(0)
        storm.pool.resume()
        time.sleep(0.001)

    def lend() -> None:
        try:
            conn = storm.pool.try_connect(timeout=20)
        except PoolPausedError:
            outcomes.append("paused")
        else:
            outcomes.append("lent")
            conn.release()

    storm.run(flicker, lend=lend)
    assert len(outcomes) == THREADS * TURNS
    assert fail or "paused" not in outcomes
    assert "lent" in outcomes
    storm.pool.resume()
    storm.end()
    storm.judge()
    told = storm.ears.kinds("PoolPaused", "PoolResumed")
    assert told == ["PoolPaused", "PoolResumed"] * (len(told) // 2)
    assert told


def test_nobody_is_lent_anything_while_the_pool_is_paused():
    storm = Storm(16)
    rounds = [0]

    def flicker() -> None:
        storm.pool.pause()
        # What was lent just before is given back first, and what was being dialled becomes idle.
        until(lambda: storm.pool.stats().in_use == storm.pool.stats().opening == 0)
        before = storm.pool.stats().checkouts, storm.works.dials
        time.sleep(0.003)  # for what must not happen
        assert (storm.pool.stats().checkouts, storm.works.dials) == before
        storm.pool.resume()
        rounds[0] += 1
        time.sleep(0.002)

    storm.run(flicker, lend=lambda: storm.pool.try_connect(timeout=20).release())
    assert rounds[0] > 0
    storm.end()
    storm.judge()


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_closed_in_the_storm_tells_every_end(seed):
    storm = Storm(seed + 20, prompt=seed != 1)
    closer = threading.Timer(0.05 * seed, storm.pool.close)

    def lend() -> None:
        try:
            storm.pool.try_connect(timeout=5).release()
        except PoolClosedError:
            pass

    closer.start()
    storm.run(lend=lend)
    closer.join()
    storm.pool.close()
    storm.works.until(lambda: balanced(storm.pool).size == 0)
    storm.ears.until("ConnectionClosed", len(storm.ears.of("ConnectionOpening")))
    check_lives(storm.ears.heard)
    check_callers(storm.ears)
    assert storm.ears.kinds("PoolClosed") == ["PoolClosed"]
    assert all(life[-1] == "ConnectionClosed" for life in lives(storm.ears.heard).values())
