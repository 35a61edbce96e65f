"""What ``docs/cmap.md`` says of names is so: each of ours that it uses exists, and none is left out."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple

import attrs
import pytest

import connpool
from connpool import CloseReason, Connection, ConnectionPool, FailReason, PoolConfig, PoolState, PoolStats
from connpool.model.events import EVENTS, Event
from tests.helpers.architecture import ROOT

PAGE = (ROOT / "docs" / "cmap.md").read_text(encoding="utf-8")

# What the specification defines: its events, their fields, reasons, options, states, operations and counts.
CMAP = """
    ConnectionPoolCreated ConnectionPoolReady ConnectionPoolCleared ConnectionPoolClosed
    ConnectionCreated ConnectionReady ConnectionClosed
    ConnectionCheckOutStarted ConnectionCheckOutFailed ConnectionCheckedOut ConnectionCheckedIn
    address connectionId duration reason options interruptInUseConnections serviceId
    stale idle error poolClosed timeout connectionError
    maxPoolSize minPoolSize maxIdleTimeMS maxConnecting waitQueueTimeoutMS waitQueueSize waitQueueMultiple
    backgroundThreadIntervalMS
    paused ready closed pending available checkOut checkIn clear close
    totalConnectionCount availableConnectionCount pendingConnectionCount waitQueue
""".split()


class Row(NamedTuple):
    """One line of a table: names of theirs, names of ours."""

    theirs: list[str]
    ours: list[str]


def rows() -> Iterator[Row]:
    for line in PAGE.splitlines():
        if line.startswith("|") and not line.startswith(("| CMAP", "| ---")):
            theirs, ours = line.strip("| ").split(" | ")[:2]
            yield Row(re.findall("`(.+?)`", theirs), re.findall("`(.+?)`", ours))


ROWS = list(rows())
OURS = sorted({name for row in ROWS for name in row.ours})


def exists(name: str) -> bool:
    """Whether *name* is one of our public names, as the page writes them."""
    owner, _, member = name.rpartition(".")
    if owner == "pool":
        return callable(getattr(ConnectionPool, member.removesuffix("()"), None))
    if owner == "conn":
        return callable(getattr(Connection, member.removesuffix("()"), None))
    if owner == "stats()":
        return member in fields(PoolStats)
    if owner:
        kind = getattr(connpool, owner)
        return member in (kind.__members__ if issubclass(kind, enum.Enum) else fields(kind))
    return name in fields(PoolConfig) or isinstance(getattr(connpool, name, None), type)


def fields(kind: type[attrs.AttrsInstance]) -> list[str]:
    return [attribute.name for attribute in attrs.fields(kind)]


def test_each_name_that_the_page_gives_as_ours_is_public() -> None:
    assert len(OURS) > 50
    assert [name for name in OURS if not exists(name)] == []


def test_a_name_that_nobody_knows_is_noticed() -> None:
    unknown = ["CloseReason.LATE", "CheckedIn.reason", "pool.lend()", "conn.lend()", "stats().length", "max"]
    assert [name for name in unknown if exists(name)] == []


def test_each_event_of_ours_is_on_the_page() -> None:
    assert [kind.__name__ for kind in EVENTS if kind.__name__ not in OURS] == []


def test_each_field_of_an_event_that_the_specification_knows_is_on_the_page() -> None:
    known = {name for row in ROWS if row.theirs for name in row.ours}
    kinds = [kind for kind in EVENTS if kind.__name__ in known]
    assert len(kinds) == 11
    carried = [(kind, name) for kind in kinds for name in fields(kind) if name not in fields(Event)]
    assert [name for kind, name in carried if f"{kind.__name__}.{name}" not in OURS] == []


@pytest.mark.parametrize("kind", [CloseReason, FailReason, PoolState])
def test_each_reason_and_state_of_ours_is_on_the_page(kind: type[enum.Enum]) -> None:
    assert [name for name in kind.__members__ if f"{kind.__name__}.{name}" not in OURS] == []


def test_each_name_of_the_specification_is_on_the_page() -> None:
    theirs = {name.removesuffix("()") for row in ROWS for name in row.theirs}
    assert [name for name in CMAP if name not in theirs] == []


def test_what_the_specification_has_and_we_lack_is_said() -> None:
    lacking = [row.theirs for row in ROWS if not row.ours]
    assert lacking == [["serviceId"], ["waitQueueMultiple"], ["perished"]]
