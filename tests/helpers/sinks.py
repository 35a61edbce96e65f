"""The receivers of a broadcaster: servers that write down every line, and fail when told to."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from connpool import (
    Broadcaster,
    Connection,
    ConnectionPool,
    Lines,
    LinkEvent,
    LinkState,
    MemorySpool,
    SocketConnector,
)
from connpool.testing import ScriptedServer, ServedConnection
from tests.helpers.switchboard import until

GUARD: Final = 10.0  # seconds
QUICK: Final = 0.02  # seconds: the first wait of the back-off in tests on real time
MUCH: Final = 65_536  # bytes that no deaf peer's buffers take many of


class Sink(ScriptedServer):
    """A server that takes lines.

    Args:
        tls: As for a ``ScriptedServer``.
        answers: Whether it acknowledges each line, by ``b"got "`` and the line.
        is_tight: Whether the system keeps little for it: soon it waits until its answers are read.

    Attributes:
        sessions: The whole lines of each connection, in the order of acceptance.
        is_deaf: Set, it reads nothing, on any connection.
        last: Lines after which, all in all, it resets the connection that brought the last; None: none.
    """

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, answers: bool = False, is_tight: bool = False
    ) -> None:
        super().__init__(script=self._take_lines, tls=tls)
        self.answers = answers
        self._is_tight = is_tight
        self.sessions: list[list[bytes]] = []
        self.is_deaf = False
        self.last: int | None = None
        self._noting = threading.Lock()

    @property
    def lines(self) -> list[bytes]:
        """All whole lines, one connection after the other."""
        with self._noting:
            return [line for session in self.sessions for line in session]

    @property
    def n_lines(self) -> int:
        with self._noting:
            return sum(map(len, self.sessions))

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that a deaf server has not read."""
        sockets = [connection._transport.sock for connection in self.connections if connection.ending is None]
        return bool(select.select(sockets, [], [], 0)[0])

    def kill(self) -> None:
        """Reset every connection, those too that the system has made and this server is about to accept."""
        until(lambda: established(self.port) <= self.open, "the acceptance of all connections")
        super().kill()

    def until_lines(self, n: int) -> list[bytes]:
        """Wait until there are *n* lines at least, and return all."""
        until(lambda: self.n_lines >= n, f"{n} lines, of which {self.n_lines} have come,")
        return self.lines

    def until_has(self, *lines: bytes) -> None:
        """Wait for each of *lines*."""
        until(lambda: set(lines) <= set(self.lines), f"the coming of {lines}")

    def _take_lines(self, connection: ServedConnection) -> None:
        mine: list[bytes] = []
        with self._noting:
            self.sessions.append(mine)
        if self._is_tight:
            squeeze(connection._transport.sock)
        rest = b""
        while True:
            while self.is_deaf:
                connection.pause(0.005)
            *whole, rest = (rest + connection.receive()).split(b"\n")
            for line in whole:
                with self._noting:
                    mine.append(line)
                    is_last = self.last is not None and sum(map(len, self.sessions)) >= self.last
                if is_last:
                    self.last = None
                    connection.reset()
            if self.answers and whole:
                connection.send(b"".join(b"got %b\n" % line for line in whole))


def acknowledged(conn: Connection, message: bytes) -> None:
    """A ``confirm`` for sinks that answer; checks that the answer is the one to *message*."""
    answer = conn.recv_until(b"\n", 1_000_000, timeout=GUARD)
    assert answer == b"got %b\n" % message, (answer, message)


def all_alive(sender: Broadcaster) -> None:
    """Wait until each link of *sender* is connected."""
    until(lambda: all(link.state is LinkState.ALIVE for link in sender.links()), "the life of all")


def kill(server: Sink) -> None:
    """Let it vanish: connections are reset, with what is unread in them, and who dials is refused."""
    server.refuse()
    server.kill()


def established(port: int) -> int:
    """How many connections with *port* as their own the system has that neither side has ended."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and row[1].endswith(f":{port:04X}") for row in rows)


def squeeze(sock: socket.socket) -> None:
    """Have the system keep little of what *sock* has to send, and of what it has to read."""
    for way in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, way, 16_384)


def tight(tls: ssl.SSLContext | None = None) -> SocketConnector:
    """A connector for whose connections the system keeps little in both directions."""
    return SocketConnector(tls=tls, handshake=lambda conn: squeeze(conn.socket))


def narrow() -> SocketConnector:
    """A connector for whose connections the system keeps little: soon a peer that does not read is felt."""
    return SocketConnector(
        handshake=lambda conn: conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    )


@contextmanager
def broadcasting(
    *members: Any, spool: Any = ..., framing: Any = ..., pool_settings: Any = None, **settings: Any
) -> Iterator[Broadcaster]:
    """A broadcaster to *members* (servers, endpoints, or ``"||"`` between groups); all is closed at the end.

    It has a spool in memory unless told otherwise, tells lines apart, and tries dead members often.
    """
    options = {
        "max_size": 20,
        "blacklist_initial": QUICK,
        "blacklist_max": 4 * QUICK,
        "name": "sensors",
        **(pool_settings or {}),
    }
    with ConnectionPool(route_of(*members), **options) as pool:
        broadcaster = Broadcaster(
            pool,
            spool=MemorySpool() if spool is ... else spool,
            framing=Lines() if framing is ... else framing,
            **settings,
        )
        try:
            yield broadcaster
        finally:
            broadcaster.close(GUARD if sys.exception() is None else 0.1)
        until(lambda: is_left(pool), "the end of all connections")


def is_left(pool: ConnectionPool) -> bool:
    """Whether nobody has anything of *pool*; what was opened just as its user left may lie idle."""
    stats = pool.stats()
    return stats.size == stats.idle


def route_of(*members: Any) -> str:
    """A route's text: members joined by "and", but for operators that are given as such."""
    text = ""
    for member in members:
        name = str(member) if isinstance(member, str) else str(getattr(member, "endpoint", member))
        is_joined = text and name not in ("||", ",") and not text.endswith(("|| ", ", "))
        text += f"&& {name} " if is_joined else f"{name} "
    return text


def numbered(n: int, begin: int = 0, who: str = "m") -> list[bytes]:
    """*n* messages that tell their number."""
    return [f"{who}-{number}".encode() for number in range(begin, begin + n)]


def by_sender(lines: Iterable[bytes]) -> dict[bytes, list[int]]:
    """The numbers of each sender's lines, in the order of arrival."""
    found: dict[bytes, list[int]] = {}
    for line in lines:
        who, number = line.split(b"-")[:2]
        found.setdefault(who, []).append(int(number))
    return found


def check_ascending(lines: Iterable[bytes]) -> None:
    """Check that each sender's lines are in order, with none twice."""
    for who, numbers in by_sender(lines).items():
        assert numbers == sorted(set(numbers)), (who, numbers)


def first_comings(lines: Iterable[bytes]) -> list[bytes]:
    """*lines* without those that have come before."""
    return list(dict.fromkeys(lines))


class Diary:
    """A handler that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[LinkEvent, str]] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, broadcaster: Broadcaster, event: LinkEvent, endpoint: object) -> None:
        self.told.append((event, str(endpoint)))
        self.threads.append(threading.current_thread())

    def of(self, server: Any) -> list[LinkEvent]:
        """The events of one endpoint."""
        wanted = str(getattr(server, "endpoint", server))
        return [event for event, endpoint in list(self.told) if endpoint == wanted]

    def count(self, event: LinkEvent) -> int:
        return sum(each is event for each, _ in list(self.told))

    def until(self, n: int) -> None:
        """Wait until *n* events were told at least."""
        until(lambda: len(self.told) >= n, f"the telling of {n} events: {self.told}")


class SinkProcess:
    """A sink in a process of its own, that can be killed. It writes each line to a file, then answers it."""

    PROGRAM: Final = textwrap.dedent(
        """
        import os, socket, sys, threading
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=False)
        log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        print(listener.getsockname()[1], flush=True)
        def serve(conn):
            rest = b""
            try:
                while data := conn.recv(65536):
                    *whole, rest = (rest + data).split(b"\\n")
                    if whole:
                        os.write(log, b"".join(line + b"\\n" for line in whole))
                        conn.sendall(b"".join(b"got " + line + b"\\n" for line in whole))
            except OSError:
                pass
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        """
    )

    def __init__(self, log: Path) -> None:
        self.log = log
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[bytes]:
        return self.log.read_bytes().splitlines() if self.log.exists() else []

    def until_lines(self, n: int) -> list[bytes]:
        until(lambda: len(self.lines) >= n, f"{n} lines")
        return self.lines

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", self.PROGRAM, str(self.port), str(self.log)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it by SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> SinkProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """Let *process* stand still: its system still takes what its buffers hold, and it does nothing."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def refused() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def fill(broadcaster: Broadcaster, is_enough: Callable[[], object], line: bytes = b"f" * MUCH) -> int:
    """Broadcast *line* until *is_enough*. Returns how many times."""
    for n in range(1, 1_000):
        broadcaster.broadcast(line)
        if is_enough():
            return n
    raise AssertionError("a thousand messages were not enough")
