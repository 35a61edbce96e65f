"""Messages as they go over the wire: one or many, with their ids where the framing carries these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from connpool.delivery.batch import Batch
from connpool.delivery.spool import Spooled
from connpool.wire.framing import Framing, Identifying, Raw

__all__ = ["Encoder"]


class Encoder:
    """Frames messages.

    Attributes:
        encode: Frames one that goes without its id.
        is_identified: Whether the peers get to see the ids of messages.
    """

    def __init__(self, framing: Framing) -> None:
        self.encode = framing.encode
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
        return self._identifying.encode_as(message, id)

    def encode_all(self, batch: Sequence[Spooled]) -> tuple[bytes | bytearray, Iterable[int]]:
        """*batch* as it goes over the wire, and how much of that each message is."""
        if not isinstance(batch, Batch):
            frames = [self.encode_as(each.message, each.id) for each in batch]
        elif self._is_raw:
            return batch.data, batch.sizes
        else:
            frames = list(map(self.encode_as, batch.messages(), batch.ids()))
        return b"".join(frames), map(len, frames)
