"""The scenarios of MongoDB's pool specification (CMAP): a pool that is cleared, and one that cannot dial.

``tests/helpers/scenario.py`` tells how to read them, ``docs/cmap.md`` how the two vocabularies go together.
"""

from __future__ import annotations

import pytest

from tests.helpers.scenario import Scenario

CLEARINGS = [
    Scenario(
        "what lay idle in a pool that is cleared is closed at once, and not lent again",
        steps="""
            check out a
            check in a
            clear
            counts size=0
            check out b
        """,
        tells="""
            CheckedOut 1
            CheckedIn 1
            PoolCleared
            ConnectionClosed 1 stale
            CheckedOut 2
        """,
        only="CheckedOut CheckedIn PoolCleared ConnectionClosed",
    ),
    Scenario(
        "what was lent when the pool was cleared is closed when it comes back",
        steps="""
            check out a
            clear
            counts in_use=1
            check in a
            counts size=0
        """,
        tells="""
            CheckedOut 1
            PoolCleared
            CheckedIn 1
            ConnectionClosed 1 stale
        """,
        only="CheckedOut CheckedIn PoolCleared ConnectionClosed",
    ),
    Scenario(
        "who waits while the pool is cleared goes on waiting, and gets a new connection",
        settings={"max_size": 1},
        steps="""
            check out a
            start one
            one: check out b
            until 1 waits
            clear
            check in a
            join one
        """,
        tells="""
            ConnectionOpening 1
            ConnectionOpened 1
            CheckedOut 1
            PoolCleared
            CheckedIn 1
            ConnectionClosed 1 stale
            ConnectionOpening 2
            ConnectionOpened 2
            one: CheckedOut 2
        """,
        only="CheckedOut PoolCleared CheckedIn ConnectionClosed ConnectionOpening ConnectionOpened",
    ),
    Scenario(
        "clearing as CMAP has it: those who wait are sent away, and nothing is lent until it is resumed",
        settings={"max_size": 1},
        steps="""
            check out a
            start one
            one: check out b fails PoolPausedError
            until 1 waits
            pause fail
            clear
            join one
            check out c fails PoolPausedError
            check in a
            resume
            check out d
        """,
        tells="""
            CheckedOut 1
            PoolPaused & PoolCleared & one: CheckoutFailed paused
            CheckoutFailed paused
            CheckedIn 1
            ConnectionClosed 1 stale
            PoolResumed
            CheckedOut 2
        """,
        only="CheckedOut PoolPaused PoolCleared PoolResumed CheckoutFailed CheckedIn ConnectionClosed",
    ),
    Scenario(
        "what is kept ready is opened anew after the pool was cleared, but not while it is paused",
        settings={"min_idle": 1},
        steps="""
            sweep
            wait for 1 ConnectionOpened
            pause
            clear
            sweep
            counts size=0
            resume
            sweep
            wait for 2 ConnectionOpened
        """,
        tells="""
            ConnectionOpening 1
            ConnectionOpened 1
            PoolPaused
            PoolCleared
            ConnectionClosed 1 stale
            PoolResumed
            ConnectionOpening 2
            ConnectionOpened 2
        """,
    ),
    Scenario(
        "clearing with interruption ends what is under way on the connections that are lent",
        steps="""
            check out idle
            check in idle
            start one
            one: check out a
            one: read a fails ConnectionAbortedError
            one: check in a
            wait for 2 CheckedOut
            clear interrupt
            join one
            check out b
        """,
        tells="""
            CheckedOut 1
            CheckedIn 1
            one: CheckedOut 1
            PoolCleared interrupt
            one: CheckedIn 1
            ConnectionClosed 1 stale
            CheckedOut 2
        """,
        only="CheckedOut CheckedIn PoolCleared ConnectionClosed",
    ),
    Scenario(
        "clearing without interruption leaves what is under way alone",
        steps="""
            start one
            one: check out a
            one: read a
            one: check in a
            wait for 1 CheckedOut
            clear
            counts size=1 in_use=1
            speak
        """,
        tells="""
            one: CheckedOut 1
            PoolCleared
            one: CheckedIn 1
            ConnectionClosed 1 stale
        """,
        only="CheckedOut CheckedIn PoolCleared ConnectionClosed",
    ),
    Scenario(
        "a login that is under way when the pool is cleared is cut off, and another dial begins",
        settings={"connect_timeout": 60},
        steps="""
            hold dials
            start one
            one: check out a
            until 1 waits
            until 1 knocks
            clear interrupt
            wait for 2 ConnectionOpening
            admit all
            join one
        """,
        tells="""
            one: CheckoutStarted
            ConnectionOpening 1
            PoolCleared interrupt
            ConnectionClosed 1 stale & ConnectionOpening 2 & ConnectionOpened 2 & one: CheckedOut 2
        """,
    ),
]

FAILURES = [
    Scenario(
        "a dial that fails ends the checkout, and the endpoint is left alone; the pool is not cleared",
        steps="""
            refuse dials
            check out a fails ConnectError
            counts size=0 connect_failures=1
        """,
        tells="""
            CheckoutStarted
            ConnectionOpening 1
            ConnectionClosed 1 broken
            EndpointDown & CheckoutFailed connect
        """,
    ),
    Scenario(
        "a login that fails ends the checkout like a dial that fails",
        steps="""
            refuse logins
            check out a fails HandshakeError
        """,
        tells="""
            CheckoutStarted
            ConnectionOpening 1
            ConnectionClosed 1 broken & EndpointDown & CheckoutFailed connect
        """,
    ),
    Scenario(
        "when the only endpoint fails, all who wait for a dial are told so",
        settings={"max_connecting": 1},
        steps="""
            hold dials
            refuse logins
            start one two three
            one: check out a fails HandshakeError
            two: check out b fails HandshakeError
            three: check out c fails HandshakeError
            until 3 waits
            wait for 1 ConnectionOpening
            admit all
        """,
        tells="""
            ConnectionOpening 1
            one: CheckoutFailed connect & two: CheckoutFailed connect & three: CheckoutFailed connect
        """,
        only="ConnectionOpening CheckoutFailed",
    ),
    Scenario(
        "an endpoint that failed is tried again when its time has come, and then serves",
        steps="""
            refuse dials
            check out a fails ConnectError
            accept dials
            wait for 1 EndpointDown
            check out b fails NoEndpointError
            advance 2
            check out c
        """,
        tells="""
            ConnectionOpening 1
            ConnectionClosed 1 broken
            EndpointDown & CheckoutFailed connect
            CheckoutFailed connect
            ConnectionOpening 2
            ConnectionOpened 2 & EndpointUp after 2 s & CheckedOut 2
        """,
        ignore="PoolOpened GroupSwitched CheckoutStarted",
    ),
    Scenario(
        "a dial for what is kept ready that fails is not repeated before its time",
        settings={"min_idle": 1},
        steps="""
            refuse dials
            sweep
            wait for 1 EndpointDown
            sweep
            counts size=0 connect_failures=1
            accept dials
            advance 2
            sweep
            wait for 1 EndpointUp
        """,
        tells="""
            ConnectionOpening 1
            ConnectionClosed 1 broken
            EndpointDown
            ConnectionOpening 2
            ConnectionOpened 2 & EndpointUp after 2 s
        """,
    ),
]


@pytest.mark.parametrize("scenario", CLEARINGS + FAILURES, ids=str)
def test_scenario(scenario: Scenario) -> None:
    scenario.play()
