"""The vocabulary of scripts: what a server does with one connection, step by step."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final, TypeAlias

from attrs import frozen

from connpool.testing.served import ServedConnection

Step: TypeAlias = Callable[[ServedConnection], None]
Script: TypeAlias = Step | Sequence[Step]

SMALL_BUFFER: Final = 4_096
TICKS: Final = 20  # readings a second of a slow reader


def _turns(times: int | None) -> Iterator[int]:
    return iter(count() if times is None else range(times))


@frozen
class Echo:
    """Send back what comes, *times* times (None: until the peer leaves)."""

    times: int | None = None

    def __call__(self, connection: ServedConnection) -> None:
        for _ in _turns(self.times):
            connection.send(connection.request())


@frozen
class Answer:
    """Answer each request.

    Args:
        reply: What is sent, or a function from the request to it (``b""``: no answer).
        times: How many requests; None: until the peer leaves.
        delimiter: What a request ends with; None: what arrives together is one.
    """

    reply: bytes | Callable[[bytes], bytes]
    times: int | None = None
    delimiter: bytes | None = None

    def __call__(self, connection: ServedConnection) -> None:
        for _ in _turns(self.times):
            request = connection.request(self.delimiter)
            connection.send(self.reply if isinstance(self.reply, bytes) else self.reply(request))


@frozen
class Send:
    """Send *data* unasked: a greeting, or a stray byte."""

    data: bytes

    def __call__(self, connection: ServedConnection) -> None:
        connection.send(self.data)


@frozen
class Pause:
    """Do nothing for *seconds*."""

    seconds: float

    def __call__(self, connection: ServedConnection) -> None:
        connection.pause(self.seconds)


@frozen
class Silence:
    """Read whatever comes, and never answer."""

    def __call__(self, connection: ServedConnection) -> None:
        while True:
            connection.receive()


@frozen
class Deaf:
    """Never read: the peer's sends soon find every buffer full.

    While bytes lie unread it learns of a peer's leaving only by a reset.
    """

    def __call__(self, connection: ServedConnection) -> None:
        connection.limit_buffer(SMALL_BUFFER)
        connection.until_gone()


@frozen
class ReadSlowly:
    """Read *rate* bytes a second, and never answer."""

    rate: int

    def __call__(self, connection: ServedConnection) -> None:
        connection.limit_buffer(SMALL_BUFFER)
        while True:
            data = connection.receive(max(1, self.rate // TICKS))
            connection.pause(len(data) / self.rate)


@frozen
class NoHandshake:
    """Accept, and never say a word of TLS. As the first step it takes the handshake's place."""

    def __call__(self, connection: ServedConnection) -> None:
        connection.until_gone()


@frozen
class StartTls:
    """Go over to TLS here, on a connection that was plain until now."""

    context: ssl.SSLContext

    def __call__(self, connection: ServedConnection) -> None:
        connection.start_tls(self.context)


@frozen
class Close:
    """Close the connection in order."""

    def __call__(self, connection: ServedConnection) -> None:
        connection.close()


@frozen
class Reset:
    """Reset the connection. Bytes that were sent just before may be lost, as is a reset's way."""

    def __call__(self, connection: ServedConnection) -> None:
        connection.reset()


def steps_of(script: Script) -> tuple[Step, ...]:
    """Give the steps of *script*, then silence until the peer leaves."""
    steps = (script,) if callable(script) else tuple(script)
    return (*steps, Silence())
