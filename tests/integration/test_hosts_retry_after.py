"""A server that says when to come back is taken at its word."""

from __future__ import annotations

import math
from typing import Any

import pytest

from connpool import ConnectionPool, EndpointState, NoEndpointError
from connpool.testing import FakeClock


class Busy(ConnectionError):
    def __init__(self, retry_after: Any) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


class Connector:
    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error

    def open(self, endpoint: object, timeout: object, cancel: object) -> object:
        if self.error is not None:
            raise self.error
        return object()


@pytest.mark.parametrize(("wanted", "delay"), [(7.5, 7.5), (0, 0.0), (-1, 1.0), ("soon", 1.0), (True, 1.0)])
def test_the_next_attempt_is_made_when_the_server_says(wanted: Any, delay: float, clock: FakeClock) -> None:
    with ConnectionPool(
        "a:1", connector=Connector(Busy(wanted)), clock=clock, blacklist_initial=1, dial_in_caller=True
    ) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        retry_at = pool.endpoints()[0].retry_at
        assert retry_at is not None
        assert delay * 0.9 <= retry_at - clock.now() <= delay


@pytest.mark.parametrize("never", [math.inf, 10**400, 1e300], ids=["inf", "no float", "beyond any wait"])
def test_a_server_that_says_never_is_not_dialled_again_by_itself(never: float, clock: FakeClock) -> None:
    connector = Connector(Busy(never))
    with ConnectionPool("a:1", connector=connector, clock=clock, dial_in_caller=True) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        connector.error = None
        clock.advance(1e6)
        pool.sweep()
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED
        pool.unblacklist("a:1")
        pool.try_connect().release()


def test_an_error_that_cannot_say_when_counts_as_one_that_does_not(clock: FakeClock) -> None:
    class Confused(ConnectionError):
        @property
        def retry_after(self) -> float:
            raise ZeroDivisionError

    with ConnectionPool("a:1", connector=Connector(Confused()), clock=clock) as pool:
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED
