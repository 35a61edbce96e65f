"""The mode of a stream's socket: whether a call on it waits, for how long, and who else must not notice."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, Final, TypeGuard, TypeVar

from connpool.errors import UsageError
from connpool.wire import look
from connpool.wire.stream import ByteStream
from connpool.wire.waiting import BRIEF, limit_waits

__all__ = ["WATCHED", "SocketModes", "WatchedCalls", "is_tls"]

T = TypeVar("T")

_UNTOLD: Final = -1.0  # seconds
_numbers: Final = itertools.count()
_CALL_GRACE: Final = 0.05  # seconds for the call of another thread to end: by itself, then cut off


def is_tls(raw: object) -> TypeGuard[ssl.SSLSocket]:
    """Whether *raw* is a socket that speaks TLS."""
    return isinstance(raw, ssl.SSLSocket)


class WatchedCalls:
    """Calls on TLS in which the system waits, and a watchdog that ends those that last too long.

    OpenSSL goes on until it has a whole record: each of its pieces may come in time, and all of them together
    too late; and nobody else gets a turn meanwhile. The watchdog runs on another thread. It is of a higher
    floor, and so introduces itself.
    """

    def __init__(self) -> None:
        self.calls: dict[SocketModes, int] = {}  # each with a number of its own
        self.is_watched = False  # the watchdog will look at them before long
        self.begin: Callable[[], bool] = bool  # have it look; False: it cannot
        self._seen: dict[SocketModes, int] = {}

    def cut_short(self) -> None:
        """End those that went on already when they were looked at the last time."""
        going_on = self.calls.copy()
        for stream, number in going_on.items():
            if self._seen.get(stream) == number == self.calls.get(stream):
                stream.cut_short()
                self.calls.pop(stream, None)  # or an interrupt as it ended would have it looked at for ever
        self._seen = going_on if self.calls else {}  # what is over is not kept


WATCHED: Final = WatchedCalls()


class SocketModes(ByteStream):
    """A socket, and the modes it is in while nobody else has it.

    A plain socket is never switched to non-blocking mode, so several holders with different timeouts do not
    disturb each other. A TLS socket is, but only inside a lock: OpenSSL allows no two calls on one connection
    at once. Outside of calls the socket blocks without limit, unless nobody else has it: to switch there and
    back costs more than a call.

    A socket that one thread alone reads from is read in one system call instead of two, each of which gives
    the GIL away, if an answer comes soon: the system itself waits for bytes (SO_RCVTIMEO), or for room
    (SO_SNDTIMEO, which only TLS needs). Under TLS that keeps the lock for as long, so whoever finds it taken
    declares that there are two of them, for good. What lasts long is cut short: see ``WatchedCalls``.

    Attributes:
        raw: The socket; after ``start_tls`` the TLS socket. For others only after ``hand_out``.
    """

    __slots__ = (
        "_descriptor",
        "_has_turn",
        "_is_alone",
        "_is_in_read",
        "_is_private",
        "_system_waits",
        "_tls_turn",
        "raw",
    )

    def __init__(self, raw: socket.socket, *, is_private: bool) -> None:
        super().__init__()
        self._is_private = is_private
        self._go_on_with(raw)
        self._tls_turn = threading.Lock()
        self._has_turn = 0  # the thread in a call on TLS, for as long as that may be interrupted
        self._is_alone = is_private  # the system may be told for how long it waits
        self._is_in_read = False  # and does so, perhaps
        self._system_waits = 0.0  # seconds, 0: without end; _UNTOLD: it was about to be told

    def fileno(self) -> int:
        return self.raw.fileno()

    def _go_on_with(self, raw: socket.socket) -> None:
        """Be a stream over *raw* from now on."""
        self.raw = raw
        self._descriptor: Callable[[], int] = raw.fileno  # -1: it cannot be used any more
        if is_tls(raw) and not self._is_private:  # others may take its TLS off
            self._descriptor = partial(look.descriptor_of_tls, raw)

    def hand_out(self) -> None:
        """Others will have the socket too: from now on it blocks without limit outside of calls.

        Raises:
            UsageError: from within a call on TLS of this very thread. Nothing was done.
        """
        if self._is_private:
            self._is_alone = False
            me = get_ident()
            if self._tls_turn.locked():
                self._come_second(me)
            with self._tls_turn:
                try:
                    self._has_turn = me
                    if self.raw.fileno() >= 0:  # else an upgrade that failed has closed it
                        if is_tls(self.raw):
                            self._lift_limit()
                        self.raw.settimeout(None)
                    self._is_private = False
                    self._go_on_with(self.raw)
                finally:
                    self._has_turn = 0
        self.expect_company()

    def expect_company(self) -> None:
        """Several threads may read from now on, each with a timeout of its own: the system has but one."""
        self._is_alone = False  # said first, and looked after that: a read does it the other way round
        if not self._is_in_read and not is_tls(self.raw):
            self._lift_limit()  # else the read does so when it ends, which is soon; or the next call on TLS

    def let_go(self) -> None:
        """In a forked child: those who were in a call are the parent's, and never come out of it."""
        self._tls_turn = threading.Lock()

    def close_in_turn(self, close: Callable[[socket.socket], object]) -> None:
        """Have *close* close the socket while no other thread is in a call on its TLS.

        Of two calls at once, and the goodbye is one, OpenSSL may end the process.
        """
        self._is_alone = False
        has_turn = False
        try:
            has_turn = self._tls_turn.acquire(timeout=_CALL_GRACE)
            if not has_turn:
                look.interrupt(self.raw)
                has_turn = self._tls_turn.acquire(timeout=_CALL_GRACE)  # else it is we ourselves, in a signal
            close(self.raw)
        finally:
            if has_turn:
                self._tls_turn.release()

    def _read_alone(self, raw: socket.socket, n: int, limit: float | None) -> bytes:
        """Read in one system call, which is a brief one if there is a *limit*. b"": look again."""
        seconds = 0.0 if limit is None else BRIEF
        try:
            self._is_in_read = True  # see ``expect_company``
            if not self._is_alone or (self._system_waits != seconds and not self._tell_system(seconds)):
                return b""
            return raw.recv(n)
        finally:
            self._is_in_read = False
            if not self._is_alone:
                self._lift_limit()

    def _on_tls_alone(self, operation: Callable[[Any], T], argument: object) -> T | None:
        """Do one operation in which the system may wait, briefly. None: not now."""
        turn, me = self._tls_turn, get_ident()
        if turn.locked():
            self._come_second(me)
        try:
            with turn:
                try:
                    self._has_turn = me
                    WATCHED.calls[self] = next(_numbers)  # said first, and looked after that
                    if not WATCHED.is_watched and not WATCHED.begin():
                        return None
                    if self._is_alone and (self._system_waits == BRIEF or self._tell_system(BRIEF)):
                        return operation(argument)
                finally:
                    self._has_turn = 0
                    WATCHED.calls.pop(self, None)  # still in our turn: what is there next is another's
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as exc:
            self._raise_why(exc)
        return None

    def _come_second(self, me: int) -> None:
        """Another is in a call on TLS. It may be one that waits, and must not do so again.

        Raises:
            UsageError: it is one of this very thread, which would wait for itself.
        """
        self._is_alone = False
        if self._has_turn == me:
            raise UsageError(
                "a finaliser or signal handler uses a TLS connection from within a call on it: nothing done"
            )

    def cut_short(self) -> None:
        """End the call that goes on, for it lasts too long; from another thread. The next look before."""
        self._is_alone = False
        with contextlib.suppress(OSError):  # it is closed by now
            self.raw.settimeout(0.0)

    def _on_tls(self, operation: Callable[..., T], *arguments: object) -> T:
        """Do one operation that does not block, alone on this connection."""
        raw, me = self.raw, get_ident()
        if self._tls_turn.locked():
            self._come_second(me)
        with self._tls_turn:
            try:
                self._has_turn = me
                if self._system_waits:
                    self._lift_limit()
                elif raw.gettimeout() != 0.0:
                    raw.settimeout(0.0)
                return operation(*arguments)
            finally:
                try:
                    if not self._is_private:
                        raw.settimeout(None)
                finally:
                    self._has_turn = 0

    def _has_decrypted(self, raw: ssl.SSLSocket) -> bool:
        """Whether bytes lie ready in TLS that no poll tells of."""
        me = get_ident()
        if self._tls_turn.locked():
            self._come_second(me)
        with self._tls_turn:
            try:
                self._has_turn = me
                return raw.pending() > 0
            finally:
                self._has_turn = 0

    def _lift_limit(self) -> None:
        if self._system_waits:
            self._tell_system(0.0)

    def _tell_system(self, seconds: float) -> bool:
        """Let no call wait longer than *seconds*; 0: see ``limit_waits``. False: it cannot be told."""
        self._system_waits = _UNTOLD  # an interrupt may come between the two
        if not limit_waits(self.raw, seconds):
            self._is_alone = False
            return False
        self._system_waits = seconds
        return True
