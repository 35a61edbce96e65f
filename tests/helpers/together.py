"""Several jobs at once, each on a thread that cannot be forgotten."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def together(*jobs: Callable[[], T], limit: float = 10.0) -> list[T]:
    """Start *jobs* at the same moment, one thread each, and return their results in order.

    Raises:
        AssertionError: a job still runs after *limit* seconds; says where it stands,
            and has as its cause what another job raised, if one did.
        BaseException: what a job raised; several in one group.
    """
    gate = threading.Barrier(len(jobs))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(i: int, job: Callable[[], T]) -> None:
        try:
            gate.wait(limit)
            results[i] = job()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(i, job), name=f"test-{i}", daemon=True)
        for i, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    stuck = [thread for thread in threads if thread.is_alive()]
    if stuck:
        standing = f"still running after {limit:g} s:\n" + "\n".join(map(whereabouts, stuck))
        raise AssertionError(standing) from (errors[0] if errors else None)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several jobs failed", errors)
    return [results[i] for i in range(len(jobs))]


def whereabouts(thread: threading.Thread) -> str:
    """Name *thread* and the line it stands at."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame, limit=None)[-4:]) if frame else "  (gone)"
    return f"{thread.name}:\n{stack}"


def in_threads(*jobs: Callable[[], None]) -> list[threading.Thread]:
    """A thread for each of *jobs*, still to be started."""
    return [threading.Thread(target=job, daemon=True) for job in jobs]


def join_all(threads: list[threading.Thread]) -> None:
    """Wait for the end of *threads*, which is near."""
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
