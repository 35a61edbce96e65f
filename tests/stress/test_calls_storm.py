"""Channels that close, rest, expire and fail at random, under line preemption: one outcome for each call."""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
import threading
import time

import attrs
import pytest

import connpool.calls
from connpool import CallPool, ChannelClosedError, ConnPoolError, Reply
from tests.helpers.channels import RESOURCE, Tape, n_waiting
from tests.helpers.preemption import preempting
from tests.helpers.switchboard import until
from tests.helpers.together import together

MODULES = [
    importlib.import_module(f"connpool.calls.{module.name}")
    for module in pkgutil.iter_modules(connpool.calls.__path__)
]


class WeatherError(Exception):
    retry_after: float | None = None


class Weather:
    """What calls do: mostly answer, and sometimes anything else."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.served: list[tuple[int, int]] = []

    def __call__(self, method: object, payload: tuple[int, int]) -> object:
        fate = self.dice.random()
        time.sleep(0)
        if fate < 0.7:
            return payload
        if fate < 0.8:
            return Reply(payload, retry_after=self.dice.choice([0.0005, 0.003]))
        if fate < 0.86:
            raise WeatherError("a failure")
        if fate < 0.9:
            error = WeatherError("a failure, and a rest")
            error.retry_after = 0.001
            raise error
        if fate < 0.95:
            raise ChannelClosedError("closed")
        if fate < 0.98:
            return Reply(payload, retry_after=math.inf)
        raise KeyboardInterrupt


@pytest.mark.parametrize("seed", range(2))
def test_each_call_has_one_outcome_whatever_channels_do(seed: int) -> None:
    weather = Weather(seed)
    pool = CallPool(revive_initial=0.001, revive_max=0.002, reap_interval=0.001)
    tapes = [Tape() for _ in range(5)]
    policies = [(None, "force"), (0.005, True), (None, "force"), (0.02, "force"), (None, "force")]
    for tape, (ttl, revive) in zip(tapes, policies, strict=True):
        tape.doing = weather
        tape.opening = lambda: (weather.dice.random() < 0.3 and 0.001) or None
        pool.init(tape, ttl=ttl, revive=revive, extra=0)
    outcomes: dict[int, list[object]] = {n: [] for n in range(32)}

    def call(n: int) -> None:
        dice = random.Random(seed * 100 + n)
        for turn in range(12):
            payload = (n, turn)
            timeout = dice.choice([None, 0.002, 5])
            where = dice.choice([None, None, lambda info: info.extra % 2 == 0])
            try:
                answer = pool.call(RESOURCE, "get", payload, where=where, timeout=timeout)
                assert answer == payload
                outcomes[n].append(answer)
            except (ConnPoolError, WeatherError, KeyboardInterrupt) as error:
                outcomes[n].append(error)

    def meddle() -> None:
        dice = random.Random(seed)
        for _ in range(12):
            act = dice.randrange(4)
            if act == 0:
                pool.sweep()
            elif act == 1:
                pool.update(RESOURCE, lambda info: attrs.evolve(info, extra=info.extra + 1))
            elif act == 2:
                try:
                    for info in pool.pop(
                        resource=RESOURCE, where=lambda info: info.id % 3 == 0, timeout=0.05
                    ):
                        if info.channel.is_open:
                            pool.put(info)
                except ConnPoolError:
                    pass
            else:
                pool.listen(lambda event: None)()

    with preempting(*MODULES, chance=0.03, seed=seed):
        together(*[lambda n=n: call(n) for n in range(32)], meddle, limit=50)
    assert all(len(each) == 12 for each in outcomes.values())
    assert n_waiting(pool) == 0
    answered = [each for many in outcomes.values() for each in many if isinstance(each, tuple)]
    assert len(answered) > 20
    for tape in tapes:  # Tape itself has seen to it that no two calls overlapped
        by_thread: dict[int, list[int]] = {}
        for n, turn in tape.calls:
            by_thread.setdefault(n, []).append(turn)
        assert all(turns == sorted(turns) for turns in by_thread.values())
    pool.close()
    until(lambda: not any(tape.is_open for tape in tapes), "everything closed")
    until(lambda: not background(), "the end of the threads")


def background() -> list[str]:
    """The names of the pool's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("connpool-")]


@pytest.mark.parametrize("seed", range(2))
def test_no_call_is_forgotten_while_channels_come_back_at_the_same_moment(seed: int) -> None:
    """Every return looks who waits, and every wait looks what has come back: with neither, somebody hangs."""
    with CallPool() as pool:
        tapes = [Tape(), Tape()]
        for tape in tapes:
            pool.init(tape)

        def call(n: int) -> None:
            for turn in range(40):
                assert pool.call(RESOURCE, "get", (n, turn), timeout=20) == (n, turn)

        with preempting(*MODULES, chance=0.1, seed=seed):
            together(*[lambda n=n: call(n) for n in range(8)], limit=50)
        assert sum(len(tape.calls) for tape in tapes) == 320
        assert sum(info.stats["get"].count for info in pool.map(RESOURCE, lambda info: info)) == 320


def test_exchanges_at_once_hand_each_value_on_exactly_once() -> None:
    with CallPool() as pool:
        id = pool.init(Tape(), extra=(0, 0))

        def exchange(n: int) -> list[object]:
            return [pool.extra(id, (n, turn)) for turn in range(40)]

        with preempting(*MODULES, chance=0.2, seed=1):
            had = together(*[lambda n=n: exchange(n) for n in range(1, 9)], limit=50)
        left = pool.info(id).extra
    given = [(0, 0), *((n, turn) for n in range(1, 9) for turn in range(40))]
    assert sorted([*(each for many in had for each in many), left]) == given
