"""Where messages wait that could not be sent yet: what a spool promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from attrs import frozen

from connpool.errors import UsageError

__all__ = ["ID_SIZE", "Spool", "SpoolCount", "Spooled", "check_put"]

ID_SIZE: Final = 16  # bytes


@frozen
class Spooled:
    """One message that waits in one queue.

    Attributes:
        position: Its place: unique in the spool for ever, ascending in a queue.
        id: 16 bytes, the same from the first attempt to the last redelivery, in
            every queue, through crashes and restarts: what a receiver knows a
            duplicate by.
        message: What is to be sent.
        spooled_at: When it was first put into the spool, in seconds since the epoch.
    """

    position: int
    id: bytes
    message: bytes
    spooled_at: float


@frozen
class SpoolCount:
    """What one queue holds.

    Attributes:
        messages: How many wait in it.
        bytes: Of these messages together.
        dropped: How many a limit has cost it since the spool was made, restarts included.
    """

    messages: int
    bytes: int
    dropped: int


@runtime_checkable
class Spool(Protocol):
    """Queues of messages, by name. Every call may come from any thread.

    After ``close`` all calls but ``close`` raise a SpoolError. A forked child
    has none of what its parent's spool holds.

    One that also has ``report_to(listener)`` is asked by its broadcaster to tell
    the pool's listeners: it calls *listener*, with no lock held, with each
    ``MessagesDropped`` and ``SpoolDamaged``, from the beginning on. One whose
    ``adopts`` is False is not asked to ``adopt``, which saves a thread every second.
    """

    def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
        """Add one copy at the tail of each of *queues*: to all of them or to none.

        Returns:
            The position of each copy. By then it is as durable as the spool promises.

        Raises:
            SpoolFullError: a limit; nothing was taken.
            SpoolError: it cannot be kept; nothing was taken.
        """

    def peek(self, queue: str, max_messages: int, max_bytes: int) -> Sequence[Spooled]:
        """The oldest of *queue*, in order: within both limits, but one at least if there is any.

        They stay where they are and are claimed: no limit drops them until they
        are removed or released.
        """

    def remove(self, positions: Sequence[int]) -> None:
        """They have arrived. Unknown positions do nothing, so that it may be done twice."""

    def release(self, positions: Sequence[int]) -> None:
        """They were claimed and could not be sent: they stay, at the same place."""

    def move(self, source: str, targets: Sequence[str], max_messages: int) -> int:
        """Put the oldest of *source* at the tail of each of *targets*, in order, with the same id.

        Returns:
            How many have left *source*, all in one step: fewer than may where they are large; 0: it is empty.
        """

    def count(self, queue: str) -> int:
        """How many wait in *queue*. No more than a look at a number."""

    def counts(self) -> Mapping[str, SpoolCount]:
        """Each queue that holds something or has lost something to a limit."""

    def adopt(self) -> Mapping[str, int]:
        """Take over what others have left that live no more.

        Returns:
            How many messages of each queue are ours from now on. Cheap if there are none.
        """

    def close(self) -> None:
        """Give no more out and take no more in; again: do nothing. What a file holds stays for the next."""


def check_put(queues: object, message: object, id: object) -> None:
    """Refuse what no spool takes.

    Raises:
        UsageError: *queues* is one text, *message* is not bytes, or *id* not 16 of them.
    """
    if isinstance(queues, str):
        raise UsageError(f"a list of queues is expected, got the text {queues!r}")
    if not isinstance(message, bytes):
        raise UsageError(f"a message must be bytes, got {type(message).__name__}")
    if not isinstance(id, bytes) or len(id) != ID_SIZE:
        raise UsageError(f"the id of a message must be {ID_SIZE} bytes, got {id!r}")
