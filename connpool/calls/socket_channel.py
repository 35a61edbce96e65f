"""A channel over a connection of a pool: one request out, one answer back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from connpool.clock import now
from connpool.errors import CallTimeoutError, ChannelClosedError, ConfigError
from connpool.model.channel import method_set
from connpool.model.checks import require_function
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.uncopied import Uncopied
from connpool.pool.connection import Connection
from connpool.pool.pool import ConnectionPool
from connpool.wire.framing import Framing, Lines, bytes_of, decoder_of, has_rest, require_framing
from connpool.wire.look import is_usable

__all__ = ["SocketChannel"]

CHUNK: Final = 65_536

Encode = Callable[[Any, Any], bytes]
Decode = Callable[[Any, bytes], Any]


class SocketChannel(Uncopied):
    """Speaks a protocol of requests and answers over one connection of *pool*, lent while it is open.

    As it stands a request is a line, ``METHOD payload``, and the answer the next line, as bytes. Another
    protocol is another framing, and either the two callables or a subclass that overrides ``encode`` and
    ``decode``.

    Args:
        pool: Where its connections come from. An open channel holds one of them.
        resource: What it offers.
        methods: What can be done with it; or a callable that is given the channel when it is open,
            and may ask the peer with ``call``.
        framing: Where an answer ends; None: ``Lines()``.
        encode: ``encode(method, payload)`` makes the bytes of a request.
        decode: ``decode(method, message)`` makes the answer of the peer's message: a value, a ``Reply``, or
            an exception that it raises.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        resource: Hashable,
        methods: Iterable[Hashable] | Callable[[SocketChannel], Iterable[Hashable]],
        *,
        framing: Framing | None = None,
        encode: Encode | None = None,
        decode: Decode | None = None,
    ) -> None:
        if not isinstance(pool, ConnectionPool):
            raise ConfigError(f"pool must be a ConnectionPool, got {pool!r}")
        require_function("encode", encode, or_none=True)
        require_function("decode", decode, or_none=True)
        self.resource = resource
        self.pool = pool
        self._methods = methods if callable(methods) else method_set(methods)
        self._framing = Lines() if framing is None else require_framing(framing)
        self._encode = encode
        self._decode = decode
        self._decoder = decoder_of(self._framing)
        self._parser = decoder_of(self._framing)
        self._conns: deque[Connection] = deque()  # the one that is open, while no call has it in hand
        self._in_call: Connection | None = None  # the one that a call has in hand
        self._is_open = False
        self._is_broken = False

    # -- the protocol: override these, or give them to the constructor

    def encode(self, method: Any, payload: Any) -> bytes:
        """The bytes of a request, before framing."""
        if self._encode is not None:
            return self._encode(method, payload)
        head = _bytes_of(method)
        return head if payload is None else head + b" " + _bytes_of(payload)

    def decode(self, method: Any, message: bytes) -> Any:
        """What the answer *message* to *method* means: a value or a ``Reply``, or an exception to raise."""
        return message if self._decode is None else self._decode(method, message)

    def parse_request(self, message: bytes) -> tuple[Any, Any]:
        """The method and payload of a request, at the other end: the reverse of ``encode``."""
        method, _, payload = message.partition(b" ")
        return method.decode(), payload.decode() or None

    # -- the channel

    def methods(self) -> Iterable[Hashable]:
        """What can be done with it; asks the peer if it has to."""
        return self._methods(self) if callable(self._methods) else self._methods

    def open(self, req: Request | Endpoint | str | None = None) -> object:
        """Borrow a connection. *req*: as for ``ConnectionPool.try_connect``; it may pin an endpoint.

        Raises:
            ConnPoolError: as ``try_connect``.
        """
        conn = self.pool.try_connect(req)
        self._decoder = decoder_of(self._framing)
        self._is_broken, self._is_open = False, True
        self._conns.clear()  # in a forked child the parent's may lie there
        self._conns.append(conn)
        return None

    def call(self, method: Any, payload: Any, timeout: float | None = None) -> Any:
        """Send a request and read the answer, both within *timeout* seconds; 0: nothing is sent.

        Raises:
            ChannelClosedError: the connection failed, or the peer does not keep to the framing.
            CallTimeoutError: the answer was not there in time. As it may come yet, the channel is of no more
                use.
            Exception: what ``encode`` and ``decode`` raise.
        """
        request = bytes_of(self._framing.encode(self.encode(method, payload)))
        return self.decode(method, self._exchange(request, timeout))

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the connection went wrong in the call that raised *error*."""
        return self._is_broken

    def close(self) -> None:
        """Close the connection. One that a call is using is cut off, and closed by that call."""
        self._is_open = False
        conn = self._in_call
        if conn is not None:
            try:
                conn._interrupt("its channel was closed")
            except Exception:  # noqa: BLE001 - the call has just ended and closed it
                pass
        self._end()

    def parse(self, data: bytes) -> list[tuple[Any, Any]]:
        """For the other end: take in bytes, and give the calls (method, payload) that they complete."""
        return [self.parse_request(message) for message in self._parser.feed(data)]

    # -- the connection

    def _exchange(self, request: bytes, timeout: float | None) -> bytes:
        """One message there and one back."""
        if timeout is not None and timeout <= 0:  # its answer could only come too late
            raise CallTimeoutError(f"{self!r}: there is no time for the call", pool=self.pool.name)
        until = None if timeout is None else now() + timeout
        try:
            conn = self._conns.popleft()
        except IndexError:
            self._is_broken = True
            raise ChannelClosedError(f"{self!r} is not open") from None
        self._in_call = conn
        try:
            if not self._is_open:  # asked after it can be seen: ``close`` looks for it after saying so
                raise ConnectionError("it was closed")
            if not is_usable(conn._held().raw):
                raise ConnectionError("the peer closed the connection, or sent what nobody asked for")
            conn.sendall(request, timeout)
            messages: list[bytes] = []
            while not messages:
                data = conn.recv(CHUNK, None if until is None else max(0.0, until - now()))
                if not data:
                    raise ConnectionError("the peer closed the connection instead of answering")
                messages = self._decoder.feed(data)
            if len(messages) > 1 or has_rest(self._decoder):
                raise ConnectionError("the peer gave more than one answer to a request")
        except BaseException as error:
            self._is_broken = True
            # A TimeoutError with a number is the system's, which has given the peer up.
            if timeout is not None and isinstance(error, TimeoutError) and error.errno is None:
                raise CallTimeoutError(
                    f"{self!r}: no answer within {timeout:g} s", pool=self.pool.name
                ) from error
            if isinstance(error, Exception):
                raise ChannelClosedError(f"{self!r}: {error}", pool=self.pool.name) from error
            raise
        finally:
            self._conns.append(conn)
            self._in_call = None
            if not self._is_open:
                self._end()
        return messages[0]

    def _end(self) -> None:
        """Close the connection, if nobody has."""
        try:
            conn = self._conns.popleft()
        except IndexError:
            return
        conn.terminate()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.resource!r} over pool {self.pool.name!r}>"


def _bytes_of(part: Any) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()
