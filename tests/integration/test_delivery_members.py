"""Who gets a copy of a message, and how members come and go."""

from __future__ import annotations

import math
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConfigError,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    FramingError,
    Lines,
    LinkEvent,
    LinkState,
    MemorySpool,
    NoEndpointError,
    PermissionDeniedError,
    PoolClosedError,
    SocketConnector,
    SpoolError,
    SQLiteSpool,
    UnknownEndpointError,
    UsageError,
)
from connpool.testing import FakeClock
from tests.helpers.sinks import (
    GUARD,
    Diary,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    numbered,
    refused,
    route_of,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together

NEVER = 1_000.0  # seconds: a back-off that no test lives to see the end of
PATIENT = {"blacklist_initial": NEVER, "blacklist_max": NEVER}


def state_of(broadcaster: Broadcaster, endpoint: Any) -> LinkState:
    wanted = str(getattr(endpoint, "endpoint", endpoint))
    (found,) = [link.state for link in broadcaster.links() if str(link.endpoint) == wanted]
    return found


# -- copies


def test_each_member_gets_one_copy_and_the_answer_names_them(a, b):
    with broadcasting(a, b) as sender:
        delivery = sender.broadcast(b"hello")
        assert delivery.sent == (a.endpoint, b.endpoint)
        assert (delivery.spooled, delivery.refused, delivery.group) == ((), (), 0)
        a.until_has(b"hello")
        b.until_has(b"hello")
    assert a.lines == b.lines == [b"hello"]


def test_the_answer_tells_who_has_it_and_for_whom_it_waits(a):
    with refused() as nobody, broadcasting(a, nobody) as sender:
        delivery = sender.broadcast(b"hello")
        assert (delivery.sent, delivery.spooled, delivery.refused) == ((a.endpoint,), (nobody,), ())
        assert sender.unsent() == {nobody: 1} == dict(sender.unsent())
        assert len(delivery.id) == 16


def test_without_a_spool_the_answer_names_the_members_that_did_not_get_it(a):
    with refused() as nobody, broadcasting(a, nobody, spool=None) as sender:
        delivery = sender.broadcast(b"hello")
        assert (delivery.sent, delivery.spooled, delivery.refused) == ((a.endpoint,), (), (nobody,))


def test_without_a_spool_a_message_that_nobody_takes_is_an_error_that_names_every_cause():
    with refused() as one, refused() as other, broadcasting(one, "||", other, spool=None) as sender:
        with pytest.raises(NoEndpointError) as caught:
            sender.broadcast(b"hello")
        assert {str(endpoint) for endpoint, _ in caught.value.causes} == {one, other}
        assert caught.value.pool == "sensors"
        for endpoint, error in caught.value.causes:  # each says once which one it is about
            assert f"({error}" in str(caught.value) or f"; {error}" in str(caught.value)
            assert f"{endpoint}: {endpoint}" not in str(caught.value)


def test_what_ended_a_link_is_told_with_its_endpoint(a):
    with broadcasting(a, spool=None) as sender:
        sender.broadcast(b"hello")
        a.refuse()
        a.kill()
        with pytest.raises(NoEndpointError, match=rf"there is no spool \({a.endpoint}: "):
            until(lambda: not sender.broadcast(b"again"), "an error")


def test_a_member_that_was_taken_down_by_hand_is_told_as_dead(a):
    with broadcasting(a, spool=None, reconnect=False) as sender:
        sender.broadcast(b"hello")
        sender.mark_dead(a.endpoint)
        with pytest.raises(NoEndpointError, match=rf"there is no spool \({a.endpoint} is dead\)"):
            sender.broadcast(b"again")


def test_a_member_that_is_named_twice_gets_one_copy_over_one_connection(a):
    with broadcasting(a, a, "||", a) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        a.until_lines(5)
        assert (a.lines, a.accepts, len(sender.links())) == (numbered(5), 1, 1)


def test_of_a_member_that_is_a_list_one_endpoint_gets_the_copy_and_another_takes_its_place(a, b, c):
    with broadcasting(a, ",", b, c) as sender:
        sender.broadcast(b"one")
        c.until_has(b"one")
        until(lambda: a.n_lines + b.n_lines == 1)
        first, second = (a, b) if a.n_lines else (b, a)
        first.stop()
        until(lambda: sender.broadcast(b"again") and second.n_lines, "the other one's turn")
        assert (first.lines, first.accepts, second.accepts) == ([b"one"], 1, 1)
        assert set(second.lines) == {b"again"}


def test_the_next_endpoint_of_a_list_is_tried_at_once_and_only_if_none_can_be_had_it_is_dead(a):
    diary, slow = Diary(), {"blacklist_initial": 1_000, "blacklist_max": 1_000}
    with refused() as nobody, broadcasting(nobody, ",", a, pool_settings=slow) as sender:
        all_alive(sender)
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        diary.until(1)
        assert diary.told == [(LinkEvent.ALIVE, str(a.endpoint))]
        assert sender.links()[0].failures == 0
    with (
        refused() as nobody,
        refused() as none,
        broadcasting(nobody, ",", none, pool_settings=slow) as sender,
    ):
        until(lambda: sender.links()[0].failures == 1)
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        diary.until(2)
        assert diary.told[1:] == [(LinkEvent.DEAD, none)]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"confirm": acknowledged}, {"write_ahead": True}], ids=["plain", "confirmed", "ahead"]
)
def test_of_a_list_the_answer_names_who_has_the_copy_though_the_next_moment_it_is_another(
    settings, is_late, monkeypatch
):
    with (
        Sink(answers=True) as a,
        Sink(answers=True) as b,
        Sink(answers=True) as c,
        broadcasting(a, ",", b, c, **settings) as sender,
    ):
        until(lambda: all(link.state is LinkState.ALIVE for link in sender.links()), "the life of both")
        either, other = sender._office.roster.links.values()
        until(lambda: not (either.is_tended or other.is_tended), "the rest of who has opened them")
        first, second = (a, b) if either.endpoint == a.endpoint else (b, a)
        way = "try_hold" if "confirm" in settings else "try_send"
        go_on = getattr(other, way)

        def go_over(*arguments: Any) -> Any:
            """Whose turn it is after that of the list, which has its copy."""
            first.until_has(b"hello")
            first.refuse()
            first.kill()
            until(lambda: either.endpoint == second.endpoint, "the other endpoint of the list")
            other.is_flushing = is_late
            return go_on(*arguments)

        monkeypatch.setattr(other, way, go_over)
        delivery = sender.broadcast(b"hello")
        monkeypatch.undo()
        assert delivery.sent == ((first.endpoint,) if is_late else (first.endpoint, c.endpoint))
        c.until_has(b"hello")


def test_many_threads_with_one_broadcaster_lose_and_tear_nothing(a, b):
    with broadcasting(a, b) as sender:
        together(*(lambda who=who: list(map(sender.broadcast, numbered(100, who=who))) for who in "rstuvwxy"))
        wanted = {message for who in "rstuvwxy" for message in numbered(100, who=who)}
        for server in (a, b):
            assert set(server.until_lines(800)) == wanted
            assert server.n_lines == 800


@pytest.mark.parametrize("wrong", ["a text", 7, None, ["bytes"]])
def test_what_is_not_bytes_is_refused_before_anything_is_sent(a, wrong):
    with broadcasting(a) as sender:
        with pytest.raises(ValueError, match="a message is bytes"):
            sender.broadcast(wrong)
        sender.broadcast(bytearray(b"fine"))
        a.until_has(b"fine")
        assert a.lines == [b"fine"]


def test_what_cannot_be_framed_is_refused_before_it_reaches_spool_or_server(a):
    with refused() as nobody, broadcasting(a, nobody, write_ahead=True) as sender:
        with pytest.raises(ValueError, match="delimiter"):
            sender.broadcast(b"two\nlines")
        assert sender.unsent().total == 0
        sender.broadcast(b"fine")
        assert a.until_lines(1) == [b"fine"]


@pytest.mark.parametrize("frame", [None, "text", 5])
def test_a_framing_that_gives_no_bytes_has_its_message_refused_and_harms_no_link(a, frame):
    class Odd(Lines):
        def encode(self, message: bytes) -> Any:
            return frame if message == b"odd" else super().encode(message)

    with broadcasting(a, framing=Odd(), write_ahead=True) as sender:
        sender.broadcast(b"one")
        with pytest.raises(FramingError, match=f"Odd has framed a message wrongly: .*{type(frame).__name__}"):
            sender.broadcast(b"odd")
        assert sender.unsent().total == 0
        sender.broadcast(b"two")
        assert a.until_lines(2) == [b"one", b"two"]
    assert a.accepts == 1


def test_a_framing_may_use_its_buffer_again(a):
    class Thrifty(Lines):
        buffer = bytearray()

        def encode(self, message: bytes) -> Any:
            self.buffer[:] = message + b"\n"
            return self.buffer

    a.stop()
    with broadcasting(a, framing=Thrifty()) as sender:
        for message in numbered(3):
            sender.broadcast(message)
        a.start()
        assert a.until_lines(3) == numbered(3)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_cannot_be_framed_any_more_stays_with_what_is_behind_it_and_is_told_of_once(
    a, tmp_path, caplog, monkeypatch, kind
):
    monkeypatch.setattr("connpool.delivery.tending.BREATH", 0.001)
    spool = MemorySpool() if kind == "memory" else SQLiteSpool(tmp_path / "spool.db")
    for message in (b"one", b"two\nlines", b"three"):
        spool.put([str(a.endpoint)], message, bytes(16))
    with broadcasting(a, spool=spool) as sender:
        assert sender.wait_ready(GUARD)
        assert a.until_lines(1) == [b"one"]
        (link,) = sender._office.roster.links.values()
        until(lambda: link.is_stuck, "the second message's turn")
        assert sender.flush(0.05) == 2  # it is tried again and again meanwhile
        assert sender.broadcast(b"four").spooled == (str(a.endpoint),)
        assert sender.close(GUARD) == 3
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert "cannot contain its delimiter" in str(told[0].exc_info)
    assert a.lines == [b"one"]


def test_what_cannot_be_read_is_tried_again_only_after_a_while(a, monkeypatch):
    class Unreadable(MemorySpool):
        n_looks = 0

        def peek(self, *_: Any) -> Any:
            self.n_looks += 1
            raise SpoolError("the disk is gone")

    monkeypatch.setattr("connpool.delivery.tending.BREATH", GUARD)
    spool = Unreadable()
    spool.put([str(a.endpoint)], b"hello", bytes(16))
    with broadcasting(a, spool=spool) as sender:
        (link,) = sender._office.roster.links.values()
        until(lambda: link.is_stuck, "an attempt")
        assert sender.flush(0.1) == 1
        assert spool.n_looks == 1


def test_what_fails_again_after_it_went_well_is_told_of_again(a, caplog, monkeypatch):
    class Moody(MemorySpool):
        is_readable = False

        def peek(self, *arguments: Any) -> Any:
            if not self.is_readable:
                raise SpoolError("the disk is gone")
            return super().peek(*arguments)

    monkeypatch.setattr("connpool.delivery.tending.BREATH", 0.001)
    spool = Moody()
    with broadcasting(a, spool=spool) as sender:
        assert sender.wait_ready(GUARD)
        for n in range(2):
            spool.is_readable = False
            spool.put([str(a.endpoint)], b"hello", bytes(16))
            sender.mark_alive(a.endpoint)
            until(
                lambda n=n: [each.levelname for each in caplog.records] == ["ERROR"] * (n + 1), "word of it"
            )
            spool.is_readable = True
            assert sender.flush(GUARD) == 0
        a.until_lines(2)


def test_an_error_tells_when_the_first_of_the_dead_is_tried_again(a, b, clock):
    settings = {"clock": clock, "reap_interval": None, "blacklist_initial": 100.0, "blacklist_max": 100.0}
    with broadcasting(a, b, spool=None, pool_settings=settings) as sender:
        assert sender.wait_ready(GUARD)
        until(lambda: {link.state for link in sender.links()} == {LinkState.ALIVE})
        sender.mark_dead(a.endpoint)
        clock.advance(10.0)
        sender.mark_dead(b.endpoint)
        times = {link.retry_at for link in sender.links()}
        with pytest.raises(NoEndpointError) as caught:
            sender.broadcast(b"hello")
        assert len(times) == 2
        assert caught.value.retry_at == min(times)


def test_each_endpoint_of_a_list_leads_to_its_link_and_only_the_one_it_has_can_be_taken_down(a, b):
    with broadcasting(a, ",", b) as sender:
        assert sender.wait_ready(GUARD)
        for server in (a, b):
            sender.mark_alive(server.endpoint)
        sender.mark_dead(b.endpoint)
        assert sender.links()[0].state is LinkState.ALIVE
        sender.mark_dead(a.endpoint)
        b.until_accepts(1)


# -- the beginning


def test_a_broadcaster_starts_though_all_is_down_and_is_ready_when_the_first_member_lives(a):
    a.stop()
    with broadcasting(a) as sender:
        assert not sender.ready
        assert not sender.wait_ready(0.05)
        sender.broadcast(b"early")
        a.start()
        assert sender.wait_ready(10)
        assert sender.ready
        a.until_has(b"early")


def test_who_is_ready_can_send_at_once(a):
    for _ in range(20):
        with broadcasting(a, spool=None) as sender:
            until(lambda sender=sender: sender.ready)
            assert sender.broadcast(b"at once").sent == (a.endpoint,)


def test_hot_standby_connects_the_later_groups_beforehand_and_sends_them_nothing(a, c):
    with broadcasting(a, "||", c, standby="hot") as sender:
        until(lambda: [link.state for link in sender.links()] == [LinkState.ALIVE] * 2)
        c.until_accepts(1)
        sender.broadcast(b"hello")
        a.until_has(b"hello")
    assert c.lines == []


def test_who_waits_until_it_is_ready_has_cold_standby_connected_where_a_message_would_have(a, c):
    with refused() as dead, refused() as also_dead:
        with broadcasting(dead, "||", also_dead, "||", a, "||", c, standby="cold") as sender:
            assert sender.wait_ready(GUARD)
            assert [link.endpoint.port for link in sender.links() if link.state is LinkState.ALIVE] == [
                a.port
            ]
            assert sender.links()[-1].state is LinkState.NEW
        with broadcasting(dead, "||", a, standby="cold", failover=False, reconnect=False) as sender:
            assert not sender.wait_ready(0.2)
            assert sender.links()[-1].state is LinkState.NEW


def test_cold_standby_connects_a_later_group_when_it_is_needed(a, c):
    with broadcasting(a, "||", c, standby="cold") as sender:
        sender.broadcast(b"one")
        a.until_has(b"one")
        assert c.accepts == 0
        a.stop()
        until(lambda: state_of(sender, a) is LinkState.DEAD)
        assert sender.broadcast(b"two").group == 1
        c.until_has(b"two")
        assert (c.accepts, c.lines) == (1, [b"two"])


# -- by hand


def test_a_member_that_is_marked_dead_is_closed_once_and_tried_again_after_the_back_off(a):
    diary = Diary()
    with broadcasting(a, pool_settings={"blacklist_initial": 0.1, "blacklist_max": 0.2}) as sender:
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        sender.wait_ready(10)
        a.until_accepts(1)
        sender.mark_dead(a.endpoint)
        sender.mark_dead(str(a.endpoint))
        a.until_accepts(1).until_eof()
        assert sender.broadcast(b"hello").spooled == ("",)
        a.until_accepts(2)
        a.until_has(b"hello")
        diary.until(3)
        assert diary.of(a) == [LinkEvent.ALIVE, LinkEvent.DEAD, LinkEvent.ALIVE]
        assert sender.pool.stats().size == 1


def test_marking_a_healthy_member_alive_changes_nothing(a):
    diary = Diary()
    with broadcasting(a) as sender:
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)
        diary.until(1)
        before = sender.links()
        sender.mark_alive(a.endpoint)
        sender.broadcast(b"hello")
        a.until_has(b"hello")
        assert (sender.links(), diary.of(a), a.accepts) == (before, [LinkEvent.ALIVE], 1)


def test_marking_a_dead_member_alive_tries_it_at_once_and_no_other(a, b):
    a.stop()
    with broadcasting(a, b, pool_settings=PATIENT) as sender:
        until(lambda: state_of(sender, a) is LinkState.DEAD)
        a.start()
        sender.mark_alive(b.endpoint)
        assert state_of(sender, a) is LinkState.DEAD
        sender.mark_alive(a.endpoint)
        until(lambda: state_of(sender, a) is LinkState.ALIVE)
        until(lambda: (a.accepts, b.accepts) == (1, 1))


def test_a_member_that_does_not_grant_what_is_required_is_dead(a):
    connector = SocketConnector(permissions=lambda conn: {"read"})
    with ConnectionPool(a.endpoint, connector=connector) as pool, Broadcaster(pool) as sender:
        assert sender.wait_ready(GUARD)
        sender.required_permission = "write"
        assert sender.required_permission == {"write"}
        sender.mark_dead(a.endpoint)
        sender.mark_alive(a.endpoint)
        until(lambda: isinstance(sender.links()[0].last_error, PermissionDeniedError))
        sender.required_permission = ["read"]
        sender.mark_alive(a.endpoint)
        assert sender.wait_ready(GUARD)


@pytest.mark.parametrize("what", ["mark_dead", "mark_alive", "remove"])
def test_who_is_no_member_is_an_error(a, what):
    with broadcasting(a) as sender, pytest.raises(UnknownEndpointError, match="elsewhere:1"):
        getattr(sender, what)("elsewhere:1")


# -- another route


def test_a_new_route_holds_at_once_and_common_members_keep_their_connections(a, b, c):
    with broadcasting(a, b) as sender:
        sender.broadcast(b"one")
        sender.pool.route = route_of(b, c)
        a.until_accepts(1).until_eof()
        c.until_accepts(1)
        sender.broadcast(b"two")
        b.until_has(b"one", b"two")
        c.until_has(b"two")
        assert (a.lines, b.accepts, c.lines) == ([b"one"], 1, [b"two"])


def test_a_common_member_keeps_what_waits_for_it(a, b, c):
    b.stop()
    with broadcasting(a, b) as sender:
        sender.broadcast(b"one")
        sender.pool.route = route_of(c, b)
        sender.broadcast(b"two")
        b.start()
        assert b.until_lines(2) == [b"one", b"two"]


def test_members_come_and_go_while_threads_send(a, b, c):
    over = threading.Event()

    def send(who: str) -> list[bytes]:
        messages = numbered(10_000, who=who)
        for n, message in enumerate(messages):
            sender.broadcast(message)
            if over.is_set():
                return messages[: n + 1]
        return messages

    def change() -> list[bytes]:
        try:
            for _ in range(15):
                sender.add(c.endpoint)
                sender.remove(c.endpoint)
                sender.pool.route = route_of(a, "||", b)
                sender.pool.route = route_of(a, b)
        finally:
            over.set()
        return []

    with broadcasting(a, b) as sender:
        sender.wait_ready(10)
        sent = together(lambda: send("s"), lambda: send("t"), change, limit=30)
        sender.flush()
        a.until_lines(sum(map(len, sent)))
        assert a.accepts == 1
        assert sorted(a.lines) == sorted(sent[0] + sent[1])


def test_what_waits_for_a_member_that_was_removed_is_sent_when_it_is_added_again(a, b):
    b.stop()
    with broadcasting(a, b) as sender:
        sender.broadcast(b"one")
        sender.remove(b.endpoint)
        sender.broadcast(b"two")
        b.start()
        sender.add(b.endpoint)
        assert b.until_lines(1) == [b"one"]
        sender.broadcast(b"three")
        assert b.until_lines(2) == [b"one", b"three"]


def test_a_member_is_added_to_the_group_that_is_named(a, b, c):
    with broadcasting(a) as sender:
        sender.add(b.endpoint, 0)
        sender.add(c.endpoint, 1)
        assert str(sender.pool.route) == f"{a.endpoint} && {b.endpoint} || {c.endpoint}"
        with pytest.raises(ConfigError, match="group must be 0 to 2"):
            sender.add(c.endpoint, 3)


@pytest.mark.parametrize("what", ["add", "remove"])
def test_a_broadcaster_that_is_closed_leaves_the_route_of_its_pool_alone(a, what):
    with broadcasting(a) as sender:
        before = sender.pool.route
        sender.close()
        with pytest.raises(PoolClosedError, match=r"broadcaster .* is closed"):
            getattr(sender, what)(a.endpoint)
        assert sender.pool.route == before


def test_members_that_several_threads_add_and_remove_at_once_all_come_and_go():
    with ConnectionPool("127.0.0.1:1", max_size=100) as pool, Broadcaster(pool, reconnect=False) as sender:

        def change(thread: int) -> None:
            for n in range(10):
                sender.add(f"127.0.0.1:{100 * thread + n}")
            sender.remove(f"127.0.0.1:{100 * thread}")

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            together(*[lambda thread=thread: change(thread) for thread in range(1, 9)])
        finally:
            sys.setswitchinterval(before)
        assert len(pool.route.endpoints) == 1 + 8 * 9
        assert {link.endpoint for link in sender.links()} == set(pool.route.endpoints)


def test_a_member_for_which_the_pool_has_no_place_is_refused(a, b):
    with broadcasting(a, pool_settings={"max_size": 1}) as sender:
        with pytest.raises(ConfigError, match="max_size=1 is too little for 2 members"):
            sender.add(b.endpoint)
        sender.add(a.endpoint, 1)  # it is a member already
        assert len(sender.links()) == 1


def test_the_last_member_can_be_removed_and_messages_wait_for_the_next(a, b):
    with broadcasting(a) as sender:
        sender.broadcast(b"one")
        a.until_accepts(1)
        sender.remove(a.endpoint)
        a.until_accepts(1).until_eof()
        assert sender.broadcast(b"two").spooled == ("",)
        sender.add(b.endpoint)
        assert b.until_lines(1) == [b"two"]


class Exchange:
    """A connector whose dials hang until all are let go; each opens one end of a pair."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.n_dials = 0
        self.peers: list[socket.socket] = []

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: threading.Event) -> socket.socket:
        self.n_dials += 1
        assert self.gate.wait(10)
        return self.connect()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.peers.append(theirs)
        return ours

    def close(self, raw: socket.socket) -> None:
        raw.close()

    def until_dialling(self, n: int) -> None:
        until(lambda: self.n_dials == n, f"dial number {n}")


def test_a_member_that_was_removed_and_added_again_during_its_dial_has_one_connection():
    exchange = Exchange()
    with broadcasting("a:1", "b:1", pool_settings={"connector": exchange, "max_connecting": 9}) as sender:
        exchange.until_dialling(2)
        sender.remove("b:1")
        sender.add("b:1")
        exchange.until_dialling(3)
        exchange.gate.set()
        until(lambda: [link.state for link in sender.links()] == [LinkState.ALIVE] * 2, "the life of both")
        until(lambda: sender.pool.stats().size == 2, "two connections, and no third")
        assert sender.broadcast(b"hello").sent == (Endpoint.parse("a:1"), Endpoint.parse("b:1"))
    for peer in exchange.peers:
        peer.close()


class Laggard(Exchange):
    """The first of its dials hangs until it is let go; then it fails, if *is_failing*."""

    def __init__(self, *, is_failing: bool) -> None:
        super().__init__()
        self.is_failing = is_failing

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: threading.Event) -> socket.socket:
        if self.n_dials:
            self.n_dials += 1
            return self.connect()
        ours = super().open(endpoint, timeout, cancel)
        if self.is_failing:
            ours.close()
            raise ConnectionRefusedError("too late")
        return ours


@pytest.mark.parametrize("is_failing", [False, True])
def test_how_the_dial_ends_of_a_member_that_was_removed_is_told_nobody(is_failing):
    laggard, diary = Laggard(is_failing=is_failing), Diary()
    with broadcasting("a:1", pool_settings={"connector": laggard, "max_connecting": 9}) as sender:
        sender.on(LinkEvent.ALIVE | LinkEvent.DEAD, diary)
        laggard.until_dialling(1)
        sender.remove("a:1")
        sender.add("a:1")
        diary.until(1)
        laggard.gate.set()
        until(
            lambda: not any("link-sensors-a:1" in each.name for each in threading.enumerate()),
            "the end of both dials",
        )
        sender.mark_dead("a:1")
        sender.mark_alive("a:1")
        diary.until(3)
        assert diary.of("a:1") == [LinkEvent.ALIVE, LinkEvent.DEAD, LinkEvent.ALIVE]
    for peer in laggard.peers:
        peer.close()


# -- the back-off


class Flaky:
    """A connector that fails with *error*, if that is set; else it opens one end of a pair."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.n_dials = 0
        self.peers: list[socket.socket] = []

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: object) -> socket.socket:
        self.n_dials += 1
        if self.error is not None:
            raise self.error
        ours, theirs = socket.socketpair()
        self.peers.append(theirs)
        return ours

    def close(self, raw: socket.socket) -> None:
        raw.close()


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    connector = Flaky(ConnectionRefusedError("down"))
    yield connector
    for peer in connector.peers:
        peer.close()


def by_hand(flaky: Flaky, clock: FakeClock, **settings: Any) -> Any:
    """A broadcaster to one member, on virtual time."""
    options = {"connector": flaky, "clock": clock, "dial_in_caller": True, "reap_interval": None}
    backoff = {"blacklist_initial": 1.0, "blacklist_max": 4.0}
    return broadcasting("a:1", pool_settings={**options, **backoff}, **settings)


def until_tried(sender: Broadcaster, flaky: Flaky, n: int) -> float | None:
    """Wait for the end of the *n*-th dial; returns how long it is to the next."""
    until(lambda: flaky.n_dials == n, f"dial number {n}, after {flaky.n_dials}")
    until(lambda: sender.links()[0].state is LinkState.ALIVE or sender.links()[0].failures, "its end")
    until(lambda: sender.links()[0].retry_at is None or _is_planned(sender), "a plan")
    at = sender.links()[0].retry_at
    return None if at is None else at - sender._office.clock.now()


def _is_planned(sender: Broadcaster) -> bool:
    (link,) = sender.links()
    return link.retry_at is not None and link.retry_at > sender._office.clock.now()


def test_a_dead_member_is_tried_at_intervals_that_double_up_to_a_true_limit(flaky, clock):
    with by_hand(flaky, clock) as sender:
        for n, nominal in enumerate([1.0, 2.0, 4.0, 4.0, 4.0], 1):
            delay = until_tried(sender, flaky, n)
            assert delay is not None
            assert 0.9 * nominal <= delay <= nominal
            clock.advance(delay - 0.01)
            sender.sweep()
            assert flaky.n_dials == n
            clock.advance(0.02)
            sender.sweep()
        until(lambda: flaky.n_dials == 6)


def test_after_a_success_the_back_off_begins_anew(flaky, clock):
    with by_hand(flaky, clock) as sender:
        for n in (1, 2, 3):
            delay = until_tried(sender, flaky, n)
            flaky.error = None if n == 3 else flaky.error
            clock.advance((delay or 0.0) + 0.01)
            sender.sweep()
        assert sender.wait_ready(10)
        flaky.error = ConnectionRefusedError("down again")
        flaky.peers[0].close()
        until(lambda: sender.links()[0].state is LinkState.DEAD)
        retry_at = sender.links()[0].retry_at
        assert retry_at is not None
        assert 0.9 <= retry_at - clock.now() <= 1.0


class Busy(ConnectionError):
    """Says when to come back."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


def test_a_member_that_says_when_to_come_back_is_tried_then(flaky, clock):
    flaky.error = Busy(7.5)
    with by_hand(flaky, clock) as sender:
        assert until_tried(sender, flaky, 1) == pytest.approx(7.5)
        flaky.error = None
        clock.advance(7.6)
        sender.sweep()
        assert sender.wait_ready(10)


def test_a_member_that_says_never_is_tried_only_by_hand(flaky, clock):
    flaky.error = Busy(math.inf)
    with by_hand(flaky, clock) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD)
        assert sender.links()[0].retry_at is None
        flaky.error = None
        clock.advance(1e6)
        sender.sweep()
        assert flaky.n_dials == 1
        sender.mark_alive("a:1")
        assert sender.wait_ready(10)


def test_without_reconnect_a_dead_member_is_tried_only_by_hand(flaky, clock):
    with by_hand(flaky, clock, reconnect=False) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD)
        flaky.error = None
        clock.advance(1e6)
        sender.sweep()
        sender.broadcast(b"hello")
        assert (flaky.n_dials, sender.unsent().everywhere) == (1, 1)
        sender.mark_alive("a:1")
        assert sender.wait_ready(10)
        assert sender.flush(10) == 0


# -- a member that swallows who dials


def test_a_member_whose_first_dial_hangs_does_not_slow_messages_to_the_others(a, b):
    b.black_hole()
    with broadcasting(a, b, pool_settings={"connect_timeout": 30}) as sender:
        sender.wait_ready(10)
        sender.broadcast(b"first")
        together(lambda: [sender.broadcast(message) for message in numbered(100)], limit=3)
        a.until_lines(101)
        assert sender.unsent()[b.endpoint] == 101
        assert b.endpoint in sender.unsent()


def test_a_member_whose_return_hangs_does_not_slow_messages_to_the_others(a, b):
    with broadcasting(a, b, pool_settings={"connect_timeout": 30}) as sender:
        sender.broadcast(b"first")
        b.until_lines(1)
        b.refuse()
        b.kill()
        until(lambda: state_of(sender, b) is LinkState.DEAD)
        b.black_hole()
        together(lambda: [sender.broadcast(message) for message in numbered(100)], limit=3)
        a.until_lines(101)


def test_of_a_member_whose_dial_hangs_the_error_tells_of_the_dial(a):
    a.black_hole()
    with broadcasting(a, spool=None, pool_settings={"connect_timeout": 0.2}) as sender:
        with pytest.raises(NoEndpointError) as caught:
            sender.broadcast(b"hello")
        ((_, cause),) = caught.value.causes
        assert isinstance(cause, ConnectTimeoutError)


class HalfDeaf(Exchange):
    """Only dials to b hang."""

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: threading.Event) -> socket.socket:
        return super().open(endpoint, timeout, cancel) if endpoint.host == "b" else self.connect()


def test_a_message_does_not_wait_for_a_member_that_is_removed_meanwhile():
    exchange = HalfDeaf()
    settings = {"connector": exchange, "connect_timeout": 30}
    with broadcasting("a:1", "b:1", spool=None, pool_settings=settings) as sender:
        exchange.until_dialling(1)
        (first_dial,) = [link for link in sender._office.roster.links.values() if link.name == "b:1"]

        def remove() -> None:
            until(lambda: first_dial.was_awaited, "the broadcast")
            sender.remove("b:1")

        delivery, _ = together(lambda: sender.broadcast(b"hello"), remove, limit=5)
        assert delivery.sent == (Endpoint.parse("a:1"),)
        exchange.gate.set()
    for peer in exchange.peers:
        peer.close()


# -- settings


def test_a_setting_that_is_unknown_or_out_of_range_is_an_error():
    with ConnectionPool("a:1", connector=Flaky(OSError("down"))) as pool:
        for wrong in (
            {"standby": "warm"},
            {"fail_back_after": -1},
            {"on_full": "drop"},
            {"max_async": 0},
            {"heartbeat": (1, "text")},
            {"confirm": 7},
            {"framing": object()},
            {"flush_rate": 0},
            {"write_ahead": True},
            {"failovr": True},
        ):
            with pytest.raises(ConfigError):
                Broadcaster(pool, **wrong)
        assert pool.stats().opened == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_spool_that_is_closed_is_refused_before_anybody_is_dialled(a, tmp_path, kind):
    spool = MemorySpool() if kind == "memory" else SQLiteSpool(tmp_path / "spool.db")
    spool.close()
    with ConnectionPool(a.endpoint) as pool:
        with pytest.raises(SpoolError, match="closed"):
            Broadcaster(pool, spool=spool)
        with Broadcaster(pool) as sender:
            assert sender.wait_ready(GUARD)
            a.until_accepts(1)
    assert a.accepts == 1


def test_one_spool_serves_one_broadcaster():
    flaky, spool = Flaky(OSError("down")), MemorySpool()
    with (
        ConnectionPool("a:1", connector=flaky) as one,
        ConnectionPool("a:1", connector=flaky) as other,
        Broadcaster(one, spool=spool, framing=Lines()) as first,
    ):
        with pytest.raises(UsageError, match="another broadcaster uses the spool"):
            Broadcaster(other, spool=spool)
        assert first.broadcast(b"still fine").spooled == ("",)


def test_without_a_back_off_a_dead_member_is_dialled_again_and_again_but_not_without_a_pause(clock):
    settings = {"blacklist_initial": 0, "clock": clock}
    with refused() as nobody, broadcasting(nobody, pool_settings=settings) as sender:
        (link,) = sender._office.roster.links.values()
        until(lambda: link.failures == 1 and not link.is_tended, "the first attempt")
        assert link.retry_at is not None
        assert link.retry_at > clock.now()
