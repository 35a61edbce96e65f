"""What has come and what has happened, one by one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

from connpool.delivery.strand import Strand
from connpool.model.delivery import LinkEvent
from connpool.model.endpoint import Endpoint

__all__ = ["Ends", "Letter", "News"]


class Letter:
    """A message that has come."""

    __slots__ = ("endpoint", "is_taken", "message")

    def __init__(self, endpoint: Endpoint, message: bytes) -> None:
        self.endpoint = endpoint
        self.message = message
        self.is_taken = False  # its event is no news any more


class News:
    """One event that nobody has been told yet."""

    __slots__ = ("endpoint", "kind", "letter")

    def __init__(self, kind: LinkEvent, endpoint: Endpoint, letter: Letter | None = None) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self.letter = letter

    def is_stale(self) -> bool:
        return self.letter is not None and self.letter.is_taken


class Ends:
    """Ends of connections, which are told when all is read that came before. The mailbox's lock guards it.

    A sender finds an end, too, perhaps before the thread that reads has read the last words.
    """

    def __init__(self) -> None:
        self._early: list[tuple[News, Callable[[], Strand | None]]] = []

    def __bool__(self) -> bool:
        return bool(self._early)

    def add(self, news: News, strand: Strand | None) -> None:
        """*strand*: the connection that has ended; None: none has."""
        is_early = strand is not None and not strand.is_taken_down
        self._early.append((news, weakref.ref(strand) if is_early else lambda: None))

    def ripe(self) -> Iterator[News]:
        """Take out those that need not wait any more; what concerns one endpoint stays in order."""
        waiting: set[Endpoint] = set()
        for early in self._early.copy():
            news, ended = early
            strand = ended()  # one that was lost is read by nobody
            if news.endpoint in waiting or (strand is not None and not strand.is_heard):
                waiting.add(news.endpoint)
            elif early in self._early:  # else a signal handler was quicker
                self._early.remove(early)
                yield news
