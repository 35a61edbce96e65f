"""A real server on this machine that does as its script says."""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import ssl
import threading
from functools import partial
from types import TracebackType
from typing import Final

from connpool.model.endpoint import Endpoint
from connpool.testing.door import fill_queue
from connpool.testing.served import GUARD, Ending, ServedConnection, Watched, record_names
from connpool.testing.steps import Echo, NoHandshake, Script, Step, steps_of

__all__ = ["ScriptedServer"]

BACKLOG: Final = 128
ACCEPT_PAUSE_MS: Final = 10


class Mode(enum.Enum):
    """How the server receives whoever dials."""

    STOPPED = "stopped"  # nothing is bound
    SERVING = "serving"
    REFUSING = "refusing"  # bound, not listening
    BLACK_HOLE = "a black hole"  # listening, with its queue full


class ScriptedServer(Watched):
    """A server whose behaviour is a script; see ``connpool.testing`` for the steps.

    Use it as a context manager: it starts on entering, and on leaving it stops
    and raises what a step of its own raised. One thread drives it (``start``,
    ``stop``, ``refuse``, ``black_hole``); everything else may be called by any.

    Args:
        script: A step or a sequence of steps; settable, for later connections.
        tls: Context for TLS from the first byte; None: plain.
        unix: Path of a Unix socket to serve instead of TCP.
        host: Numeric address of this machine to bind, ``"::1"`` for IPv6.

    Attributes:
        accepts: Connections accepted since the first start.
        peak: Most connections that were open at once. One whose peer had left when
            the next was accepted does not count, even if its script has yet to notice.
        connections: Each ``ServedConnection``, in the order of acceptance.
    """

    def __init__(
        self,
        *,
        script: Script = Echo(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        unix: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.script = script
        self.peak: int = 0
        self.connections: list[ServedConnection] = []
        self._live: list[ServedConnection] = []  # those of them that may be open
        self._tls = tls
        self._path = None if unix is None else os.fspath(unix)
        self._host = host
        self._port = 0
        self._mode = Mode.STOPPED
        self._changed = threading.Condition()  # guards, and reports, what connections and counts become
        self._errors: list[Exception] = []
        self._threads: list[threading.Thread] = []
        self._acceptor: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._fillers: list[socket.socket] = []  # keep the queue of a black hole full
        self._bell: socket.socket | None = None  # its closing ends the acceptor
        if tls is not None:
            record_names(tls)

    def __enter__(self) -> ScriptedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except ExceptionGroup:
            if exc is None:  # the test's own failure comes first
                raise

    def __repr__(self) -> str:
        where = self._path or f"{self._host}:{self._port}"
        return f"<ScriptedServer {where}: {self._mode.value}, {self.open} open, {self.accepts} accepted>"

    # -- what it saw -----------------------------------------------------------

    @property
    def endpoint(self) -> Endpoint:
        """Its address, for a pool. It stays the same when the server stops and comes back."""
        if self._path is not None:
            return Endpoint.unix(self._path)
        return Endpoint(self._host, self.port, tls=self._tls is not None)

    @property
    def port(self) -> int:
        """Its port, given by the system at the first start; 0 before and on a Unix socket."""
        return self._port

    @property
    def accepts(self) -> int:
        """Connections accepted since the first start."""
        return len(self.connections)

    @property
    def open(self) -> int:
        """Connections accepted and not yet ended."""
        with self._changed:
            return sum(connection.ending is None for connection in self._live)

    @property
    def received(self) -> list[bytes]:
        """The bytes read from each connection, in the order of acceptance."""
        with self._changed:
            return [connection.received for connection in self.connections]

    @property
    def closes(self) -> list[Ending | None]:
        """How each connection ended, in the order of acceptance; None: it is open."""
        with self._changed:
            return [connection.ending for connection in self.connections]

    def until_accepts(self, n: int, timeout: float = GUARD) -> ServedConnection:
        """Wait until *n* connections have been accepted in all, and return the *n*-th."""
        self.until(lambda: self.accepts >= n, timeout)
        return self.connections[n - 1]

    def until_open(self, n: int, timeout: float = GUARD) -> None:
        """Wait until exactly *n* connections are open."""
        self.until(lambda: self.open == n, timeout)

    # -- what the test makes it do ---------------------------------------------

    def start(self) -> None:
        """Serve, on the same port as before. Connections that are open stay so."""
        listener = self._renew()
        listener.listen(BACKLOG)
        listener.setblocking(False)
        ears, self._bell = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept_all, args=(listener, ears), name=f"scripted-server-{self._port}", daemon=True
        )
        self._acceptor.start()
        self._mode = Mode.SERVING

    def refuse(self) -> None:
        """Refuse whoever dials from now on; the port stays reserved."""
        self._renew()
        self._mode = Mode.REFUSING

    def black_hole(self) -> None:
        """Swallow whoever dials from now on: a connect neither succeeds nor fails."""
        listener = self._renew()
        listener.listen(0)
        filler = socket.socket(listener.family)
        self._fillers.append(filler)
        fill_queue(listener, filler)
        self._mode = Mode.BLACK_HOLE

    def kill(self) -> None:
        """Reset every connection it has accepted. Returns when that is done; others are served as before.

        A client may have connected before the server has accepted: ``until_accepts`` tells.
        """
        with self._changed:
            doomed = list(self._live)
        for connection in doomed:
            connection.order(Ending.OUR_RESET)
        self.until(lambda: all(connection.ending for connection in doomed))

    def stop(self) -> None:
        """Go away: close everything in order, end every thread. ``start`` comes back.

        Raises:
            ExceptionGroup: what steps of the script raised.
            AssertionError: a step of the test's own did not end.
        """
        self._fall_silent()
        self._let_go()
        for connection in self._live:
            connection.order(Ending.OURS)
        for thread in self._threads:
            thread.join(GUARD)
            if thread.is_alive():
                raise AssertionError(f"a script does not end: {thread.name}")
        self._threads.clear()
        errors, self._errors = self._errors, []
        if errors:
            raise ExceptionGroup("steps of a script failed", errors)

    # -- how -------------------------------------------------------------------

    def _renew(self) -> socket.socket:
        """Bind a new socket before the old one lets the address go: at no moment can others take it."""
        self._fall_silent()
        if self._path is not None:
            self._let_go()
        old, self._socket = self._socket, None
        try:
            return self._bind(is_shared=old is not None)
        finally:
            if old is not None:
                old.close()

    def _bind(self, *, is_shared: bool = False) -> socket.socket:
        """Have a socket hold the address, beside another of ours if *is_shared*; it does not listen yet."""
        if self._path is not None:
            sock = socket.socket(socket.AF_UNIX)
        else:
            sock = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
        try:
            sock.bind((self._host, self._port) if self._path is None else self._path)
        except OSError:
            sock.close()
            raise
        self._socket = sock
        if self._path is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # for the next of ours
            self._port = sock.getsockname()[1]
        return sock

    def _fall_silent(self) -> None:
        """Accept nobody any more."""
        self._mode = Mode.STOPPED
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        if self._acceptor is not None:
            self._acceptor.join()
            self._acceptor = None
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if self._path is not None:
                with contextlib.suppress(FileNotFoundError):  # the test has removed it
                    os.unlink(self._path)

    def _accept_all(self, listener: socket.socket, ears: socket.socket) -> None:
        anything, bell = select.poll(), select.poll()
        anything.register(listener, select.POLLIN)
        anything.register(ears, select.POLLIN)
        bell.register(ears, select.POLLIN)
        with ears:
            is_over = False
            while not is_over:
                is_over = ears.fileno() in dict(anything.poll())
                try:
                    while True:
                        self._admit(listener.accept()[0])
                except BlockingIOError:
                    pass  # the queue is empty: whoever connected before the end is served
                except OSError:  # who dialled has left again, or no descriptor is free
                    bell.poll(ACCEPT_PAUSE_MS)

    def _admit(self, sock: socket.socket) -> None:
        """Count a new connection and serve it on a thread of its own."""
        try:
            connection = ServedConnection(len(self.connections) + 1, sock, self._changed)
        except OSError:
            sock.close()
            raise
        steps = steps_of(self.script)
        with self._changed:
            self._live = [earlier for earlier in self._live if earlier.ending is None]
            self.peak = max(self.peak, 1 + sum(not earlier.is_gone() for earlier in self._live))
            self._live.append(connection)
            self.connections.append(connection)
            thread = threading.Thread(
                target=self._serve,
                args=(connection, steps),
                name=f"scripted-server-{self._port}-{connection.number}",
                daemon=True,
            )
            self._threads.append(thread)
            self._changed.notify_all()
        thread.start()

    def _serve(self, connection: ServedConnection, steps: tuple[Step, ...]) -> None:
        try:
            connection.run(partial(self._converse, steps))
        except Exception as bug:  # noqa: BLE001 - stop() raises it where the test sees it
            self._errors.append(bug)

    def _converse(self, steps: tuple[Step, ...], connection: ServedConnection) -> None:
        if self._tls is not None and not isinstance(steps[0], NoHandshake):
            connection.start_tls(self._tls)
        for step in steps:
            step(connection)
