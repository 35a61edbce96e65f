"""Threads that give way before any line of the broadcaster lose, reorder and tear nothing."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
from typing import Any

import pytest

import connpool.delivery
import connpool.wire.line
from connpool import Broadcaster, LinkEvent, NoEndpointError
from tests.helpers.preemption import preempting
from tests.helpers.sinks import (
    GUARD,
    Diary,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    by_sender,
    check_ascending,
    first_comings,
    numbered,
    route_of,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together

MODULES = [
    connpool.wire.line,
    *(
        importlib.import_module(f"connpool.delivery.{module.name}")
        for module in pkgutil.iter_modules(connpool.delivery.__path__)
        if "spool" not in module.name
    ),
]


def check_rest(sender: Broadcaster) -> None:
    """Check that nothing is held, begun or claimed any more, and that events and links agree."""
    all_alive(sender)
    assert sender.flush(GUARD) == 0
    links = list(sender._office.roster.links.values())
    until(lambda: not any(link.is_tended for link in links), "the rest of all workers")
    for link in links:
        assert (link.unfinished, link.is_flushing) == (None, False)
        assert (link.own, link.done) == ({}, {})
        strand = link.strand
        assert strand is not None
        until(lambda strand=strand: strand.n_readers == 1, "the reading thread")
        assert (strand.holder, strand.is_midway, strand.is_dropped) == (None, False, False)
    assert sender.pool.stats().size == len(links)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("confirms", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_senders_deaths_returns_and_flushes_that_give_way_anywhere(seed, confirms, ahead):
    over = threading.Event()
    senders = "stu"
    diary = Diary()

    def send(who: str) -> None:
        for message in numbered(50, who=who):
            sender.broadcast(message)

    def torment() -> None:
        dice = random.Random(seed)
        for _ in range(8):
            what = dice.randrange(4)
            server = dice.choice([a, b])
            if what == 0:
                server.kill()
            elif what == 1:
                sender.mark_dead(server.endpoint)
            elif what == 2:
                sender.flush(0.01)
            else:
                sender.mark_alive(server.endpoint)
            over.wait(0.005)

    confirm = acknowledged if confirms else None
    with (
        Sink(answers=confirms) as a,
        Sink(answers=confirms) as b,
        broadcasting(a, b, confirm=confirm, write_ahead=ahead) as sender,
    ):
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        sender.wait_ready(GUARD)
        with preempting(*MODULES, chance=0.1, seed=seed):
            together(*(lambda who=who: send(who) for who in senders), torment, limit=30)
        check_rest(sender)
        for server in (a, b):
            for session in server.sessions:
                check_ascending(session)
            until(lambda server=server: diary.of(server)[-1:] == [LinkEvent.ALIVE], "the telling of all")
            told = diary.of(server)
            assert told == [LinkEvent.ALIVE, LinkEvent.DEAD] * (len(told) // 2) + [LinkEvent.ALIVE]
            if confirms:
                found = by_sender(first_comings(server.lines))
                assert found == {who.encode(): list(range(50)) for who in senders}


@pytest.mark.parametrize("seed", range(2))
def test_without_a_spool_what_was_accepted_reaches_somebody_though_threads_give_way(seed):
    accepted: list[bytes] = []

    def send(who: str) -> None:
        for message in numbered(40, who=who):
            try:
                delivery = sender.broadcast(message)
            except NoEndpointError:
                continue
            assert delivery.sent
            accepted.append(message)

    def torment() -> None:
        for _ in range(6):
            a.kill()
            c.kill()

    with (
        Sink(answers=True) as a,
        Sink(answers=True) as c,
        broadcasting(a, "||", c, spool=None, confirm=acknowledged) as sender,
    ):
        sender.wait_ready(GUARD)
        with preempting(*MODULES, chance=0.1, seed=seed):
            together(lambda: send("s"), lambda: send("t"), torment, limit=30)
        assert set(accepted) <= set(a.lines + c.lines)


@pytest.mark.parametrize("seed", range(3))
def test_who_is_ready_can_send_though_threads_give_way(seed):
    def send_as_soon_as_ready(sender: Broadcaster) -> Any:
        until(lambda: sender.ready)
        return sender.broadcast(b"at once").sent

    with Sink() as a:
        for n in range(5):
            with (
                preempting(*MODULES, chance=0.3, seed=10 * seed + n),
                broadcasting(a, spool=None) as sender,
            ):
                assert send_as_soon_as_ready(sender) == (a.endpoint,)


@pytest.mark.parametrize("seed", range(2))
def test_routes_that_change_while_threads_send_and_give_way_lose_no_member(seed):
    def send(who: str) -> None:
        for message in numbered(60, who=who):
            sender.broadcast(message)

    def change() -> None:
        for _ in range(6):
            sender.add(c.endpoint)
            sender.pool.route = route_of(b, "||", a)
            sender.pool.route = route_of(a, b)

    with (
        Sink(answers=True) as a,
        Sink(answers=True) as b,
        Sink(answers=True) as c,
        broadcasting(a, b, confirm=acknowledged) as sender,
    ):
        all_alive(sender)
        with preempting(*MODULES, chance=0.1, seed=seed):
            together(lambda: send("s"), lambda: send("t"), change, limit=30)
        sender.flush()
        found = by_sender(first_comings(b.lines))
        until(
            lambda: by_sender(first_comings(b.lines)) == {b"s": [*range(60)], b"t": [*range(60)]}, f"{found}"
        )
        until(lambda: sender.pool.stats().size == 2)
        assert {link.member for link in sender.links()} == {str(a.endpoint), str(b.endpoint)}


@pytest.mark.parametrize("seed", range(3))
def test_an_end_while_threads_send_and_give_way_leaves_nothing_open(seed):
    def send(who: str) -> None:
        for message in numbered(1_000, who=who):
            try:
                sender.broadcast(message)
            except Exception:
                return

    def close() -> int:
        a.until_lines(30)
        return sender.close()

    with Sink() as a, broadcasting(a) as sender:
        sender.on(LinkEvent.ALIVE, lambda *_: None)
        with preempting(*MODULES, chance=0.1, seed=seed):
            together(lambda: send("s"), lambda: send("t"), close, limit=30)
        until(lambda: sender.pool.stats().size == 0)
        check_ascending(a.lines)
