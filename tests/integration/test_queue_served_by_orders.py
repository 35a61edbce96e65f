"""Whoever waits goes on as soon as the pool is told something that lets it."""

from __future__ import annotations

import threading
import time

import pytest

from connpool import CancelledError, NoEndpointError, PoolClosedError, Request
from tests.stress.house import make_house, refused, served  # noqa: F401 - make_house is a fixture
from tests.stress.works import AT_ONCE, A, B, Caller, Works, door


def test_a_resize_serves_the_queue(house):
    h = house()
    held = h.pool.try_connect()
    served(h.waiter(), lambda: h.pool.resize(max_size=2))
    held.release()


def test_a_higher_limit_per_endpoint_serves_the_queue(house):
    h = house(max_size=2, max_per_endpoint=1)
    held = h.pool.try_connect()
    served(h.waiter(), lambda: h.pool.configure(max_per_endpoint=2))
    held.release()


def test_a_higher_limit_of_dials_serves_the_queue(house):
    h = house(max_size=2, max_connecting=1)
    with door() as dial:
        h.works.opening = lambda endpoint: dial(endpoint) if dial.entered == 0 else None
        first = h.waiter()
        dial.until_entered()
        second = h.waiter()
        began = time.monotonic()
        h.pool.configure(max_connecting=2)
        # Two callers, one connection: whichever has it, gives it to the other.
        first.loan().release()
        second.loan().release()
        assert max(first.done_at, second.done_at) - began < 2 * AT_ONCE
    h.works.until(lambda: len(h.works.parts) == 2)


def test_a_new_limit_of_size_serves_the_whole_queue(house):
    h = house()
    held = h.pool.try_connect()
    waiters = [h.waiter() for _ in range(3)]
    began = time.monotonic()
    h.pool.resize(max_size=4)
    loans = [waiter.loan() for waiter in waiters]
    assert max(waiter.done_at for waiter in waiters) - began < AT_ONCE
    for loan in [held, *loans]:
        loan.release()


def test_an_endpoint_taken_off_the_blacklist_by_hand_serves_the_queue(house):
    h = house(fail_fast=False)
    h.pool.blacklist(A)
    served(h.waiter(), lambda: h.pool.unblacklist(A))


def test_a_blacklist_that_runs_out_serves_the_queue(house):
    h = house(fail_fast=False)
    h.pool.blacklist(A, 0.2)
    began = time.monotonic()
    waiter = h.waiter()
    waiter.loan().release()
    assert 0.15 < waiter.done_at - began < 0.2 + AT_ONCE


def test_a_blacklist_that_runs_out_serves_the_queue_of_a_pool_that_is_full_elsewhere(house):
    h = house(fail_fast=False, route="a:1, b:1", max_size=2)
    h.pool.blacklist(A, 0.2)
    held = h.pool.try_connect()  # b
    began = time.monotonic()
    waiter = h.waiter(A)
    waiter.loan().release()
    assert waiter.done_at - began < 0.2 + AT_ONCE
    held.release()


def test_another_route_serves_the_queue(house):
    h = house(fail_fast=False)
    h.pool.blacklist(A)

    def change():
        h.pool.route = "b:1"

    served(h.waiter(), change)
    assert [part.endpoint for part in h.works.parts] == [B]


def test_a_loan_that_left_the_route_serves_the_queue_when_it_returns(house):
    h = house()
    held = h.pool.try_connect()
    waiter = h.waiter()
    h.pool.route = "b:1"
    served(waiter, held.release)
    assert [part.endpoint for part in h.works.parts] == [A, B]


def test_a_route_that_gains_an_endpoint_serves_whoever_waits_at_the_limit_of_the_old_one(house):
    h = house(max_size=2, max_per_endpoint=1)
    held = h.pool.try_connect()

    def change():
        h.pool.route = "a:1, b:1"

    served(h.waiter(), change)
    held.release()


def test_clearing_serves_whoever_waits_for_another_endpoint(house):
    """The idle one is busy with a look and cannot be evicted; clearing it makes room once it is closed."""
    h = house(Works(prompt=False))
    h.pool.try_connect(A).release()
    h.clock.leap(1)
    with door(lambda part: True) as look:
        h.works.looking = lambda part: look(part) if part.number == 1 else True
        gone = Caller(h.pool, A, timeout=0.1)
        look.until_entered()
        waiter = h.waiter(B)
        gone.join()
        h.pool.clear()
        served(waiter, look.let_go)
    assert h.works.peak == 1


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_of_the_pool_fails_all_who_wait_at_once(house, end):
    h = house()
    held = h.pool.try_connect()
    waiters = [h.waiter() for _ in range(5)]
    began = time.monotonic()
    getattr(h.pool, end)()
    for waiter in waiters:
        waiter.failure(PoolClosedError)
        assert waiter.done_at - began < AT_ONCE
    held.release()


def test_the_end_of_the_pool_fails_who_waits_for_a_dial(house):
    h = house()
    with door() as dial:
        h.works.opening = dial
        waiter = h.waiter()
        dial.until_entered()
        refused(waiter, PoolClosedError, h.pool.close)


def test_a_reopened_pool_serves_its_queue_when_an_old_loan_returns(house):
    h = house()
    held = h.pool.try_connect()
    h.pool.shutdown()
    h.pool.reopen()
    served(h.waiter(), held.release)
    assert h.works.dials == 2


def test_a_cancel_ends_a_wait(house):
    h = house()
    held = h.pool.try_connect()
    cancel = threading.Event()
    refused(h.waiter(Request(cancel=cancel)), CancelledError, cancel.set)
    held.release()


def test_a_cancel_ends_a_wait_for_a_dial(house):
    h = house()
    cancel = threading.Event()
    with door() as dial:
        h.works.opening = dial
        waiter = h.waiter(Request(cancel=cancel))
        dial.until_entered()
        refused(waiter, CancelledError, cancel.set)


def test_a_failed_dial_of_the_last_endpoint_fails_all_who_wait_for_it(house):
    h = house(max_size=2, max_connecting=1, blacklist_initial=5)

    def refuse(endpoint):
        raise ConnectionRefusedError(endpoint)

    with door(refuse) as dial:
        h.works.opening = dial
        waiters = [h.waiter()]
        dial.until_entered()
        waiters.append(h.waiter())
        began = time.monotonic()
        dial.let_go()
        for waiter in waiters:
            waiter.failure(NoEndpointError)
            assert waiter.done_at - began < AT_ONCE
