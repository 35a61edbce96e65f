"""Exclusive loans, shares and operators at random under line preemption: never both, nothing lost."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
import time
from collections import Counter

import pytest

import connpool.pool
from connpool import ConnectionPool, ConnPoolError, Request
from tests.helpers.preemption import preempting
from tests.helpers.together import together
from tests.stress.works import A, B, TellingClock, Works, assert_ended, assert_whole, balanced

MODULES = [
    importlib.import_module(f"connpool.pool.{module.name}")
    for module in pkgutil.iter_modules(connpool.pool.__path__)
]
SIZE = 3


class Watch:
    """Who holds what, as the holders see it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alone: set[int] = set()
        self._shared: Counter[int] = Counter()
        self.most = 0

    def begin(self, number: int, *, is_shared: bool) -> None:
        with self._lock:
            assert number not in self._alone, f"{number} is lent twice"
            if is_shared:
                self._shared[number] += 1
                self.most = max(self.most, self._shared[number])
            else:
                assert not self._shared[number], f"{number} is exclusive and shared"
                self._alone.add(number)

    def end(self, number: int, *, is_shared: bool) -> None:
        with self._lock:
            if is_shared:
                self._shared[number] -= 1
            else:
                self._alone.discard(number)


class Crowd:
    def __init__(self, seed: int, *, prompt: bool, max_sharers: int | None) -> None:
        self.dice = random.Random(seed)
        self.works = Works(prompt=prompt)
        self.clock = TellingClock()
        self.watch = Watch()
        self.pool = ConnectionPool(
            "a:1, b:1",
            connector=self.works,
            clock=self.clock,
            max_size=SIZE,
            sharable=True,
            max_sharers=max_sharers,
            max_lifetime=20,
            blacklist_initial=0,
            look_after_idle=0.1,
            reap_interval=None,
        )
        self.served: Counter[bool] = Counter()

    def lend(self) -> None:
        dice = self.dice
        is_shared = dice.random() < 0.7
        timeout = dice.choice([0, 0.001, 0.01, 5])
        endpoint = dice.choice([None, None, None, A, B])
        try:
            if is_shared and endpoint is None and dice.random() < 0.7:
                conn = self.pool.share(timeout=timeout)
            else:
                conn = self.pool.try_connect(Request(endpoint, shared=is_shared, timeout=timeout))
        except ConnPoolError:
            return
        number = conn.raw.number
        self.watch.begin(number, is_shared=is_shared)
        time.sleep(0)
        assert conn.raw.number == number
        self.watch.end(number, is_shared=is_shared)
        self.served[is_shared] += 1
        if dice.random() < 0.85:
            conn.release()
        else:
            conn.terminate()

    def meddle(self) -> None:
        act = self.dice.randrange(6)
        if act == 0:
            self.pool.sweep()
        elif act == 1:
            self.pool.clear(self.dice.choice([None, A, B]))
        elif act == 2:
            self.pool.blacklist(A, 0.001)
        elif act == 3:
            self.pool.resize(max_size=self.dice.randint(1, SIZE))
        elif act == 4:
            self.clock.leap(self.dice.choice([0.2, 30]))
        else:
            self.pool.configure(max_sharers=self.dice.choice([1, 2, None]))
        balanced(self.pool)


@pytest.mark.parametrize("max_sharers", [None, 2])
@pytest.mark.parametrize("seed", range(2))
def test_a_connection_is_exclusive_or_shared_and_none_is_lost(seed: int, max_sharers: int | None) -> None:
    crowd = Crowd(seed, prompt=bool(seed % 2), max_sharers=max_sharers)

    def lend() -> None:
        for _ in range(10):
            crowd.lend()

    def meddle() -> None:
        for _ in range(10):
            crowd.meddle()

    with preempting(*MODULES, chance=0.1, seed=seed):
        together(*[lend] * 8, meddle, limit=50)
    crowd.pool.resize(max_size=SIZE)
    crowd.pool.unblacklist(A)
    assert_whole(crowd.pool, crowd.works)
    stats = balanced(crowd.pool)
    assert (stats.in_use, stats.shared, stats.waiting, stats.lost) == (0, 0, 0, 0)
    assert crowd.served[True] > 0
    assert crowd.served[False] > 0
    assert_ended(crowd.pool, crowd.works)
