"""With ``write_ahead`` senders and the worker of a link have the same messages before them: each is sent once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from connpool import Broadcaster, MemorySpool, Spooled
from connpool.delivery.link import Link
from connpool.wire.line import Line
from tests.helpers.sinks import GUARD, Sink, broadcasting, numbered
from tests.helpers.switchboard import until
from tests.helpers.together import together


class Paced(MemorySpool):
    """A spool whose calls can be held up, before or after what they do."""

    def __init__(self) -> None:
        super().__init__()
        self.before_remove: Callable[[], object] = lambda: None
        self.after_remove: Callable[[], object] = lambda: None
        self.after_peek: Callable[[], object] = lambda: None

    def remove(self, positions: Sequence[int]) -> None:
        before, self.before_remove = self.before_remove, lambda: None
        before()
        super().remove(positions)
        after, self.after_remove = self.after_remove, lambda: None
        after()

    def peek(self, *arguments: Any) -> Sequence[Spooled]:
        found = super().peek(*arguments)
        after, self.after_peek = self.after_peek, lambda: None
        after()
        return found


@pytest.fixture
def a() -> Iterator[Sink]:
    with Sink() as server:
        yield server


def link_of(sender: Broadcaster) -> Link:
    (link,) = sender._office.roster.links.values()
    return link


def test_what_leaves_the_spool_while_a_worker_looks_into_it_is_not_sent_again(a):
    spool = Paced()
    is_peeked = threading.Event()
    with broadcasting(a, spool=spool, write_ahead=True) as sender:
        assert sender.wait_ready(GUARD)
        link = link_of(sender)

        def peeked() -> None:
            is_peeked.set()
            until(lambda: not link.done, "the end of the other's removal")

        def send() -> None:
            sender.broadcast(b"m-0")

        def flush() -> None:
            until(lambda: link.done, "a message that was sent and not yet removed")
            spool.after_peek = peeked
            spool.put([link.queue], b"m-1", bytes(16))
            sender._office.kick(link)

        spool.before_remove = lambda: is_peeked.wait(GUARD)
        together(send, flush)
        a.until_has(b"m-1")
        assert a.lines == numbered(2)


def test_what_found_no_room_is_not_overtaken_while_another_message_leaves_the_spool(a, monkeypatch):
    spool = Paced()
    is_over = threading.Event()
    with broadcasting(a, spool=spool, write_ahead=True) as sender:
        assert sender.wait_ready(GUARD)
        link = link_of(sender)

        def send() -> None:
            sender.broadcast(b"other-0")

        def send_two() -> None:
            until(lambda: link.done and not spool.count(link.queue), "a message that has just been removed")
            try:
                with monkeypatch.context() as patched:
                    patched.setattr(Line, "look_and_push", lambda line, data: 0)
                    assert sender.broadcast(b"m-0").spooled
                sender.broadcast(b"m-1")
            finally:
                is_over.set()

        spool.after_remove = lambda: is_over.wait(GUARD)
        together(send, send_two)
        a.until_has(b"m-0", b"m-1")
        assert a.lines == [b"other-0", *numbered(2)]
