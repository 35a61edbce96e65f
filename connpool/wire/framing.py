"""Where one message ends and the next begins, on a stream that knows only bytes."""

from __future__ import annotations

import copy
from typing import Final, Literal, Protocol, TypeVar, runtime_checkable

from connpool.errors import ConfigError, FramingError
from connpool.model.checks import is_whole

__all__ = ["Framing", "Identified", "Identifying", "LengthPrefixed", "Lines", "Raw", "decoder_of", "has_rest"]

MOST: Final = 16 * 1024 * 1024  # bytes of one message, unless told otherwise
WIDEST: Final = 8

F = TypeVar("F", bound="Framing")


@runtime_checkable
class Framing(Protocol):
    """How messages become bytes, and bytes messages.

    What is given as ``framing=`` is a pattern: each connection decodes with a
    deep copy of it, so that ``feed`` may keep a half-read message in ``self``.
    """

    def encode(self, message: bytes) -> bytes:
        """Give *message* as it goes over the wire.

        Raises:
            FramingError: it cannot be told apart from what follows it, or is too long.
        """

    def feed(self, data: bytes) -> list[bytes]:
        """Take in the next bytes of one connection, and give the messages that they complete, in order.

        Raises:
            FramingError: the peer does not keep to the framing; nothing after this can be read.
        """


@runtime_checkable
class Identifying(Framing, Protocol):
    """A framing that lets the peer see the id of each message, so that it can drop what comes twice."""

    def encode_as(self, message: bytes, id: bytes) -> bytes:
        """As ``encode``, with the 16 bytes of *id*."""


def require_framing(framing: object) -> Framing:
    """Give *framing* if it is one.

    Raises:
        ConfigError: it lacks a method, or is a class.
    """
    if not isinstance(framing, Framing) or isinstance(framing, type):
        raise ConfigError(f"framing must have the methods encode and feed, got {framing!r}")
    return framing


def decoder_of(framing: F) -> F:
    """A copy of *framing* for one connection."""
    return copy.deepcopy(framing)


def has_rest(decoder: Framing) -> bool:
    """Whether *decoder* has taken in more than the messages it gave. Of one of the user's nobody knows."""
    return isinstance(decoder, _Bounded) and decoder.has_rest()


def bytes_of(message: object) -> bytes:
    """*message* as bytes.

    Raises:
        FramingError: it is something else, a text perhaps.
    """
    if isinstance(message, bytes):
        return message
    try:
        return bytes(memoryview(message))  # type: ignore[arg-type]
    except TypeError:
        raise FramingError(f"a message is bytes, not {type(message).__name__!r}: {message!r:.60}") from None


def is_delimiter(value: object) -> bool:
    """Tell whether *value* is one or more bytes."""
    return isinstance(value, bytes) and bool(value)


class Raw:
    """No framing: a message is whatever one read brings. For protocols that you parse yourself."""

    def encode(self, message: bytes) -> bytes:
        return message

    def feed(self, data: bytes) -> list[bytes]:
        return [data] if data else []


class _Bounded:
    """What framings with a maximum size have in common."""

    def __init__(self, max_size: int) -> None:
        if not is_whole(max_size) or max_size < 1:
            raise ConfigError(f"max_size must be a positive number of bytes, got {max_size!r}")
        self.max_size = max_size
        self._buffer = bytearray()
        self._error: FramingError | None = None  # found behind good messages: raised next

    def _check_size(self, size: int) -> None:
        if size > self.max_size:
            raise FramingError(f"a message of {size} bytes; max_size={self.max_size}")

    def feed(self, data: bytes) -> list[bytes]:
        """As ``Framing.feed``. Messages before an offence are given first; it is raised by the next call."""
        if self._error is not None:
            raise self._error
        messages: list[bytes] = []
        try:
            self._split(data, messages)
        except FramingError as error:
            self._error = error
            self._buffer.clear()
            if not messages:
                raise
        return messages

    def has_rest(self) -> bool:
        """Whether something has come behind the last message: a part of the next, or an offence."""
        return bool(self._buffer) or self._error is not None

    def _split(self, data: bytes, messages: list[bytes]) -> None:
        raise NotImplementedError


class Lines(_Bounded):
    r"""Each message is a line.

    Args:
        delimiter: What ends one; not part of the message.
        max_size: Most bytes of a message.

    Source: the line reader of dpl_conn (Droplet).
    """

    def __init__(self, delimiter: bytes = b"\n", *, max_size: int = MOST) -> None:
        super().__init__(max_size)
        if not is_delimiter(delimiter):
            raise ConfigError(f"delimiter must be one or more bytes, got {delimiter!r}")
        self.delimiter = delimiter

    def encode(self, message: bytes) -> bytes:
        self._check_size(len(message))
        framed = message + self.delimiter
        at = framed.find(self.delimiter)  # one may also come about where the two meet
        if at != len(message):
            raise FramingError(f"a line cannot contain its delimiter {self.delimiter!r}: at byte {at}")
        return framed

    def _split(self, data: bytes, messages: list[bytes]) -> None:
        buffer, delimiter = self._buffer, self.delimiter
        searched = max(0, len(buffer) - len(delimiter) + 1)
        buffer += data
        begin = 0
        while (end := buffer.find(delimiter, searched)) >= 0:
            self._check_size(end - begin)
            messages.append(bytes(buffer[begin:end]))
            begin = searched = end + len(delimiter)
        del buffer[:begin]
        if len(buffer) >= self.max_size + len(delimiter):
            raise FramingError(f"no delimiter within the {self.max_size} bytes allowed")


class LengthPrefixed(_Bounded):
    """Each message comes after its length.

    Args:
        width: Bytes of the length, 1 to 8.
        byteorder: ``"big"`` (network order) or ``"little"``.
        max_size: Most bytes of a message; a peer that announces more is not waited for.

    Source: prelude-msg (libprelude).
    """

    def __init__(
        self, width: int = 4, *, byteorder: Literal["big", "little"] = "big", max_size: int = MOST
    ) -> None:
        super().__init__(max_size)
        if not is_whole(width) or not 1 <= width <= WIDEST:
            raise ConfigError(f"width must be 1 to {WIDEST} bytes, got {width!r}")
        if byteorder not in ("big", "little"):
            raise ConfigError(f"byteorder must be 'big' or 'little', got {byteorder!r}")
        self.width = width
        self.byteorder: Literal["big", "little"] = byteorder
        self.max_size: int = min(max_size, 256**width - 1)

    def encode(self, message: bytes) -> bytes:
        self._check_size(len(message))
        return len(message).to_bytes(self.width, self.byteorder) + message

    def _split(self, data: bytes, messages: list[bytes]) -> None:
        buffer, width = self._buffer, self.width
        buffer += data
        begin = 0
        try:
            while len(buffer) - begin >= width:
                size = int.from_bytes(buffer[begin : begin + width], self.byteorder)
                self._check_size(size)
                end = begin + width + size
                if end > len(buffer):
                    break
                messages.append(bytes(buffer[begin + width : end]))
                begin = end
        finally:
            del buffer[:begin]


class Identified:
    """Each message comes after its id, in hexadecimal, and a space; in the frames of another framing.

    A message that is sent again after a crash comes with the same id. What has no id comes with zeros.

    Args:
        framing: What the whole is framed by.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = require_framing(framing)

    def encode_as(self, message: bytes, id: bytes) -> bytes:
        return self._framing.encode(id.hex().encode() + b" " + message)

    def encode(self, message: bytes) -> bytes:
        return self.encode_as(message, bytes(16))

    def feed(self, data: bytes) -> list[bytes]:
        """As ``Framing.feed``. Each message still has its id in front: see ``split``."""
        return self._framing.feed(data)

    @staticmethod
    def split(message: bytes) -> tuple[bytes, bytes]:
        """The id and the message proper.

        Raises:
            FramingError: there is no id.
        """
        told, space, proper = message.partition(b" ")
        try:
            id = bytes.fromhex(told.decode("ascii"))
        except ValueError:
            id = b""
        if len(id) != 16 or not space:
            raise FramingError(f"no id comes before the message {message[:40]!r}")
        return id, proper
