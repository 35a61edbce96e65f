"""Who stands behind another need not look, as a rule; here it must, or it would wait for nothing."""

from __future__ import annotations

import errno

import pytest

from connpool import ConnectionPool, EndpointState, NoEndpointError, Request
from connpool.pool.waiters import SERVED
from connpool.testing import FakeClock
from tests.helpers.switchboard import until
from tests.stress.works import NEVER, A, B, Caller, TellingClock, Works, assert_ended, door


def anything(info):
    return True


SOON = NEVER / 2  # seconds: before somebody else gives up, and another look is taken for that

#: Whose connection is not taken off the stack unseen: it queues up even though one is idle.
CAREFUL = Request(where=anything)


class NapClock(TellingClock):
    """Counts how often somebody goes to sleep."""

    naps = 0

    def wait(self, gate, timeout):
        self.naps += 1
        return super().wait(gate, timeout)


def raising(error):
    def hook(endpoint):
        raise error

    return hook


def waiting(pool, clock, req=None):
    """A caller that waits at the front."""
    caller = Caller(pool, req)
    clock.until_waiting(1)
    return caller


def pair(works, clock, **settings):
    """A pool of two places, at its limits: one connection to A is lent, one to B idle."""
    settings = {"max_size": 2, "max_per_endpoint": 1, "reap_interval": None, **settings}
    pool = ConnectionPool([A, B], connector=works, clock=clock, **settings)
    held = pool.try_connect(A)
    pool.try_connect(B).release()
    return pool, held


def test_who_stands_behind_one_who_wants_something_in_particular_looks_for_itself():
    works, clock = Works(prompt=True), TellingClock()
    pool, held = pair(works, clock)
    picky = waiting(pool, clock, Request(endpoint=A))
    easy = Caller(pool, CAREFUL, timeout=None)
    assert easy.loan(SOON).endpoint == B
    assert picky.is_waiting
    held.release()
    picky.loan().release()
    easy.loan().release()
    assert_ended(pool, works)


def test_who_wants_something_in_particular_looks_for_itself_though_others_stand_before_it():
    works, clock = Works(prompt=True), TellingClock()
    pool, held = pair(works, clock)
    pool.route = f"{A} || {B}"
    easy = waiting(pool, clock)
    picky = Caller(pool, Request(endpoint=B, where=anything), timeout=None)
    assert picky.loan(SOON).endpoint == B
    assert easy.is_waiting
    held.release()
    easy.loan().release()
    picky.loan().release()
    assert_ended(pool, works)


def test_who_may_not_wait_hears_of_its_endpoint_though_others_wait_for_its_return():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None, fail_fast=False)
    held = pool.try_connect()
    pool.blacklist(A)
    patient = waiting(pool, clock)
    with pytest.raises(NoEndpointError):
        pool.try_connect(timeout=0)
    pool.unblacklist(A)
    held.release()
    patient.loan().release()
    assert_ended(pool, works)


def test_who_stands_behind_one_for_whom_another_endpoint_is_dialled_takes_what_is_idle():
    works, clock = Works(prompt=True), FakeClock()
    pool = ConnectionPool([A, B], connector=works, clock=clock, max_size=2, reap_interval=None)
    pool.try_connect(B).release()
    clock.advance(0.01)  # it lay there before anybody came
    with door() as dial:
        works.opening = dial
        first = Caller(pool)
        until(lambda: dial.entered or not first.is_waiting, "the first turn")
        if not dial.entered:  # it was B's
            first.loan().release()
            clock.advance(0.01)
            first = Caller(pool)
            dial.until_entered()
        behind = Caller(pool, CAREFUL, timeout=None)
        assert behind.loan(SOON).endpoint == B
        assert first.is_waiting
    first.loan().release()
    behind.loan().release()
    assert_ended(pool, works)


def test_who_stands_behind_one_that_dials_on_its_own_thread_takes_what_comes_back():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None)
    held = pool.try_connect()
    first = waiting(pool, clock)
    pool._lender.books.queue.oldest.is_busy = True  # as while a dial of its own hangs that was given up
    held.release()
    assert pool.stats().idle == 1
    taken = Caller(pool, CAREFUL, timeout=None).loan(SOON)
    pool._lender.books.queue.oldest.is_busy = False
    taken.release()
    first.loan().release()
    assert_ended(pool, works)


def test_who_stands_behind_one_that_was_served_and_interrupted_before_it_left_takes_what_is_idle():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None)
    held = pool.try_connect()
    first = waiting(pool, clock)
    ghost = pool._lender.books.queue.oldest
    held.release()
    first.loan().release()
    ghost.outcome = SERVED
    pool._lender.books.queue.join(ghost)
    Caller(pool, CAREFUL, timeout=None).loan(SOON).release()
    assert len(pool._lender.books.queue) == 0
    assert_ended(pool, works)


def test_who_stands_behind_one_for_whom_room_is_made_has_room_made_for_itself():
    works, clock = Works(), FakeClock()
    pool = ConnectionPool(f"{A} || {B}", connector=works, clock=clock, max_size=3, reap_interval=None)
    held = [pool.try_connect(endpoint) for endpoint in (A, B, B)]
    for conn in held[1:]:
        conn.release()
    with door() as close:
        works.closing = lambda part: None if close.entered else close(part)
        first = Caller(pool)
        close.until_entered()
        behind = Caller(pool, timeout=None)
        works.until(lambda: not all(part.is_open for part in works.parts), SOON)  # the other one to B
    first.loan().release()
    behind.loan().release()
    held[0].release()
    assert_ended(pool, works)


def test_who_wants_an_endpoint_that_is_down_hears_so_though_the_pool_is_full():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool([A, B], connector=works, clock=clock, max_size=1, reap_interval=None)
    held = pool.try_connect(A)
    pool.blacklist(B, 60)
    Caller(pool, B).failure(NoEndpointError)
    first = waiting(pool, clock)
    Caller(pool, B).failure(NoEndpointError)
    held.release()
    first.loan().release()
    assert_ended(pool, works)


def test_who_stands_behind_one_whose_dial_failed_for_a_reason_of_this_machine_dials_for_itself():
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(
        [A, B], connector=works, clock=clock, max_size=3, max_per_endpoint=1, reap_interval=None
    )
    held = pool.try_connect(B)
    works.opening = raising(OSError(errno.EMFILE, "too many open files"))
    first = waiting(pool, clock)
    works.until(lambda: works.dials == 2)
    works.opening = lambda endpoint: None
    behind = Caller(pool, timeout=None)
    assert behind.loan(SOON).endpoint == A
    assert first.is_waiting, "it has tried A"
    held.release()
    first.loan().release()
    behind.loan().release()
    assert_ended(pool, works)


def test_a_blacklist_that_ends_while_every_place_is_taken_keeps_nobody_awake():
    works, clock = Works(prompt=True), NapClock()
    pool = ConnectionPool([A, B], connector=works, clock=clock, max_size=1, reap_interval=None)
    held = pool.try_connect(A)
    pool.blacklist(B, 0.05)
    first = Caller(pool)
    until(lambda: pool.endpoints()[1].state is EndpointState.UP, "the end of the blacklisting")
    until(lambda: clock.waiting, "a sleep until it is woken")
    assert clock.naps < 20
    held.release()
    first.loan().release()
    assert_ended(pool, works)
