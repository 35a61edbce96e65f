"""Nothing is reordered on its way to one member, and nothing is torn, whatever happens on the way."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from connpool import Broadcaster, Delivery, LengthPrefixed, LinkState, MemorySpool, SpoolFullError
from connpool.delivery.strand import Claim
from connpool.testing import FaultProxy, ScriptedServer, Silence
from connpool.wire.line import Line
from tests.helpers.sinks import (
    GUARD,
    MUCH,
    Sink,
    SinkProcess,
    acknowledged,
    all_alive,
    broadcasting,
    by_sender,
    check_ascending,
    fill,
    first_comings,
    narrow,
    numbered,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together

NARROW = {"connector": narrow()}


@pytest.fixture
def answering() -> Iterator[Sink]:
    with Sink(answers=True) as server:
        yield server


def check_per_sender(lines: list[bytes], senders: str, n: int) -> None:
    """Check that each sender's *n* lines came in order, repetitions aside, and that none is missing."""
    found = by_sender(first_comings(lines))
    assert sorted(found) == sorted(who.encode() for who in senders)
    for who, numbers in found.items():
        assert numbers == list(range(n)), (who, numbers)


# -- what waits comes first


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_sent_while_a_queue_is_flushed_comes_after_it(a, ahead):
    a.stop()
    with broadcasting(a, write_ahead=ahead) as sender:
        for message in numbered(1_000):
            sender.broadcast(message)
        a.start()
        for message in numbered(1_000, 1_000):
            sender.broadcast(message)
        assert a.until_lines(2_000) == numbered(2_000)


@pytest.mark.parametrize("ahead", [False, True])
def test_many_threads_that_send_while_a_queue_is_flushed_keep_their_order(a, b, ahead):
    b.stop()
    senders = "rstuvwxy"
    with broadcasting(a, b, write_ahead=ahead) as sender:
        middle = threading.Event()

        def send(who: str) -> None:
            for n, message in enumerate(numbered(150, who=who)):
                sender.broadcast(message)
                if n == 50:
                    middle.set()

        def come_back() -> None:
            assert middle.wait(GUARD)
            b.start()

        together(*(lambda who=who: send(who) for who in senders), come_back, limit=30)
        for server in (a, b):
            lines = server.until_lines(8 * 150)
            check_ascending(lines)
            check_per_sender(lines, senders, 150)


# -- a flush that breaks


def test_a_flush_that_breaks_goes_on_with_the_first_unconfirmed_in_order(answering):
    answering.stop()
    with broadcasting(answering, confirm=acknowledged) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        answering.last = 2
        answering.start()
        until(lambda: sender.unsent().total == 0, "the end of the flush")
        first, second = answering.sessions
        assert first == numbered(2)
        assert second[-3:] == numbered(3, 2)
        assert second == numbered(len(second), 5 - len(second))
        check_per_sender(answering.lines, "m", 5)


@pytest.mark.parametrize("last", [1, 100, 511, 512, 513, 700])
def test_a_flush_that_breaks_after_any_number_of_messages_reorders_nothing(answering, last):
    answering.stop()
    with broadcasting(answering, confirm=acknowledged) as sender:
        for message in numbered(800):
            sender.broadcast(message)
        answering.last = last
        answering.start()
        until(lambda: sender.unsent().total == 0, "the end of the flush")
        for session in answering.sessions:
            check_ascending(session)
        check_per_sender(answering.lines, "m", 800)


def test_a_flush_that_breaks_without_confirmation_reorders_nothing_and_repeats_nothing(a):
    a.stop()
    messages = [message + b"-" + b"x" * 1_000 for message in numbered(3_000)]  # more than buffers take
    with broadcasting(a, pool_settings=NARROW) as sender:
        for message in messages:
            sender.broadcast(message)
        a.last = 500
        a.start()
        until(lambda: sender.unsent().total == 0 and messages[-1] in a.lines, "the end of the flush")
        assert len(a.sessions) == 2
        for session in a.sessions:
            check_ascending(session)


def test_a_confirm_that_fails_keeps_its_message_and_all_behind_it_in_order(a):
    refusals = iter([False] * 3 + [True] + [False] * 4 + [True] * 2)

    def confirm(conn: object, message: bytes) -> None:
        if next(refusals, False):
            raise ValueError(f"not taken: {message!r}")

    with broadcasting(a, confirm=confirm) as sender:
        all_alive(sender)
        for message in numbered(30):
            sender.broadcast(message)
        assert sender.flush(GUARD) == 0
        until(lambda: a.lines[-1:] == [b"m-29"])
        check_per_sender(a.lines, "m", 30)
        assert len(a.lines) > 30
        assert sender.pool.stats().opened == 4  # one may be over before the server has accepted it


# -- a peer that does not read


def test_a_peer_that_stops_reading_holds_up_nobody_and_gets_all_in_order_in_the_end(a, b):
    b.is_deaf = True
    with broadcasting(a, b, pool_settings=NARROW) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent()[b.endpoint] > 5)
        for message in numbered(100):
            assert str(b.endpoint) in sender.broadcast(message).spooled
        a.until_lines(n + 100)
        b.is_deaf = False
        lines = b.until_lines(n + 100)
        assert set(lines[:n]) == {b"f" * MUCH}
        assert lines[n:] == numbered(100)


def test_many_threads_tear_no_message_of_a_peer_that_reads_by_fits_and_starts(b):
    over = threading.Event()
    senders = "stuv"

    def send(who: str) -> None:
        for n in range(60):
            sender.broadcast(f"{who}-{n}-".encode() + who.encode() * (n * 997 % 60_000))

    def torment() -> None:
        dice = random.Random(7)
        while not over.is_set():
            b.is_deaf = not b.is_deaf
            over.wait(dice.uniform(0.001, 0.02))
        b.is_deaf = False

    with broadcasting(b, pool_settings=NARROW) as sender:
        all_alive(sender)
        tormentor = threading.Thread(target=torment)
        tormentor.start()
        try:
            together(*(lambda who=who: send(who) for who in senders), limit=30)
        finally:
            over.set()
            tormentor.join()
        lines = b.until_lines(240)
        check_per_sender(lines, senders, 60)
        for line in lines:
            who, number, body = line.split(b"-")
            assert body == who * (int(number) * 997 % 60_000)


def test_without_a_spool_senders_wait_for_a_slow_peer_and_tear_nothing(b):
    b.is_deaf = True
    senders = "stuv"

    def send(who: str) -> None:
        for n in range(40):
            assert sender.broadcast(f"{who}-{n}-".encode() + b"." * 30_000).sent == (b.endpoint,)

    def listen() -> None:
        threading.Event().wait(0.1)
        b.is_deaf = False

    with broadcasting(b, spool=None, pool_settings=NARROW) as sender:
        all_alive(sender)
        together(*(lambda who=who: send(who) for who in senders), listen, limit=30)
        check_per_sender(b.until_lines(160), senders, 40)


def test_a_message_larger_than_all_buffers_arrives_whole_without_a_wait_for_the_peer(b):
    b.is_deaf = True
    large = bytes(97 + n % 26 for n in range(3_000_000))
    with broadcasting(b, pool_settings=NARROW) as sender:
        all_alive(sender)
        assert sender.broadcast(large).spooled == (str(b.endpoint),)
        assert sender.broadcast(b"next").spooled == (str(b.endpoint),)
        b.is_deaf = False
        assert b.until_lines(2) == [large, b"next"]
        until(lambda: sender.unsent().total == 0)


def test_a_dead_member_s_copy_is_kept_though_a_living_one_takes_only_a_part_at_once(a, b):
    a.stop()
    b.is_deaf = True
    large = b"f" * 3_000_000
    with broadcasting(a, b, pool_settings=NARROW) as sender:
        until(lambda: {link.state for link in sender.links()} == {LinkState.DEAD, LinkState.ALIVE})
        assert set(sender.broadcast(large).spooled) == {str(a.endpoint), str(b.endpoint)}
        a.start()
        b.is_deaf = False
        assert a.until_lines(1) == b.until_lines(1) == [large]


def test_a_message_that_was_begun_and_finds_no_room_in_the_spool_costs_a_connection_and_no_more(b):
    b.is_deaf = True
    spool = MemorySpool(max_messages=1, on_full="raise")
    spool.put(["elsewhere:1"], b"for another", bytes(16))
    with broadcasting(b, spool=spool, pool_settings=NARROW) as sender:
        all_alive(sender)
        with pytest.raises(SpoolFullError):
            sender.broadcast(b"f" * 3_000_000)
        until(lambda: b.accepts == 2, "another connection")
        b.is_deaf = False
        all_alive(sender)
        assert sender.broadcast(b"next").sent == (b.endpoint,)
        b.until_has(b"next")
        assert b.lines == [b"next"]


def test_what_was_sent_and_lies_in_the_spool_yet_is_not_sent_again_in_a_later_batch(b, monkeypatch):
    monkeypatch.setattr("connpool.delivery.flushing.BATCH", 1)
    b.stop()
    with broadcasting(b, spool=MemorySpool()) as sender:
        (link,) = sender._office.roster.links.values()
        positions = [sender._spool.put([link.queue], message, bytes(16))[0] for message in numbered(3)]
        link.done.update(dict.fromkeys(positions[:2], Claim()))
        b.start()
        assert sender.flush(GUARD) == 0
        assert b.until_lines(1) == numbered(3)[2:]
        assert not link.done


def test_what_comes_in_the_moment_in_which_a_member_comes_back_is_sent_after_what_waits_for_all(b):
    b.stop()
    with broadcasting(b, pool_settings={"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD, "a first attempt")
        for message in numbered(2):
            assert sender.broadcast(message).spooled == ("",)
        look, late = sender._office.on_strands, [b"m-2"]

        def broadcast_at_once() -> None:
            look()
            while late:
                sender.broadcast(late.pop())

        sender._office.on_strands = broadcast_at_once
        b.start()
        sender.mark_alive(b.endpoint)
        assert b.until_lines(3) == numbered(3)


def test_what_is_put_aside_in_the_moment_in_which_a_member_comes_back_is_sent_at_once(b, clock):
    class Late(MemorySpool):
        def put(self, *arguments: Any) -> Any:
            b.start()
            sender.mark_alive(b.endpoint)
            until(lambda: sender.links()[0].state is LinkState.ALIVE, "the return")
            until(lambda: not sender._office.roster.links[str(b.endpoint)].is_tended, "the end of its work")
            return super().put(*arguments)

    b.stop()
    settings = {"clock": clock, "reap_interval": None, "blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}
    with broadcasting(b, spool=Late(), pool_settings=settings) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD, "a first attempt")
        assert sender.broadcast(b"hello").spooled == ("",)
        assert b.until_lines(1) == [b"hello"]


def test_a_message_that_was_begun_when_its_connection_broke_is_sent_whole_on_the_next(b):
    b.is_deaf = True
    with broadcasting(b, pool_settings=NARROW) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent()[b.endpoint] > 0, b"f" * 300_000)
        assert n
        sender.broadcast(b"behind")
        b.kill()  # while it is deaf, or it might read the rest just before it is killed
        b.is_deaf = False
        lines = b.until_lines(2)
        until(lambda: b"behind" in b.lines, "the last")
        assert b.lines[-2:] == [b"f" * 300_000, b"behind"]
        assert all(line == b"f" * 300_000 for line in lines[:-1])


def test_a_flush_that_breaks_between_two_messages_sends_neither_of_them_again(b, monkeypatch):
    push_all, broken = Line.push_all, []

    def break_in_between(line: Line, data: bytes, *arguments: Any, **options: Any) -> int:
        if broken:
            return push_all(line, data, *arguments, **options)
        broken.append(line)
        n_sent = push_all(line, data[:8], *arguments, **options)
        line.spoil(ConnectionResetError("it broke"))
        return n_sent

    spool = MemorySpool()
    for number, message in enumerate(numbered(3)):
        spool.put([str(b.endpoint)], message, number.to_bytes(16))
    monkeypatch.setattr(Line, "push_all", break_in_between)
    with broadcasting(b, spool=spool) as sender:
        assert sender.flush(GUARD) == 0
        assert b.until_lines(3) == numbered(3)
        assert b.sessions == [numbered(2), numbered(3)[2:]]


def test_without_a_spool_a_member_that_dies_with_a_part_of_a_message_can_be_used_when_it_is_back(a, b):
    """Its sender waits for another member at that time."""
    a.is_deaf = b.is_deaf = True
    with broadcasting(a, b, spool=None, pool_settings=NARROW) as sender:
        all_alive(sender)
        with ThreadPoolExecutor(1) as threads:
            large = threads.submit(sender.broadcast, b"x" * 3_000_000)
            until(lambda: a.has_unread and b.has_unread, "a part of it on both")
            b.kill()
            b.is_deaf = False
            b.until_accepts(2)
            all_alive(sender)
            a.is_deaf = False
            assert large.result(GUARD) == Delivery((a.endpoint,), refused=(str(b.endpoint),), group=0, id=ANY)
            again = threads.submit(sender.broadcast, b"again")
            assert again.result(GUARD).sent == (a.endpoint, b.endpoint)
        a.until_has(b"again")
        b.until_has(b"again")


# -- storms


def storm(
    sender: Broadcaster, servers: list[Sink], senders: str, n: int, seed: int
) -> list[list[tuple[bytes, object]]]:
    """Let threads send *n* messages each, while one server after the other fails in one way or another."""
    over = threading.Event()

    def send(who: str) -> list[tuple[bytes, object]]:
        dice = random.Random(f"{seed}{who}")
        result = []
        for number in range(n):
            message = f"{who}-{number}-".encode() + b"." * dice.choice([10, 100, 20_000])
            result.append((message, sender.broadcast(message)))
        return result

    def torment() -> list[tuple[bytes, object]]:
        dice = random.Random(seed)
        while not over.is_set():
            server = dice.choice(servers)
            how = dice.choice(["kill", "kill", "deaf", "away"])
            if how == "kill":
                server.kill()
            elif how == "deaf":
                server.is_deaf = True
                over.wait(0.03)
                server.is_deaf = False
            else:
                server.refuse()
                server.kill()
                over.wait(dice.uniform(0.0, 0.05))
                server.start()
            over.wait(dice.uniform(0.0, 0.03))
        return []

    tormentor = threading.Thread(target=torment)
    tormentor.start()
    try:
        return together(*(lambda who=who: send(who) for who in senders), limit=40)
    finally:
        over.set()
        tormentor.join()


@pytest.mark.parametrize(("seed", "ahead"), [(1, False), (2, True)])
def test_in_a_storm_what_is_confirmed_is_not_lost_and_each_sender_stays_in_order(seed, ahead):
    with (
        Sink(answers=True) as a,
        Sink(answers=True) as b,
        broadcasting(a, b, confirm=acknowledged, write_ahead=ahead) as sender,
    ):
        sent = storm(sender, [a, b], "stuvwxyz", 40, seed)
        until(lambda: sender.unsent().total == 0, "the end of all flushes")
        wanted = [message for each in sent for message, _ in each]
        for server in (a, b):
            until(lambda server=server: set(wanted) <= set(server.lines), "all messages")
            assert set(server.lines) == set(wanted)
            check_per_sender(server.lines, "stuvwxyz", 40)
        repeated = sum(len(server.lines) - len(set(server.lines)) for server in (a, b))
        n_sessions = a.accepts + b.accepts
        assert repeated <= 512 * n_sessions


@pytest.mark.parametrize("seed", [3, 4])
def test_in_a_storm_each_connection_brings_each_senders_messages_whole_and_in_order(seed):
    with Sink() as a, Sink() as b, broadcasting(a, b) as sender:
        sent = storm(sender, [a, b], "stuvwxyz", 60, seed)
        until(lambda: sender.unsent().total == 0, "the end of all flushes")
        wanted = {message for each in sent for message, _ in each}
        for server in (a, b):
            for session in server.sessions:
                assert set(session) <= wanted
                check_ascending(session)


def test_a_receiver_that_is_killed_again_and_again_misses_nothing_that_was_confirmed(tmp_path: Path):
    with SinkProcess(tmp_path / "log") as server, broadcasting(server, confirm=acknowledged) as sender:
        sender.wait_ready(GUARD)
        for n in range(6):
            for message in numbered(40, 40 * n):
                sender.broadcast(message)
            server.kill()
            sender.broadcast(b"n-%d" % n)
            server.start()
        until(lambda: sender.unsent().total == 0, "the end of the flush")
        check_per_sender([line for line in server.lines if line.startswith(b"m")], "m", 240)
        check_per_sender([line for line in server.lines if line.startswith(b"n")], "n", 6)


def test_a_proxy_that_cuts_in_the_middle_of_frames_loses_nothing_that_is_confirmed(answering):
    with FaultProxy(answering.endpoint) as proxy, broadcasting(proxy, confirm=acknowledged) as sender:
        dice = random.Random(5)
        for n in range(12):
            proxy.cut(dice.randrange(1, 4_000))
            for number in range(10):
                sender.broadcast(f"m-{10 * n + number}-".encode() + b"." * 200)
            until(lambda: proxy.open == 0 or sender.unsent().total == 0)
            proxy.heal()
        until(lambda: sender.unsent().total == 0, "the end of the flush")
        check_per_sender(answering.lines, "m", 120)


def test_frames_with_a_length_are_as_whole_as_lines():
    framing = LengthPrefixed(4)
    with ScriptedServer(script=Silence()) as server, broadcasting(server, framing=framing) as sender:
        messages = [bytes([n]) * (n * 1_000) for n in range(100)]
        for message in messages:
            sender.broadcast(message)
        sender.flush()
        wanted = b"".join(framing.encode(message) for message in messages)
        served = server.until_accepts(1)
        served.until(lambda: len(served.received) >= len(wanted))
        assert server.received == [wanted]
