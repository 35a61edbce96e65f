"""Group commit: of many threads with calls on one file, one does what all of them want."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from connpool import clock
from connpool.clock import Gate, open_gate, shut_gate, wait
from connpool.delivery.books import Draft
from connpool.errors import UsageError
from connpool.pool.piles import look_through

__all__ = ["Call", "Desk", "Job"]

LONGEST: Final = 0.01  # seconds that a newcomer waits at most for those who were served to leave
LATE: Final = 0.0002  # seconds for each who was served, by which the next service should have begun
PATIENCE: Final = 0.1  # seconds after which a thread not woken looks for itself, and then ever less often
SELDOM: Final = 1.0  # seconds between two such looks at most


class Job:
    """What one call wants done.

    Attributes:
        work: Does it, within a transaction; None: the caller will, when nobody else is at the file.
        is_durable: Whether it is to survive that the power fails.
        is_done: Whether ``outcome`` or ``error`` is what the call ends with.
        is_told: Whether its thread was woken for that.
    """

    __slots__ = ("error", "gate", "is_done", "is_durable", "is_told", "outcome", "thread", "work")

    def __init__(self, work: Callable[[Draft], Any] | None, is_durable: bool = False) -> None:
        self.work = work
        self.is_durable = is_durable
        self.thread = threading.get_ident()
        self.gate: Gate | None = None  # there is one once its thread waits
        self.outcome: Any = None
        self.error: Exception | None = None
        self.is_done = False
        self.is_told = False

    def wake(self) -> None:
        """Let its thread look: it is done, or it may be its turn."""
        if self.gate is not None:
            open_gate(self.gate)

    def tell(self) -> None:
        """Wake its thread, since it is done."""
        self.wake()
        self.is_told = True  # last: an interrupt before has it woken once more


class Call:
    """A job that is on the desk, and perhaps has the file.

    Both end with ``end``, or when it is dropped: an interrupt leaves nobody waiting.
    """

    __slots__ = ("_desk", "_is_over", "_job")

    def __init__(self, desk: Desk, job: Job) -> None:
        self._desk = desk
        self._is_over = False
        self._job = job
        desk.inside[job.thread] = job
        try:
            desk.jobs.append(job)
        except BaseException:  # Ctrl-C: it is not dropped as long as somebody looks at the traceback
            self.end()
            raise

    def has_file(self) -> bool:
        """Try to have the file to itself; False: another has it, and will see to it that the job is woken."""
        users, loners = self._desk.users, self._desk.loners
        try:
            if loners and loners[0] is not self._job:
                return False
        except IndexError:  # nobody wants it alone any more
            pass
        while not users:
            users.append(self._job)
            if users[0] is self._job:
                return True
            users.remove(self._job)  # and look again: the other may have left in that very moment
        return False

    def end(self) -> None:
        """Take the job off the desk, and wake the next; more than once does nothing."""
        if self._is_over:
            return
        desk, job = self._desk, self._job
        if job in desk.users:
            desk.users.remove(job)
        if job in desk.loners:
            desk.loners.remove(job)
        if job in desk.jobs:
            desk.jobs.remove(job)
        if desk.inside.get(job.thread) is job:
            del desk.inside[job.thread]
        if desk.jobs:
            desk.wake_next()
        self._is_over = True  # last: an interrupt before leaves the rest to the finaliser

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self.end()


class Desk:
    """Jobs in the order of arrival, and who has the file.

    There is no lock. A thread puts its job on the desk, *then* looks whether the file is
    free; the thread that leaves the file does that first, and looks for jobs *then*. So one
    of the two sees the other. The thread that has the file does all jobs that are there:
    one commit serves all that came while the last was on its way to the disk.

    A thread that leaves the desk wakes one other: the next that was served and does not know it; if
    all know, the first that still waits to be served. Woken all at once they would be in each
    other's way, and each would wait once more, for the interpreter. Newcomers wait for the last of
    them to leave: by then most have come again, and are one batch, not two of half the size that
    need a commit each. Where other threads compute, each link of that chain would wait for the
    interpreter: if a service begins later than ``LATE``, for each that was served, after the last one
    ended, it wakes all that it serves at once. (So it does after a pause, too.)

    If a thread that was served does not get on, in a signal handler say, nobody waits for it for
    long. A newcomer within twice the time of the last service waits ``LONGEST`` for it, a later one
    does not; all that wait already, served or not, look for themselves: after ``PATIENCE``, when they
    have waited as long again, and at last every second (``SELDOM``).

    A job stays on the desk until its own thread takes it off. So a signal handler
    or a finaliser that calls from within a call of its own thread is found out,
    and turned away: it would wait for itself.
    """

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()  # in the order of arrival
        self.inside: dict[int, Job] = {}  # whose thread has not left yet
        self.users: deque[Job] = deque()  # the left one has the file
        self.loners: deque[Job] = deque()  # who want it alone, and so before all others
        self._leave_until = 0.0  # those who were served, unless something is the matter with them
        self._is_late_from = 0.0  # when the next service begins: others kept them from leaving

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
            if self._wait(call, job, None) and not job.is_done:
                self._serve(run)
        finally:  # after Ctrl-C, too: each that leaves wakes the next, and so everybody is told
            try:
                call.end()
            except BaseException:  # it is not dropped as long as somebody looks at the traceback
                call.end()
                raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # or it would refer to itself, through its traceback and this frame
        return job.outcome

    def _serve(self, run: Callable[[Sequence[Job]], None]) -> None:
        jobs = [job for job in look_through(self.jobs) if job.work and not job.is_done]
        began = clock.now()
        run(jobs)
        ended = clock.now()
        self._leave_until = ended + min(2 * (ended - began), LONGEST)
        had_to_wait = began > self._is_late_from
        self._is_late_from = ended + LATE * len(jobs)
        if had_to_wait:
            for job in jobs:
                job.tell()

    def hold(self, timeout: float | None = None) -> Call | None:
        """Wait until nobody is at the file, and keep others away until the call ends.

        Returns:
            None: *timeout* seconds were too short.

        Raises:
            UsageError: it comes from within another call of the same thread.
        """
        job = Job(None)
        call = self._join(job)
        try:
            self.loners.append(job)
            if self._wait(call, job, timeout):
                return call
        except BaseException:  # Ctrl-C: it is not dropped as long as somebody looks at the traceback
            call.end()
            raise
        call.end()
        return None

    def _join(self, job: Job) -> Call:
        self.require_outside()
        return Call(self, job)

    def require_outside(self) -> None:
        """Refuse a call that comes from within another of the same thread.

        Raises:
            UsageError: it would wait for itself.
        """
        if threading.get_ident() in self.inside:
            raise UsageError("a spool is used from within a call to it")

    def _wait(self, call: Call, job: Job, timeout: float | None) -> bool:
        """Wait for the file, or until *job* is done. False: *timeout* is over."""
        if self._may_go(job) and call.has_file():
            return True
        until = math.inf if timeout is None else clock.now() + timeout
        patience = PATIENCE
        job.gate = gate = shut_gate()
        while not job.is_done:
            if self._may_go(job) and call.has_file():
                return True
            is_for_those_who_leave = not self.users and self.jobs[0].is_done
            seconds = LONGEST if is_for_those_who_leave else patience
            if not wait(gate, min(seconds, until - clock.now())):
                if clock.now() >= until:
                    return False
                patience = min(2 * patience, SELDOM)
        return True

    def _may_go(self, job: Job) -> bool:
        """Whether nobody has the file, and none that was served is still to leave and to wake the next."""
        if self.users:
            return False
        return not self.jobs[0].is_done or clock.now() >= self._leave_until or job.work is None

    def wake_next(self) -> None:
        """Wake one that was served and does not know it, or else the next job: the file may be free."""
        for job in look_through(self.jobs):
            if job.is_done and job.gate is not None and not job.is_told:
                job.tell()
                return
        if not self.users:
            for job in *look_through(self.loners), *look_through(self.jobs):
                if not job.is_done:
                    job.wake()
                    return
