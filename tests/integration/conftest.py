"""Servers to which messages are sent, for all tests of their delivery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
