"""One link by itself: what a sender leaves that an interrupt has torn away, and what others make of it."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections import deque
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConnectionPool,
    LinkState,
    MemorySpool,
    Route,
    SocketConnector,
    UsageError,
    clock,
)
from connpool.delivery import office
from connpool.delivery.errand import Errand
from connpool.delivery.link import Link, Outcome
from connpool.delivery.strand import Claim, Parcel, Strand
from connpool.delivery.watching import Watch
from connpool.testing import FakeClock
from connpool.wire.io import Stream
from connpool.wire.line import BROKEN, Line
from connpool.wire.waiting import wait_until_ready
from tests.helpers.sinks import GUARD, MUCH, Sink, broadcasting
from tests.helpers.switchboard import until


def at_rest(sender: Broadcaster) -> Link:
    """The link to its one member, when that is alive and no worker tends it any more."""
    (link,) = sender._office.roster.links.values()
    until(lambda: sender.ready and not link.is_tended)
    return link


class Wire:
    """Stands for a line: takes *most* bytes of each message; an interrupt strikes while it takes the next."""

    def __init__(self, most: int = 1_000) -> None:
        self.most = most
        self.is_midway = False
        self.taken: list[bytes] = []
        self.error: Exception | None = None
        self.strikes = False

    def look_and_push(self, data: bytes) -> int:
        self.taken.append(data[: self.most])
        if self.strikes:
            raise KeyboardInterrupt
        return len(self.taken[-1])

    def is_alive(self) -> bool:
        return self.error is None

    def spoil(self, error: Exception) -> None:
        self.error = error

    def end(self) -> None:
        pass


def link_over(wire: Any, spool: MemorySpool | None = None) -> Link:
    member = Route.parse("a:1").groups[0].members[0]
    link = Link(member, 0.0, spool)
    link.adopt(Strand(None, wire, member.endpoints[0], None), is_behind=False)  # type: ignore[arg-type]
    return link


def torn(wire: Wire, parcel: Parcel, spool: MemorySpool | None = None) -> Link:
    """A link whose sender was torn away while the system took *parcel*."""
    link = link_over(wire, spool)
    wire.strikes = True
    with pytest.raises(KeyboardInterrupt):
        link.try_send(parcel)
    wire.strikes = False
    parcel.is_given_up = True
    return link


def test_nothing_follows_a_message_of_which_nobody_knows_how_much_was_taken() -> None:
    wire = Wire()
    link = torn(wire, Parcel(b"first"))
    assert link.try_send(Parcel(b"second")) is Outcome.DEAD
    assert wire.taken == [b"first"]
    assert isinstance(wire.error, ConnectionAbortedError)


def test_nobody_holds_a_link_for_a_message_after_it() -> None:
    wire = Wire()
    link = torn(wire, Parcel(b"first"))
    assert link.hold(Claim()) is None
    assert link.try_hold(Claim()) is Outcome.DEAD
    assert isinstance(wire.error, ConnectionAbortedError)


def test_a_rest_that_its_sender_has_given_up_is_torn_where_nobody_else_keeps_it() -> None:
    wire, parcel = Wire(most=3), Parcel(b"first")
    link = link_over(wire)
    assert link.try_send(parcel) is Outcome.BEGUN
    assert link.try_send(Parcel(b"second")) is Outcome.BEHIND
    assert link.heal() is None  # its sender is at it
    parcel.is_given_up = True
    assert link.heal() is link.strand
    assert link.try_send(Parcel(b"third")) is Outcome.DEAD


def test_a_rest_belongs_to_the_message_that_was_begun_and_no_other() -> None:
    spool = MemorySpool()
    wire, parcel, other = Wire(most=3), Parcel(b"first"), Parcel(b"second")
    link = link_over(wire, spool)
    assert link.try_send(parcel) is Outcome.BEGUN
    assert link.try_send(other) is Outcome.BEHIND
    link.settle(other, 7)
    assert link.unfinished is not None
    assert not link.unfinished.is_settled
    assert (link.has_begun(parcel), link.has_begun(other)) == (True, False)
    link.settle(parcel, 8)
    assert (link.unfinished.is_settled, link.unfinished.position) == (True, 8)


def test_what_one_has_sent_who_was_torn_away_hides_nothing_that_waits() -> None:
    """It may have left the spool or not: a worker has to look."""
    spool = MemorySpool()
    link, parcel = link_over(Wire(), spool), Parcel(b"first")
    with link.writing:
        link.note_sent(1, parcel)
    spool.put([link.queue], b"waits", bytes(16))
    assert not link.has_waiting()
    parcel.is_given_up = True
    assert link.has_waiting()
    assert link.try_send(Parcel(b"second")) is Outcome.BEHIND


def test_what_a_worker_has_in_hand_cannot_be_withdrawn_and_what_is_withdrawn_it_does_not_send() -> None:
    spool = MemorySpool()
    with Sink() as sink, broadcasting(sink, spool=spool, write_ahead=True) as sender:
        link = at_rest(sender)
        first, second = spool.put([link.queue, link.queue], b"a copy", bytes(16))
        assert link.withdraw(first, Parcel(b"a copy"))
        sender._office.kick(link)
        until(lambda: sender.unsent().total == 0, "the end of both copies")
        assert not link.withdraw(second, Parcel(b"a copy"))
        sender.broadcast(b"the end")
        sink.until_has(b"the end")
        assert sink.lines == [b"a copy", b"the end"]
        assert (link.done, link.own) == ({}, {})


def test_flushing_goes_on_until_all_is_taken_that_senders_have_left_to_it() -> None:
    """Even while the counts hide it: what another has sent may leave the spool before it leaves ``done``."""
    spool = MemorySpool()
    link, claim = link_over(Wire(), spool), Claim()
    (position,) = spool.put([link.queue], b"waits", bytes(16))
    with link.writing:
        link.note_sent(position + 1, claim)
        link.is_flushing = True
    assert link.try_send(Parcel(b"waits"), position) is Outcome.BEHIND
    assert not link.stop_flushing()
    link.taken = position
    spool.remove([position])
    assert link.stop_flushing()


def test_who_is_late_for_a_message_is_asked_anew_for_each() -> None:
    with Sink() as one, Sink() as other, broadcasting(one, other) as sender:
        until(lambda: sender.ready)
        members = [str(one.endpoint), str(other.endpoint)]
        links = [sender._office.roster.links[member] for member in members]
        for late in [(0,), (1,), (0, 1), (1,)]:
            until(lambda: not any(link.is_tended for link in links), "the end of all flushing")
            for number in late:
                with links[number].writing:
                    links[number].is_flushing = True
            delivery = sender.broadcast(b"hello")
            assert delivery.spooled == tuple(members[number] for number in late)
            assert list(map(str, delivery.sent)) == [m for i, m in enumerate(members) if i not in late]


def test_flushing_ends_though_a_limit_has_dropped_what_was_left_to_the_worker() -> None:
    spool = MemorySpool()
    with Sink() as sink, broadcasting(sink, spool=spool, write_ahead=True) as sender:
        link = at_rest(sender)
        (dropped,) = spool.put([link.queue], b"dropped", bytes(16))
        spool.remove([dropped])
        with link.writing:
            link.is_flushing = True
            link.behind = dropped
        sender._office.kick(link)
        until(lambda: not link.is_tended, "the end of the worker")
        assert sender.broadcast(b"hello").sent


def test_a_claim_on_what_a_worker_has_taken_hides_nothing_that_waits() -> None:
    spool = MemorySpool()
    link = link_over(Wire(), spool)
    taken, _ = spool.put([link.queue, link.queue], b"waits", bytes(16))
    spool.remove([taken])
    with link.writing:
        link.own[taken] = Claim()
    assert not link.has_waiting()
    link.taken = taken
    assert link.has_waiting()


def test_a_worker_that_never_started_is_missed_though_nothing_else_is_due(monkeypatch) -> None:
    monkeypatch.setattr(office, "START_GRACE", 0.2)
    with Sink() as sink, broadcasting(sink, spool=None) as sender:
        link = at_rest(sender)
        with sender._office._lock:
            link.is_tended, link.worker, link.tended_since = True, None, clock.now()
        sender.sweep()
        assert link.is_tended
        until(lambda: not link.is_tended, "another turn")


def test_of_two_threads_that_tell_of_a_change_of_group_one_finds_nothing_more_to_tell() -> None:
    class Emptied(deque[Any]):
        def popleft(self) -> Any:
            self.clear()
            return super().popleft()

    with Sink() as sink, broadcasting(sink) as sender:
        sender._office._switches = Emptied([(0, 1)])
        sender._office.speak_up()


@pytest.mark.parametrize(("limits", "n_threads"), [({}, 0), ({"max_age": 10.0}, 3)])
def test_a_spool_that_drops_nothing_needs_no_thread_every_second(monkeypatch, limits, n_threads) -> None:
    fake, started = FakeClock(), []
    settings = {"clock": fake, "reap_interval": None}
    with Sink() as sink, broadcasting(sink, spool=MemorySpool(**limits), pool_settings=settings) as sender:
        until(lambda: sender.ready)
        monkeypatch.setattr(
            Errand, "do_apart", lambda errand, run, name: started.append(run(errand.turns.take(0)))
        )
        for _ in range(3):
            fake.advance(1.0)
            sender.sweep()
        assert len(started) == n_threads


def test_a_link_whose_loss_nobody_has_told_is_told_of_by_the_next_turn(monkeypatch) -> None:
    with Sink() as sink, broadcasting(sink) as sender:
        until(lambda: sender.ready)
        link = sender._office.roster.links[str(sink.endpoint)]
        lost = link.strand
        assert lost is not None
        monkeypatch.setattr(Line, "end", lambda line: None)  # or who reads from it would tell
        to_close = link.drop(lost, None)
        monkeypatch.undo()
        assert link.state is LinkState.ALIVE
        sender.sweep()
        until(lambda: link.strand not in (None, lost), "another connection")
        sender._office.close_strand(to_close)
        sender.broadcast(b"hello")
        sink.until_has(b"hello")


def test_an_interrupt_on_the_way_out_leaves_no_half_of_a_message_to_be_gone_on_with(monkeypatch) -> None:
    """One strikes in the midst of the message, another while its connection would be given up."""
    with Sink(answers=True) as sink, broadcasting(sink, confirm=lambda conn, message: None) as sender:
        until(lambda: sender.ready)

        def push_half(self: Line, data: bytes, timeout: object) -> int:
            monkeypatch.undo()
            monkeypatch.setattr(Link, "free", strike)
            self.push(data[:3])
            raise KeyboardInterrupt

        def strike(*_: object) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(Line, "push_all", push_half)
        with pytest.raises(KeyboardInterrupt):
            sender.broadcast(b"first")
        sender.broadcast(b"second")
        sink.until_has(b"second")
        assert sink.lines == [b"second"]


def test_a_reading_thread_that_an_interrupt_kept_from_starting_is_started_by_the_next_look(
    monkeypatch,
) -> None:
    with Sink() as sink, broadcasting(sink) as sender:
        at_rest(sender)
        watch = Watch(sender._office)

        start = threading.Thread.start

        def strike(thread: threading.Thread) -> None:
            if threading.current_thread() is not threading.main_thread():
                return start(thread)  # somebody else's
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "start", strike)
        with pytest.raises(KeyboardInterrupt):
            watch.look()
        assert watch._thread is not None
        assert not watch._thread.is_alive()
        watch.look()
        assert watch._thread.is_alive()
        watch.stop()


def test_a_reading_thread_that_is_about_to_start_is_not_waited_for_at_the_end(monkeypatch) -> None:
    with Sink() as sink, broadcasting(sink) as sender:
        at_rest(sender)
        watch = Watch(sender._office)
        start, main = threading.Thread.start, threading.main_thread()

        def put_off(thread: threading.Thread) -> None:
            if threading.current_thread() is not main:
                start(thread)  # somebody else's

        monkeypatch.setattr(threading.Thread, "start", put_off)
        watch.look()
        monkeypatch.undo()
        watch.stop()
        thread = watch._thread
        assert thread is not None
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_who_was_interrupted_while_it_waited_for_its_turn_holds_up_nobody_though_its_error_is_kept(
    monkeypatch,
):
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    link = link_over(Wire())
    strand = link.strand
    assert link.try_hold(Claim()) is strand
    monkeypatch.setattr("connpool.delivery.link.wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        link.hold(Claim())
    monkeypatch.undo()
    assert link.free(strand) is None
    assert link.hold(Claim(), 0.0) is strand
    assert caught.value.__traceback__ is not None


def test_a_peer_that_has_gone_is_an_answer_and_nothing_is_written_to_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for is_reset in (False, True):
            with socket.create_connection(server.getsockname()) as ours, server.accept()[0] as theirs:
                line = Line(Stream(ours), threading.RLock())
                assert line.look_and_push(b"hello") == 5
                assert is_reset or theirs.recv(5) == b"hello"
                theirs.close()
                assert wait_until_ready(ours.fileno(), select.POLLIN, 10)
                assert (line.push if is_reset else line.look_and_push)(b"lost") == BROKEN
                assert isinstance(line.error, ConnectionError)


def test_what_broke_a_connection_is_told_as_the_system_tells_it():
    with Sink() as sink, broadcasting(sink, reconnect=False) as sender:
        at_rest(sender)
        sink.kill()
        until(lambda: not sender.ready, "the death of it")
        error = sender.links()[0].last_error
        assert isinstance(error, ConnectionResetError)
        assert error.errno == errno.ECONNRESET


def test_a_line_whose_end_is_found_by_a_write_alone_is_broken_and_says_why() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = Line(Stream(ours), threading.RLock())
        ours.shutdown(socket.SHUT_WR)  # no poll tells of that
        assert line.look_and_push(b"x") == BROKEN
        assert isinstance(line.error, BrokenPipeError)
        assert line.push_all(b"xyz", None) == 0


def test_a_read_that_finds_the_end_says_why() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as theirs,
    ):
        line = Line(Stream(ours), threading.RLock())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        assert wait_until_ready(ours.fileno(), select.POLLIN, 10)
        assert line.pull() is None
        assert isinstance(line.error, ConnectionResetError)


def test_on_tls_a_line_is_midway_while_a_record_could_not_be_written(certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        Sink(tls=certificates.server()) as sink,
        ConnectionPool(sink.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=GUARD) as conn,
    ):
        line = Line(conn._held().streaming(), threading.RLock())
        assert line.push(b"hello\n") == 6
        assert not line.is_midway
        sink.until_lines(1)
        sink.is_deaf = True
        while line.push(b"f" * MUCH) == MUCH:
            pass
        assert line.is_midway
        conn.terminate()


def test_what_is_no_socket_is_no_line() -> None:
    with pytest.raises(UsageError, match="a object is not a socket"):
        Line(object(), threading.RLock())
