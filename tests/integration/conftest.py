"""What several files of tests begin with: servers that messages are sent to, a call pool swept by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connpool import CallPool
from connpool.testing import FakeClock
from tests.helpers.sinks import Sink


@pytest.fixture
def a() -> Iterator[Sink]:
    with Sink() as server:
        yield server


@pytest.fixture
def b() -> Iterator[Sink]:
    with Sink() as server:
        yield server


@pytest.fixture
def c() -> Iterator[Sink]:
    with Sink() as server:
        yield server


@pytest.fixture
def d() -> Iterator[Sink]:
    with Sink() as server:
        yield server


@pytest.fixture
def still(clock: FakeClock) -> Iterator[CallPool]:
    """A pool on a clock that the test moves, swept by hand."""
    with CallPool("still", clock=clock, reap_interval=None) as made:
        yield made
