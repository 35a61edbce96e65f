"""The states, and the tables of moves between them."""

from __future__ import annotations

import pytest

from connpool.model.states import POOL_MOVES, CloseReason, ConnState, EndpointState, PoolState
from connpool.pool.record import MOVES, Phase


@pytest.mark.parametrize(("moves", "states"), [(MOVES, Phase), (POOL_MOVES, PoolState)])
def test_every_state_has_its_row_and_none_leads_to_itself(moves, states):
    assert set(moves) == set(states)
    for state, ways_on in moves.items():
        assert state not in ways_on


def test_closed_is_final():
    assert MOVES[Phase.CLOSED] == POOL_MOVES[PoolState.CLOSED] == frozenset()
    assert all(
        PoolState.CLOSED in ways_on for state, ways_on in POOL_MOVES.items() if state is not PoolState.CLOSED
    )


def test_what_is_being_closed_never_comes_back():
    assert MOVES[Phase.CLOSING] == {Phase.CLOSED}
    assert all(Phase.OPENING not in ways_on for ways_on in MOVES.values())


def test_a_pool_that_was_shut_down_can_be_reopened_but_not_paused():
    assert POOL_MOVES[PoolState.SHUT_DOWN] == {PoolState.OPEN, PoolState.CLOSED}
    assert PoolState.OPEN in POOL_MOVES[PoolState.PAUSED]


def test_states_and_reasons_have_the_documented_names():
    assert {state.name for state in ConnState} == {"OPENING", "IDLE", "IN_USE", "SHARED", "CLOSING", "CLOSED"}
    assert {state.name for state in PoolState} == {"OPEN", "PAUSED", "SHUT_DOWN", "CLOSED"}
    assert {state.name for state in EndpointState} == {"UP", "BLACKLISTED", "PROBING"}
    assert {reason.name for reason in CloseReason} == {
        "STALE",
        "IDLE",
        "EXPIRED",
        "USED_UP",
        "BROKEN",
        "TERMINATED",
        "DIRTY",
        "EVICTED",
        "SURPLUS",
        "LOST",
        "POOL_CLOSED",
    }
