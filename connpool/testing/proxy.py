"""A real TCP proxy between a pool and a server: the network that fails when the test says so."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from connpool.clock import SystemClock
from connpool.errors import ConfigError
from connpool.model.checks import is_number, is_whole, require_seconds
from connpool.model.endpoint import Endpoint
from connpool.testing.door import Door, Reception
from connpool.testing.relay import Line, Relay, Way, hang_up
from connpool.testing.served import GUARD, Watched
from connpool.testing.transport import CHUNK, LONGEST_NAP, Ending

__all__ = ["FaultProxy"]


class FaultProxy(Watched):
    """A proxy that passes bytes on to *target* until it is told to misbehave.

    Use it as a context manager: it starts on entering and stops on leaving. What
    it is told holds when the call returns. One thread tells it to ``start`` and
    ``stop``; everything else may be called by any. TLS passes through unseen. A
    server that cannot be dialled shows as a reset, since the client is in already.

    The faults are of three kinds, and combine; ``heal`` ends those of the first two:

    - of the door, for whoever dials from now on: ``refuse``, ``reject``, ``black_hole``;
    - of the line, for every connection, one way or (if none is named) both ways:
      ``drop``, ``delay``, ``limit``, ``cut``;
    - of the connections that are open now: ``forget``, ``reset``, ``close``.

    What ``drop`` and ``forget`` keep back is told to neither side: no byte, no FIN,
    no RST. TCP's own keep-alive is still answered, since it ends at the proxy.

    Args:
        target: The server, reached by TCP; settable, for later connections.
        host: Numeric address of this machine to bind, ``"::1"`` for IPv6.

    Attributes:
        accepts: Connections accepted since the first start.
        peak: Most connections that were open at once.
    """

    def __init__(self, target: Endpoint | str, *, host: str = "127.0.0.1") -> None:
        self.target = target
        self.accepts: int = 0
        self.peak: int = 0
        self._door = Door(host)
        self._lines: Mapping[Way, Line] = {way: Line() for way in Way}
        self._relays: list[Relay] = []
        self._changed = threading.Condition()  # guards, and reports, what the proxy's thread changes
        self._orders: list[tuple[Callable[[], None], Future[None]]] = []
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None  # wakes the thread for an order

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        way = f"{self._door.host}:{self.port} to {self.target}"
        return f"<FaultProxy {way}: {self._door.reception.value}, {self.open} open, {self.accepts} accepted>"

    @property
    def target(self) -> Endpoint:
        """The server, reached by TCP; settable, for later connections."""
        return self._target

    @target.setter
    def target(self, target: Endpoint | str) -> None:
        endpoint = Endpoint.of(target)
        if not endpoint.host:
            raise ConfigError(f"a FaultProxy reaches its target by TCP; {endpoint} is none")
        self._target = endpoint

    # -- what it saw -----------------------------------------------------------

    @property
    def endpoint(self) -> Endpoint:
        """Its address, for a pool; with TLS if the target has it. It stays the same after a stop."""
        return Endpoint(self._door.host, self.port, tls=self.target.tls)

    @property
    def port(self) -> int:
        """Its port, given by the system at the first start; 0 before."""
        return self._door.port

    @property
    def open(self) -> int:
        """Connections whose client has neither left nor been thrown out."""
        with self._changed:
            return sum(relay.has_client for relay in self._relays)

    @property
    def bytes_up(self) -> int:
        """Bytes passed on to the server since the first start."""
        with self._changed:  # what has arrived has been counted then
            return self._lines[Way.UP].passed

    @property
    def bytes_down(self) -> int:
        """Bytes passed on to clients since the first start."""
        with self._changed:
            return self._lines[Way.DOWN].passed

    def until_accepts(self, n: int, timeout: float = GUARD) -> None:
        """Wait until *n* connections have been accepted in all."""
        self.until(lambda: self.accepts >= n, timeout)

    def until_open(self, n: int, timeout: float = GUARD) -> None:
        """Wait until exactly *n* connections are open."""
        self.until(lambda: self.open == n, timeout)

    # -- the door: whoever dials from now on -------------------------------------

    def start(self) -> None:
        """Accept, on the same port as before. Connections that are open stay so."""
        if self._thread is not None:
            self._receive(Reception.WELCOME)
            return
        self._door.receive(Reception.WELCOME)
        _, self._bell = pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        name = f"fault-proxy-{self.port}"
        self._thread = threading.Thread(target=self._run, args=pair, name=name, daemon=True)
        self._thread.start()

    def refuse(self) -> None:
        """Refuse whoever dials; the port stays reserved."""
        self._receive(Reception.REFUSE)

    def reject(self) -> None:
        """Accept whoever dials, and reset that connection at once."""
        self._receive(Reception.REJECT)

    def black_hole(self) -> None:
        """Swallow whoever dials: a connect neither succeeds nor fails."""
        self._receive(Reception.BLACK_HOLE)

    def stop(self) -> None:
        """Go away: close everything in order and free the port. ``start`` comes back."""
        if self._thread is not None:
            self._receive(Reception.NONE)
            self._thread.join()
            self._thread = None

    # -- the line: every connection, open or yet to come ---------------------------

    def drop(self, *ways: Way) -> None:
        """Let nothing pass, and tell nobody. What was kept back arrives once it is healed.

        Who dials meanwhile is accepted and meets silence; with ``black_hole``
        besides it is as if a cable were cut. While nothing passes up, no server
        is dialled.
        """
        self._befall(ways, is_dropping=True)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Let every byte, and every end, arrive *seconds* later."""
        require_seconds("seconds", seconds, or_zero=True)
        self._befall(ways, latency=seconds)

    def limit(self, rate: float, *ways: Way) -> None:
        """Let at most *rate* bytes a second pass on each connection."""
        if not is_number(rate) or not 0 < rate < math.inf:
            raise ConfigError(f"rate must be more than 0 bytes a second and finite, got {rate!r}")
        self._befall(ways, rate=rate)

    def cut(self, after: int, *ways: Way, ending: Ending = Ending.OUR_RESET) -> None:
        """End each connection once *after* more bytes have passed on it one way.

        Args:
            after: 0: the first byte that comes ends it, and does not pass.
            ending: ``OUR_RESET``, or ``OURS`` for an end in order.
        """
        if not is_whole(after) or after < 0:
            raise ConfigError(f"after must be a whole number of at least 0, got {after!r}")
        self._befall(ways, budget=after, ending=ending)

    def heal(self) -> None:
        """Pass everything on again, and accept whoever dials. What was forgotten stays so."""
        self._befall((), is_dropping=False, latency=0.0, rate=None, budget=None)
        self._receive(Reception.WELCOME)

    # -- the connections that are open now -----------------------------------------

    def forget(self) -> None:
        """Let nothing pass on them ever again, and tell nobody: a firewall has forgotten them."""

        def do() -> None:
            for relay in self._relays:
                relay.forget()

        self._order(do)

    def reset(self) -> None:
        """Reset them (RST), towards both sides."""
        self._order(lambda: self._finish_all(Ending.OUR_RESET))

    def close(self) -> None:
        """Close them in order (FIN), towards both sides."""
        self._order(lambda: self._finish_all(Ending.OURS))

    # -- how -----------------------------------------------------------------------

    def _receive(self, reception: Reception) -> None:
        def do() -> None:
            self._let_in()  # who came before is received as it was
            self._door.receive(reception)

        self._order(do)

    def _befall(self, ways: Iterable[Way], **faults: object) -> None:
        def do() -> None:
            for way in ways or Way:
                for name, value in faults.items():
                    setattr(self._lines[way], name, value)
                if "budget" in faults:
                    for relay in self._relays:
                        relay.pipes[way].budget = self._lines[way].budget

        self._order(do)

    def _order(self, action: Callable[[], None]) -> None:
        """Have *action* done on the proxy's thread, the only one that touches its sockets."""
        done: Future[None] = Future()
        with self._changed:
            if self._bell is None:
                raise AssertionError(f"it does not run: {self!r}")
            self._orders.append((action, done))
            with contextlib.suppress(BlockingIOError):  # it rings already
                self._bell.send(b"!")
        done.result(GUARD)

    def _run(self, ears: socket.socket, bell: socket.socket) -> None:
        with ears, bell:
            while self._door.reception is not Reception.NONE:
                poll = select.poll()
                poll.register(ears, select.POLLIN)
                if (door := self._door.fileno()) is not None:
                    poll.register(door, select.POLLIN)
                for relay in self._relays:
                    for fd, events in relay.interests():
                        poll.register(fd, events)
                ready = dict(poll.poll(self._patience_ms()))
                with self._changed:
                    self._obey(ears)
                    self._let_in()
                    now = SystemClock.now()
                    for relay in self._relays:
                        relay.turn(ready, now)
                    self._relays = [relay for relay in self._relays if not relay.is_over]
                    self._changed.notify_all()
        with self._changed:
            self._bell = None
            for _, done in self._orders:  # of other threads, too late
                done.set_exception(AssertionError(f"it does not run: {self!r}"))
            self._orders.clear()
            self._finish_all(Ending.OURS)
            self._changed.notify_all()

    def _patience_ms(self) -> float | None:
        """How long nothing is due."""
        due = min((at for relay in self._relays if (at := relay.next_at) is not None), default=None)
        return None if due is None else min(max(0.0, due - SystemClock.now()), LONGEST_NAP) * 1000

    def _obey(self, ears: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            ears.recv(CHUNK)
        while self._orders and self._door.reception is not Reception.NONE:
            action, done = self._orders.pop(0)
            try:
                action()
                done.set_result(None)
            except Exception as failed:  # noqa: BLE001 - who gave the order gets it
                done.set_exception(failed)

    def _let_in(self) -> None:
        """Accept everybody at the door."""
        while self._door.fileno() is not None and (client := self._door.accept()) is not None:
            self.accepts += 1
            try:
                if self._door.reception is Reception.REJECT:
                    raise ConnectionRefusedError("nobody is let in")
                relay = Relay(client, (self.target.host, self.target.port), self._lines)
            except OSError:  # or no descriptor is free for the way to the server
                hang_up(client, Ending.OUR_RESET)
                continue
            self._relays.append(relay)
            self.peak = max(self.peak, self.open)

    def _finish_all(self, ending: Ending) -> None:
        for relay in self._relays:
            relay.finish(ending)
        self._relays = []
