"""What stands for something outside is not doubled by a copy."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from connpool import Broadcaster, CallPool, ConnectionPool, SocketChannel
from tests.helpers.channels import RESOURCE, Tape

each_way = pytest.mark.parametrize("double", [copy.copy, copy.deepcopy, pickle.dumps])


@each_way
def test_a_loan_is_neither_copied_nor_pickled(double: Callable[[Any], object]) -> None:
    with ConnectionPool.of(list, sharable=True, max_size=2) as pool:
        for loan in (pool.try_connect(), pool.share()):
            with loan, pytest.raises(TypeError, match=r"Connection . of pool .* cannot be copied or pickled"):
                double(loan)
        with pool.try_connect() as one, pool.try_connect() as other:
            assert one.raw is not other.raw


@each_way
def test_what_lends_calls_and_sends_is_neither_copied_nor_pickled(double: Callable[[Any], object]) -> None:
    with (
        ConnectionPool("a:1", reconnect=False) as pool,
        Broadcaster(pool) as broadcaster,
        CallPool() as calls,
    ):
        calls.init(Tape())
        for thing in (pool, broadcaster, calls, SocketChannel(pool, "meter", {"VOLT"})):
            with pytest.raises(TypeError, match="cannot be copied or pickled: there is one of it"):
                double(thing)
        gc.collect()
        assert calls.call(RESOURCE, "get", 1) == 1
