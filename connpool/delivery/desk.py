"""Calls from many threads on one file: one of them does what all of them want."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from connpool import clock
from connpool.clock import Gate, SystemClock
from connpool.delivery.books import Draft
from connpool.errors import UsageError

__all__ = ["Baton", "Desk", "Job"]

_wait = SystemClock().wait


class Job:
    """What one call wants done.

    Attributes:
        work: Does it, within a transaction; None: the caller will, when nobody else is at the file.
        is_durable: Whether it is to survive that the power fails.
        is_done: Whether ``outcome`` or ``error`` is what the call ends with.
    """

    __slots__ = ("error", "gate", "is_done", "is_durable", "outcome", "thread", "work")

    def __init__(self, work: Callable[[Draft], Any] | None, *, is_durable: bool = False) -> None:
        self.work = work
        self.is_durable = is_durable
        self.thread = threading.get_ident()
        self.gate: Gate = threading.Lock()
        self.gate.acquire()
        self.outcome: Any = None
        self.error: Exception | None = None
        self.is_done = False

    def wake(self) -> None:
        """Let its thread look: it is done, or it may be its turn."""
        try:
            self.gate.release()
        except RuntimeError:  # it is told already
            pass


class Baton:
    """The right to use the file, once it is the first. Who drops it passes it on: an interrupt loses none."""

    __slots__ = ("_desk", "_ticket")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ticket = object()
        desk.tickets.append(self._ticket)

    def is_first(self) -> bool:
        return self._desk.tickets[0] is self._ticket

    def pass_on(self) -> None:
        """Let another have it; more than once does nothing."""
        try:
            self._desk.tickets.remove(self._ticket)
        except ValueError:
            return
        self._desk.wake_next()

    __del__ = pass_on


class Call:
    """A job that is on the desk. It leaves with ``end``, or when it is dropped."""

    __slots__ = ("_desk", "_job")

    def __init__(self, desk: Desk, job: Job) -> None:
        self._desk = desk
        self._job = job
        desk.jobs.append(job)

    def end(self) -> None:
        """Take the job off the desk; more than once does nothing."""
        try:
            self._desk.jobs.remove(self._job)
        except ValueError:
            pass
        if not self._job.is_done:  # it may have been told that it is its turn
            self._desk.wake_next()

    __del__ = end


class Desk:
    """Jobs in the order of arrival, and the baton.

    There is no lock. Who has a job puts it on the desk, *then* tries to take the
    baton; who passes the baton on lays it down, *then* looks for jobs. So one of
    the two sees the other. Who has the baton does all jobs that are there: one
    commit serves all that came while the last one was on its way to the disk.

    A job stays on the desk until its own thread takes it off. So a signal handler
    or a finaliser that calls from within a call of its own thread is found out,
    and turned away: it would wait for itself.

    """

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.tickets: deque[object] = deque()  # the left one's baton is it

    def do(self, job: Job, run: Callable[[Sequence[Job]], None]) -> Any:
        """Have *job* done, by this thread or another; returns its outcome.

        Args:
            run: Does jobs and marks them as done. Those that an interrupt keeps it
                from marking are there again the next time.

        Raises:
            UsageError: it comes from within another call of the same thread.
        """
        call = self._join(job)
        try:
            baton = self._await(job, None)
            if baton is not None:
                try:
                    run([job for job in self.jobs.copy() if not job.is_done and job.work is not None])
                finally:
                    baton.pass_on()
        finally:
            call.end()
        if job.error is not None:
            raise job.error
        return job.outcome

    def hold(self, timeout: float | None = None) -> Baton | None:
        """Wait until nobody is at the file, and keep others away; None: *timeout* seconds were too short.

        Raises:
            UsageError: it comes from within another call of the same thread.
        """
        job = Job(None)
        call = self._join(job)
        try:
            return self._await(job, timeout)
        finally:
            call.end()

    def _join(self, job: Job) -> Call:
        if any(other.thread == job.thread for other in self.jobs.copy()):
            raise UsageError("a spool is used from within a call to it")
        return Call(self, job)

    def _await(self, job: Job, timeout: float | None) -> Baton | None:
        """Wait for the baton. None: *job* was done meanwhile, or *timeout* is over."""
        until = None if timeout is None else clock.now() + timeout
        while not job.is_done:
            if self._may_try(job):
                baton = Baton(self)
                if baton.is_first():
                    return baton
                baton.pass_on()
            left = None if until is None else until - clock.now()
            if (left is not None and left <= 0) or not _wait(job.gate, left):
                return None
        return None

    def _may_try(self, job: Job) -> bool:
        """Whether nobody stands before *job* who wants the file alone: others would never let it."""
        for other in self.jobs.copy():
            if other is job:
                break
            if other.work is None:
                return False
        return True

    def wake_next(self) -> None:
        """Tell the first that waits that the baton may be free."""
        me = threading.get_ident()
        for job in self.jobs.copy() if not self.tickets else ():
            if not job.is_done:
                job.wake()
                if job.thread != me:  # ours may be one that waits no more
                    return
