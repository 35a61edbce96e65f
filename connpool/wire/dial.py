"""Opening TCP and Unix connections: every address of a name, raced as RFC 8305 says (happy eyeballs)."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any, Final

from attrs import frozen

from connpool.clock import now
from connpool.errors import ConnectError, ConnectTimeoutError
from connpool.model.endpoint import Endpoint
from connpool.wire.look import address_text
from connpool.wire.resolve import AddressInfo, resolve
from connpool.wire.waiting import LOCAL_ERRORS, Budget, milliseconds, pause

__all__ = ["ATTEMPT_DELAY", "DialOptions", "interleave", "open_tcp", "open_unix"]

# RFC 8305, section 5: seconds before the next address is tried beside the ones under way.
ATTEMPT_DELAY: Final = 0.25

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EINTR, errno.EALREADY})
_OURS: Final = LOCAL_ERRORS | {errno.EAGAIN}  # connect(2): no room for another route, or no own port
_KEEP_IDLE: Final[int] = getattr(socket, "TCP_KEEPIDLE", 0) or getattr(socket, "TCP_KEEPALIVE", 0)  # macOS


@frozen
class DialOptions:
    """How TCP sockets are set up before they connect.

    Attributes:
        nodelay: Send small pieces at once (no Nagle).
        keepalive: True: TCP keep-alive as the system is set; a tuple: after so
            many seconds of silence, every so many seconds, so many probes.
        source_address: ``(host, port)`` to connect from; port 0: any.
    """

    nodelay: bool = True
    keepalive: bool | tuple[int, int, int] | None = None
    source_address: tuple[str, int] | None = None

    def apply(self, sock: socket.socket) -> None:
        """Set *sock* up."""
        if self.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if isinstance(self.keepalive, tuple):
            names = (_KEEP_IDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            for name, value in zip(names, self.keepalive, strict=True):
                sock.setsockopt(socket.IPPROTO_TCP, name, value)
        if self.source_address is not None:
            sock.bind(self.source_address)


def open_tcp(budget: Budget, options: DialOptions) -> socket.socket:
    """Connect to the first address of the budget's endpoint that answers.

    The families take turns, beginning with the resolver's first choice. Each
    address gets ``ATTEMPT_DELAY`` before the next joins in, which it also does
    as soon as one fails. The first to stand wins; the others are closed.

    Returns:
        A connected socket in blocking mode, owned by the caller.

    Raises:
        ConnectError: Every address failed. ``__cause__`` is the error, or the
            group of all; ``local`` if every one arose on this machine.
        ConnectTimeoutError: The time is up, looking the name up included.
        CancelledError: The dial was cancelled.

    Source: RFC 8305, sections 4 and 5.
    """
    infos = resolve(budget)
    if options.source_address is not None:
        wanted = socket.AF_INET6 if ":" in options.source_address[0] else socket.AF_INET
        infos = [info for info in infos if info[0] == wanted]
        if not infos:
            raise ConnectError(
                f"{budget.endpoint}: no address of the family of source address {options.source_address[0]}",
                endpoint=budget.endpoint,
                local=True,
            )
    return _Race(interleave(infos), options).run(budget)


def interleave(infos: Iterable[AddressInfo]) -> list[AddressInfo]:
    """Let the address families take turns; within each the order stays (RFC 8305, section 4)."""
    families: dict[int, list[AddressInfo]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    turns = zip_longest(*families.values())
    return [info for info in chain.from_iterable(turns) if info is not None]


class _Race:
    """Attempts at the addresses of one endpoint, run by one thread."""

    def __init__(self, infos: list[AddressInfo], options: DialOptions) -> None:
        self._waiting = deque(infos)
        self._options = options
        self._running: dict[int, tuple[socket.socket, str]] = {}  # by descriptor
        self._poll = select.poll()
        self._next_at = now()
        self._errors: list[OSError] = []
        self._are_ours = True  # each of them arose on this machine

    def run(self, budget: Budget) -> socket.socket:
        try:
            while True:
                winner = self._start_what_is_due() or self._wait_for_one(budget)
                if winner is not None:
                    winner.settimeout(None)
                    return winner
                if not self._running and not self._waiting:
                    raise _all_failed(budget.endpoint, self._errors, local=self._are_ours)
        except ConnectTimeoutError as exc:
            if self._errors:
                raise exc from _together(budget.endpoint, self._errors)
            raise
        finally:
            for sock, _ in self._running.values():
                sock.close()

    def _start_what_is_due(self) -> socket.socket | None:
        """Begin with the next address if its time has come. Returns what is connected already."""
        if not self._waiting or (self._running and now() < self._next_at):
            return None
        self._next_at = now() + ATTEMPT_DELAY
        family, kind, protocol, _, address = self._waiting.popleft()
        name = address_text(address) or "?"
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as exc:
            self._failed(exc, name)
            return None
        try:
            self._running[sock.fileno()] = sock, name
            sock.setblocking(False)
            if not self._prepare(sock, name):
                return None
            error = sock.connect_ex(address)
            if error in _UNDER_WAY:
                self._poll.register(sock, select.POLLOUT)
                return None
            return self._settle(sock.fileno(), error)
        except OSError as exc:
            self._drop(sock.fileno())
            self._failed(exc, name)
            return None

    def _prepare(self, sock: socket.socket, name: str) -> bool:
        """Set *sock* up. False: that is not possible, and no fault of the address *name*."""
        try:
            self._options.apply(sock)
        except OSError as exc:
            self._drop(sock.fileno())
            source = self._options.source_address
            self._failed(exc, name if source is None else f"{name} from {address_text(source)}", is_ours=True)
            return False
        return True

    def _wait_for_one(self, budget: Budget) -> socket.socket | None:
        """Wait until an attempt is decided or the next is due. Returns the winner, if there is one."""
        if not self._running:
            budget.check(self._phase())
            return None
        rest = max(self._next_at - now(), 0.0) if self._waiting else float("inf")
        for fd, _ in budget.wait(self._decided, self._phase(), at_most=rest):
            sock, _ = self._running[fd]
            winner = self._settle(fd, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            if winner is not None:
                return winner
        return None

    def _decided(self, seconds: float | None) -> list[tuple[int, int]]:
        return self._poll.poll(milliseconds(seconds))

    def _settle(self, fd: int, error: int) -> socket.socket | None:
        """Take the attempt out of the race: it is the winner unless it has an *error*."""
        sock, name = self._running[fd]
        if error == 0 and _is_connected_to_itself(sock):
            error = errno.ECONNREFUSED
        if error == 0:
            del self._running[fd]
            return sock
        self._drop(fd)
        self._failed(OSError(error, os.strerror(error)), name)
        return None

    def _drop(self, fd: int) -> None:
        sock, _ = self._running.pop(fd)
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # it was decided before it had to be waited for
        sock.close()

    def _failed(self, exc: OSError, name: str, *, is_ours: bool = False) -> None:
        self._are_ours = self._are_ours and (is_ours or exc.errno in _OURS)
        self._errors.append(OSError(exc.errno, exc.strerror or str(exc), name))
        self._next_at = now()  # the next address need not wait

    def _phase(self) -> str:
        return f"connecting to {', '.join(name for _, name in self._running.values()) or 'the next address'}"


def _is_connected_to_itself(sock: socket.socket) -> bool:
    """Whether the kernel picked the dialled port as the local one: nobody listens there.

    Happens now and then to who dials a dead local port again and again.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False  # reset at once: the first input or output tells


def _together(endpoint: Endpoint, errors: list[OSError]) -> Exception:
    return errors[0] if len(errors) == 1 else ExceptionGroup(f"{endpoint}: one error per address", errors)


def _all_failed(endpoint: Endpoint, errors: list[OSError], *, local: bool) -> ConnectError:
    reasons = "; ".join(f"{exc.filename}: {exc.strerror}" for exc in errors)
    error = ConnectError(f"{endpoint}: cannot connect ({reasons})", endpoint=endpoint, local=local)
    error.errno = errors[0].errno
    error.__cause__ = _together(endpoint, errors)
    return error


def _unix_failed(endpoint: Endpoint, error: OSError) -> ConnectError:
    return _all_failed(endpoint, [error], local=error.errno in LOCAL_ERRORS)


def open_unix(budget: Budget) -> socket.socket:
    """Connect to the Unix socket of the budget's endpoint.

    Returns:
        A connected socket in blocking mode, owned by the caller.

    Raises:
        ConnectError: Nobody listens there, or it may not be used.
        ConnectTimeoutError: The time is up: the listener's queue stayed full.
        CancelledError: The dial was cancelled.
    """
    path: Any = budget.endpoint.path
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as exc:
        raise _unix_failed(budget.endpoint, OSError(exc.errno, exc.strerror, path))  # noqa: B904 - it has a cause
    try:
        sock.setblocking(False)
        # A full queue says EAGAIN, and no event tells when it has room again.
        while (error := _connect_unix(sock, path)) is not None:
            if error.errno != errno.EAGAIN:
                raise _unix_failed(budget.endpoint, error)
            budget.wait(pause, f"waiting for room in the queue of {path}", at_most=0.01)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_unix(sock: socket.socket, path: str) -> OSError | None:
    try:
        sock.connect(path)
    except OSError as exc:
        return OSError(exc.errno, exc.strerror or str(exc), path)
    return None
