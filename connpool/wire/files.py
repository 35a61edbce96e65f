"""Input and output over a plain descriptor: a file, a pipe, a terminal."""

from __future__ import annotations

import os
import select
import ssl
import stat
from typing import Final, NoReturn

from connpool.errors import UsageError
from connpool.wire.stream import ByteStream
from connpool.wire.waiting import wait_until_ready

__all__ = ["FileStream"]

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")


class FileStream(ByteStream):
    """An open descriptor, owned from now on. Same calls as on a socket.

    Timeouts hold for pipes and terminals; a regular file never makes one wait.
    Another thread's ``interrupt`` is noticed when the current call ends.

    Args:
        fd: An open descriptor, in whichever mode (it is not changed: the other
            processes that have it open would see that).
    """

    __slots__ = ("_fd", "_is_regular")

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._fd = fd

    @property
    def raw(self) -> FileStream:
        """Itself: the descriptor has no other object."""
        return self

    def fileno(self) -> int:
        return self._fd

    def hand_out(self) -> None:
        """Nothing to do: its mode is never changed."""

    def start_tls(
        self, context: ssl.SSLContext, server_hostname: str | None, timeout: float | None = None
    ) -> NoReturn:
        """Refuse.

        Raises:
            UsageError: Always.
        """
        raise UsageError("start_tls: a file descriptor cannot speak TLS")

    def close(self) -> None:
        """Close the descriptor; again: do nothing.

        Raises:
            OSError: The system could not store what was written before. It is closed all the same.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def interrupt(self, how: int, why: str) -> None:
        """Make the calls of other threads end with ConnectionAbortedError once they fail or meet the end.

        A descriptor cannot be shut down as a socket can: nobody is woken.
        """
        del how
        self.interrupted = why

    def must_wait_to_read(self, eager: bool) -> bool:
        return eager and not self._is_regular

    def try_read(self, n: int, eager: bool) -> bytes:
        return os.read(self._fd, n)

    def try_read_into(self, target: memoryview, eager: bool) -> int:
        return os.readv(self._fd, [target])

    def try_write(self, views: list[memoryview], eager: bool) -> int:
        if not eager or self._is_regular:
            return os.writev(self._fd, views[:_IOV_MAX])
        # A pipe that poll calls writable may still block a write, but not one this small.
        if not wait_until_ready(self._fd, select.POLLOUT, 0):
            raise BlockingIOError
        with views[0][: select.PIPE_BUF] as front:
            return os.write(self._fd, front)
