"""The scenarios of MongoDB's pool specification (CMAP): those who wait, and those who dial.

``tests/helpers/scenario.py`` tells how to read them, ``docs/cmap.md`` how the two vocabularies go together.
"""

from __future__ import annotations

import pytest

from tests.helpers.scenario import Scenario

LIMITS = [
    Scenario(
        "a full pool opens no more, and who waits gets what comes back",
        settings={"max_size": 2},
        steps="""
            check out a
            check out b
            start one
            one: check out c
            until 1 waits
            counts size=2 waiting=1
            advance 2
            check in b
            join one
        """,
        tells="""
            CheckoutStarted
            ConnectionOpening 1
            ConnectionOpened 1
            CheckedOut 1
            CheckoutStarted
            ConnectionOpening 2
            ConnectionOpened 2
            CheckedOut 2
            one: CheckoutStarted
            CheckedIn 2 after 2 s
            one: CheckedOut 2 after 2 s
        """,
    ),
    Scenario(
        "who came first is served first",
        settings={"max_size": 1},
        steps="""
            check out a
            start one two three four
            one: check out b
            until 1 waits
            two: check out c
            until 2 waits
            three: check out d
            until 3 waits
            four: check out e
            until 4 waits
            one: check in b
            two: check in c
            three: check in d
            four: check in e
            check in a
        """,
        tells="""
            CheckoutStarted
            CheckedOut 1
            one: CheckoutStarted
            two: CheckoutStarted
            three: CheckoutStarted
            four: CheckoutStarted
            CheckedIn 1
            one: CheckedOut 1
            one: CheckedIn 1
            two: CheckedOut 1
            two: CheckedIn 1
            three: CheckedOut 1
            three: CheckedIn 1
            four: CheckedOut 1
            four: CheckedIn 1
        """,
        only="CheckoutStarted CheckedOut CheckedIn",
    ),
    Scenario(
        "who waits longer than allowed is told so at once, and what comes back later stays idle",
        settings={"max_size": 1, "checkout_timeout": 5},
        steps="""
            check out a
            start one
            one: check out b fails CheckoutTimeoutError
            until 1 waits
            advance 5
            join one
            check in a
            counts idle=1 waiting=0 timeouts=1
        """,
        tells="""
            CheckoutStarted
            CheckedOut 1
            one: CheckoutStarted
            one: CheckoutFailed timeout after 5 s
            CheckedIn 1 after 5 s
        """,
        only="CheckoutStarted CheckedOut CheckoutFailed CheckedIn",
    ),
    Scenario(
        "who comes when as many wait as may is refused at once",
        settings={"max_size": 1, "max_waiters": 1},
        steps="""
            check out a
            start one
            one: check out b
            until 1 waits
            check out c fails PoolExhaustedError
            check in a
        """,
        tells="""
            CheckedOut 1
            CheckoutFailed exhausted
            CheckedIn 1
            one: CheckedOut 1
        """,
        only="CheckedOut CheckoutFailed CheckedIn",
    ),
    Scenario(
        "no more than two are dialled at a time",
        steps="""
            hold dials
            start one two three
            one: check out a
            two: check out b
            three: check out c
            until 3 waits
            wait for 2 ConnectionOpening
            counts opening=2 size=2
            admit 1
            wait for 3 ConnectionOpening
            counts opening=2 size=3
            admit all
        """,
        tells="""
            ConnectionOpening
            ConnectionOpening
            ConnectionOpened
            ConnectionOpening
            ConnectionOpened
            ConnectionOpened
        """,
        only="ConnectionOpening ConnectionOpened",
        has_ids=False,
    ),
    Scenario(
        "no more are dialled at a time than the pool was told",
        settings={"max_connecting": 1},
        steps="""
            hold dials
            start one two
            one: check out a
            until 1 waits
            two: check out b
            until 2 waits
            counts opening=1 waiting=2
            admit 1
            join one
            counts opening=1 waiting=1
            admit 1
        """,
        tells="""
            one: CheckoutStarted
            ConnectionOpening 1 & two: CheckoutStarted
            ConnectionOpened 1
            one: CheckedOut 1 & ConnectionOpening 2
            ConnectionOpened 2
            two: CheckedOut 2
        """,
    ),
    Scenario(
        "waiting for a dial to begin counts as waiting",
        settings={"max_connecting": 1, "checkout_timeout": 4},
        steps="""
            hold dials
            start one two
            one: check out a fails CheckoutTimeoutError
            until 1 waits
            advance 3
            two: check out b
            until 2 waits
            advance 1
            join one
            counts opening=1 waiting=1 timeouts=1
            admit all
        """,
        tells="""
            one: CheckoutStarted
            two: CheckoutStarted
            one: CheckoutFailed timeout after 4 s
            two: CheckedOut 1 after 1 s
        """,
        only="CheckoutStarted CheckoutFailed CheckedOut",
    ),
    Scenario(
        "who waits for a dial takes what comes back in the meantime, the longest waiting first",
        steps="""
            check out a
            hold dials
            start one two three
            one: check out b
            until 1 waits
            two: check out c fails PoolClosedError
            until 2 waits
            three: check out d fails PoolClosedError
            until 3 waits
            wait for 3 ConnectionOpening
            check in a
            join one
            counts opening=2 waiting=2
            close
        """,
        tells="""
            CheckedOut 1
            CheckedIn 1
            one: CheckedOut 1
        """,
        only="CheckedOut CheckedIn",
    ),
    Scenario(
        "who waits for a dial takes what was opened to be kept ready",
        settings={"max_connecting": 1, "min_idle": 1},
        steps="""
            hold dials
            sweep
            wait for 1 ConnectionOpening
            start one
            one: check out a
            until 1 waits
            counts opening=1 waiting=1
            admit 1
            join one
        """,
        tells="""
            ConnectionOpening 1
            one: CheckoutStarted
            ConnectionOpened 1
            one: CheckedOut 1 & ConnectionOpening 2
        """,
    ),
    Scenario(
        "a dial whose waiter has left is there for the next",
        settings={"checkout_timeout": 3},
        steps="""
            hold dials
            start one
            one: check out a fails CheckoutTimeoutError
            until 1 waits
            until 1 knocks
            advance 3
            join one
            admit all
            wait for 1 ConnectionOpened
            check out b
        """,
        tells="""
            one: CheckoutStarted
            ConnectionOpening 1
            one: CheckoutFailed timeout after 3 s
            ConnectionOpened 1 after 3 s
            CheckoutStarted
            CheckedOut 1
        """,
    ),
]


@pytest.mark.parametrize("scenario", LIMITS, ids=str)
def test_scenario(scenario: Scenario) -> None:
    scenario.play()
