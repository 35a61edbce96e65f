"""Ctrl-C at any moment of a checkout or a release costs no place and leaves no lock held."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

import connpool.pool
from connpool import ConnectionPool, ConnPoolError
from tests.helpers.interrupts import Place, Strike, Survey, codes_of, needs_monitoring, struck_at_random
from tests.stress.scenes import SCENES, Scene
from tests.stress.works import A, TellingClock, Works, assert_ended, assert_whole

MODULES = [
    importlib.import_module(f"connpool.pool.{module.name}")
    for module in pkgutil.iter_modules(connpool.pool.__path__)
]
ENOUGH = 50  # strikes for each scene, besides those at places where no scene before it was struck
KNOWN: set[Place] = set()

pytestmark = pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")


@pytest.fixture
def in_finalisers(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What finalisers raise; an interrupt that strikes in one ends there, which is Python's way."""
    raised: list[BaseException | None] = []

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        if not isinstance(args.exc_value, KeyboardInterrupt):
            raised.append(args.exc_value)

    monkeypatch.setattr(sys, "unraisablehook", on_unraisable)
    return raised


def strikes(scene: type[Scene]) -> Iterator[tuple[Strike, Scene]]:
    """One strike after the other, each with a fresh scene."""
    survey, stage = Survey(codes_of(*MODULES)), scene()
    with survey:
        stage.deed()
    finish(stage)
    assert len(survey.places) > 5
    for strike in survey.strikes(KNOWN, ENOUGH):
        yield strike, scene()


def finish(stage: Scene) -> None:
    stage.end()
    assert_ended(stage.pool, stage.works)


@needs_monitoring
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_an_interrupt_at_any_moment_loses_no_place_and_holds_no_lock(scene, in_finalisers):
    faults = []
    for strike, stage in strikes(scene):
        with strike:
            stage.deed()
        strike._raised = None  # its frames hold what the deed had in its hands
        try:
            stage.end()
            gc.collect(0)
            stage.pool.sweep()
            stats = stage.pool.stats()
            in_use = stats.in_use + stats.shared
            assert in_use == 0, f"{in_use} in use after a sweep"
            assert_whole(stage.pool, stage.works, limit=5, may_drop=True)
            assert stage.pool.close() == 0, "lent after the end"
        except (AssertionError, ConnPoolError, KeyboardInterrupt) as fault:
            faults.append(f"{strike}: {fault!r}"[:300])
            if len(faults) > 2:
                break
    assert not faults, "\n".join(faults)
    assert not in_finalisers


@pytest.mark.parametrize("prompt", [True, False])
def test_a_thousand_real_signals_lose_no_place_and_hold_no_lock(prompt):
    works, clock = Works(prompt=prompt), TellingClock()
    pool = ConnectionPool(
        A, connector=works, clock=clock, max_size=2, reap_interval=None, blacklist_initial=0
    )
    turns = [0]

    def job() -> None:
        for _ in range(1000):
            turns[0] += 1
            connection = pool.try_connect(timeout=10)
            if turns[0] % 7 == 0:
                connection.terminate()
            else:
                connection.release()
            if turns[0] % 5 == 0:
                clock.leap(1)

    hits = struck_at_random(job, times=500, longest=0.002, seed=1)
    assert hits > 300
    gc.collect()
    pool.sweep()
    assert pool.stats().in_use == 0
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_real_signals_while_others_wait_lose_no_place():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=2, reap_interval=None)
    over = threading.Event()

    def rival() -> None:
        while not over.is_set():
            with pool.try_connect(timeout=20):
                pass

    def job() -> None:
        for _ in range(5000):  # many a turn is over in a microsecond, and the gun waits for its turn as well
            pool.try_connect(timeout=20).release()

    rivals = [threading.Thread(target=rival) for _ in range(3)]
    for thread in rivals:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            assert struck_at_random(job, times=300, longest=0.003, seed=2) > 200
    finally:
        over.set()
        for thread in rivals:
            thread.join(20)
    assert not any(thread.is_alive() for thread in rivals)
    gc.collect()
    pool.sweep()
    assert pool.stats().in_use == 0
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_an_alarm_in_the_middle_of_a_wait_costs_nothing():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None)
    held = pool.try_connect()

    def on_alarm(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, on_alarm)
    main = threading.main_thread().ident

    def shoot():
        clock.until_waiting()
        signal.pthread_kill(main, signal.SIGUSR2)

    gun = threading.Thread(target=shoot)
    gun.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.try_connect(timeout=10)
    finally:
        gun.join()
        signal.signal(signal.SIGUSR2, before)
    assert pool.stats().waiting == 0
    held.release()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_an_interrupt_that_leaves_a_lock_of_a_starting_thread_in_disorder_is_that_interrupt(monkeypatch):
    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("connpool-dial"):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise RuntimeError("cannot release un-acquired lock")  # noqa: B904 - as a Condition does

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.try_connect(timeout=5)
    monkeypatch.undo()
    assert_whole(pool, works)
    assert_ended(pool, works)
