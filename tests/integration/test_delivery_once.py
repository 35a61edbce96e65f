"""With ``write_ahead`` senders and a link's worker have the same messages before them: each is sent once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from connpool import Broadcaster, MemorySpool, Spooled
from connpool.delivery.link import Link
from tests.helpers.sinks import GUARD, broadcasting, numbered
from tests.helpers.switchboard import until
from tests.helpers.together import together


class Paced(MemorySpool):
    """A spool whose next call can be held up: a removal before it, a look into it after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before_remove: Callable[[], object] | None = None
        self.after_peek: Callable[[], object] | None = None

    def remove(self, positions: Sequence[int]) -> None:
        wait, self.before_remove = self.before_remove, None
        if wait is not None:
            wait()
        super().remove(positions)

    def peek(self, *arguments: Any) -> Sequence[Spooled]:
        found = super().peek(*arguments)
        wait, self.after_peek = self.after_peek, None
        if wait is not None:
            wait()
        return found


def link_of(sender: Broadcaster) -> Link:
    (link,) = sender._office.roster.links.values()
    return link


def test_what_leaves_the_spool_while_a_worker_looks_into_it_is_not_sent_again(a):
    spool = Paced()
    is_peeked, is_out = threading.Event(), threading.Event()
    with broadcasting(a, spool=spool, write_ahead=True) as sender:
        assert sender.wait_ready(GUARD)
        link = link_of(sender)

        def peeked() -> None:
            is_peeked.set()
            assert is_out.wait(GUARD)

        def send() -> None:
            sender.broadcast(b"m-0")
            is_out.set()

        def flush() -> None:
            until(lambda: link.done, "a message that was sent and not yet removed")
            spool.after_peek = peeked
            spool.put([link.queue], b"m-1", bytes(16))
            sender._office.kick(link)

        spool.before_remove = lambda: is_peeked.wait(GUARD)
        together(send, flush)
        a.until_has(b"m-1")
        assert a.lines == numbered(2)
