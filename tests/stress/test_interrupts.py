"""Ctrl-C at any moment of a checkout or a release costs no place and leaves no lock held."""

from __future__ import annotations

import _thread
import contextlib
import gc
import importlib
import pkgutil
import signal
import socket
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import connpool.pool
from connpool import Connection, ConnectionPool, ConnPoolError, PoolState, UsageError
from connpool.pool import drops
from connpool.pool.attempts import Attempts
from connpool.pool.checkout import Checkout
from connpool.pool.connection import HAS_GIL
from connpool.pool.core import Books
from connpool.pool.dialing import Dialler
from connpool.pool.lending import Lender
from connpool.pool.record import Record
from connpool.pool.service import Service
from connpool.pool.waiters import WaitQueue
from connpool.wire.io import Stream
from tests.helpers.interrupts import (
    Place,
    SignalStrike,
    Strike,
    Survey,
    at_every_bytecode,
    codes_of,
    needs_monitoring,
    struck_at_random,
)
from tests.helpers.switchboard import until
from tests.stress.scenes import SCENES, Scene
from tests.stress.works import A, Part, TellingClock, Works, assert_ended, assert_whole

MODULES = [
    importlib.import_module(f"connpool.pool.{module.name}")
    for module in pkgutil.iter_modules(connpool.pool.__path__)
]
ENOUGH = 50  # strikes for each scene, besides those at places where no scene before it was struck
KNOWN: dict[bool, set[Place]] = {False: set(), True: set()}  # by whether the interrupt is kept
ERRANDS = "connpool-dial", "connpool-look", "connpool-close"

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


def strikes(scene: type[Scene], known: set[Place]) -> Iterator[tuple[Strike, Scene]]:
    """One strike after the other, each with a fresh scene."""
    survey, stage = Survey(codes_of(*MODULES)), scene()
    with survey:
        stage.deed()
    finish(stage)
    assert len(survey.places) > 5
    for strike in survey.strikes(known, ENOUGH):
        yield strike, scene()


def finish(stage: Scene) -> None:
    stage.end()
    assert_ended(stage.pool, stage.works)


def give_up_own(error: BaseException | None) -> None:
    """Give back what is the caller's own: no loan that a deed still has is given up for an interrupt."""
    for frame, _ in traceback.walk_tb(None if error is None else error.__traceback__):
        if frame.f_code.co_name == "try_connect":  # of a pool, or of one that is listened to
            frame.clear()  # struck as it returned, behind its handler: no real signal comes there
        is_deed = frame.f_globals["__name__"] == Scene.__module__
        names = frame.f_locals if is_deed else {"self": frame.f_locals.get("self")}
        for loan in names.values():
            if isinstance(loan, Connection):
                with contextlib.suppress(UsageError):
                    loan.terminate()


def at_work() -> list[str]:
    """The threads that dial, look or close; not those that an interrupt kept from being started."""
    return [t.name for t in threading.enumerate() if t.is_alive() and t.name.startswith(ERRANDS)]


@needs_monitoring
@pytest.mark.parametrize("is_kept", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_an_interrupt_at_any_moment_loses_no_place_and_holds_no_lock(scene, is_kept, in_finalisers):
    faults = []
    for strike, stage in strikes(scene, KNOWN[is_kept]):
        with strike:
            stage.deed()
        if is_kept:
            give_up_own(strike._raised)
        else:
            strike._raised = None  # its frames hold what the deed had in its hands
        try:
            stage.end()
            until(lambda: not at_work())  # what a thread still has in hand is not lost
            gc.collect(0)
            stage.pool.sweep()
            stats = stage.pool.stats()
            in_use = stats.in_use + stats.shared
            assert in_use == 0, f"{in_use} in use after a sweep"
            if stats.state is not PoolState.CLOSED:
                assert_whole(stage.pool, stage.works, limit=5, may_drop=True)
            assert stage.pool.close() == 0, "lent after the end"
            assert stage.pool.stats().size == 0
        except (AssertionError, ConnPoolError, KeyboardInterrupt) as fault:
            faults.append(f"{strike}: {fault!r}"[:300])
            if len(faults) > 2:
                break
    assert not faults, "\n".join(faults)
    assert not in_finalisers


@pytest.mark.parametrize("prompt", [True, False])
def test_a_thousand_real_signals_lose_no_place_and_hold_no_lock(prompt, in_finalisers):
    if prompt and not HAS_GIL:
        pytest.skip("the connector's own close would be struck too often")
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
    assert hits > 200
    gc.collect()
    pool.sweep()
    assert pool.stats().in_use == 0
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_real_signals_while_others_wait_lose_no_place(in_finalisers):
    works, clock = Works(prompt=HAS_GIL), TellingClock()  # else its own close would be struck too often
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
            assert struck_at_random(job, times=300, longest=0.003, seed=2) > 100
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


@needs_monitoring
def test_an_interrupt_of_a_wait_for_a_close_is_that_interrupt(monkeypatch):
    """The waits of ``threading`` may end with a RuntimeError instead, about a lock that is not theirs."""

    def start(dialler: Dialler, name: str, target: Any, *args: Any) -> bool:  # not one of these waits itself
        return _thread.start_new_thread(target, args) > 0

    works = Works(prompt=False)
    works.closing = lambda part: threading.Event().wait(0.005)  # so long that it is waited for
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None, dial_in_caller=True)
    for strike in at_every_bytecode(threading.Condition, threading.Event, kind=SignalStrike):
        pool.configure(dial_in_caller=True)
        held = pool.try_connect(timeout=5)
        pool.configure(dial_in_caller=False)
        with monkeypatch.context() as patch, strike:
            patch.setattr(Dialler, "_spawn", start)
            held.terminate()
        strike._raised = None
        gc.collect(0)
        pool.sweep()
        works.until(lambda: works.n_open == 0)
    until(lambda: pool.stats().size == 0)
    assert_ended(pool, works)


@needs_monitoring
@pytest.mark.parametrize("is_refused", [False, True], ids=["bytes are left unread", "its reset says no"])
def test_an_interrupt_of_a_return_has_nothing_lie_idle_that_is_not_to_be_lent(is_refused):
    peers = []

    def open_one() -> socket.socket:
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        return ours

    reset = (lambda raw: False) if is_refused else None
    pool = ConnectionPool.of(open_one, reset=reset, max_size=1, reap_interval=None, dial_in_caller=True)
    for strike in at_every_bytecode(Lender, Dialler.reset, Record, Stream.is_clean, kind=SignalStrike):
        conn = pool.try_connect(timeout=5)
        if not is_refused:
            conn._record.stream.rest = b"for nobody else"
        with strike:
            conn.release()
        strike._raised = None
        del conn
        gc.collect(0)
        pool.sweep()
        assert pool.stats().size == 0, strike
        peers.pop().close()
    pool.close()


@pytest.mark.parametrize("prompt", [True, False])
def test_a_thread_that_an_interrupt_kept_from_starting_keeps_no_place(monkeypatch, prompt):
    """``threading`` keeps such a thread for ever, in a table of those that are about to start."""
    works, about_to_start = Works(prompt=prompt), []
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)

    def interrupted(thread: threading.Thread) -> None:
        about_to_start.append(thread)
        monkeypatch.undo()
        raise KeyboardInterrupt

    for use in (lambda: pool.try_connect(timeout=5), lambda: pool.try_connect(timeout=5).terminate()):
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            use()
        gc.collect()
        pool.sweep()
        until(lambda: pool.stats().size == 0)
    assert len(about_to_start) == 2
    for thread in about_to_start:  # or it does run, however late
        thread.run()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_an_interrupt_while_a_place_is_freed_needs_no_collection_to_be_made_good(monkeypatch):
    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)
    held = pool.try_connect()

    def interrupted(books: Books, record: Record) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    gc.collect()
    gc.disable()
    try:
        monkeypatch.setattr(Books, "forget", interrupted)
        with pytest.raises(KeyboardInterrupt):
            held.terminate()
        pool.sweep()
        assert pool.stats().size == 0
    finally:
        gc.enable()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_an_interrupt_in_a_close_keeps_nothing_alive_of_the_stack_it_struck():
    class Thing:
        pass

    def interrupted(part: Part) -> None:
        raise KeyboardInterrupt

    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)
    works.closing = interrupted

    def use() -> weakref.ref[Thing]:
        thing = Thing()
        held = pool.try_connect()
        with contextlib.suppress(KeyboardInterrupt):
            held.terminate()
        return weakref.ref(thing)

    gc.collect()
    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()
    assert_ended(pool, works)


@pytest.mark.parametrize("kind", ["loan", "share"])
def test_an_interrupt_in_a_finaliser_has_it_report_again(monkeypatch, kind):
    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None, sharable=True)
    held = [pool.share() if kind == "share" else pool.try_connect()]
    until(lambda: not at_work())
    raised: list[object] = []

    def interrupted(pool: ConnectionPool) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with monkeypatch.context() as outer:
        outer.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))
        monkeypatch.setattr(drops, "_leaves_pool" if kind == "loan" else "wink", interrupted)
        held.clear()
        gc.collect()
    assert raised == [KeyboardInterrupt]
    pool.sweep()
    assert pool.stats().size == 0
    assert pool.stats().lost == 1
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_loan_that_is_dropped_is_found_though_the_thread_that_had_it_dialled_sleeps():
    """Without the GIL the key of its connection, made on that thread, is left to that thread to finalise."""
    works, may_end = Works(prompt=True), threading.Event()
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)

    def open_one_and_sleep() -> None:
        pool.try_connect(timeout=5).release()
        assert may_end.wait(20)

    sleeper = threading.Thread(target=open_one_and_sleep)
    sleeper.start()
    works.until(lambda: works.n_open == 1)
    until(lambda: pool.stats().idle == 1 and not at_work(), "the end of the thread that dialled")
    try:
        pool.try_connect(timeout=5)  # and lost
        pool.sweep()
        assert pool.stats().lost == 1
    finally:
        may_end.set()
        sleeper.join(20)
    assert_whole(pool, works)
    assert_ended(pool, works)


@needs_monitoring
def test_a_second_interrupt_while_the_first_is_seen_to_loses_no_place(monkeypatch):
    def strike_at_once(checkout: Checkout) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkout, "_run_errand", strike_at_once)
    for strike in at_every_bytecode(
        Checkout._leave, Attempts, Service.leave, WaitQueue.leave, kind=SignalStrike
    ):
        works = Works(prompt=True)
        pool = ConnectionPool(A, connector=works, dial_in_caller=True, max_size=1, reap_interval=None)
        with strike, contextlib.suppress(KeyboardInterrupt):
            pool.try_connect(timeout=5)
        pool.sweep()
        assert (pool.stats().waiting, pool.stats().size) == (0, 0), strike
        pool.close()
