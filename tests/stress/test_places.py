"""Places are conserved, whatever hooks do and whenever waiters leave."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool import CloseReason, ConnectionPool, ConnPoolError, Request
from tests.stress.works import (
    A,
    Caller,
    DoomError,
    Door,
    ResettingWorks,
    TellingClock,
    assert_ended,
    assert_whole,
)

STAGES = ["opening", "looking", "resetting", "closing"]
SIZE = 2


def work(_: Any) -> None:
    pass


def fail(_: Any) -> None:
    raise ValueError("it fails")


def doom(_: Any) -> None:
    raise DoomError("it is doomed")


def refuse(_: Any) -> bool:
    return False


def dawdle(_: Any) -> None:
    time.sleep(0.03)  # slow work, not a wait for something


@pytest.fixture
def deaf_to_dooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """A hook's own thread may die of what is no Exception; that alone is no failure here."""
    seen: list[BaseException] = []
    before = threading.excepthook

    def on_death(args: Any) -> None:
        if isinstance(args.exc_value, DoomError):
            seen.append(args.exc_value)
        else:
            before(args)

    monkeypatch.setattr(threading, "excepthook", on_death)
    yield seen
    seen.clear()


def turns(pool: ConnectionPool, clock: TellingClock, n: int) -> Iterator[Callable[[], None]]:
    """Checkouts of all kinds, the impatient among them; each swallows what the hooks raise."""

    def turn(i: int) -> None:
        timeout = [0.0, 0.005, 0.02, 0.06, 1.0][i % 5]
        cancel = threading.Event()
        killer = threading.Timer(0.01, cancel.set) if i % 3 == 0 else None
        if killer is not None:
            killer.start()
        try:
            connection = pool.try_connect(Request(timeout=timeout, cancel=cancel))
            if i % 2:
                clock.leap(1)  # those that are idle must be looked at
                connection.release()
            else:
                connection.terminate()
        except (ConnPoolError, ValueError, DoomError):
            pass
        finally:
            if killer is not None:
                killer.cancel()
                killer.join()

    return (lambda i=i: turn(i) for i in range(n))


@pytest.mark.parametrize("prompt", [False, True], ids=["apart", "prompt"])
@pytest.mark.parametrize("in_caller", [False, True], ids=["dialler", "caller"])
@pytest.mark.parametrize("behaviour", [work, fail, doom, refuse, dawdle])
@pytest.mark.parametrize("stage", STAGES)
def test_no_place_is_lost_whatever_a_hook_does(stage, behaviour, in_caller, prompt, deaf_to_dooms):
    works, clock = ResettingWorks(prompt=prompt), TellingClock()
    settings = {"max_size": SIZE, "blacklist_initial": 0, "dial_in_caller": in_caller, "reap_interval": None}
    pool = ConnectionPool(A, connector=works, clock=clock, **settings)
    for _ in range(SIZE):  # something to look at
        Caller(pool).loan().release()
    if stage == "opening":
        pool.clear()
    setattr(works, stage, behaviour)
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in turns(pool, clock, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not errors
    setattr(works, stage, work)
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("in_caller", [False, True], ids=["dialler", "caller"])
@pytest.mark.parametrize("after", [work, fail, doom, refuse])
@pytest.mark.parametrize("stage", STAGES)
def test_no_place_is_lost_when_a_hook_hangs_until_it_is_let_go(stage, after, in_caller, deaf_to_dooms):
    works, clock = ResettingWorks(), TellingClock()
    settings = {"max_size": SIZE, "blacklist_initial": 0, "dial_in_caller": in_caller, "reap_interval": None}
    pool = ConnectionPool(A, connector=works, clock=clock, **settings)
    if stage != "opening":
        loans = [Caller(pool).loan() for _ in range(SIZE)]
        for loan in loans:
            loan.release()
        clock.leap(1)
    hook = Door(after)
    setattr(works, stage, hook)
    errors: list[BaseException] = []

    def disturb() -> None:
        try:
            connection = pool.try_connect(timeout=1)
            if stage == "closing":
                connection.terminate()
            else:
                connection.release()
        except BaseException as error:
            errors.append(error)

    # One that makes the hook hang, some that leave while it does, one that stays until it ends.
    first = threading.Thread(target=disturb)
    first.start()
    hook.until_entered()
    cancel = threading.Event()
    others = [Caller(pool, timeout=timeout) for timeout in (0, 0.02, 0.05)]
    others.append(Caller(pool, Request(cancel=cancel), timeout=10))
    cancel.set()
    if not in_caller:  # who dials itself leaves when its own dial is over
        for caller in others[1:]:
            caller.join()
    others.append(Caller(pool, timeout=10))
    hook.let_go()
    first.join(10)
    assert not first.is_alive()
    for caller in others:
        caller.join()
        if caller.connection is None:
            assert isinstance(caller.error, ConnPoolError | ValueError | DoomError), caller.error
        else:
            with contextlib.suppress(DoomError):  # a reset on this very thread
                caller.connection.release()
    assert all(isinstance(error, ConnPoolError | ValueError | DoomError) for error in errors), errors
    setattr(works, stage, work)
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_release_that_is_interrupted_in_its_reset_closes_the_connection_and_frees_the_place():
    works = ResettingWorks(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, reap_interval=None)
    connection = pool.try_connect()
    works.resetting = doom
    with pytest.raises(DoomError):
        connection.release()
    assert works.n_open == 0
    works.resetting = work
    pool.try_connect(timeout=0).release()
    assert_ended(pool, works)


def test_a_loan_that_returns_to_a_pool_that_has_shrunk_is_closed():
    works = ResettingWorks(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=3, reap_interval=None)
    loans = [pool.try_connect() for _ in range(3)]
    pool.resize(max_size=1)
    for loan in loans:
        loan.release()
    assert works.n_open == 1
    assert pool.stats().closed == {CloseReason.SURPLUS: 2}
    assert_ended(pool, works)
