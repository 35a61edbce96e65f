"""Write-ahead: a message is in the spool before it is sent, and leaves it when it has arrived."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import connpool.delivery.flushing
import connpool.delivery.link
import connpool.delivery.office
import connpool.delivery.sending
import connpool.delivery.tending
import connpool.delivery.writing
from connpool import ConfigError, MemorySpool, NoEndpointError, SpoolError, SpoolFullError, SQLiteSpool
from connpool.delivery.link import Link, Outcome
from connpool.model.delivery import GLOBAL, LinkState
from connpool.testing import FakeClock
from tests.helpers.preemption import preempting
from tests.helpers.sinks import (
    GUARD,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    by_sender,
    check_ascending,
    first_comings,
    numbered,
    refused,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together


@pytest.fixture
def answering() -> Iterator[Sink]:
    with Sink(answers=True) as server:
        yield server


class Observed(MemorySpool):
    """Writes down what was put and removed, and fails when told to."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.log: list[str] = []
        self.failing: set[str] = set()

    def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
        self._fail("put")
        self.log.append(f"put {message.decode()}")
        return super().put(queues, message, id)

    def remove(self, positions: Sequence[int]) -> None:
        self._fail("remove")
        if positions:
            self.log.append("remove")
        super().remove(positions)

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise SpoolError(f"the disk does not {what}")


def test_a_message_is_spooled_before_it_is_sent_and_removed_after_it_was_confirmed(answering):
    spool = Observed()

    def confirm(conn: Any, message: bytes) -> None:
        acknowledged(conn, message)
        spool.log.append(f"confirm {message.decode()}")
        assert spool.count(str(answering.endpoint)) == 1

    with broadcasting(answering, spool=spool, write_ahead=True, confirm=confirm) as sender:
        assert sender.broadcast(b"hello").sent == (answering.endpoint,)
        assert spool.log == ["put hello", "confirm hello", "remove"]
        assert sender.unsent().total == 0


def test_a_confirm_that_fails_without_a_word_is_named_in_log_and_error(a, caplog):
    def confirm(conn: object, message: bytes) -> None:
        raise ValueError

    with broadcasting(a, spool=None, confirm=confirm, reconnect=False) as sender:
        assert sender.wait_ready(GUARD)
        with pytest.raises(NoEndpointError, match=r"ValueError\(\)"):
            sender.broadcast(b"hello")
    assert "is lost: ValueError()" in caplog.text


def test_a_confirm_whose_error_cannot_be_shown_is_told_of_all_the_same(a, caplog):
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

        __repr__ = __str__

    def confirm(conn: object, message: bytes) -> None:
        raise Unspeakable

    with broadcasting(a, spool=None, confirm=confirm, reconnect=False) as sender:
        assert sender.wait_ready(GUARD)
        with pytest.raises(NoEndpointError, match="Unspeakable"):
            sender.broadcast(b"hello")
    assert "is lost: Unspeakable" in caplog.text


def test_a_message_that_is_not_confirmed_stays_in_the_spool(a):
    def confirm(conn: object, message: bytes) -> None:
        raise TimeoutError("no answer")

    spool = MemorySpool()
    with broadcasting(a, spool=spool, write_ahead=True, confirm=confirm, reconnect=False) as sender:
        sender.wait_ready(GUARD)
        delivery = sender.broadcast(b"hello")
        assert delivery.sent == ()
        assert sender.unsent().total == 1


def test_what_cannot_be_spooled_is_not_sent(a):
    spool = Observed()
    with broadcasting(a, spool=spool, write_ahead=True) as sender:
        sender.broadcast(b"one")
        spool.failing = {"put"}
        with pytest.raises(SpoolError, match="the disk does not put"):
            sender.broadcast(b"two")
        spool.failing = set()
        sender.broadcast(b"three")
        assert a.until_lines(2) == [b"one", b"three"]


def test_a_message_that_was_sent_is_no_failure_though_it_cannot_be_removed(a):
    """It may arrive twice; what comes after it is in order all the same."""
    spool = Observed()
    with broadcasting(a, spool=spool, write_ahead=True) as sender:
        sender.broadcast(b"m-0")
        links = sender._office.roster.links.values()
        until(
            lambda: not any(link.is_tended for link in links), "the end of the worker, who would send it, too"
        )
        spool.failing = {"remove"}
        assert sender.broadcast(b"m-1").sent == (a.endpoint,)
        spool.failing = set()
        for message in numbered(20, 2):
            sender.broadcast(message)
        until(lambda: sender.unsent().total == 0, "an empty spool")
        assert a.until_lines(22) == numbered(22)


def test_a_copy_for_a_group_that_was_dead_is_not_sent_though_it_comes_back_meanwhile(a, monkeypatch):
    """It waits for whoever comes back first by now; a second copy would be a message too many."""

    class Slow(Observed):
        def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
            if list(queues) == [GLOBAL]:
                link = sender._office.roster.links[str(a.endpoint)]
                sender._office.kick(link)
                until(lambda: not link.is_tended, "a look at what waits")
            return super().put(queues, message, id)

    def fail(*_: object) -> Outcome:
        monkeypatch.undo()
        return Outcome.DEAD

    with broadcasting(a, spool=Slow(), write_ahead=True) as sender:
        until(lambda: sender.ready)
        until(lambda: not sender._office.roster.links[str(a.endpoint)].is_tended, "the end of the worker")
        monkeypatch.setattr(Link, "try_send", fail)
        assert sender.broadcast(b"m-0").spooled == (GLOBAL,)
        until(lambda: sender.unsent().total == 0, "an empty spool")
        sender.broadcast(b"m-1")
        assert a.until_lines(2) == numbered(2)


def find_dead(server: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next link that is to send something is found dead, and its *server* does not take another."""

    def fail(*_: object) -> Outcome:
        monkeypatch.undo()
        server.refuse()
        return Outcome.DEAD

    monkeypatch.setattr(Link, "try_send", fail)


def test_copies_for_a_group_that_is_found_dead_take_no_room_from_the_next_or_from_the_queue_for_all(
    a, monkeypatch
):
    with Sink() as b:
        spool = MemorySpool(max_messages=1, on_full="raise")
        with broadcasting(a, "||", b, spool=spool, write_ahead=True) as sender:
            until(lambda: len([link for link in sender.links() if link.state is LinkState.ALIVE]) == 2)
            find_dead(a, monkeypatch)
            assert sender.broadcast(b"one").sent == (b.endpoint,)
            assert b.until_lines(1) == [b"one"]
            assert not any(link.done or link.own for link in sender._office.roster.links.values())
    a.start()
    with broadcasting(a, spool=MemorySpool(max_messages=1, on_full="raise"), write_ahead=True) as sender:
        until(lambda: sender.ready)
        find_dead(a, monkeypatch)
        assert sender.broadcast(b"two").spooled == (GLOBAL,)
        a.start()
        assert a.until_lines(1) == [b"two"]


def test_what_lies_ready_for_a_dead_group_is_sent_to_all_of_it_once_if_a_worker_has_one_copy_in_hand(
    a, monkeypatch
):
    def in_hand(*_: object) -> bool:
        monkeypatch.undo()
        return False

    with Sink() as b, broadcasting(a, b, write_ahead=True) as sender:
        all_alive(sender)
        links = sender._office.roster.links.values()
        until(lambda: not any(link.is_tended for link in links), "the end of the workers")
        monkeypatch.setattr(Link, "try_send", lambda *_: Outcome.DEAD)
        monkeypatch.setattr(Link, "withdraw", in_hand)
        delivery = sender.broadcast(b"one")
        assert (delivery.sent, delivery.spooled, delivery.group) == (
            (),
            (str(a.endpoint), str(b.endpoint)),
            0,
        )
        assert b.until_lines(1) == [b"one"]
    a.until_has(b"one")
    assert (a.lines, b.lines) == ([b"one"], [b"one"])


def test_a_message_that_is_refused_when_its_group_is_found_dead_leaves_no_copies(a, monkeypatch):
    class Full(MemorySpool):
        def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
            if list(queues) == [GLOBAL]:
                raise SpoolFullError("no room")
            return super().put(queues, message, id)

    with broadcasting(a, spool=Full(), write_ahead=True) as sender:
        until(lambda: sender.ready)
        find_dead(a, monkeypatch)
        with pytest.raises(SpoolFullError):
            sender.broadcast(b"one")
        assert sender.unsent().total == 0


def test_a_full_spool_refuses_a_message_before_anybody_has_it(a):
    with refused() as nobody:
        spool = MemorySpool(max_messages=2, on_full="raise")
        with broadcasting(a, nobody, spool=spool, write_ahead=True) as sender:
            sender.wait_ready(GUARD)
            sender.broadcast(b"one")
            with pytest.raises(SpoolFullError):
                sender.broadcast(b"two")
            a.until_lines(1)
        assert a.lines == [b"one"]


def test_it_needs_a_spool(a):
    with pytest.raises(ConfigError, match="needs a spool"), broadcasting(a, spool=None, write_ahead=True):
        pass


def test_threads_that_write_ahead_to_living_members_keep_their_order_and_repeat_nothing(a):
    with broadcasting(a, write_ahead=True) as sender:
        sender.wait_ready(GUARD)
        together(*(lambda who=who: list(map(sender.broadcast, numbered(150, who=who))) for who in "stuvwxyz"))
        assert sender.flush(GUARD) == 0
        lines = a.until_lines(1_200)
        check_ascending(lines)
        assert len(lines) == 1_200


MODULES = [
    connpool.delivery.flushing,
    connpool.delivery.link,
    connpool.delivery.office,
    connpool.delivery.sending,
    connpool.delivery.tending,
    connpool.delivery.writing,
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("confirms", [False, True])
def test_threads_that_write_ahead_and_give_way_anywhere_keep_their_order(answering, seed, confirms):
    confirm = acknowledged if confirms else None
    answering.answers = confirms
    with broadcasting(answering, write_ahead=True, confirm=confirm) as sender:
        sender.wait_ready(GUARD)
        with preempting(*MODULES, chance=0.2, seed=seed):
            together(
                *(lambda w=w: list(map(sender.broadcast, numbered(60, who=w))) for w in "stuv"), limit=20
            )
        assert sender.flush(GUARD) == 0
        lines = answering.until_lines(240)
        check_ascending(lines)
        assert len(lines) == 240


def test_a_message_that_waits_behind_one_in_confirmation_is_sent_as_soon_as_that_is_over(a):
    """Nobody has to come by for it."""
    reached, free = threading.Event(), threading.Event()

    def confirm(conn: object, message: bytes) -> None:
        if message == b"m-0":
            reached.set()
            assert free.wait(GUARD)

    settings = {"reap_interval": None}
    for ahead in (False, True):
        reached.clear()
        free.clear()
        with broadcasting(a, confirm=confirm, write_ahead=ahead, pool_settings=settings) as sender:
            sender.wait_ready(GUARD)

            def second() -> None:
                assert reached.wait(GUARD)
                assert sender.broadcast(b"m-1").sent == ()
                free.set()

            together(lambda: sender.broadcast(b"m-0"), second)
            until(lambda: a.sessions[-1:] == [[b"m-0", b"m-1"]], "both")
            until(lambda: sender.unsent().total == 0)


def test_a_message_waits_its_turn_though_the_worker_is_late_and_an_older_one_just_leaves_the_spool(a):
    class Slow(MemorySpool):
        """Who removes the first message comes back late from that."""

        def remove(self, positions: Sequence[int]) -> None:
            super().remove(positions)
            if positions and not removed.is_set():
                removed.set()
                assert sent.wait(GUARD)

    reached, free, removed, sent, workers = (threading.Event() for _ in range(5))

    def confirm(conn: object, message: bytes) -> None:
        if message == b"m-0":
            reached.set()
            assert free.wait(GUARD)

    def two_more() -> None:
        assert reached.wait(GUARD)
        sender.broadcast(b"m-1")
        free.set()
        assert removed.wait(GUARD)
        try:
            sender.broadcast(b"m-2")
        finally:
            sent.set()
            workers.set()

    def late(link: Any) -> bool:
        threading.Thread(target=lambda: workers.wait(GUARD) and start(link)).start()
        return True

    with broadcasting(a, spool=Slow(), confirm=confirm, write_ahead=True) as sender:
        sender.wait_ready(GUARD)
        until(lambda: not any(link.is_tended for link in sender._office.roster.links.values()))
        start, sender._office.start_worker = sender._office.start_worker, late
        together(lambda: sender.broadcast(b"m-0"), two_more)
        assert a.until_lines(3) == numbered(3)
        until(lambda: sender.unsent().total == 0)


def test_a_flush_ends_as_soon_as_the_last_message_is_confirmed_to_its_own_sender(a, clock: FakeClock):
    """The clock stands still: no turn of upkeep finds it out."""
    reached, free = threading.Event(), threading.Event()

    def confirm(conn: object, message: bytes) -> None:
        reached.set()
        assert free.wait(GUARD)

    def flush() -> int:
        assert reached.wait(GUARD)
        threading.Timer(0.1, free.set).start()
        return sender.flush(60)

    settings = {"clock": clock, "reap_interval": None}
    with broadcasting(a, confirm=confirm, write_ahead=True, pool_settings=settings) as sender:
        sender.wait_ready(GUARD)
        assert together(lambda: sender.broadcast(b"m-0"), flush)[1] == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_nothing_is_lost_or_left_behind_in_a_storm_of_deaths(answering, kind, tmp_path: Path):
    spool = MemorySpool() if kind == "memory" else SQLiteSpool(tmp_path / "spool", durable=False)
    over = threading.Event()

    def torment() -> None:
        while not over.wait(0.01):
            answering.kill()

    with broadcasting(answering, spool=spool, write_ahead=True, confirm=acknowledged) as sender:
        tormentor = threading.Thread(target=torment)
        tormentor.start()
        try:
            together(
                *(lambda w=w: list(map(sender.broadcast, numbered(50, who=w))) for w in "stuv"), limit=30
            )
        finally:
            over.set()
            tormentor.join()
        until(lambda: sender.unsent().total == 0, "an empty spool")
        for who, numbers in by_sender(first_comings(answering.lines)).items():
            assert numbers == list(range(50)), who
        link = sender._office.roster.links[str(answering.endpoint)]
        assert (link.own, link.done, link.unfinished) == ({}, {}, None)
        assert link.strand is None or link.strand.holder is None
