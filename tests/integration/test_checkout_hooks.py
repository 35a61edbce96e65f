"""Pooling anything that a callable opens, and the hooks that close, check and reset it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from connpool import (
    CloseReason,
    ConnectError,
    ConnectionPool,
    NoEndpointError,
    UsageError,
)
from connpool.testing import FakeClock
from tests.helpers.switchboard import Switchboard, until
from tests.helpers.together import together
from tests.helpers.wire import taking


class Thing:
    """What a foreign driver might open."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


# -- ConnectionPool.of


def test_anything_can_be_pooled_and_is_closed_by_its_own_close() -> None:
    with ConnectionPool.of(Thing, max_size=2) as pool:
        with pool.try_connect() as conn:
            thing = conn.raw
            assert isinstance(thing, Thing)
            with pytest.raises(UsageError):
                _ = conn.socket
            with pytest.raises(UsageError):
                conn.sendall(b"x")
        with pool.try_connect() as conn:
            assert conn.raw is thing
    assert thing.closed == 1


class Odd:
    """Equal to everything, false, and without a hash, a text or a reference to it."""

    __slots__ = ("closed",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.closed = 0

    def __eq__(self, other: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        raise ValueError("it cannot be shown")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("settings", [{}, {"look_after_idle": 0}, {"max_uses": 2}, {"dial_in_caller": True}])
def test_things_are_told_apart_by_what_they_are_and_not_by_what_they_say(settings: dict[str, Any]) -> None:
    with ConnectionPool.of(Odd, max_size=2, **settings) as pool:
        one, other = pool.try_connect(), pool.try_connect()
        things = [one.raw, other.raw]
        assert things[0] is not things[1]
        one.release()
        with pool.try_connect() as conn:
            assert conn.raw is things[0]
        other.terminate()
        until(lambda: things[1].closed == 1)
        assert repr(pool)
        assert all(pool.connections())
    assert [thing.closed for thing in things] == [1, 1]


def test_a_usage_error_on_a_healthy_thing_does_not_break_it() -> None:
    with ConnectionPool.of(Thing) as pool:
        conn = pool.try_connect()
        with pytest.raises(UsageError):
            conn.recv(1)
        conn.release()
        assert pool.stats().idle == 1


@pytest.mark.parametrize("verdict", [None, True])
def test_reset_sees_each_return_once_before_the_next_holder(verdict: bool | None) -> None:
    story: list[str] = []

    def reset(raw: Thing) -> bool | None:
        story.append("reset")
        return verdict

    with ConnectionPool.of(Thing, reset=reset) as pool:
        for _ in range(3):
            with pool.try_connect():
                story.append("used")
    assert story == ["used", "reset"] * 3


def refuse(raw: Any) -> bool:
    return False


def explode(raw: Any) -> bool:
    raise RuntimeError("cannot be reset")


@pytest.mark.parametrize("reset", [refuse, explode])
def test_what_cannot_be_reset_is_closed(reset: Any) -> None:
    with ConnectionPool.of(Thing, reset=reset, max_size=1) as pool:
        with pool.try_connect() as conn:
            first = conn.raw
        with pool.try_connect(timeout=5) as conn:
            assert conn.raw is not first
        assert first.closed == 1
        assert pool.stats().closed == {CloseReason.DIRTY: 2}


def strike(raw: object) -> bool:
    raise KeyboardInterrupt


def test_one_whose_reset_was_interrupted_is_closed_and_not_lost() -> None:
    with ConnectionPool.of(Thing, reset=strike) as pool:
        conn = pool.try_connect()
        with pytest.raises(KeyboardInterrupt):
            conn.release()
        until(lambda: pool.stats().size == 0)
        assert pool.stats().closed == {CloseReason.DIRTY: 1}


def test_one_whose_look_was_interrupted_is_closed_and_not_lost(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Switchboard, "is_usable", lambda board, line: strike(line))
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.try_connect().release()
        clock.advance(1)
        with pytest.raises(KeyboardInterrupt):
            pool.try_connect()
        assert (pool.stats().size, pool.stats().closed) == (0, {CloseReason.BROKEN: 1})


def test_a_terminated_one_is_not_reset() -> None:
    with ConnectionPool.of(Thing, reset=explode) as pool:
        pool.try_connect().terminate()
        assert pool.stats().closed == {CloseReason.TERMINATED: 1}


def test_a_reset_that_hangs_holds_up_nobody_else() -> None:
    let_go, inside = threading.Event(), threading.Event()

    def hang(raw: Thing) -> None:
        inside.set()
        assert let_go.wait(10)

    with ConnectionPool.of(Thing, reset=hang, max_size=2) as pool:
        first, second = pool.try_connect(), pool.try_connect()
        releaser = threading.Thread(target=first.release, daemon=True)
        releaser.start()
        assert inside.wait(5)
        second.terminate()
        with taking(0, 2):
            for _ in range(100):
                pool.try_connect(timeout=5).terminate()
            assert pool.stats().size >= 1
        let_go.set()
        releaser.join(10)
        assert not releaser.is_alive()
        assert pool.stats().idle == 1


@pytest.mark.parametrize("check", [refuse, explode])
def test_what_is_no_longer_usable_when_taken_is_replaced(check: Any, clock: FakeClock) -> None:
    with ConnectionPool.of(Thing, is_usable=check, clock=clock, max_size=1) as pool:
        with pool.try_connect() as conn:
            first = conn.raw
        clock.advance(1)
        with pool.try_connect() as conn:
            assert conn.raw is not first
        assert first.closed == 1
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_what_was_idle_for_a_moment_only_is_not_looked_at(clock: FakeClock) -> None:
    looks: list[object] = []

    def look(raw: object) -> bool:
        looks.append(raw)
        return True

    with ConnectionPool.of(Thing, is_usable=look, clock=clock, look_after_idle=2) as pool:
        for pause in (0, 1.9, 2, 0.1):
            clock.advance(pause)
            pool.try_connect().release()
        assert len(looks) == 1


def test_a_close_that_fails_frees_its_place_all_the_same() -> None:
    with ConnectionPool.of(Thing, close=explode, max_size=1) as pool:
        for _ in range(3):
            pool.try_connect(timeout=5).terminate()
        assert pool.stats().size == 0
        pool.try_connect(timeout=5).release()


@pytest.mark.parametrize("in_caller", [False, True])
def test_the_exception_of_open_reaches_the_caller_as_the_cause(in_caller: bool) -> None:
    class DriverError(Exception):
        pass

    def fail() -> Thing:
        raise DriverError("no such database")

    with ConnectionPool.of(fail, dial_in_caller=in_caller, name="db") as pool:
        with pytest.raises(NoEndpointError, match="no such database") as told:
            pool.try_connect(timeout=5)
        assert isinstance(told.value, ConnectError)
        ((_, cause),) = told.value.causes
        assert isinstance(cause, ConnectError)
        assert isinstance(cause.__cause__, DriverError)
        assert isinstance(told.value.__cause__, ConnectError | DriverError)
        assert told.value.pool == "db"
        assert (pool.stats().size, pool.stats().connect_failures) == (0, 1)


def test_open_runs_on_the_callers_thread_only_where_that_is_asked_for() -> None:
    with ConnectionPool.of(threading.get_ident, dial_in_caller=True) as pool, pool.try_connect() as conn:
        assert conn.raw == threading.get_ident()
    with ConnectionPool.of(threading.get_ident) as pool, pool.try_connect() as conn:
        assert conn.raw != threading.get_ident()


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_checkout_from_inside_open_of_a_full_pool_is_an_error_and_no_deadlock(in_caller: bool) -> None:
    told: list[BaseException] = []

    def open_another() -> Thing:
        try:
            pool.try_connect(timeout=5).release()
        except UsageError as error:
            told.append(error)
        return Thing()

    with ConnectionPool.of(open_another, max_size=1, dial_in_caller=in_caller) as pool, taking(0, 4):
        pool.try_connect(timeout=10).release()
    assert len(told) == 1


def test_hooks_may_call_the_pool(clock: FakeClock) -> None:
    seen: list[str] = []

    def look_around(name: str) -> Any:
        def hook(raw: Thing) -> bool:
            if pool.stats().size >= len(pool.connections()) >= 0 and pool.endpoints():
                pool.sweep()
                seen.append(name)
            return True

        return hook

    hooks = {name: look_around(name) for name in ("close", "is_usable", "reset")}
    with ConnectionPool.of(Thing, clock=clock, max_size=4, **hooks) as pool, taking(0, 5):
        together(*[lambda: [pool.try_connect(timeout=5).release() for _ in range(20)]] * 4)
        clock.advance(1)
        pool.try_connect().terminate()
    assert set(seen) == set(hooks)


def test_each_one_is_looked_at_once_a_checkout_where_that_is_asked_for() -> None:
    looks: list[object] = []

    def look(raw: object) -> bool:
        looks.append(raw)
        return True

    with ConnectionPool.of(Thing, is_usable=look, look_after_idle=0) as pool:
        for _ in range(4):
            pool.try_connect(timeout=2).release()
    assert len(looks) == 3


def test_what_is_never_usable_is_dialled_for_each_checkout_and_asked_once() -> None:
    looks: list[object] = []

    def look(raw: object) -> bool:
        looks.append(raw)
        return False

    with ConnectionPool.of(Thing, is_usable=look, look_after_idle=0, max_size=1) as pool:
        for _ in range(4):
            pool.try_connect(timeout=2).release()
        assert pool.stats().opened == 4
    assert len(looks) == 3
