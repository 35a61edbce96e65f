"""Calls from many threads on one file: one of them does what all of them want."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from connpool import clock
from connpool.clock import Gate, SystemClock, open_gate
from connpool.delivery.books import Draft
from connpool.errors import UsageError
from connpool.pool.piles import look_through

__all__ = ["Call", "Desk", "Job"]

PATIENCE: Final = 0.01  # seconds that those who were served just now are waited for at most

_wait = SystemClock().wait


class Job:
    """What one call wants done.

    Attributes:
        work: Does it, within a transaction; None: the caller will, when nobody else is at the file.
        is_durable: Whether it is to survive that the power fails.
        is_done: Whether ``outcome`` or ``error`` is what the call ends with.
    """

    __slots__ = ("error", "gate", "is_done", "is_durable", "outcome", "thread", "work")

    def __init__(self, work: Callable[[Draft], Any] | None, is_durable: bool = False) -> None:
        self.work = work
        self.is_durable = is_durable
        self.thread = threading.get_ident()
        self.gate: Gate | None = None  # there is one once its thread waits
        self.outcome: Any = None
        self.error: Exception | None = None
        self.is_done = False

    def wake(self) -> None:
        """Let its thread look: it is done, or it may be its turn."""
        if self.gate is not None:
            open_gate(self.gate)


class Call:
    """A job that is on the desk, and perhaps has the file.

    Both end with ``end``, or when it is dropped: an interrupt leaves nobody waiting.
    """

    __slots__ = ("_desk", "_has_tried", "_is_over", "_job")

    def __init__(self, desk: Desk, job: Job) -> None:
        self._desk = desk
        self._has_tried = self._is_over = False
        self._job = job
        desk.jobs[job.thread] = job
        if desk.missing:
            desk.note_arrival(job.thread)

    def has_file(self) -> bool:
        """Try to have the file to itself; False: another has it, and will wake the job."""
        users, loners = self._desk.users, self._desk.loners
        try:
            if loners and loners[0] is not self._job:
                return False
        except IndexError:  # nobody wants it alone any more
            pass
        while not users:
            self._has_tried = True
            users.append(self._job)
            if users[0] is self._job:
                return True
            users.remove(self._job)  # and look again: the other may have left in that very moment
        return False

    def end(self) -> None:
        """Let another have the file, and take the job off the desk; more than once does nothing."""
        if self._is_over:
            return
        desk, job = self._desk, self._job
        if job in desk.users:
            desk.users.remove(job)
        if job in desk.loners:
            desk.loners.remove(job)
        if desk.jobs.get(job.thread) is job:
            del desk.jobs[job.thread]
        if desk.jobs and (self._has_tried or not job.is_done):  # else nobody waited for this one
            desk.wake_next()
        self._is_over = True  # last: an interrupt before leaves the rest to the finaliser

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self.end()


class Desk:
    """Jobs in the order of arrival, and who has the file.

    There is no lock. Who has a job puts it on the desk, *then* looks whether the
    file is free; who leaves the file does that first, and looks for jobs *then*.
    So one of the two sees the other. Who has the file does all jobs that are
    there: one commit serves all that came while the last was on its way to the disk,
    and those whom that has served, if they come again within half the time that it took.

    A job stays on the desk until its own thread takes it off. So a signal handler
    or a finaliser that calls from within a call of its own thread is found out,
    and turned away: it would wait for itself.
    """

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}  # by thread
        self.users: deque[Job] = deque()  # the left one has the file
        self.loners: deque[Job] = deque()  # who want it alone, and so before all others
        self._served: frozenset[int] = frozenset()  # threads of the last two batches
        self._latest: frozenset[int] = frozenset()  # of the last one
        self._waits_until = 0.0  # for them to come again
        self.missing: set[int] = set()  # those of them who have not come yet
        self._all_here: Gate = threading.Lock()  # opened by the last of them
        self._all_here.acquire()

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
            if (call.has_file() or self._wait(call, job, None)) and not job.is_done:
                self._gather()
                self._serve(run)
        except BaseException:  # Ctrl-C: who is done by now may not have been told
            for other in self.jobs.copy().values():
                other.wake()
            raise
        finally:
            call.end()
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # or it would refer to itself, through its traceback and this frame
        return job.outcome

    def _gather(self) -> None:
        """Wait a moment for those who were served just now, and are likely to be about to come again.

        Or there would soon be two companies, of which one waits while the other is served: twice the commits.
        """
        left = self._waits_until - clock.now()
        if left <= 0:
            return
        missing = self.missing = set(self._served)  # said first, and looked after that: who comes does it
        missing.difference_update([job.thread for job in self._undone()])  # the other way round
        until = clock.now() + min(left, PATIENCE)
        while missing and _wait(self._all_here, until - clock.now()):
            pass  # it may have been left open by those whom another has waited for

    def note_arrival(self, thread: int) -> None:
        """*thread* has put its job on the desk: who waits for all to come may have waited enough."""
        missing = self.missing
        missing.discard(thread)
        if not missing:
            open_gate(self._all_here)

    def _serve(self, run: Callable[[Sequence[Job]], None]) -> None:
        jobs = [job for job in self._undone() if job.work]
        began = clock.now()
        run(jobs)
        ended = clock.now()
        threads = frozenset([job.thread for job in jobs])
        self._served, self._latest = threads | self._latest, threads
        self._waits_until = ended + (ended - began) / 2

    def _undone(self) -> list[Job]:
        return [job for job in self.jobs.copy().values() if not job.is_done]

    def hold(self, timeout: float | None = None) -> Call | None:
        """Wait until nobody is at the file, and keep others away until the call ends.

        Returns:
            None: *timeout* seconds were too short.

        Raises:
            UsageError: it comes from within another call of the same thread.
        """
        job = Job(None)
        call = self._join(job)
        self.loners.append(job)
        return call if self._wait(call, job, timeout) else None

    def _join(self, job: Job) -> Call:
        self.require_outside()
        return Call(self, job)

    def require_outside(self) -> None:
        """Turn away who comes from within a call of the same thread.

        Raises:
            UsageError: it would wait for itself.
        """
        if threading.get_ident() in self.jobs:
            raise UsageError("a spool is used from within a call to it")

    def _wait(self, call: Call, job: Job, timeout: float | None) -> bool:
        """Wait for the file, or until *job* is done. False: *timeout* is over."""
        until = None if timeout is None else clock.now() + timeout
        job.gate = gate = threading.Lock()
        gate.acquire()
        while not job.is_done:
            if call.has_file():
                return True
            if until is None:
                gate.acquire()
            elif not _wait(gate, until - clock.now()):
                return False
        return True

    def wake_next(self) -> None:
        """Tell who comes next that the file may be free."""
        if self.users:
            return
        for job in *look_through(self.loners), *self.jobs.copy().values():
            if not job.is_done:
                job.wake()
                return
