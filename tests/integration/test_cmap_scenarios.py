"""The scenarios of MongoDB's pool specification (CMAP): connections that are lent, returned and grow old.

``tests/helpers/scenario.py`` tells how to read them, ``docs/cmap.md`` how the two vocabularies go together.
"""

from __future__ import annotations

import pytest

from tests.helpers.scenario import Scenario

LOANS = [
    Scenario(
        "a checkout tells that it began, what was opened for it, and what it got",
        steps="""
            check out a
            check out b
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
        """,
    ),
    Scenario(
        "a connection that came back is lent again, and none is opened",
        steps="""
            check out a
            advance 3
            check in a
            check out b
        """,
        tells="""
            CheckoutStarted
            ConnectionOpening 1
            ConnectionOpened 1
            CheckedOut 1
            CheckedIn 1 after 3 s
            CheckoutStarted
            CheckedOut 1
        """,
    ),
    Scenario(
        "several threads have one connection each",
        steps="""
            start one two three
            one: check out a
            two: check out b
            three: check out c
            join one
            join two
            join three
            counts size=3 in_use=3 idle=0 opening=0
        """,
        tells="""
            one: CheckedOut & two: CheckedOut & three: CheckedOut
        """,
        only="CheckedOut",
        has_ids=False,
    ),
    Scenario(
        "a connection is given back once; a second time is an error, and tells nothing",
        steps="""
            check out a
            check in a
            check in a fails UsageError
        """,
        tells="""
            CheckedIn 1
        """,
        only="CheckedIn ConnectionClosed",
    ),
    Scenario(
        "a connection on which an error occurred is closed when it comes back",
        steps="""
            check out a
            cut
            read a fails ConnectionError
            check in a
            check out b
        """,
        tells="""
            CheckedOut 1
            CheckedIn 1
            ConnectionClosed 1 broken
            CheckedOut 2
        """,
        only="CheckedOut CheckedIn ConnectionClosed",
    ),
    Scenario(
        "a connection that its holder gives up is closed",
        steps="""
            check out a
            terminate a
            counts size=0
        """,
        tells="""
            CheckedOut 1
            CheckedIn 1
            ConnectionClosed 1 terminated
        """,
        only="CheckedOut CheckedIn ConnectionClosed",
    ),
]

AGES = [
    Scenario(
        "a checkout that comes upon a connection whose idle time is over closes it and takes another",
        settings={"idle_timeout": 10},
        steps="""
            check out a
            check in a
            advance 11
            check out b
        """,
        tells="""
            CheckoutStarted
            ConnectionOpening 1
            ConnectionOpened 1
            CheckedOut 1
            CheckedIn 1
            CheckoutStarted
            ConnectionClosed 1 idle & ConnectionOpening 2
            ConnectionOpened 2
            CheckedOut 2
        """,
    ),
    Scenario(
        "a turn of the reaper closes what was idle too long, and no younger one",
        settings={"idle_timeout": 10},
        steps="""
            check out a
            check out b
            check in a
            advance 6
            check in b
            advance 5
            sweep
            counts idle=1
            check out c
        """,
        tells="""
            CheckedOut 1
            CheckedOut 2
            ConnectionClosed 1 idle
            CheckedOut 2
        """,
        only="ConnectionClosed CheckedOut",
    ),
    Scenario(
        "the reaper closes what was idle too long by itself",
        settings={"idle_timeout": 0.05, "reap_interval": 0.02},
        steps="""
            check out a
            check in a
            wait for 1 ConnectionClosed
        """,
        tells="""
            CheckedIn 1
            ConnectionClosed 1 idle
        """,
        only="CheckedIn ConnectionClosed",
        is_real=True,
    ),
    Scenario(
        "a pool keeps as many idle ones ready as it was told, without being asked for any",
        settings={"min_idle": 3},
        steps="""
            sweep
            wait for 3 ConnectionOpened
            counts size=3 idle=3
            check out a
        """,
        tells="""
            ConnectionOpened & ConnectionOpened & ConnectionOpened
            CheckedOut
        """,
        only="ConnectionOpened CheckedOut",
        has_ids=False,
    ),
    Scenario(
        "the reaper keeps idle ones ready by itself",
        settings={"min_idle": 1, "reap_interval": 0.02},
        steps="""
            wait for 1 ConnectionOpened
            check out a
            wait for 2 ConnectionOpened
            check out b
        """,
        tells="""
            ConnectionOpened 1
            CheckedOut 1
            ConnectionOpened 2
            CheckedOut 2
        """,
        only="ConnectionOpened CheckedOut",
        is_real=True,
    ),
    Scenario(
        "idle ones kept ready do not go beyond the size of the pool",
        settings={"max_size": 2, "min_idle": 2},
        steps="""
            sweep
            wait for 2 ConnectionOpened
            check out a
            sweep
            counts size=2 idle=1 in_use=1 opening=0
        """,
        tells="""
            ConnectionOpening & ConnectionOpening & ConnectionOpened & ConnectionOpened
        """,
        only="ConnectionOpening ConnectionOpened",
        has_ids=False,
    ),
]


@pytest.mark.parametrize("scenario", LOANS + AGES, ids=str)
def test_scenario(scenario: Scenario) -> None:
    scenario.play()
