"""One connection as the scripted server sees it: the script's tool, and the test's witness."""

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, NoReturn

from connpool.testing.transport import CHUNK, ConversationOverError, Ending, Transport

__all__ = ["Ending", "ServedConnection"]

GUARD: Final = 10.0  # seconds a test waits for what should be so at once

_asked_names: weakref.WeakKeyDictionary[object, str | None] = weakref.WeakKeyDictionary()


class NameRecorder:
    """An ``sni_callback`` that notes which name a client asked for, then does what was there before."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._before = context.sni_callback

    def __call__(self, sock: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int | None:
        _asked_names[sock] = name  # None, whatever the declared type says, where the client names none
        return None if self._before is None else self._before(sock, name, context)


def record_names(context: ssl.SSLContext) -> None:
    """Make *context* note the names asked for; once, however many servers share it."""
    if not isinstance(context.sni_callback, NameRecorder):
        context.sni_callback = NameRecorder(context)


class Watched:
    """What a test may wait for."""

    _changed: threading.Condition  # guards, and reports, what its threads change

    def until(self, predicate: Callable[[], object], timeout: float = GUARD) -> None:
        """Wait until *predicate*, looked at after each change on its side, is true.

        Raises:
            AssertionError: it is not within *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise AssertionError(f"still not so after {timeout:g} s: {self!r}")


class ServedConnection(Watched):
    """One accepted connection.

    The script calls ``receive``, ``request``, ``send``, ``pause`` and ``start_tls``; they
    never return once the peer has left or an end was ordered, so a script need
    not look for it. The test calls ``send``, ``close``, ``reset`` and the ``until_...``
    methods, at any time.

    Attributes:
        number: 1 for the first that the server accepted.
        ending: How it ended; None while it is open.
        error: What the system or TLS said when it ended, if anything.
        sni: The name the client asked for in its TLS handshake, if any.
        client_subject: The subject of the client's verified certificate, such as
            ``{"commonName": "worker-1"}``; empty without one.
    """

    def __init__(self, number: int, sock: socket.socket, changed: threading.Condition) -> None:
        self.number = number
        self.ending: Ending | None = None
        self.error: BaseException | None = None
        self.sni: str | None = None
        self.client_subject: dict[str, str] = {}
        self._transport = Transport(sock)
        self._changed = changed
        self._log = bytearray()
        self._parsed = 0  # bytes of the log that were returned to the script
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "open" if self.ending is None else self.ending.value
        return f"<ServedConnection {self.number}: {state}, {len(self._log)} bytes received>"

    @property
    def received(self) -> bytes:
        """Every byte that the server has read, in order."""
        with self._changed:
            return bytes(self._log)

    def limit_buffer(self, n: int) -> None:
        """Let the system take in about *n* bytes ahead of the script, so that a peer soon feels it."""
        self._transport.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n)

    # -- for the script --------------------------------------------------------

    def receive(self, n: int = CHUNK) -> bytes:
        """Wait for bytes and return at most *n* of them, at least one."""
        if self._parsed == len(self._log):
            self._take_in(n)
        data = bytes(self._log[self._parsed : self._parsed + n])
        self._parsed += len(data)
        return data

    def request(self, delimiter: bytes | None = None) -> bytes:
        """Return the next request: up to and with *delimiter*; None: whatever arrives together."""
        if delimiter is None:
            return self.receive()
        while (at := self._log.find(delimiter, self._parsed)) < 0:
            self._take_in(CHUNK)
        return self.receive(at + len(delimiter) - self._parsed)

    def pause(self, seconds: float) -> None:
        """Do nothing for *seconds*."""
        self._transport.pause(seconds)

    def until_gone(self) -> NoReturn:
        """Wait, without reading, until the peer leaves. Ends the script."""
        self._transport.until_gone()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Go over to TLS, in the server's part."""
        record_names(context)
        secure = self._transport.shake_hands(context)
        with self._changed:
            self.sni = _asked_names.pop(secure, None)
            subject: Any = (secure.getpeercert() or {}).get("subject", ())
            self.client_subject = {key: value for part in subject for key, value in part}
            self._changed.notify_all()

    # -- for the script and the test -------------------------------------------

    def send(self, data: bytes) -> None:
        """Send *data*, asked for or not.

        Raises:
            AssertionError: called by the test, and the connection has ended.
        """
        try:
            self._transport.send(data)
        except (ConversationOverError, OSError, ValueError) as over:
            if self._thread is threading.current_thread():
                raise
            raise AssertionError(f"{self!r} cannot send") from over

    def close(self) -> None:
        """Close it in order (FIN, and TLS's goodbye). Returns when it is closed."""
        self._end(Ending.OURS)

    def reset(self) -> None:
        """Reset it (RST; a Unix socket knows only the end of file). Returns when it is done."""
        self._end(Ending.OUR_RESET)

    # -- for the test ----------------------------------------------------------

    def until_received(self, data: bytes, timeout: float = GUARD) -> None:
        """Wait until *data* is among the bytes received."""
        self.until(lambda: data in self._log, timeout)

    def until_ended(self, timeout: float = GUARD) -> Ending:
        """Wait until the connection has ended, and return how."""
        self.until(lambda: self.ending is not None, timeout)
        assert self.ending is not None
        return self.ending

    def until_eof(self, timeout: float = GUARD) -> None:
        """Wait until the peer has closed it.

        Raises:
            AssertionError: it has not within *timeout* seconds, or it ended otherwise.
        """
        if self.until_ended(timeout) is not Ending.EOF:
            raise AssertionError(f"not the end of file expected: {self!r}")

    # -- for the server --------------------------------------------------------

    def run(self, converse: Callable[[ServedConnection], None]) -> None:
        """Serve the connection to its end, on a thread of its own, and write down how it ended."""
        self._thread = threading.current_thread()
        ending, error = Ending.OURS, None
        try:
            converse(self)
        except ConversationOverError as over:
            ending, error = over.ending, over.error
        finally:
            self._transport.finish(ending)
            with self._changed:
                self.ending, self.error = ending, error
                self._changed.notify_all()

    def order(self, ending: Ending) -> None:
        """Have it ended soon; does not wait for it."""
        self._transport.order(ending)

    def is_gone(self) -> bool:
        """Whether it has ended, or the peer has left and the script has not come to see it."""
        return self.ending is not None or self._transport.is_gone()

    def _end(self, ending: Ending) -> None:
        if self._thread is threading.current_thread():
            raise ConversationOverError(ending)
        self.order(ending)
        self.until_ended()

    def _take_in(self, n: int) -> None:
        data = self._transport.receive(n)
        with self._changed:
            self._log += data
            self._changed.notify_all()
