"""Fixtures of every test: nothing may be left behind, neither a thread nor a descriptor."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.helpers")

from connpool.testing import FakeClock  # noqa: E402 - what is imported earlier is not rewritten
from tests.helpers.certificates import Certificates  # noqa: E402
from tests.helpers.interrupts import NEVER_STARTED  # noqa: E402

OPEN_FILES = "/proc/self/fd"
GRACE = 2.0  # seconds in which a thread that was told to end must have ended

settings.register_profile("house", deadline=None)  # no assertion on speed: machines are shared
settings.load_profile("house")


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Spare the garbage collector what stays for good, as reports do: it is called hundreds of times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def bytecode() -> Iterator[None]:
    """Let the many interpreters that tests start compile each module once, and write nothing beside it."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PYTHONPYCACHEPREFIX", folder)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """Fail a test that leaves a file, socket or pipe open."""
    if not os.path.isdir(OPEN_FILES):
        yield  # only Linux tells
        return
    before = open_files()
    yield
    if open_files() - before:
        gc.collect()  # what only a cycle keeps is no leak, but warns and so fails as one
        left = open_files() - before
        if left:
            pytest.fail(f"descriptors left open: {sorted(left)}", pytrace=False)


@pytest.fixture(autouse=True)
def no_thread_left(no_descriptor_left: None) -> Iterator[None]:
    """Fail a test that leaves a thread running. Ends before the descriptors are counted."""
    before = set(threading.enumerate())
    yield
    if still_running(before, 0.0):
        gc.collect()  # a background thread may end with the last pool
        left = still_running(before, GRACE)
        if left:
            pytest.fail(f"threads left running: {left}", pytrace=False)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    """A certificate authority of this run's own, and TLS contexts of all kinds."""
    return Certificates()


def open_files() -> set[tuple[str, str]]:
    """Each open descriptor's number and what it refers to."""
    found = set()
    for entry in os.listdir(OPEN_FILES):
        try:
            found.add((entry, os.readlink(f"{OPEN_FILES}/{entry}")))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def still_running(before: set[threading.Thread], grace: float) -> list[str]:
    """Names of the threads that are not in *before* and do not end within *grace* seconds."""
    until = time.monotonic() + grace
    extra = [thread for thread in threading.enumerate() if thread not in before]
    return [thread.name for thread in extra if not ends(thread, until)]


def ends(thread: threading.Thread, until: float) -> bool:
    """Whether *thread* ends before *until*."""
    while True:
        try:
            thread.join(max(0.0, until - time.monotonic()))
        except RuntimeError:  # it is listed, but only about to start
            if thread in NEVER_STARTED:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.001)
        else:
            return not thread.is_alive()
