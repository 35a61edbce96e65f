"""Endpoints go down and up in turns, groups follow, and each change is told once."""

from __future__ import annotations

import random

import pytest

from connpool import CheckoutTimeoutError, ConnectionPool, ConnPoolError, EndpointState, NoEndpointError
from connpool.testing import ScriptedServer
from tests.helpers.switchboard import until
from tests.stress.stage import (
    Ears,
    check_alternation,
    check_lives,
    check_switches,
    make_stage,  # noqa: F401 - a fixture
)
from tests.stress.works import A, B, C, Caller, Door, door

STEERING = ("EndpointDown", "EndpointUp", "GroupSwitched")


def served_by(s):
    """Borrow once; return the endpoint, or None."""
    try:
        with s.pool.try_connect() as conn:
            return str(conn.endpoint)
    except NoEndpointError:
        return None


def test_an_endpoint_that_cannot_be_dialled_is_told_down_with_the_error_and_until_when(stage):
    s = stage()
    s.down.add(A)
    assert served_by(s) is None
    event = s.ears.until("EndpointDown")
    info = s.info()
    assert (event.endpoint, event.until) == (A, info.retry_at)
    assert event.error is info.last_error
    assert isinstance(event.error, OSError)
    assert event.at == s.clock.now() < event.until


def test_it_is_told_once_however_often_it_fails(stage):
    s = stage()
    s.down.add(A)
    for turn in range(1, 6):
        assert served_by(s) is None
        assert s.info().failures == turn
        s.clock.advance(100)
    assert s.ears.kinds("EndpointDown", "EndpointUp") == ["EndpointDown"]


def test_it_is_told_once_however_many_dials_fail_at_the_same_time(stage):
    def refuse(endpoint):
        raise ConnectionRefusedError(endpoint)

    s = stage(max_connecting=3)
    dial = Door(refuse)
    s.works.opening = dial
    callers = [Caller(s.pool, timeout=20) for _ in range(3)]
    dial.until_entered(3)
    dial.let_go()
    for caller in callers:
        caller.failure(ConnPoolError)
    s.ears.until("ConnectionClosed", 3)
    s.ears.until("EndpointDown", 1)
    assert s.ears.kinds("EndpointDown", "EndpointUp") == ["EndpointDown"]
    assert s.info().failures == 1  # nor does each double the time that it is left alone


def test_an_endpoint_that_is_back_is_told_up_with_how_long_it_was_down(stage):
    s = stage()
    s.down.add(A)
    served_by(s)
    s.clock.advance(100)
    served_by(s)
    s.down.clear()
    s.clock.advance(100)
    assert served_by(s) == "a:1"
    event = s.ears.until("EndpointUp")
    assert (event.endpoint, event.seconds) == (A, 200.0)
    assert s.info().state is EndpointState.UP
    for _ in range(5):
        served_by(s)
    assert check_alternation(s.ears.heard) == {"a:1": False}
    assert len(s.ears.of("EndpointUp")) == 1


def test_an_endpoint_that_never_was_down_is_never_told_up(stage):
    s = stage("a:1, b:1")
    for _ in range(4):
        served_by(s)
    s.pool.unblacklist(A)
    assert s.ears.kinds(*STEERING) == []


@pytest.mark.parametrize("seconds", [7, None])
def test_an_endpoint_taken_out_by_hand_is_told_with_no_error(stage, seconds):
    s = stage("a:1, b:1")
    s.pool.blacklist(A, seconds)
    event = s.ears.only("EndpointDown")
    until = None if seconds is None else s.clock.now() + seconds
    assert (event.endpoint, event.error, event.until) == (A, None, until)
    s.clock.advance(3)
    s.pool.unblacklist(A)
    assert s.story(*STEERING)[1:] == [("EndpointUp", "a:1", 3.0)]


def test_taking_out_again_what_is_out_is_not_told_again(stage):
    s = stage("a:1, b:1")
    s.pool.blacklist(A, 5)
    s.pool.blacklist(A, 50)
    s.pool.blacklist(A)
    s.pool.unblacklist(A)
    s.pool.unblacklist(A)
    assert s.ears.kinds(*STEERING) == ["EndpointDown", "EndpointUp"]


def test_the_callers_own_deadline_takes_no_endpoint_down(stage):
    s = stage()
    with door() as dial:
        s.works.opening = dial
        caller = Caller(s.pool, timeout=1)
        dial.until_entered()
        s.clock.until_waiting(1)
        s.clock.advance(1)
        caller.failure(CheckoutTimeoutError)
    s.ears.until("ConnectionOpened")
    assert s.ears.kinds(*STEERING) == []


# -- groups ---------------------------------------------------------------------------------------


def test_groups_are_switched_when_the_last_of_one_goes_down_and_back_when_one_lives(stage):
    s = stage("a:1, b:1 || c:1")
    s.pool.blacklist(A)
    assert s.ears.of("GroupSwitched") == [], "half a group serves"
    s.pool.blacklist(B)
    assert s.story(*STEERING)[-2:] == [("EndpointDown", "b:1", None, None), ("GroupSwitched", 0, 1)]
    assert served_by(s) == "c:1"
    s.pool.unblacklist(B)
    assert s.story(*STEERING)[-2:] == [("EndpointUp", "b:1", 0.0), ("GroupSwitched", 1, 0)]
    assert served_by(s) == "b:1"
    assert len(s.ears.of("GroupSwitched")) == 2


def test_an_endpoint_of_a_group_not_in_use_switches_nothing(stage):
    s = stage("a:1 || b:1 || c:1")
    s.pool.blacklist(B)
    s.pool.blacklist(C)
    s.pool.unblacklist(B)
    assert s.ears.of("GroupSwitched") == []


def test_with_no_group_left_the_switch_is_to_none_and_from_none_back(stage):
    s = stage("a:1 || b:1")
    s.pool.blacklist(A)
    s.pool.blacklist(B)
    s.pool.unblacklist(B)
    s.pool.unblacklist(A)
    assert [event[1:] for event in s.story("GroupSwitched")] == [(0, 1), (1, None), (None, 1), (1, 0)]


def test_a_group_that_is_skipped_because_it_is_down_is_not_told(stage):
    s = stage("a:1 || b:1 || c:1")
    s.pool.blacklist(B)
    s.pool.blacklist(A)
    assert [event[1:] for event in s.story("GroupSwitched")] == [(0, 2)]


def test_a_dial_that_fails_and_one_that_succeeds_switch_groups(stage):
    s = stage("a:1 || b:1")
    s.down.add(A)
    assert served_by(s) == "b:1"
    assert [name for name, *_ in s.story(*STEERING)] == ["EndpointDown", "GroupSwitched"]
    assert check_switches(s.ears.heard) == 1
    s.down.clear()
    s.clock.advance(100)
    until(lambda: served_by(s) == "a:1")  # who comes while it is dialled is served elsewhere
    s.ears.until("GroupSwitched", 2)
    assert [name for name, *_ in s.story(*STEERING)][2:] == ["EndpointUp", "GroupSwitched"]
    assert check_switches(s.ears.heard) == 0


def test_a_route_that_is_taken_away_and_comes_back_is_told_as_switches_too(stage):
    s = stage("a:1 || b:1")
    s.pool.route = None
    s.pool.route = "a:1 || b:1"
    s.pool.blacklist(A)
    assert [event[1:] for event in s.story("GroupSwitched")] == [(0, None), (None, 0), (0, 1)]
    assert check_switches(s.ears.heard) == 1


def test_an_endpoint_that_was_down_off_the_route_is_told_to_be_up_when_it_joins_that(stage):
    s = stage("a:1")
    with s.pool.try_connect(B):
        s.pool.blacklist(B)
        s.clock.advance(5)
        s.pool.route = "a:1, b:1"
        assert s.story("EndpointDown", "EndpointUp") == [
            ("EndpointDown", "b:1", None, None),
            ("EndpointUp", "b:1", 5),
        ]


def test_of_endpoints_nothing_is_told_after_the_end_of_the_pool(stage):
    s = stage("a:1 || b:1")
    s.pool.blacklist(B)
    held = s.pool.try_connect()
    s.pool.close()
    s.pool.blacklist(A)
    s.pool.unblacklist(B)
    s.pool.clear()
    held.release()
    assert [name for name, *_ in s.story()][-3:] == ["PoolClosed", "CheckedIn", "ConnectionClosed"]


def test_an_endpoint_off_the_route_switches_no_group(stage):
    s = stage("a:1 || b:1")
    s.down.add(C)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect(C)
    assert s.ears.of("GroupSwitched") == []


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_they_alternate_and_the_last_word_is_true(stage, seed):
    dice = random.Random(seed)
    s = stage("a:1, b:1 || c:1")
    for _ in range(80):
        endpoint = dice.choice([A, B, C])
        act = dice.randrange(6)
        if act == 0:
            s.down.add(endpoint)
        elif act == 1:
            s.down.discard(endpoint)
        elif act == 2:
            s.pool.blacklist(endpoint, dice.choice([None, 3]))
        elif act == 3:
            s.pool.unblacklist(endpoint)
        elif act == 4:
            s.clock.advance(dice.choice([0.5, 5, 100]))
            s.pool.clear()
        served_by(s)
    s.pool.close()  # and every dial has ended
    s.works.until(lambda: s.works.n_open == 0)
    is_down = check_alternation(s.ears.heard)
    for info in s.pool.endpoints():
        assert is_down.get(str(info.endpoint), False) is (info.state is not EndpointState.UP), info
    check_switches(s.ears.heard)
    check_lives(s.ears.heard)


def test_with_all_endpoints_back_the_first_group_is_in_use(stage):
    s = stage("a:1 || b:1 || c:1")
    s.down.update({A, B, C})
    assert served_by(s) is None
    s.ears.until("GroupSwitched", 3)
    assert check_switches(s.ears.heard) is None
    s.down.clear()
    for endpoint in (C, A, B):
        s.pool.unblacklist(endpoint)
    assert check_switches(s.ears.heard) == 0
    assert check_alternation(s.ears.heard) == {"a:1": False, "b:1": False, "c:1": False}


# -- real servers ---------------------------------------------------------------------------------


def test_a_server_that_stops_and_returns_three_times_is_told_down_and_up_three_times():
    ears = Ears()
    brief = {"blacklist_initial": 0.001, "blacklist_max": 0.001, "reap_interval": None}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, listeners=[ears], **brief) as pool:
        for turn in range(1, 4):
            with pool.try_connect():
                server.stop()
            pool.clear()
            pool.configure(fail_fast=True)
            with pytest.raises(ConnPoolError):
                pool.try_connect()
            ears.until("EndpointDown", turn)
            server.start()
            pool.configure(fail_fast=False)
            pool.try_connect(timeout=5).release()
            ears.until("EndpointUp", turn)
        assert ears.kinds("EndpointDown", "EndpointUp") == ["EndpointDown", "EndpointUp"] * 3
        assert {event.endpoint for event in ears.of("EndpointDown", "EndpointUp")} == {server.endpoint}
        assert all(event.seconds > 0 for event in ears.of("EndpointUp"))
