"""A route that changes while messages wait: what is due to a member goes with it, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from connpool import LinkEvent, LinkState, MemorySpool, SQLiteSpool
from tests.helpers.sinks import GUARD, Diary, Sink, all_alive, broadcasting, numbered, route_of
from tests.helpers.switchboard import until
from tests.helpers.together import together

A, B, C = "abc"


@pytest.fixture
def sinks() -> Iterator[dict[str, Sink]]:
    with Sink() as a, Sink() as b, Sink() as c:
        yield {"a": a, "b": b, "c": c}


def route(sinks: dict[str, Sink], *members: str) -> str:
    return route_of(*(sinks.get(member, member) for member in members))


def down(sinks: dict[str, Sink]) -> None:
    for sink in sinks.values():
        sink.refuse()


EDITS = {
    "one more": ((A, ",", B), (A, ",", B, ",", C)),
    "one less": ((A, ",", B), (B,)),
    "a list of it": ((B,), (A, ",", B)),
    "another in its place": ((A, ",", B), (B, ",", C)),
    "split": ((A, ",", B), (A, B)),
    "in another group": ((A, ",", B, "||", C), (C, "||", B)),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_what_waits_for_a_member_that_is_edited_arrives_before_what_comes_later(edit, ahead, sinks):
    before, after = EDITS[edit]
    down(sinks)
    with broadcasting(*(sinks.get(each, each) for each in before), write_ahead=ahead) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")
        link, *_ = sender._office.roster.links.values()
        sender._office.spool.put([link.queue], b"m-0", bytes(16))  # as when another of its group was alive
        sender.pool.route = route(sinks, *after)
        (waits,) = sender.unsent().items()
        assert waits == (next(info.member for info in sender.links() if info.unsent), 1)
        assert len({info.member for info in sender.links()}) == len(sender.links())
        for sink in sinks.values():
            sink.start()
        all_alive(sender)
        for message in numbered(5, begin=1):
            sender.broadcast(message)
        assert sender.flush(GUARD) == 0
        until(lambda: any(b"m-0" in sink.lines for sink in sinks.values()), "what has waited")
    (has_it,) = [sink for sink in sinks.values() if b"m-0" in sink.lines]
    assert has_it.lines[0] == b"m-0"
    for sink in sinks.values():
        assert sink.lines == sorted(sink.lines)


def test_a_member_that_is_what_an_edited_one_was_has_a_queue_of_its_own(sinks):
    down(sinks)
    with broadcasting(sinks[A]) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")
        sender.pool.route = route(sinks, A, ",", B)
        sender.pool.route = route(sinks, B, A)
        assert len({link.queue for link in sender._office.roster.links.values()}) == 2


def test_two_members_that_become_a_list_leave_nothing_behind(sinks):
    down(sinks)
    with broadcasting(sinks[A], sinks[B]) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")
        for queue in [str(sinks[A].endpoint), str(sinks[B].endpoint)]:
            sender._office.spool.put([queue], queue.encode(), bytes(16))
        sender.pool.route = route(sinks, A, ",", B)
        assert sender.unsent().total == 2
        for sink in sinks.values():
            sink.start()
        all_alive(sender)
        assert sender.flush(GUARD) == 0
        until(lambda: sinks[A].n_lines + sinks[B].n_lines == 2, "both copies")


def test_a_member_that_lives_gets_at_once_what_waits_for_one_that_joins_it(sinks):
    down(sinks)
    sinks[A].start()
    with broadcasting(sinks[A], sinks[B]) as sender:
        until(lambda: [link.state for link in sender.links()] == [LinkState.ALIVE, LinkState.DEAD])
        sender._office.spool.put([str(sinks[B].endpoint)], b"hello", bytes(16))
        sender.pool.route = route(sinks, A, ",", B)
        sinks[A].until_has(b"hello")
        until(lambda: sender.unsent().total == 0, "nothing unsent")


def test_what_another_process_has_left_for_one_of_a_list_is_sent_to_the_list(sinks, tmp_path):
    other = SQLiteSpool(tmp_path / "spool")
    other.put([str(sinks[A].endpoint)], b"hello", bytes(16))
    with broadcasting(sinks[A], ",", sinks[B], spool=SQLiteSpool(tmp_path / "spool")) as sender:
        all_alive(sender)
        other.close()
        until(lambda: sinks[A].n_lines + sinks[B].n_lines == 1, "what is left")


def test_the_queues_of_members_that_were_one_are_told_apart(sinks):
    down(sinks)
    with broadcasting(sinks[A], ",", sinks[B], standby="cold") as sender:
        (one,) = sender._office.roster.links.values()
        sender._office.spool.put([one.queue], b"m-0", bytes(16))
        sender.pool.route = route(sinks, C)
        sender.pool.route = route(sinks, A, B)
        queues = [link.queue for link in sender._office.roster.links.values()]
        assert queues == [one.queue, str(sinks[B].endpoint)]
        assert not any(link.heirlooms for link in sender._office.roster.links.values())
        sender.pool.route = route(sinks, A, "||", A, ",", B)
        queues = [link.queue for link in sender._office.roster.links.values()]
        assert len(set(queues)) == 2
        for sink in sinks.values():
            sink.start()
        sinks[A].until_has(b"m-0")


def test_what_is_inherited_goes_before_what_comes_when_the_heir_is_back(sinks):
    with broadcasting(sinks[A]) as sender:
        all_alive(sender)
        (link,) = sender._office.roster.links.values()
        strand = link.strand
        link.heirlooms = ("elsewhere",)
        link.adopt(strand, is_behind=False)
        assert link.is_flushing
        sender._office.kick(link)
        until(lambda: not (link.is_flushing or link.heirlooms), "its rest")


def test_a_member_that_gets_longer_keeps_its_connection(sinks):
    sinks[A].refuse()
    with broadcasting(sinks[A], ",", sinks[B]) as sender:
        all_alive(sender)
        (link,) = sender.links()
        assert link.endpoint == sinks[B].endpoint
        sender.pool.route = route(sinks, A, ",", B, ",", C)
        (edited,) = sender.links()
        assert (edited.state, edited.since, edited.endpoint) == (LinkState.ALIVE, link.since, link.endpoint)
        assert edited.member == ", ".join(str(sinks[each].endpoint) for each in (A, B, C))
        sender.broadcast(b"hello")
        sinks[B].until_has(b"hello")
    assert sum(sink.accepts for sink in sinks.values()) == 1


def test_a_member_that_loses_the_endpoint_it_is_connected_to_goes_over_to_another(sinks):
    diary, patient = Diary(), {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}
    with broadcasting(sinks[A], ",", sinks[B], pool_settings=patient) as sender:
        all_alive(sender)
        sender.on(LinkEvent.ALIVE | LinkEvent.DEAD, diary)
        (link,) = sender.links()
        first, second = (A, B) if link.endpoint == sinks[A].endpoint else (B, A)
        sender.remove(sinks[first].endpoint)
        until(lambda: LinkEvent.ALIVE in diary.of(sinks[second]), "the other's life")
        assert diary.of(sinks[first])[-1] is LinkEvent.DEAD
        assert sender.broadcast(b"hello").sent == (sinks[second].endpoint,)
        sinks[second].until_has(b"hello")
        sinks[first].until_open(0)


def test_a_dial_to_an_endpoint_that_leaves_its_member_meanwhile_brings_it_nothing(sinks, monkeypatch):
    dials, goes_on = threading.Event(), threading.Event()
    with broadcasting(sinks[A], ",", sinks[B], standby="cold") as sender:
        diary = Diary()
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        all_alive(sender)
        (link,) = sender.links()
        other = B if link.endpoint == sinks[A].endpoint else A
        lend = sender.pool.try_connect

        def lend_late(*arguments: Any, **options: Any) -> Any:
            conn = lend(*arguments, **options)
            if conn.endpoint == sinks[other].endpoint and not dials.is_set():
                dials.set()
                assert goes_on.wait(GUARD)
            return conn

        monkeypatch.setattr(sender.pool, "try_connect", lend_late)
        sender.mark_dead(link.endpoint)
        sender.mark_alive(link.endpoint)
        assert dials.wait(GUARD)
        sender.remove(sinks[other].endpoint)
        goes_on.set()
        until(
            lambda: [event for event, _ in diary.told][-2:] == [LinkEvent.DEAD, LinkEvent.ALIVE], "its life"
        )
        assert sender.broadcast(b"hello").sent == (link.endpoint,)
        sinks[other].until_open(0)
        assert diary.of(sinks[other]) == []


def test_the_next_process_sends_what_waits_for_a_member_that_was_edited_meanwhile(sinks, tmp_path):
    down(sinks)
    with broadcasting(sinks[A], ",", sinks[B], spool=SQLiteSpool(tmp_path / "spool")) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "its death")
        sender._office.spool.put([sender._office.roster.groups[0][0].queue], b"m-0", bytes(16))
        assert sender.close(0.1) == 1
    sinks[B].start()
    sinks[C].start()
    with broadcasting(sinks[B], ",", sinks[C], spool=SQLiteSpool(tmp_path / "spool")) as sender:
        sender.broadcast(b"m-1")
        assert sender.flush(GUARD) == 0
        until(lambda: sinks[B].n_lines + sinks[C].n_lines == 2, "both")
        assert sorted([sinks[B].lines, sinks[C].lines]) == [[], [b"m-0", b"m-1"]]


def test_a_copy_that_comes_for_a_member_that_has_just_left_goes_to_who_has_its_place(sinks, monkeypatch):
    down(sinks)
    with broadcasting(sinks[A], sinks[B], ",", sinks[C]) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")
        sinks[A].start()
        until(lambda: any(link.state is LinkState.ALIVE for link in sender.links()), "the life of one")
        spool = sender._office.spool
        put = spool.put

        def put_late(*arguments: Any) -> Any:
            monkeypatch.undo()
            sender.pool.route = route(sinks, A)
            sender.pool.route = route(sinks, A, B)
            return put(*arguments)

        monkeypatch.setattr(spool, "put", put_late)
        sender.broadcast(b"hello")
        sinks[B].start()
        all_alive(sender)
        assert sender.flush(GUARD) == 0
        sinks[B].until_has(b"hello")


def test_what_waits_for_an_endpoint_that_is_taken_out_waits_until_it_is_back(sinks):
    down(sinks)
    with broadcasting(sinks[A], sinks[B], spool=MemorySpool()) as sender:
        until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")
        sender._office.spool.put([str(sinks[B].endpoint)], b"hello", bytes(16))
        sender.remove(sinks[B].endpoint)
        assert sender.unsent() == {str(sinks[B].endpoint): 1}
        sinks[B].start()
        sender.add(sinks[B].endpoint)
        sinks[B].until_has(b"hello")
        assert sinks[A].lines == []
        until(lambda: sender.unsent().total == 0, "nothing unsent")


def test_routes_may_change_while_many_send(sinks):
    over = threading.Event()

    def send(who: str) -> None:
        for message in numbered(150, who=who):
            sender.broadcast(message)
        over.set()

    def edit() -> None:
        while not over.is_set():
            for members in ((A, ",", B), (A,), (A, ",", C), (A, ",", B, ",", C)):
                sender.pool.route = route(sinks, *members)

    with broadcasting(sinks[A], ",", sinks[B]) as sender:
        together(lambda: send("s"), lambda: send("t"), edit, limit=30)
        assert sender.flush(GUARD) == 0
        wanted = {*numbered(150, who="s"), *numbered(150, who="t")}
        until(lambda: wanted == {line for sink in sinks.values() for line in sink.lines}, "all of them")
