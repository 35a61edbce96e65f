"""Whoever waits goes on as soon as work that was under way has ended, well or not."""

from __future__ import annotations

import threading
import time

import pytest

from tests.stress.house import make_house, served  # noqa: F401 - make_house is a fixture
from tests.stress.works import AT_ONCE, A, B, Caller, Works, assert_whole, door


def test_a_dial_that_fails_frees_its_place_for_whoever_waits_for_another_endpoint(house):
    h = house()

    def refuse(endpoint):
        raise ConnectionRefusedError(endpoint)

    with door(refuse) as dial:
        h.works.opening = lambda endpoint: dial(endpoint) if endpoint == A else None
        first = h.waiter(A)
        dial.until_entered()
        second = h.waiter(B)
        began = time.monotonic()
        served(second, dial.let_go)
        first.failure(ConnectionError)
        assert first.done_at - began < AT_ONCE
    assert h.works.peak == 1


def test_a_dial_that_fails_lets_the_next_dial_begin(house):
    """One dial at a time: who comes later waits for its turn, and goes on when that before it has failed."""
    h = house(max_size=2, max_connecting=1)
    turns = []

    def opening(endpoint):
        turns.append(endpoint)
        if len(turns) == 1:
            dial(endpoint)
            raise ConnectionResetError("not now")

    with door() as dial:
        h.works.opening = opening
        first = h.waiter()
        dial.until_entered()
        second = h.waiter()
        dial.let_go()
        for caller in (first, second):
            caller.join()
    first.failure(ConnectionError)
    second.loan().release()
    assert_whole(h.pool, h.works)


@pytest.mark.parametrize("verdict", [True, False])
def test_a_look_whose_caller_has_left_serves_the_queue_whatever_it_finds(house, verdict):
    h = house(Works(prompt=False))
    h.pool.try_connect().release()
    h.clock.leap(1)  # so that it is looked at
    with door(lambda part: verdict) as look:
        h.works.looking = lambda part: look(part) if part.number == 1 else True
        gone = Caller(h.pool, timeout=0.1)
        look.until_entered()
        gone.join()
        assert gone.error is not None
        waiter = h.waiter()
        served(waiter, look.let_go)
    assert h.works.dials == (1 if verdict else 2)


def test_a_look_that_raises_serves_the_queue(house):
    h = house(Works(prompt=False))
    h.pool.try_connect().release()
    h.clock.leap(1)  # so that it is looked at

    def fail(part):
        raise RuntimeError("cannot see")

    with door(fail) as look:
        h.works.looking = lambda part: look(part) if part.number == 1 else True
        gone = Caller(h.pool, timeout=0.1)
        look.until_entered()
        gone.join()
        served(h.waiter(), look.let_go)
    assert h.works.dials == 2


@pytest.mark.parametrize("verdict", [True, False])
def test_a_take_serves_the_queue_with_the_place_it_frees(house, verdict):
    h = house(Works(prompt=False))
    h.pool.try_connect().release()
    h.clock.leap(1)  # so that it is looked at
    taken = []
    with door(lambda part: verdict) as look:
        h.works.looking = lambda part: look(part) if part.number == 1 else True
        taker = threading.Thread(target=lambda: taken.append(h.pool.take()))
        taker.start()
        look.until_entered()
        waiter = h.waiter()

        def let_go():
            look.let_go()
            taker.join()
            if taken[0] is not None:
                h.works.disown(taken[0])

        served(waiter, let_go)
    assert (taken[0] is not None) == verdict


def test_an_idle_connection_is_evicted_as_soon_as_it_returns_for_whoever_waits_for_another_endpoint(house):
    h = house()
    held = h.pool.try_connect(A)
    served(h.waiter(B), held.release)
    assert [part.endpoint for part in h.works.parts] == [A, B]
    assert h.works.peak == 1


def test_a_close_that_ends_serves_the_queue(house):
    h = house(Works(prompt=False))
    h.pool.try_connect().release()
    with door() as close:
        h.works.closing = close
        h.pool.clear()
        close.until_entered()
        waiter = h.waiter()
        served(waiter, close.let_go)
    assert h.works.peak == 1


def test_a_close_that_raises_serves_the_queue(house):
    h = house(Works(prompt=False))
    h.pool.try_connect().release()

    def fail(part):
        h.works.closing = lambda _: None
        raise OSError("cannot close")

    with door(fail) as close:
        h.works.closing = close
        h.pool.clear()
        close.until_entered()
        served(h.waiter(), close.let_go)


def test_a_close_that_hangs_elsewhere_keeps_no_release_from_serving_the_queue(house):
    h = house(Works(prompt=False), max_size=2)
    first, second = h.pool.try_connect(), h.pool.try_connect()
    with door() as close:
        h.works.closing = close
        first.terminate()
        close.until_entered()
        waiter = h.waiter()
        served(waiter, second.release)
        h.works.closing = lambda _: None
