"""What is let go of when an error is kept."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from connpool import PoolClosedError
from connpool.pool.unwinding import drop_keys, keeping_no_key


class Thing:
    pass


OURS: dict[str, Any] = {"__name__": "connpool.pool.anything", "__package__": "connpool.pool"}
THEIRS: dict[str, Any] = {"__name__": "program", "__package__": "program"}
SOURCE = """
def hold(thing, error):
    raise error

def hold_on(thing, error, go_on):
    try:
        raise error
    except BaseException as caught:
        go_on(caught)
        return thing
"""
for names in (OURS, THEIRS):
    exec(SOURCE, names)


def raised(hold: Any, error: BaseException) -> tuple[BaseException, weakref.ref[Thing]]:
    """*error*, raised while *hold* had a thing."""
    things = [Thing()]
    is_there = weakref.ref(things[0])
    with pytest.raises(type(error)):
        hold(things.pop(), error)
    return error, is_there


def test_frames_of_ours_that_an_interrupt_has_ended_hold_nothing_and_those_of_others_all():
    ours, is_ours = raised(OURS["hold"], KeyboardInterrupt())
    theirs, is_theirs = raised(THEIRS["hold"], KeyboardInterrupt())
    assert is_ours() is not None
    drop_keys(ours)
    drop_keys(theirs)
    assert is_ours() is None
    assert is_theirs() is not None


def test_what_was_under_way_when_an_interrupt_came_is_let_go_too():
    error, is_there = raised(OURS["hold"], OSError())
    interrupt = KeyboardInterrupt()
    interrupt.__context__, error.__context__ = error, interrupt  # whatever refers to what, it comes to an end
    drop_keys(interrupt)
    assert is_there() is None


def test_an_error_of_ours_keeps_what_its_frames_say():
    error, is_there = raised(OURS["hold"], PoolClosedError("closed", pool="a"))
    assert error.__traceback__ is not None
    drop_keys(error.with_traceback(error.__traceback__.tb_next))  # as far as it has come in ours
    assert is_there() is not None


def test_an_error_of_ours_that_others_have_let_pass_may_have_come_with_something_in_hand():
    error, is_there = raised(OURS["hold"], PoolClosedError("closed", pool="a"))
    drop_keys(error)  # this very test has let it pass, as a signal handler may
    assert is_there() is None


def test_a_frame_that_goes_on_keeps_what_it_has():
    thing = Thing()
    assert OURS["hold_on"](thing, KeyboardInterrupt(), drop_keys) is thing


def test_a_method_that_keeps_no_key_keeps_no_arguments_either():
    error, is_there = raised(keeping_no_key(OURS["hold"]), KeyboardInterrupt())
    assert is_there() is None
    assert error.__traceback__ is not None
