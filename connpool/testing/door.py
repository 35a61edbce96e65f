"""A listening socket that can refuse, or swallow, whoever dials, and comes back on the same port."""

from __future__ import annotations

import enum
import socket
from typing import Final

BACKLOG: Final = 512
PATIENCE: Final = 0.2  # seconds for a connection within this machine; it is made at once, or not at all


class Reception(enum.Enum):
    """How whoever dials is received."""

    NONE = "stopped"  # nothing is bound
    WELCOME = "accepting"
    REJECT = "rejecting"  # accepted, to be reset at once
    REFUSE = "refusing"  # bound, not listening
    BLACK_HOLE = "a black hole"  # listening, with its queue full


class Door:
    """An address of this machine, given by the system at first and kept from then on.

    Args:
        host: Numeric; ``"::1"`` for IPv6.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.port = 0
        self.reception = Reception.NONE
        self._listener: socket.socket | None = None
        self._filler: socket.socket | None = None  # keeps the queue of a black hole full

    def receive(self, reception: Reception) -> None:
        """Receive in this way from now on."""
        self._shut()
        if reception is not Reception.NONE:
            self._listener = listener = self._bind()
            if reception is Reception.BLACK_HOLE:
                listener.listen(0)
                self._filler = socket.socket(listener.family)
                fill_queue(listener, self._filler)
            elif reception is not Reception.REFUSE:
                listener.listen(BACKLOG)
        self.reception = reception

    def fileno(self) -> int | None:
        """What to poll for somebody at the door; None: nobody is let in."""
        if self._listener is None or self.reception not in (Reception.WELCOME, Reception.REJECT):
            return None
        return self._listener.fileno()

    def accept(self) -> socket.socket | None:
        """Let the next one in; None: nobody waits, or no descriptor is free."""
        assert self._listener is not None
        try:
            return self._listener.accept()[0]
        except OSError:
            return None

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((self.host, self.port))
        except OSError:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        return sock

    def _shut(self) -> None:
        self.reception = Reception.NONE
        for sock in (self._filler, self._listener):
            if sock is not None:
                sock.close()
        self._filler = self._listener = None


def fill_queue(listener: socket.socket, filler: socket.socket) -> None:
    """Let *filler* stand in the queue of *listener*, which has one place."""
    filler.settimeout(PATIENCE)
    try:
        filler.connect(listener.getsockname())  # nobody takes it out: the queue is full
    except TimeoutError:
        pass  # somebody came first, and fills it as well
