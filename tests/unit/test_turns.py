"""Turns at one thing: who is interrupted on its way to one holds up nobody."""

from __future__ import annotations

import math
from collections import deque
from typing import NoReturn

import pytest

import connpool.pool.turns
from connpool.pool.turns import Turn, Turns


def strike(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Struck(deque):
    """A queue in which whoever joins is interrupted just then."""

    def append(self, gate):
        super().append(gate)
        strike()


def test_who_is_interrupted_while_it_waits_holds_up_nobody_though_its_error_is_kept(monkeypatch):
    turns = Turns()
    first = turns.take(None)
    with monkeypatch.context() as patch:
        patch.setattr(connpool.pool.turns, "wait", strike)
        with pytest.raises(KeyboardInterrupt) as caught:
            turns.take(None)
    first.end()
    assert turns.try_take(0) is not None
    assert caught.value


def test_who_is_interrupted_when_it_joins_holds_up_nobody_though_its_error_is_kept():
    gates = Struck()
    with pytest.raises(KeyboardInterrupt) as caught:
        Turn(gates)
    assert not gates
    assert caught.value


def test_a_timeout_that_is_not_a_number_is_none_at_all():
    turns = Turns()
    first = turns.take(math.nan)
    assert turns.try_take(math.nan) is None
    first.end()
    assert turns.are_free()
