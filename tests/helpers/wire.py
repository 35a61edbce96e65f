"""What tests of the wire share: a resolver that says what the test wants, and times that are measured."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Address = tuple[str, int]


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="there is no IPv6 here")
LOCALHOSTS = "127.0.0.1", pytest.param("::1", marks=needs_ipv6)


def info(host: str, port: int) -> tuple[Any, ...]:
    """One line of getaddrinfo's answer."""
    if ":" in host:
        return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def answer_names_with(patch: pytest.MonkeyPatch, *addresses: Address) -> None:
    """Let every name mean *addresses*, in this order."""
    patch.setattr(socket, "getaddrinfo", lambda *_, **__: [info(*address) for address in addresses])


def fail_names_with(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every look-up raise *error*."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    patch.setattr(socket, "getaddrinfo", fail)


class StuckResolver:
    """A getaddrinfo that hangs until ``free``; counts how many threads hang in it."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._changed = threading.Condition()
        self.inside = self.peak = 0

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        with self._changed:
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            self._changed.notify_all()
        assert self._free.wait(20)
        with self._changed:
            self.inside -= 1
            self._changed.notify_all()
        return [info("127.0.0.1", port)]

    def until_inside(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.inside == n, 10), f"{self.inside} inside, not {n}"

    def free(self) -> None:
        self._free.set()
        self.until_inside(0)


@contextlib.contextmanager
def stuck_resolver(patch: pytest.MonkeyPatch) -> Iterator[StuckResolver]:
    """Let every look-up hang inside the block."""
    resolver = StuckResolver()
    patch.setattr(socket, "getaddrinfo", resolver)
    try:
        yield resolver
    finally:
        resolver.free()


@contextlib.contextmanager
def later(action: Callable[[], object], delay: float = 0.1) -> Iterator[None]:
    """Do *action* on another thread, *delay* seconds into the block."""
    timer = threading.Timer(delay, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def taking(at_least: float, below: float) -> Iterator[None]:
    """Check how many seconds the block takes, however it is left."""
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
        assert at_least <= took < below, f"took {took:.3f} s"


def refused_port() -> socket.socket:
    """A socket that reserves a port without listening: who dials it is refused."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock
