"""Whatever is done to a pool, upkeep comes when it must: a turn nobody has asked for finds nothing to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Final

import pytest

from connpool import (
    ConfigError,
    Connection,
    ConnectionPool,
    ConnPoolError,
    Endpoint,
    LoanHeldLong,
    PoolState,
)
from connpool.pool.census import Kept, engage
from connpool.pool.lifetimes import pause_of
from connpool.testing import FakeClock
from connpool.upkeep.reaper import REAPER
from tests.helpers.switchboard import until
from tests.helpers.upkeep import is_at_rest
from tests.stress.works import A, B, C, Part, Works

STEPS: Final = 120
ROUTES: Final = ["a:1", "a:1, b:1", "a:1 || b:1", "b:1 || c:1, a:1"]


class HandMadeReaper:
    """Gives one pool its turns, as the reaper would, whenever the test lets time pass."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.pool: ConnectionPool | None = None
        self._turned = -math.inf
        self._due = math.inf
        self._is_called = False  # asked for a turn at once, and has not had it yet

    def watch(self, kept: Kept, at: float) -> bool:
        if isinstance(kept, ConnectionPool) and isinstance(kept._lender.clock, FakeClock):
            if at == math.inf:
                self._due = self._due if self._is_called else math.inf
            else:
                self._is_called = self._is_called or at == -math.inf
                self._due = min(self._due, at)
            return True
        return REAPER.watch(kept, at)

    def wink(self, kept: Kept) -> None:
        self.watch(kept, -math.inf)

    def _next_at(self, pool: ConnectionPool) -> float:
        pause = pause_of(pool.config)
        return math.inf if pause is None else max(self._due, self._turned + pause)

    def let_pass(self, pool: ConnectionPool, seconds: float) -> bool:
        """Returns whether a turn could have come just now, had one been asked for, and none was."""
        end = self._clock.now() + seconds
        for _ in range(1_000):
            settle(pool)
            if self._next_at(pool) > end:
                self._clock.advance(end - self._clock.now())
                return self._due > end >= self._turned + (pause_of(pool.config) or math.inf)
            self._clock.advance(max(0.0, self._next_at(pool) - self._clock.now()))
            self._due, self._is_called, self._turned = math.inf, False, self._clock.now()
            pool._take_turn(is_leap=False)
        raise AssertionError("it is never at rest")


@contextmanager
def reaping_by_hand(clock: FakeClock) -> Iterator[HandMadeReaper]:
    reaper = HandMadeReaper(clock)
    engage(reaper)
    try:
        yield reaper
    finally:
        engage(REAPER)


def settle(pool: ConnectionPool) -> None:
    until(lambda: is_at_rest(pool), "rest")


class Stage:
    def __init__(self, seed: int, clock: FakeClock) -> None:
        self.dice = dice = Random(seed)
        self.works = Works(prompt=True)
        self.works.opening, self.works.looking = self._open, self._look
        self.is_warm = dice.random() < 0.5
        self.down: set[Endpoint] = set()
        self.dead: set[Part] = set()
        self.n_looks = 0
        self.warnings: list[LoanHeldLong] = []
        self.loans: list[Connection] = []
        self.pool = ConnectionPool(
            dice.choice(ROUTES),
            connector=self.works,
            clock=clock,
            rng=Random(seed),
            max_size=dice.randint(1, 6),
            reap_interval=0.5,
            lifetime_jitter=0,
            sharable=dice.random() < 0.4,
            checkout_timeout=0,
            blacklist_initial=2,
            blacklist_max=8,
        )
        self.pool.listen(self.warnings.append, LoanHeldLong)

    def _open(self, endpoint: Endpoint) -> None:
        if endpoint in self.down:
            raise ConnectionRefusedError("down")

    def _look(self, part: Part) -> bool:
        self.n_looks += 1
        return part not in self.dead

    def picture(self) -> tuple[object, ...]:
        """All that a turn could change."""
        pool, works = self.pool, self.works
        states = [(info.endpoint, info.state, info.size, info.idle) for info in pool.endpoints()]
        return works.dials, works.n_open, self.n_looks, len(self.warnings), states, pool.stats().closed

    def deed(self) -> Callable[[], object]:
        """What a user, an operator or the network does."""
        pool, dice = self.pool, self.dice
        where = dice.choice([A, B, C])
        changes: list[dict[str, object]] = [
            {"max_size": dice.randint(1, 6)},
            # Not both: what another's return makes spare is closed for its idleness at its next look only.
            {"min_idle": dice.randint(0, 3)}
            if self.is_warm
            else {"idle_timeout": dice.choice([None, 3, 10, 100])},
            {"max_lifetime": dice.choice([None, 5, 20, 100])},
            {"max_uses": dice.choice([None, 1, 2, 4])},
            {"keepalive_interval": dice.choice([None, 2, 7])},
            {"warn_after": dice.choice([None, 1, 6])},
            {"reconnect": dice.random() < 0.7},
            {"revive": dice.choice([False, True, "force"])},
            {"max_per_endpoint": dice.choice([None, 1, 2, 3])},
        ]
        change = dice.choice(changes)
        return dice.choice(
            [
                *[lambda: self.loans.append(pool.try_connect(dice.choice([None, None, None, A, B, C])))] * 6,
                *[self.give_back] * 4,
                *[lambda: pool.configure(**change)] * 8,
                lambda: self.loans.append(pool.share()),
                lambda: setattr(pool, "route", dice.choice(ROUTES)),
                lambda: pool.blacklist(where, dice.choice([None, 1, 4])),
                lambda: pool.unblacklist(where),
                lambda: (self.down.discard if where in self.down else self.down.add)(where),
                pool.clear,
                self.open_or_shut,
                self.die,
            ]
        )

    def give_back(self) -> None:
        if self.loans:
            loan = self.loans.pop(self.dice.randrange(len(self.loans)))
            self.dice.choice([loan.release, loan.release, loan.terminate])()

    def open_or_shut(self) -> None:
        match self.pool.stats().state:
            case PoolState.OPEN:
                self.dice.choice([self.pool.pause, self.pool.shutdown])()
            case PoolState.PAUSED:
                self.pool.resume()
            case _:
                self.pool.reopen()

    def die(self) -> None:
        self.dead.update(self.dice.sample(self.works.parts, min(1, len(self.works.parts))))


@pytest.mark.parametrize("seed", range(20))
def test_a_turn_that_nobody_has_asked_for_finds_nothing_to_do(seed: int) -> None:
    clock = FakeClock()
    with reaping_by_hand(clock) as reaper:
        stage = Stage(seed, clock)
        with stage.pool as pool:
            for _ in range(STEPS):
                with suppress(ConnPoolError, ConfigError):
                    stage.deed()()
                if reaper.let_pass(pool, stage.dice.choice([0, 0, 0.3, 1, 3, 8, 25])):
                    before = stage.picture()
                    pool.sweep()
                    settle(pool)
                    assert stage.picture() == before
            while stage.loans:
                stage.loans.pop().release()
        until(lambda: stage.works.n_open == 0)
