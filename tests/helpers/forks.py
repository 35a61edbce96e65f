"""Children by fork, whose results and failures come back to the test."""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

LIMIT: Final = 15.0  # seconds a child may take


def fork_quietly() -> int:
    """``os.fork``, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about is the point
        return os.fork()


def fork_mortally() -> int:
    """As ``fork_quietly``; a child that hangs is ended by its alarm."""
    pid = fork_quietly()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
    return pid


def status_of(pid: int) -> int:
    """Wait for the end of a child, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork(job: Callable[[], Any]) -> Callable[[], Any]:
    """Do *job* in a forked child. Returns what waits for the child and gives its result, or fails with it."""
    ours, theirs = os.pipe()
    pid = fork_quietly()
    if pid == 0:
        try:
            result = (True, job())
        except BaseException as error:
            result = (False, f"{type(error).__name__}: {error}")
        try:
            os.write(theirs, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(theirs)

    def wait() -> Any:
        with os.fdopen(ours, "rb") as answer:
            if not select.select([answer], [], [], LIMIT)[0]:
                os.kill(pid, signal.SIGKILL)
            data = answer.read()
        os.waitpid(pid, 0)
        assert data, f"the child hung for {LIMIT:g} s, or died"
        is_good, value = pickle.loads(data)
        assert is_good, value
        return value

    return wait


def in_child(job: Callable[[], Any]) -> Any:
    """Fork, do *job* in the child, and return its result; its failure is the test's."""
    return fork(job)()


@contextmanager
def held_by_another(lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Let another thread have *lock* meanwhile, as one may at the moment of a fork.

    The thread that forks would not do: what is re-entrant is its own in the child, too.
    """
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            may_end.wait(2 * LIMIT)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert is_held.wait(LIMIT)
    try:
        yield
    finally:
        may_end.set()
        holder.join(LIMIT)
