"""Whoever waits goes on as soon as anything changes that lets it: real clock, no polling would be in time."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from connpool import (
    CancelledError,
    ConnectionPool,
    NoEndpointError,
    PoolClosedError,
    Request,
)
from tests.stress.works import (
    AT_ONCE,
    A,
    B,
    Caller,
    ResettingWorks,
    TellingClock,
    Works,
    assert_ended,
    assert_whole,
    door,
)


class House:
    """One pool with all that is around it."""

    def __init__(self, works: Works | None = None, route: object = A, **settings: object) -> None:
        self.works = works or Works(prompt=True)
        self.clock = TellingClock()
        settings = {"max_size": 1, "blacklist_initial": 0, "reap_interval": None, **settings}
        self.pool = ConnectionPool(route, connector=self.works, clock=self.clock, **settings)
        self._callers: list[Caller] = []

    def waiter(self, req: object = None, *, timeout: float = 10.0) -> Caller:
        """A thread that asks for a connection, once it really waits."""
        n = self.pool.stats().waiting
        caller = Caller(self.pool, req, timeout=timeout)
        self._callers.append(caller)
        self.clock.until_waiting(n + 1)
        return caller

    def end(self) -> None:
        self.pool.close()
        for caller in self._callers:
            caller.join()
            if caller.connection is not None and caller.connection.info.holder is not None:
                caller.connection.release()


@pytest.fixture
def house() -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def build(*args: object, **settings: object) -> House:
        made.append(House(*args, **settings))
        return made[-1]

    yield build
    for each in made:
        assert_ended(each.pool, each.works)


def served(caller: Caller, act: Callable[[], object]) -> None:
    """Do *act*; the waiting *caller* must have a connection at once."""
    assert caller.is_waiting
    began = time.monotonic()
    act()
    caller.loan().release()
    assert caller.done_at - began < AT_ONCE


def refused(caller: Caller, kind: type[BaseException], act: Callable[[], object]) -> None:
    """Do *act*; the waiting *caller* must have its error at once."""
    assert caller.is_waiting
    began = time.monotonic()
    act()
    caller.failure(kind)
    assert caller.done_at - began < AT_ONCE


# -- a loan ends ---------------------------------------------------------------------


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
            gc.collect()
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


# -- something else ends ---------------------------------------------------------------


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
    """One dial at a time: who comes later waits for its turn, and goes on when the dial before it has failed."""
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


# -- the pool is told something ------------------------------------------------------------


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
        hanging = iter([dial])
        h.works.opening = lambda endpoint: next(hanging, lambda _: None)(endpoint)
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
