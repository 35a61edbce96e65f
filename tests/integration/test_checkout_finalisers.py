"""Owners in circles that give their loans back, or close their pool, as the collector comes to them.

It finalises what it collects together in an order of its own, the owner before the loan or after it.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from connpool import ConnectionPool, ConnPoolError, Request, UsageError
from tests.helpers.switchboard import until
from tests.stress.works import A, Works, assert_ended, assert_whole

WAYS: dict[str, Callable[[Any], object]] = {
    "release": lambda conn: conn.release(),
    "terminate": lambda conn: conn.terminate(),
    "detach": lambda conn: conn.detach(),
}


@pytest.fixture(autouse=True)
def blows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What finalisers raise; no collector comes but when it is called."""
    gc.collect()
    gc.disable()
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield raised
    gc.enable()


class Owner:
    """Has what it is given, and itself; does *last* with it in its finaliser."""

    def __init__(self, last: Callable[[Any], object]) -> None:
        self.me = self
        self.last = last
        self.errors: list[ConnPoolError] = []

    def have(self, thing: Any) -> list[ConnPoolError]:
        """Returns what its finaliser is going to meet."""
        self.thing = thing
        return self.errors

    def __del__(self) -> None:
        try:
            self.last(self.thing)
        except ConnPoolError as error:
            self.errors.append(error)


def made(works: Works, **settings: Any) -> ConnectionPool:
    return ConnectionPool(A, connector=works, max_size=1, sharable=True, reap_interval=None, **settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_loan_found_lost_before_its_owner_gives_it_back_is_refused_and_its_place_free(
    way: str, is_shared: bool, blows: list[Any]
) -> None:
    works = Works(prompt=True)
    pool = made(works)
    loan = pool.share() if is_shared else pool.try_connect()
    errors = Owner(WAYS[way]).have(loan)
    del loan
    gc.collect()
    assert [type(error) for error in errors] == [UsageError]
    assert "found lost" in str(errors[0])
    pool.sweep()
    assert (pool.stats().size, pool.stats().lost) == (0, 1)
    assert not works.n_open
    assert_whole(pool, works)
    assert_ended(pool, works)
    assert not blows


@pytest.mark.parametrize("way", ["release", "terminate"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_loan_that_its_owner_has_given_back_before_is_out_of_use_and_its_place_free(
    way: str, is_shared: bool, blows: list[Any]
) -> None:
    works = Works(prompt=True)
    pool = made(works)
    owner = Owner(WAYS[way])
    errors = owner.have(pool.share() if is_shared else pool.try_connect())
    del owner
    gc.collect()
    assert not errors
    for _ in range(3):  # a share that has ended serves again, and its finaliser comes once
        loan = pool.share()
        assert loan.raw.is_open
        del loan
        pool.sweep()
        assert pool.stats().size == 0
    assert_whole(pool, works)
    assert_ended(pool, works)
    assert not blows


@pytest.mark.parametrize("is_shared", [False, True])
def test_who_waits_for_what_an_owner_gives_back_in_its_finaliser_gets_it_and_keeps_it(
    is_shared: bool, blows: list[Any]
) -> None:
    works = Works(prompt=True)
    pool = made(works, max_sharers=2)
    request = Request(shared=is_shared)
    others = [pool.try_connect(request)] if is_shared else []
    owner = Owner(WAYS["release"])
    errors = owner.have(pool.try_connect(request))
    number = owner.thing.raw.number
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(pool.try_connect, request, timeout=5)
        until(lambda: pool.stats().waiting == 1)
        del owner
        gc.collect()  # the owner first, the key of its loan thereafter
        loan = waiter.result(5)
    assert loan.raw.number == number
    for each in [loan, *others]:
        each.release()
    assert (pool.stats().size, pool.stats().lost) == (1, 0)
    assert_whole(pool, works)
    assert_ended(pool, works)
    assert not errors
    assert not blows


def test_a_block_that_is_collected_with_its_loan_ends_in_silence(blows: list[Any]) -> None:
    works = Works(prompt=True)
    pool = made(works)

    def use() -> Iterator[None]:
        with pool.try_connect():
            yield

    pool.try_connect().release()
    user = use()
    next(user)
    Owner(lambda _: None).have([user])
    circle: list[Any] = [user]
    circle.append(circle)
    del user, circle
    gc.collect()
    pool.sweep()
    assert pool.stats().size == 0
    assert_whole(pool, works)
    assert_ended(pool, works)
    assert not blows


@pytest.mark.parametrize("prompt", [False, True])
def test_a_pool_that_its_owner_closes_as_both_are_collected_leaves_nothing_open(
    prompt: bool, blows: list[Any]
) -> None:
    works = Works(prompt=prompt)

    def close(things: list[Any]) -> None:
        pool, *loans = things
        for loan in loans:
            with pytest.raises(UsageError, match="found lost"):
                loan.release()
        assert pool.try_connect(timeout=5).raw.is_open  # and is lost at once
        pool.close(0)

    pool = made(works)
    pool.resize(max_size=4)
    idle, *loans = [pool.try_connect() for _ in range(3)]
    idle.release()
    loans[0].release()
    loans[0] = pool.share()
    errors = Owner(close).have([pool, *loans])
    del pool, idle, loans
    gc.collect()
    works.until(lambda: works.n_open == 0)
    assert not errors
    assert not blows
