"""Waiting for a descriptor, and the one budget that every phase of a dial draws on."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Final, Protocol, TypeVar

from connpool.clock import now
from connpool.errors import CancelledError, ConnectTimeoutError
from connpool.model.endpoint import Endpoint

__all__ = [
    "BRIEF",
    "LOCAL_ERRORS",
    "Budget",
    "Cancel",
    "limit_waits",
    "may_wait_briefly",
    "milliseconds",
    "pause",
    "wait_until_ready",
]

T = TypeVar("T")

# What says that this machine is short of something, own ports included, so that no endpoint is to blame.
LOCAL_ERRORS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EADDRINUSE}
)

# Nothing wakes a waiting thread when a cancel flag is set, so it looks this often (seconds).
CANCEL_SLICE: Final = 0.02

# Seconds for which the system waits in a read. If the process is stopped meanwhile, as by a debugger or a
# profiler that looks at its threads, the read begins anew with all of its time: so they are few.
BRIEF: Final = 0.004
_TICKS: Final = 0.02  # seconds; the system ends a read some ticks of its clock late, or one too early
_timeval: Final = struct.Struct("ll").pack

_main_thread: Final = [threading.main_thread().ident]  # to ask for it would be half of the price of a read
# In a forked child it is the one that has forked.
os.register_at_fork(after_in_child=lambda: _main_thread.__setitem__(0, get_ident()))


class Cancel(Protocol):
    """A flag that tells a dial to give up; a ``threading.Event`` is one."""

    def is_set(self) -> bool: ...


def wait_until_ready(fd: int, events: int, seconds: float | None) -> bool:
    """Wait until *fd* is ready for *events*, or has failed. False: *seconds* are over."""
    if fd < 0:
        return True  # closed: the caller's next attempt says so properly
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(milliseconds(seconds)))


def may_wait_briefly(limit: float | None) -> bool:
    """Whether a call may begin in which the system waits: it ends it well before *limit*.

    Not on the main thread: after a signal it would begin anew, too, and the handler may want the connection.
    """
    return get_ident() != _main_thread[0] and (limit is None or limit - now() >= _TICKS)


def limit_waits(raw: socket.socket, seconds: float) -> bool:
    """Let no read of *raw* last longer than *seconds*; 0: without end.

    A TLS socket is a non-blocking one for Python throughout: so it does not call again when the system has
    waited. The system waits in reads and writes, or, if *seconds* are 0, in neither.

    Returns:
        False: the system does not take it.
    """
    limit = _timeval(0, int(seconds * 1e6))
    try:
        if isinstance(raw, ssl.SSLSocket):
            raw.settimeout(0.0)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        if isinstance(raw, ssl.SSLSocket) and seconds:
            os.set_blocking(raw.fileno(), True)
    except OSError:
        return False
    return True


def pause(seconds: float | None) -> bool:
    """Let *seconds* pass. Always False, as a wait in which nothing happened."""
    return bool(select.poll().poll(milliseconds(seconds)))


def milliseconds(seconds: float | None) -> float | None:
    """Convert to what ``poll`` takes; it counts in a C int, so no wait is longer than 24 days."""
    return None if seconds is None else min(seconds * 1000.0, 2**31 - 1)


class Budget:
    """What one dial may still spend, over all its phases: its time and its caller's patience.

    Args:
        endpoint: What is dialled; errors name it.
        timeout: Seconds for all phases together; None: no limit.
        cancel: Ends the dial within ``CANCEL_SLICE`` of being set.
    """

    __slots__ = ("_cancel", "_deadline", "_left", "endpoint", "timeout")

    def __init__(self, endpoint: Endpoint, timeout: float | None, cancel: Cancel | None = None) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._cancel = cancel
        self._left = math.inf if timeout is None else timeout
        self._deadline = now() + self._left

    def check(self, phase: str) -> None:
        """Raise if the dial must end now.

        Args:
            phase: What the dial is doing, as in "example:80: *connecting* took longer ...".

        Raises:
            CancelledError: The cancel flag is set.
            ConnectTimeoutError: The time is up.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"{self.endpoint}: {phase} was cancelled")
        if self._time_left() <= 0:
            raise ConnectTimeoutError(
                f"{self.endpoint}: {phase} was not done within the {self.timeout:g} s of the dial",
                endpoint=self.endpoint,
            )

    def wait(self, wait: Callable[[float | None], T], phase: str, at_most: float = math.inf) -> T:
        """Give *wait* the seconds it may take now (None: no limit) and return its answer.

        A falsy answer means that those seconds are over. It counts even if the
        clock stands still, so that a frozen clock cannot make a dial endless.
        Call it again until the answer is truthy.

        Raises:
            CancelledError, ConnectTimeoutError: As ``check``, before waiting.
        """
        self.check(phase)
        seconds = min(at_most, self._time_left())
        if self._cancel is not None:
            seconds = min(seconds, CANCEL_SLICE)
        answer = wait(None if math.isinf(seconds) else max(seconds, 0.0))
        if not answer:
            self._left -= seconds
        return answer

    def _time_left(self) -> float:
        return min(self._left, self._deadline - now())
