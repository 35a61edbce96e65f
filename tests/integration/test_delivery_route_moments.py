"""A route that changes between two steps of somebody else's: no copy stays behind in a queue of nobody's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from connpool import Broadcaster, Connection, LinkEvent, LinkState, MemorySpool
from connpool.delivery.office import Office
from connpool.model.delivery import GLOBAL
from tests.helpers.sinks import GUARD, Diary, Sink, all_alive, broadcasting, refused, route_of
from tests.helpers.switchboard import until
from tests.helpers.together import together

STATES = [LinkState.ALIVE, LinkState.DEAD]


class Hooked(MemorySpool):
    """Lets something come in between, once each: before a ``put`` or a ``move``, or after a ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: dict[str, Callable[[], object]] = {}

    def _come_to(self, step: str) -> None:
        hook = self.hooks.pop(step, None)
        if hook is not None:
            together(hook)

    def put(self, queues: Sequence[str], *details: bytes) -> Sequence[int]:
        self._come_to("put")
        return super().put(queues, *details)

    def move(self, queue: str, to: Iterable[str], most: int) -> int:
        self._come_to(f"move {queue}")
        n_moved = super().move(queue, to, most)
        if not n_moved:
            self._come_to(f"moved all of {queue}")
        return n_moved

    def counts(self):
        counts = super().counts()
        self._come_to("counted")
        return counts


@pytest.fixture
def live() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture
def dead() -> Iterator[str]:
    with refused() as endpoint:
        yield endpoint


def check_all_sent(sender: Broadcaster, live: Sink, n: int) -> None:
    """Check that nothing is left, and that all *n* copies are with the one who lives."""
    assert sender.flush(GUARD / 2) == 0, sender.unsent()
    live.until_lines(n)


def test_a_copy_that_comes_as_its_member_leaves_is_for_who_has_its_place(live, dead):
    spool = Hooked()
    with broadcasting(live, dead, spool=spool) as sender:
        until(lambda: [link.state for link in sender.links()] == STATES)
        spool.hooks["counted"] = lambda: sender.broadcast(b"m")
        sender.pool.route = route_of(live, ",", dead)
        check_all_sent(sender, live, 2)


def test_a_copy_that_is_written_ahead_for_a_member_that_has_just_left_is_for_who_has_its_place(live, dead):
    spool = Hooked()
    with broadcasting(live, dead, spool=spool, write_ahead=True) as sender:
        until(lambda: [link.state for link in sender.links()] == STATES)
        spool.hooks["put"] = lambda: setattr(sender.pool, "route", route_of(live, ",", dead))
        sender.broadcast(b"m")
        check_all_sent(sender, live, 2)


def test_who_follows_a_route_and_knows_less_takes_nothing_from_an_heir(live, dead):
    spool, counted, accepted = Hooked(), threading.Event(), threading.Event()

    def edit() -> None:
        sender.pool.route = shorter
        spool.hooks["counted"] = lambda: (counted.set(), accepted.wait(GUARD))
        other.start()  # it counts before the copy comes, and goes on when the copy has its heir
        assert counted.wait(GUARD)

    with Sink() as late:
        late.refuse()
        shorter = route_of(live, late, ",", dead)
        other = threading.Thread(target=lambda: setattr(sender.pool, "route", shorter))
        with broadcasting(live, late, dead, spool=spool) as sender:
            until(lambda: [link.state for link in sender.links()] == [*STATES, LinkState.DEAD])
            spool.hooks["put"] = edit
            sender.broadcast(b"m")
            accepted.set()
            other.join(GUARD)
            late.start()
            check_all_sent(sender, late, 2)


def test_what_waited_for_everybody_leaves_nothing_with_a_member_that_has_just_left(live, dead):
    spool = Hooked()
    live.refuse()
    with broadcasting(live, dead, spool=spool) as sender:
        sender.broadcast(b"m")
        assert sender.unsent() == {GLOBAL: 1}
        spool.hooks[f"move {GLOBAL}"] = lambda: setattr(sender.pool, "route", route_of(live, ",", dead))
        live.start()
        check_all_sent(sender, live, 2)


def test_who_becomes_an_heir_while_it_finds_another_queue_empty_is_told(live, dead):
    spool = Hooked()
    with refused() as other:
        spool.put([str(live.endpoint), dead, other], b"m", bytes(16))
        longer = route_of(live, ",", dead, ",", other)
        live.refuse()
        with broadcasting(live, ",", dead, spool=spool) as sender:
            spool.hooks[f"moved all of {dead}"] = lambda: setattr(sender.pool, "route", longer)
            live.start()
            check_all_sent(sender, live, 3)


def test_who_has_a_message_is_told_though_its_member_leads_elsewhere_by_then(live, dead):
    def edit_and_confirm(conn: Connection, message: bytes) -> None:
        sender.pool.route = dead

    with broadcasting(live, ",", dead, confirm=edit_and_confirm) as sender:
        assert sender.wait_ready(GUARD)
        assert [str(endpoint) for endpoint in sender.broadcast(b"m").sent] == [str(live.endpoint)]


def test_who_comes_back_as_it_leaves_is_told_to_be_alive_last(live, monkeypatch):
    with Sink() as other, broadcasting(other, live) as sender:
        diary = Diary()
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        all_alive(sender)
        lower = Office.lower

        def come_back() -> None:
            sender.add(live.endpoint)
            all_alive(sender)

        def lower_late(*arguments) -> bool:
            monkeypatch.undo()
            together(come_back)
            return lower(*arguments)

        monkeypatch.setattr(Office, "lower", lower_late)
        sender.remove(live.endpoint)
        until(lambda: len(diary.of(live)) == 3)
        assert diary.of(live) == [LinkEvent.ALIVE, LinkEvent.DEAD, LinkEvent.ALIVE]
        assert len(sender.links()) == 2
