"""The scenarios of MongoDB's pool specification (CMAP): a pool that is made, paused, resumed and closed.

``tests/helpers/scenario.py`` tells how to read them, ``docs/cmap.md`` how the two vocabularies go together.
"""

from __future__ import annotations

import pytest

from tests.helpers.scenario import Scenario

BEGINNINGS = [
    Scenario(
        "a pool that is made tells its settings, as far as they are not the usual ones, and dials nobody",
        settings={"max_size": 4, "idle_timeout": 0.1, "max_connecting": 2},
        steps="""
            counts size=0
        """,
        tells="""
            PoolOpened max_size=4 idle_timeout=0.1
        """,
        ignore="",
    ),
    Scenario(
        "a pool that is made paused says so, and opens nothing until it is told that it may",
        settings={"paused": True, "min_idle": 1},
        steps="""
            sweep
            counts size=0
            resume
            sweep
            wait for 1 ConnectionOpened
        """,
        tells="""
            PoolOpened min_idle=1
            PoolPaused
            PoolResumed
            ConnectionOpening 1
            ConnectionOpened 1
        """,
        ignore="",
    ),
]

PAUSES = [
    Scenario(
        "pausing twice is pausing once, and so is resuming",
        steps="""
            pause
            pause
            resume
            resume
        """,
        tells="""
            PoolPaused
            PoolResumed
        """,
    ),
    Scenario(
        "a paused pool that is told to fail refuses who comes, and lends again when it is resumed",
        steps="""
            pause fail
            check out a fails PoolPausedError
            resume
            check out a
        """,
        tells="""
            PoolPaused
            CheckoutStarted
            CheckoutFailed paused
            PoolResumed
            CheckoutStarted
            ConnectionOpening 1
            ConnectionOpened 1
            CheckedOut 1
        """,
    ),
    Scenario(
        "a pool that is paused and told to fail sends away those who wait",
        settings={"max_size": 1},
        steps="""
            check out a
            start one two three
            one: check out b fails PoolPausedError
            two: check out c fails PoolPausedError
            three: check out d fails PoolPausedError
            until 3 waits
            pause fail
            join one
            join two
            join three
            check in a
            counts idle=1 waiting=0
        """,
        tells="""
            CheckedOut 1
            PoolPaused &
            one: CheckoutFailed paused & two: CheckoutFailed paused & three: CheckoutFailed paused
            CheckedIn 1
        """,
        only="CheckedOut PoolPaused CheckoutFailed CheckedIn",
    ),
    Scenario(
        "a paused pool lets those who come wait, and serves them in their order when it is resumed",
        settings={"max_size": 1},
        steps="""
            check out a
            pause
            start one two
            one: check out b
            until 1 waits
            two: check out c
            until 2 waits
            check in a
            counts idle=1 waiting=2
            one: check in b
            two: check in c
            advance 3
            resume
        """,
        tells="""
            CheckedOut 1
            PoolPaused
            CheckedIn 1
            PoolResumed
            one: CheckedOut 1 after 3 s
            one: CheckedIn 1
            two: CheckedOut 1 after 3 s
            two: CheckedIn 1
        """,
        only="CheckedOut PoolPaused PoolResumed CheckedIn",
    ),
    Scenario(
        "who waits in a paused pool waits no longer than allowed",
        settings={"checkout_timeout": 5},
        steps="""
            pause
            start one
            one: check out a fails CheckoutTimeoutError
            until 1 waits
            advance 5
        """,
        tells="""
            PoolPaused
            one: CheckoutStarted
            one: CheckoutFailed timeout after 5 s
        """,
    ),
    Scenario(
        "in a paused pool idle connections still grow old, and none is opened in their stead",
        settings={"idle_timeout": 10},
        steps="""
            check out a
            check in a
            pause
            advance 11
            sweep
            counts size=0
        """,
        tells="""
            CheckedIn 1
            PoolPaused
            ConnectionClosed 1 idle
        """,
        only="CheckedIn PoolPaused ConnectionClosed",
    ),
]

ENDINGS = [
    Scenario(
        "a pool that is closed closes what is idle, and tells its end once",
        steps="""
            check out a
            check out b
            check in b
            close
            close
        """,
        tells="""
            CheckedIn 2
            ConnectionClosed 2 pool closed & PoolClosed
        """,
        only="CheckedIn ConnectionClosed PoolClosed",
    ),
    Scenario(
        "what comes back to a closed pool is closed",
        steps="""
            check out a
            close
            check in a
        """,
        tells="""
            CheckedOut 1
            PoolClosed
            CheckedIn 1
            ConnectionClosed 1 pool closed
        """,
        only="CheckedOut CheckedIn ConnectionClosed PoolClosed",
    ),
    Scenario(
        "a closed pool lends nothing, and opens nothing",
        steps="""
            close
            check out a fails PoolClosedError
            resume fails PoolClosedError
        """,
        tells="""
            PoolClosed
            CheckoutStarted
            CheckoutFailed closed
        """,
    ),
    Scenario(
        "those who wait in a pool that is closed are sent away at once",
        settings={"max_size": 1},
        steps="""
            check out a
            start one two
            one: check out b fails PoolClosedError
            two: check out c fails PoolClosedError
            until 2 waits
            close
        """,
        tells="""
            PoolClosed & one: CheckoutFailed closed & two: CheckoutFailed closed
        """,
        only="PoolClosed CheckoutFailed",
    ),
]


@pytest.mark.parametrize("scenario", BEGINNINGS + PAUSES + ENDINGS, ids=str)
def test_scenario(scenario: Scenario) -> None:
    scenario.play()
