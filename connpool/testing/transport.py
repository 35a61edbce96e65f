"""The server's end of one connection: blocking calls that another thread can break off at any moment."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn, TypeVar

from connpool.wire.tls import close_half_wrapped

T = TypeVar("T")

CHUNK: Final = 65_536
LONGEST_NAP: Final = 3600.0  # seconds; a poll of some weeks is more than the system can count
# Shows without reading that the peer left; where the system lacks it, only resets show.
GONE: Final = getattr(select, "POLLRDHUP", select.POLLHUP)


class Ending(enum.Enum):
    """How a connection ended, as its server saw it."""

    EOF = "eof"  # the peer closed it, or its sending half
    RESET = "reset"  # the peer reset it
    OURS = "closed by us"
    OUR_RESET = "reset by us"
    HANDSHAKE = "handshake failed"  # TLS; see ServedConnection.error


class ConversationOverError(Exception):
    """Unwinds a script: the peer left, or the test ordered an end."""

    def __init__(self, ending: Ending, error: BaseException | None = None) -> None:
        super().__init__(ending.value)
        self.ending = ending
        self.error = error


class Transport:
    """A non-blocking socket, TLS or not, and a bell that wakes who waits on it.

    One thread owns it: receives, shakes hands, and calls ``finish``. Others may
    ``send`` and ``order``. Closing a descriptor under a thread that waits on it
    wakes nobody, hence the bell.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.order_given: Ending | None = None
        # A TLS object must not be used by two threads at once. What runs under this lock never blocks.
        self._lock = threading.Lock()
        self._ears, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth: socket.socket | None = mouth

    def order(self, ending: Ending) -> None:
        """Make every call end with ``ConversationOverError``, from any thread. The first order counts."""
        with self._lock:
            if self.order_given is not None or self._mouth is None:
                return
            self.order_given, mouth = ending, self._mouth
        with contextlib.suppress(OSError):  # it has just ended by itself
            mouth.send(b"!")

    def receive(self, n: int = CHUNK) -> bytes:
        """Wait for at least one byte and return at most *n*."""
        data = self._try_until_done(lambda: self.sock.recv(n), select.POLLIN)
        if not data:
            raise ConversationOverError(Ending.EOF)
        return data

    def send(self, data: bytes) -> None:
        """Send all of *data*, however long the peer takes to read it."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._try_until_done(partial(self.sock.send, rest), select.POLLOUT) :]

    def shake_hands(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Go over to TLS, as the server of it."""
        try:
            with self._lock:  # wrapping empties the old socket: nobody may look at it meanwhile
                try:
                    secure = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
                except BaseException as error:
                    close_half_wrapped(error)
                    raise
                self.sock = secure
            self._try_until_done(secure.do_handshake, select.POLLIN)
        except OSError as unfit:
            raise ConversationOverError(Ending.HANDSHAKE, unfit) from unfit
        except ConversationOverError as over:
            if over.ending in (Ending.EOF, Ending.RESET):
                raise ConversationOverError(Ending.HANDSHAKE, over.error) from over
            raise
        return secure

    def pause(self, seconds: float) -> None:
        """Do nothing for *seconds*, but heed an order."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._wait(0, min(left, LONGEST_NAP))

    def until_gone(self) -> NoReturn:
        """Wait, without reading, until the peer closes or resets."""
        self._wait(GONE)
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        raise ConversationOverError(Ending.RESET if error else Ending.EOF)

    def is_gone(self) -> bool:
        """Whether the peer has left already, read by us or not. Never blocks; any thread may ask."""
        with self._lock:
            if self._mouth is None or self.sock.fileno() < 0:  # TLS closes what it cannot wrap
                return True
            poll = select.poll()
            poll.register(self.sock, GONE)
            return bool(poll.poll(0))

    def finish(self, ending: Ending) -> None:
        """Close everything, towards the peer in the way that *ending* says."""
        with self._lock:
            mouth, self._mouth = self._mouth, None
        with contextlib.suppress(OSError, ValueError):  # the peer may be gone: so much the better
            if ending is Ending.OUR_RESET:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif ending is Ending.OURS:
                self._take_leave()
        self.sock.close()
        self._ears.close()
        if mouth is not None:
            mouth.close()

    def _take_leave(self) -> None:
        """Say goodbye in order. Unread bytes would turn the close into a reset, so they are read."""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLError):  # it does not wait for the peer's goodbye
                self.sock.unwrap()
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        while socket.socket.recv(self.sock, CHUNK):
            pass

    def _try_until_done(self, attempt: Callable[[], T], events: int) -> T:
        """Repeat *attempt* whenever the socket is ready for it, until it succeeds."""
        while True:
            try:
                with self._lock:
                    if self.order_given is not None:
                        raise ConversationOverError(self.order_given)
                    return attempt()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as again:
                if isinstance(again, ssl.SSLError):
                    wants_to_read = isinstance(again, ssl.SSLWantReadError)
                    self._wait(select.POLLIN if wants_to_read else select.POLLOUT)
                else:
                    self._wait(events)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as eof:
                raise ConversationOverError(Ending.EOF, eof) from eof
            except ssl.SSLError as refused:
                raise ConversationOverError(Ending.HANDSHAKE, refused) from refused
            except OSError as reset:
                raise ConversationOverError(Ending.RESET, reset) from reset

    def _wait(self, events: int, limit: float | None = None) -> None:
        """Wait until the socket is ready for *events* (0: do not look at it), or *limit* seconds."""
        poll = select.poll()
        poll.register(self._ears, select.POLLIN)
        if events:
            poll.register(self.sock, events)
        poll.poll(None if limit is None else limit * 1000)
        if self.order_given is not None:
            raise ConversationOverError(self.order_given)
