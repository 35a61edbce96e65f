"""A socket as a link uses it: it waits only if told to, and the network's faults are answers, not errors."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

from connpool.clock import now
from connpool.errors import UsageError
from connpool.wire.io import Stream, is_tls
from connpool.wire.look import interrupt
from connpool.wire.waiting import milliseconds, wait_until_ready

__all__ = ["BROKEN", "Line", "Poller"]

BROKEN: Final = -1  # instead of a number of bytes
CHUNK: Final = 65_536
RECORD: Final = 16_384  # most bytes of a record of TLS: the peer has all of one, or nothing
MOST_DRAINED: Final = 100  # chunks; who goes on talking is not waited for
SLICE: Final = 0.25  # seconds after which a long wait looks whether it was called off

_HUNG_UP: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
_AT_ONCE: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_INPUT: Final = select.POLLIN | select.POLLPRI


class Line:
    """One open connection, TLS or not. One thread may push and one pull at the same time.

    Args:
        stream: What it is a line over.
        guard: Held in each call on TLS, of which there is one at a time: a finaliser that comes from within
            one, on a thread that reads, can so be told from others, and must not push.

    Attributes:
        error: Why it is broken; None: it is not, or the peer has ended it.
        is_midway: TLS has made a record of what was pushed last, and could not write it: only the same
            bytes may be pushed next, even if none of them were taken.
    """

    __slots__ = (
        "_guard",
        "_is_tls",
        "_look",
        "_raw",
        "_send",
        "_stream",
        "_wanted",
        "error",
        "fd",
        "is_midway",
        "is_over",
    )

    def __init__(self, stream: object, guard: contextlib.AbstractContextManager[object]) -> None:
        if not isinstance(stream, Stream):
            raise UsageError(
                f"a {type(stream).__name__} is not a socket: a broadcaster sends over sockets only"
            )
        raw = stream.raw
        self._stream = stream
        self._guard = guard
        self._raw = raw
        self._is_tls = is_tls(raw)
        if not self._is_tls:
            raw.settimeout(None)  # a time-out of its own would wait before MSG_DONTWAIT
        self.fd = raw.fileno()
        self.error: Exception | None = None
        self.is_midway = False
        self.is_over = False
        self._wanted = select.POLLOUT  # what the last push would have had to wait for
        self._look = self._poll_of_its_own()
        self._send = raw.send

    def _poll_of_its_own(self) -> Callable[[int], object]:
        """Make what looks for the end. One is for one thread: poll refuses two at once."""
        poll = select.poll()
        poll.register(self.fd, _HUNG_UP)
        return poll.poll

    def is_alive(self) -> bool:
        """Whether the peer still listens, as far as the system knows by now. Any thread may ask."""
        if self._poll_of_its_own()(0) or self.error is not None or self.is_over:
            self._find_error()
            return False
        return True

    def look_and_push(self, data: bytes) -> int:
        """``push``, if it is alive; else BROKEN. For the thread that pushes."""
        if self._is_tls or self.error is not None or self._look(0):
            return self.push(data) if self.is_alive() else BROKEN
        try:
            return self._send(data, _AT_ONCE)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.spoil(error)
            return BROKEN

    def push(self, data: bytes | memoryview) -> int:
        """Write what is taken at once. Returns how many bytes were; BROKEN: it is at its end."""
        done = 0
        try:
            if not self._is_tls:
                return self._send(data, _AT_ONCE)
            self.is_midway = True
            while done < len(data):
                with self._guard:
                    done += self._stream.try_write([memoryview(data)[done : done + RECORD]], eager=True)
            self.is_midway = False
            return done
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._wanted = select.POLLOUT
            return done
        except ssl.SSLWantReadError:  # of a new handshake, which TLS 1.2 allows, the peer's part is missing
            self._wanted = select.POLLIN
            return done
        except (OSError, ValueError) as error:
            self.spoil(error)
            return done or BROKEN  # the peer has, or will have, what went before

    def push_all(
        self,
        data: bytes | bytearray | memoryview,
        timeout: float | None,
        *,
        heeds_input_after: int | None = None,
    ) -> int:
        """Write all of *data*, waiting for the peer to read.

        Args:
            timeout: Seconds for which the peer may take nothing; None: for ever.
            heeds_input_after: Bytes after which it also ends when the peer takes no more and has said
                something: perhaps it reads on only when that is read. None: it does not.

        Returns:
            How many bytes were written: fewer than all if that is so, if it broke (see ``error``), or if
            *timeout* seconds passed.
        """
        view = memoryview(data)
        done = 0
        patience = None if timeout is None else now() + timeout
        while done < len(view) and not self.is_over:
            sent = self.push(view[done:])
            if sent == BROKEN:
                break
            if sent:
                done += sent
                patience = None if timeout is None else now() + timeout
                continue
            is_heeding = heeds_input_after is not None and done >= heeds_input_after
            if is_heeding and wait_until_ready(self._raw.fileno(), _INPUT, 0.0):
                break
            if patience is not None and now() >= patience:
                self.spoil(TimeoutError(f"the peer took nothing for {timeout:g} s"))
                break
            wait_until_ready(self._raw.fileno(), self._wanted | (_INPUT if is_heeding else 0), SLICE)
        return done

    def pull(self) -> bytes | None:
        """Read what has come, without waiting; b"": nothing yet. None: there will be no more."""
        if rest := self._stream.rest:  # who shook hands has read more than that
            self._stream.rest = b""
            return rest
        try:
            if not self._is_tls:
                return self._stream.try_read(CHUNK, eager=True) or None
            with self._guard:
                return self._stream.try_read(CHUNK, eager=True) or None
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        except (OSError, ValueError) as error:
            self.spoil(error)
            return None

    def drain(self) -> None:
        """Read away what nobody wants: closed with input unread it would be reset, and eat what was sent."""
        for _ in range(MOST_DRAINED):
            if not self.pull():
                break

    def has_more(self) -> bool:
        """Whether bytes lie ready that no poll tells of: read already, or decrypted."""
        if self._stream.rest or not self._is_tls:
            return bool(self._stream.rest)
        with self._guard:
            return not self._stream.must_wait_to_read(eager=True)

    def end(self) -> None:
        """Make everybody who waits at it stop. It stays open: only its owner closes it."""
        self.is_over = True
        interrupt(self._raw)

    def spoil(self, error: Exception) -> None:
        """Count as broken from now on, because of *error*."""
        if self.error is None and not self.is_over:
            why = self._stream.interrupted  # our own shutdown looks like the peer's doing
            self.error = error if why is None else ConnectionAbortedError(why)

    def _find_error(self) -> None:
        with contextlib.suppress(OSError):
            code = self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.spoil(OSError(code, "the connection broke"))
                return
        self.spoil(ConnectionResetError("the peer has ended the connection"))


class Poller:
    """Waits for several lines at once, however many. One thread waits; any may ``wake`` it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        self._poll.register(self._inner, select.POLLIN)

    def watch(self, line: Line, *, for_input: bool) -> None:
        """Wait for the end of *line*, and for input if told so."""
        self._poll.register(line.fd, _HUNG_UP | (_INPUT if for_input else 0))

    def forget(self, line: Line) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._poll.unregister(line.fd)

    def wait(self, timeout: float | None) -> list[tuple[int, bool]]:
        """Wait until something happens, or *timeout* seconds have passed.

        Returns:
            The descriptors of lines at which something happened, each with whether the peer hung up.
        """
        found = self._poll.poll(milliseconds(timeout))
        with contextlib.suppress(BlockingIOError, OSError):
            while self._inner.recv(4096):
                pass
        inner = self._inner.fileno()
        return [(fd, bool(events & _HUNG_UP)) for fd, events in found if fd != inner]

    def wake(self) -> None:
        """End the wait that is going on, or the next one."""
        with contextlib.suppress(OSError):
            self._outer.send(b"\0")

    def close(self) -> None:
        self._inner.close()
        self._outer.close()
