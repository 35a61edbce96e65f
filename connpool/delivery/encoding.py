"""Messages as they go over the wire: one or many, with their ids where the framing carries these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from connpool.delivery.batch import Batch
from connpool.delivery.spool import Spooled
from connpool.errors import FramingError
from connpool.wire.framing import Framing, Identifying, LengthPrefixed, Lines, Raw, bytes_of

__all__ = ["Encoder"]

TRUSTED: Final = (Raw, Lines, LengthPrefixed)  # to make bytes of bytes


class Encoder:
    """Frames messages.

    Attributes:
        encode: Frames one that goes without its id.
        is_identified: Whether the peers get to see the ids of messages.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self.encode = framing.encode if type(framing) in TRUSTED else self._encode_checked
        # Asked once: to look at a protocol takes longer than to send a message.
        self._identifying = framing if isinstance(framing, Identifying) else None
        self._is_raw = type(framing) is Raw
        self.is_identified = self._identifying is not None

    def encode_as(self, message: bytes, id: bytes) -> bytes:
        """*message*, with its *id* if the framing carries that.

        Raises:
            FramingError: it cannot be framed.
        """
        if self._identifying is None:
            return self.encode(message)
        return self._bytes_of(self._identifying.encode_as(message, id))

    def encode_all(self, batch: Sequence[Spooled]) -> tuple[bytes | bytearray, Iterable[int], int]:
        """*batch* as it goes over the wire, how much of that each message is, and how many there are.

        There are fewer if one cannot be framed: then they end before it.

        Raises:
            FramingError: the first cannot.
        """
        try:
            if not isinstance(batch, Batch):
                frames = [self.encode_as(each.message, each.id) for each in batch]
            elif self._is_raw:
                return batch.data, batch.sizes, len(batch)
            else:
                frames = list(map(self.encode_as, batch.messages(), batch.ids()))
        except Exception:  # noqa: BLE001 - of the user's framing, perhaps; raised again if it is the first
            frames = self._encode_as_far_as_can_be(batch)
        return b"".join(frames), map(len, frames), len(frames)

    def _encode_as_far_as_can_be(self, batch: Sequence[Spooled]) -> list[bytes]:
        frames: list[bytes] = []
        try:
            for each in batch:
                frames.append(self.encode_as(each.message, each.id))  # noqa: PERF401 - what came before counts
        except Exception:
            if not frames:
                raise
        return frames

    def _encode_checked(self, message: bytes) -> bytes:
        return self._bytes_of(self._framing.encode(message))

    def _bytes_of(self, frame: object) -> bytes:
        """*frame*, which a framing of the user's has made: not changed any more by whoever has made it.

        Raises:
            FramingError: it is not bytes.
        """
        if type(frame) is bytes:
            return frame
        try:
            return bytes_of(frame)
        except FramingError as error:
            raise FramingError(
                f"{type(self._framing).__name__} has framed a message wrongly: {error}"
            ) from None
