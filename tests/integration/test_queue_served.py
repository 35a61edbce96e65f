"""Whoever waits goes on as soon as a loan has ended: on the real clock, where no polling would be in time."""

from __future__ import annotations

import warnings

from tests.stress.house import make_house, served  # noqa: F401 - make_house is a fixture
from tests.stress.works import A, B, ResettingWorks, Works, door


def test_a_release_serves_the_queue(house):
    h = house()
    held = h.pool.try_connect()
    part = held.raw
    waiter = h.waiter()
    served(waiter, held.release)
    assert h.works.parts == [part]  # handed on, not opened again


def test_a_terminate_serves_the_queue(house):
    h = house()
    held = h.pool.try_connect()
    served(h.waiter(), held.terminate)
    assert [part.is_open for part in h.works.parts] == [False, True]


def test_a_terminate_with_a_close_that_may_block_serves_the_queue(house):
    h = house(Works(prompt=False))
    held = h.pool.try_connect()
    served(h.waiter(), held.terminate)
    assert h.works.peak == 1


def test_a_detach_serves_the_queue(house):
    h = house()
    held = h.pool.try_connect()
    served(h.waiter(), lambda: h.works.disown(held.detach()))


def test_a_reset_that_fails_serves_the_queue(house):
    h = house(ResettingWorks())
    held = h.pool.try_connect()
    waiter = h.waiter()
    verdicts = iter([False, None, None])
    h.works.resetting = lambda part: next(verdicts)
    served(waiter, held.release)
    assert len(h.works.parts) == 2


def test_a_reset_that_raises_serves_the_queue(house):
    h = house(ResettingWorks())
    held = h.pool.try_connect()
    waiter = h.waiter()

    def resetting(part):
        if part.number == 1:
            raise ValueError("dirty")

    h.works.resetting = resetting
    served(waiter, held.release)
    assert len(h.works.parts) == 2


def test_a_loan_that_has_expired_when_it_returns_serves_the_queue(house):
    h = house(max_uses=1)
    held = h.pool.try_connect()
    served(h.waiter(), held.release)
    assert h.works.dials == 2


def test_a_loan_cleared_meanwhile_serves_the_queue_when_it_returns(house):
    h = house()
    held = h.pool.try_connect()
    waiter = h.waiter()
    h.pool.clear()
    served(waiter, held.release)
    assert h.works.dials == 2


def test_a_lost_loan_that_is_recovered_serves_the_queue(house):
    h = house()
    held = [h.pool.try_connect()]
    waiter = h.waiter()

    def lose():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            held.clear()
            h.pool.sweep()

    served(waiter, lose)
    assert h.pool.stats().lost == 1


def test_a_connection_added_by_hand_serves_the_queue(house):
    h = house(max_size=2)
    with door() as dial:
        h.works.opening = lambda endpoint: dial(endpoint) if endpoint == A else None
        waiter = h.waiter()
        dial.until_entered()
        spare = h.works.open(B, None, None)
        served(waiter, lambda: h.pool.add_connection(spare, A))
    h.works.until(lambda: len(h.works.parts) == 2)
