"""What a checkout raises dies with its last reference, and its stack too: no circle waits for a collector."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    ConnPoolError,
    PoolClosedError,
    PoolExhaustedError,
    Request,
)
from tests.helpers.switchboard import Switchboard, until


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def cancelled() -> Request:
    cancel = threading.Event()
    threading.Timer(0.05, cancel.set).start()
    return Request(cancel=cancel)


CHECKOUTS: dict[type[ConnPoolError], Callable[[ConnectionPool], Any]] = {
    PoolExhaustedError: lambda pool: pool.try_connect(timeout=0),
    CheckoutTimeoutError: lambda pool: pool.try_connect(timeout=0.01),
    CancelledError: lambda pool: pool.try_connect(cancelled()),
    ConnectError: lambda pool: pool.try_connect("b:1", timeout=5),
    PoolClosedError: lambda pool: (pool.close(), pool.try_connect()),
}


@pytest.mark.parametrize("in_caller", [False, True])
@pytest.mark.parametrize("kind", CHECKOUTS)
def test_an_error_is_gone_with_its_last_reference(kind: type[ConnPoolError], in_caller: bool) -> None:
    board = Switchboard("b:1")
    settings = {"max_size": 2, "max_per_endpoint": 1, "dial_in_caller": in_caller}
    with ConnectionPool("a:1", connector=board, **settings) as pool, pool.try_connect():
        try:
            CHECKOUTS[kind](pool)
        except kind as error:
            last_words = weakref.ref(error)
        until(lambda: last_words() is None, "the end of the thread that dialled, which has it last")
