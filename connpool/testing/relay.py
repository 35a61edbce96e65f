"""One connection through the fault proxy: two sockets, and what is on its way between them."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import define

from connpool.testing.transport import CHUNK, GONE, Ending

MOST_HELD: Final = 1_048_576  # bytes on their way; a sender that is faster waits, as on a real line
TICK: Final = 0.02  # seconds between two portions of a limited rate
LEFT: Final = GONE | select.POLLHUP | select.POLLERR
RESET: Final = struct.pack("ii", 1, 0)


class Way(enum.Enum):
    """The two ways through the proxy."""

    UP = "to the server"
    DOWN = "to the client"


@define
class Line:
    """What befalls everything that goes one way, and how many bytes have got through."""

    is_dropping: bool = False
    latency: float = 0.0  # seconds
    rate: float | None = None  # bytes a second, of one connection
    budget: int | None = None  # bytes of one connection, until it is cut
    ending: Ending = Ending.OUR_RESET  # how it is cut
    passed: int = 0

    def heal(self) -> None:
        """Let everything pass at once."""
        self.is_dropping, self.latency, self.rate, self.budget = False, 0.0, None, None


def _set_up(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)


def hang_up(sock: socket.socket, ending: Ending) -> None:
    """Close *sock*, which does not block, in the way that *ending* says."""
    with contextlib.suppress(OSError):  # it is gone, or was never connected: so much the better
        if ending is Ending.OUR_RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(CHUNK):  # unread bytes would turn the close into a reset
                pass
    sock.close()


class Pipe:
    """One way of one connection. What is held has been read, and is not yet passed on."""

    def __init__(self, line: Line, source: socket.socket, sink: socket.socket) -> None:
        self.line = line
        self.budget = line.budget
        self.is_forgotten = False
        self.is_blocked = False  # the sink takes no more at present
        self._source = source
        self._sink = sink
        self._held: deque[tuple[float, bytes | Ending]] = deque()
        self._n_held = 0
        self._has_ended = False  # nothing more comes from the source
        self._free_at = 0.0  # when the rate allows the next byte

    @property
    def is_over(self) -> bool:
        """Whether the end of the file has been passed on."""
        return self._has_ended and not self._held

    @property
    def is_silent(self) -> bool:
        """Whether nothing passes: not a byte, and no end either."""
        return self.is_forgotten or self.line.is_dropping

    @property
    def wants_more(self) -> bool:
        """Whether the source is to be read."""
        return not (self.is_silent or self._has_ended) and self._n_held < MOST_HELD

    @property
    def next_at(self) -> float | None:
        """When the next piece may go on; None: nothing is held, or nothing may."""
        if self.is_silent or not self._held:
            return None
        due = self._held[0][0] if self.line.latency else 0.0  # a healed line hurries
        return due if self.line.rate is None else max(due, self._free_at)

    def read(self, now: float) -> None:
        """Take in what has come."""
        while self.wants_more:
            try:
                data = self._source.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                self.end(Ending.RESET, now)
                return
            if not data:
                self.end(Ending.EOF, now)
                return
            self._held.append((now + self.line.latency, data))
            self._n_held += len(data)

    def end(self, ending: Ending, now: float) -> None:
        """Let the source's end follow what it sent before."""
        self._has_ended = True
        self._held.append((now + self.line.latency, ending))

    def write(self, now: float) -> Ending | None:
        """Pass on what is due; returns how that ends the whole connection, if it does.

        Raises:
            OSError: the sink is gone.
        """
        while (due := self.next_at) is not None and due <= now:
            _, piece = self._held[0]
            if piece is Ending.EOF:
                self._sink.shutdown(socket.SHUT_WR)
            elif isinstance(piece, Ending):
                return Ending.OUR_RESET
            else:
                try:
                    n = self._sink.send(piece[: self._portion()])
                except BlockingIOError:
                    self.is_blocked = True
                    return None
                self._count(n, now)
                if self.budget == 0:
                    return self.line.ending
                if n < len(piece):
                    self._held[0] = (due, piece[n:])
                    continue
            self._held.popleft()
        return None

    def give_up(self) -> None:
        """The sink is gone: whatever comes is for nobody."""
        self._held.clear()
        self._n_held = 0
        self._has_ended = True

    def _portion(self) -> int | None:
        """How many bytes may go at once."""
        if self.line.rate is None:
            return self.budget
        portion = max(1, int(self.line.rate * TICK))
        return portion if self.budget is None else min(portion, self.budget)

    def _count(self, n: int, now: float) -> None:
        self.line.passed += n
        self._n_held -= n
        if self.budget is not None:
            self.budget -= n
        if self.line.rate is not None:
            self._free_at = now + n / self.line.rate


class Relay:
    """A client that was accepted, the server that was dialled for it, and the two ways between."""

    def __init__(self, client: socket.socket, target: tuple[str, int], lines: Mapping[Way, Line]) -> None:
        _set_up(client)  # first: some systems refuse that of one that has left, and nothing else is open yet
        self.has_client = True  # which has neither left nor been thrown out
        self.is_over = False
        self._target = target
        self._client = client
        self._server = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        _set_up(self._server)
        self._is_dialling = self._is_connected = False
        self._up = Pipe(lines[Way.UP], client, self._server)
        self._down = Pipe(lines[Way.DOWN], self._server, client)

    @property
    def pipes(self) -> Mapping[Way, Pipe]:
        """Its two ways."""
        return {Way.UP: self._up, Way.DOWN: self._down}

    @property
    def next_at(self) -> float | None:
        """When it has something to do though nothing happens; None: never."""
        instants = [pipe.next_at for pipe in (self._up, self._down) if not pipe.is_blocked]
        return min((at for at in instants if at is not None), default=None)

    def interests(self) -> Iterator[tuple[int, int]]:
        """Descriptors and the events worth waking for. Ends that may not be told are not asked for."""
        client = GONE if self.has_client else 0
        server = select.POLLOUT if self._is_dialling else 0
        if self._is_connected:
            client |= select.POLLIN if self._up.wants_more else 0
            client |= select.POLLOUT if self._down.is_blocked else 0
            server |= select.POLLIN if self._down.wants_more else 0
            server |= select.POLLOUT if self._up.is_blocked else 0
        if client:
            yield self._client.fileno(), client
        if server:
            yield self._server.fileno(), server

    def turn(self, ready: Mapping[int, int], now: float) -> None:
        """Do whatever can be done without waiting."""
        client, server = ready.get(self._client.fileno(), 0), ready.get(self._server.fileno(), 0)
        if client & LEFT:
            self.has_client = False
        if not self._is_connected:
            self._dial(server)
            return
        for pipe, readable, writable in ((self._up, client, server), (self._down, server, client)):
            if writable:
                pipe.is_blocked = False
            if readable:
                pipe.read(now)
        self._pass_on(now)

    def finish(self, ending: Ending) -> None:
        """Close both sides, in the way that *ending* says."""
        self.is_over, self.has_client = True, False
        for sock in (self._client, self._server):
            hang_up(sock, ending)

    def forget(self) -> None:
        """Let nothing pass ever again."""
        self._up.is_forgotten = self._down.is_forgotten = True

    def _dial(self, events: int) -> None:
        """Go on with the dial to the server, unless nothing may pass that way."""
        try:
            if not self._is_dialling and not self._up.is_silent:
                self._is_dialling = True
                self._server.connect(self._target)
            elif not events:
                return
            elif error := self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "the server cannot be dialled")
            self._is_dialling, self._is_connected = False, True
        except BlockingIOError:
            pass  # under way
        except OSError:
            self.finish(Ending.OUR_RESET)

    def _pass_on(self, now: float) -> None:
        for pipe, other in ((self._up, self._down), (self._down, self._up)):
            try:
                ending = pipe.write(now)
            except OSError:  # the sink left: its own way tells the source, in its time
                pipe.give_up()
                other.end(Ending.RESET, now)
                continue
            if ending is not None:
                self.finish(ending)
                return
        if self._up.is_over and self._down.is_over:
            self.finish(Ending.OURS)
