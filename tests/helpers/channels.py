"""Channels for tests: in memory, obedient, and watchful; and a text protocol with its server."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from connpool import CallPool, ConnectionPool, Reply, SocketChannel
from connpool.testing import ScriptedServer, ServedConnection
from tests.helpers.switchboard import until

RESOURCE = "clock"


class BadArgumentError(Exception):
    pass


class Tape:
    """A channel in memory. It notes what happens to it, and fails if two calls overlap.

    Attributes:
        doing: Called with method and payload by each call, and gives the answer.
        opening: Called with the arguments by each ``open``; what it returns ``open`` returns.
        closing: Called by each ``close``.
        calls: The payloads, in the order in which they were begun.
    """

    def __init__(self, resource: Any = RESOURCE, methods: Any = ("get", "set")) -> None:
        self.resource = resource
        self.methods = methods
        self.doing: Callable[[Any, Any], Any] = lambda method, payload: payload
        self.opening: Callable[..., Any] = lambda *args: None
        self.closing: Callable[[], Any] = lambda: None
        self.calls: list[Any] = []
        self.opened: list[tuple[Any, ...]] = []
        self.opens = self.closes = self.attempts = 0
        self._busy = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self.opens > self.closes

    def open(self, *args: Any) -> Any:
        self.attempts += 1
        rest = self.opening(*args)
        assert not self.is_open, "opened twice"
        self.opened.append(args)
        self.opens += 1
        return rest

    def call(self, method: Any, payload: Any) -> Any:
        assert self._busy.acquire(blocking=False), "two calls at once"
        try:
            assert self.is_open, "called while it is closed"
            self.calls.append(payload)
            return self.doing(method, payload)
        finally:
            self._busy.release()

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.closes += 1
        self.closing()


class Held:
    """What a call does that lasts as long as the test wants."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.result: Any = None

    def __call__(self, method: Any, payload: Any) -> Any:
        self.begun.release()
        assert self.may_end.acquire(timeout=10), "nobody let this call end"
        if isinstance(self.result, BaseException):
            raise self.result
        return payload if self.result is None else self.result


class Caller(threading.Thread):
    """A thread that makes one call, whose outcome the test asks for."""

    def __init__(self, pool: CallPool, payload: Any = None, method: str = "get", **options: Any) -> None:
        super().__init__(daemon=True)
        self._job = lambda: pool.call(RESOURCE, method, payload, **options)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._job()
        except BaseException as error:
            self._error = error

    def outcome(self) -> Any:
        """The answer, or the error, which is returned."""
        self.join(10)
        assert not self.is_alive(), "the call hangs"
        return self._value if self._error is None else self._error


def n_waiting(pool: CallPool) -> int:
    """How many calls wait."""
    return sum(len(resource.queue) for resource in list(pool._switch.ledger.resources.values()))


def queue_up(pool: CallPool, payloads: Any, **options: Any) -> list[Caller]:
    """Callers that wait, one after the other."""
    callers = []
    for payload in payloads:
        before = n_waiting(pool)
        callers.append(Caller(pool, payload, **options))
        until(lambda before=before: n_waiting(pool) > before, "a call in the queue")
    return callers


def is_settled(pool: CallPool) -> bool:
    """Whether nothing is being closed or opened."""
    return not any(
        thread.name.startswith(("connpool-close", "connpool-open")) for thread in threading.enumerate()
    )


class TextChannel(SocketChannel):
    """GET, INC and STOP, one line each; and HUSH, which is not answered."""

    def __init__(self, pool: ConnectionPool, resource: Any = RESOURCE) -> None:
        super().__init__(pool, resource, {"GET", "INC", "STOP", "HUSH"})

    def decode(self, method: str, message: bytes) -> Any:
        word, _, rest = message.decode().partition(" ")
        if word == "error":
            raise BadArgumentError(rest)
        return Reply(word, retry_after=math.inf) if method == "STOP" else word


def text_server() -> ScriptedServer:
    """A server of ``TextChannel``, with a counter for each connection. Reads requests with its ``parse``."""
    spare = ConnectionPool()

    def serve(connection: ServedConnection) -> None:
        channel, count = TextChannel(spare), 0
        while True:
            for method, payload in channel.parse(connection.receive()):
                if payload is not None and not payload.isdigit():
                    connection.send(b"error badarg\n")
                elif method == "STOP":
                    connection.send(b"ok\n")
                    connection.close()
                    return
                elif method != "HUSH":
                    count += int(payload or 1) if method == "INC" else 0
                    connection.send(f"{count}\n".encode())

    return ScriptedServer(script=serve)
