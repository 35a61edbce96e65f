"""The end of a broadcaster, asked for or not: nothing is lost by it, nothing is left behind, and it comes."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    CheckoutTimeoutError,
    Connection,
    ConnectionPool,
    Lines,
    LinkEvent,
    LinkState,
    MemorySpool,
    NoEndpointError,
    PoolClosedError,
    PoolPausedError,
    SocketConnector,
    SpoolError,
    SQLiteSpool,
)
from connpool.testing import Send, ServedConnection
from connpool.wire import threads
from tests.helpers.forks import fork_mortally, in_child, status_of
from tests.helpers.scripts import run_program
from tests.helpers.sinks import (
    GUARD,
    MUCH,
    QUICK,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    fill,
    narrow,
    numbered,
    refused,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.upkeep import reapers
from tests.helpers.wire import taking

PATIENT = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}


class Lasting(MemorySpool):
    """Can be looked at after its close."""

    left = -1

    def close(self) -> None:
        if self.left < 0:
            self.left = sum(count.messages for count in self.counts().values())
        super().close()


# -- close


def test_after_the_end_every_call_says_so_or_does_nothing(a):
    with broadcasting(a) as sender:
        sender.broadcast(b"hello")
        assert sender.close() == 0
        assert sender.close() == 0
        for call in (sender.broadcast, sender.broadcast_async):
            with pytest.raises(PoolClosedError, match="'sensors' is closed"):
                call(b"late")
        assert sender.recv(0) is None
        assert sender.check_event(0) == 0
        assert sender.flush(1) == 0
        assert sender.unsent().total == 0
        assert not sender.ready
        assert not sender.wait_ready(0.1)
        sender.sweep()
        sender.mark_dead(a.endpoint)
        sender.mark_alive(a.endpoint)
        sender.pool.route = "elsewhere:1"
        assert "0 of" in repr(sender)
        assert sender.pool.stats().opening == 0


def test_the_end_gives_back_all_connections_and_threads_of_a_pool_that_lives_on(a, b):
    pool = ConnectionPool(f"{a.endpoint} && {b.endpoint}")
    before = set(threading.enumerate())
    for _ in range(3):
        with Broadcaster(pool, framing=Lines()) as sender:
            sender.on(LinkEvent.DEAD, lambda *_: None)
            sender.recv(0)
            all_alive(sender)
            sender.broadcast_async(b"hello").result(GUARD)
        until(lambda: pool.stats().size == 0)
        mine = {t for t in set(threading.enumerate()) - before if t.name.startswith("connpool")}
        assert {t.name for t in mine} <= {"connpool-reaper"}
    with pool.try_connect() as conn:
        conn.sendall(b"by hand\n")
    until(lambda: b"by hand" in a.lines + b.lines)
    pool.close()


def test_what_waits_for_living_members_is_sent_before_the_end(a):
    a.is_deaf = True
    with broadcasting(a, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent().total > 3)
        threading.Timer(0.1, lambda: setattr(a, "is_deaf", False)).start()
        assert sender.close() == 0
        assert a.until_lines(n) == [b"f" * MUCH] * n


def test_an_end_that_may_not_last_tells_how_many_messages_are_unsent(a):
    a.is_deaf = True
    with broadcasting(a, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        fill(sender, lambda: sender.unsent().total > 3)
        with taking(0, 3.0):
            assert sender.close(0.1) >= 1


def test_after_the_end_everybody_is_told_what_was_unsent_and_so_is_a_flush_that_it_ends():
    with refused() as nobody, broadcasting(nobody, pool_settings=PATIENT) as sender:
        for message in numbered(3):
            sender.broadcast(message)
        flushed: list[int] = []
        flushing = threading.Thread(target=lambda: flushed.append(sender.flush(GUARD)))
        flushing.start()
        assert sender.close(0.1) == 3
        flushing.join(GUARD)
        assert (flushed, sender.flush(), sender.close(), sender.unsent().total) == ([3], 3, 3, 3)


def test_the_end_blames_nobody_whose_dial_it_cuts_off(a, caplog):
    a.black_hole()
    with broadcasting(a, pool_settings={"connect_timeout": 30}) as sender:
        until(lambda: sender.pool.stats().opening == 1, "the dial")
    until(lambda: sender.links()[0].state is LinkState.DEAD, "its end")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_connection_that_the_pool_breaks_off_is_not_said_to_be_ended_by_the_peer(a):
    with broadcasting(a, pool_settings=PATIENT) as sender:
        all_alive(sender)
        sender.pool.clear(interrupt=True)
        until(lambda: sender.links()[0].state is LinkState.DEAD, "its end")
        assert str(sender.links()[0].last_error) == "pool 'sensors' was cleared"


def test_after_the_end_no_thread_waits_for_the_next_dial():
    with refused() as nobody, broadcasting(nobody, spool=None, pool_settings=PATIENT) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD)
    until(lambda: "connpool-reaper" not in [thread.name for thread in threading.enumerate()])


def test_the_end_does_not_wait_for_the_dead(a):
    a.stop()
    with broadcasting(a) as sender:
        sender.broadcast(b"hello")
        until(lambda: sender.links()[0].retry_at is not None, "a plan")
        with taking(0, 3.0):
            assert sender.close() == 1
        assert sender.links()[0].retry_at is None


def test_the_end_breaks_off_a_dial_that_hangs(a):
    a.black_hole()
    with broadcasting(a, pool_settings={"connect_timeout": 60}) as sender, taking(0, 3.0):
        assert sender.close() == 0


def test_the_end_lets_a_sender_go_that_waits_for_a_peer(a):
    a.is_deaf = True
    outcome: list[object] = []

    def send() -> None:
        try:
            while True:
                outcome.append(sender.broadcast(b"x" * MUCH))
        except Exception as error:
            outcome.append(error)

    with broadcasting(a, spool=None, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        thread = threading.Thread(target=send)
        thread.start()
        until(lambda: a.has_unread)
        sender.close(0.1)
        thread.join(GUARD)
        assert not thread.is_alive()
        assert isinstance(outcome[-1], PoolClosedError)


def test_who_waits_for_a_link_that_is_taken_down_waits_no_longer_though_another_is_in_a_confirm(a):
    asked, over = threading.Event(), threading.Event()
    outcome: list[object] = []

    def confirm(*_: object) -> None:
        asked.set()
        over.wait(GUARD)

    def send() -> None:
        try:
            outcome.append(sender.broadcast(b"hello"))
        except NoEndpointError as error:
            outcome.append(error)

    with broadcasting(a, spool=None, confirm=confirm, pool_settings=PATIENT) as sender:
        all_alive(sender)
        first, second = (threading.Thread(target=send) for _ in range(2))
        try:
            first.start()
            assert asked.wait(GUARD)
            second.start()
            until(lambda: sender._keeping._writing._queueing, "one that waits")
            sender.mark_dead(a.endpoint)
            second.join(GUARD / 2)
            assert [type(each) for each in outcome] == [NoEndpointError]
        finally:
            over.set()
            first.join(GUARD)
            second.join(GUARD)


def test_threads_that_send_while_it_ends_are_told_or_have_their_messages_delivered(a):
    accepted: list[bytes] = []

    def send(who: str) -> None:
        for message in numbered(100_000, who=who):
            try:
                delivery = sender.broadcast(message)
            except (PoolClosedError, SpoolError):
                return
            if delivery.sent:
                accepted.append(message)

    def close() -> None:
        a.until_lines(200)
        sender.close()

    with broadcasting(a) as sender:
        together(*(lambda who=who: send(who) for who in "stuv"), close, limit=20)
        until(lambda: set(accepted) <= set(a.lines), "all that was accepted")


@pytest.mark.parametrize("write_ahead", [False, True])
@pytest.mark.parametrize("has_spool", [False, True])
def test_a_message_whose_broadcaster_is_closed_while_it_is_framed_is_refused_for_that(
    a, has_spool, write_ahead
):
    class Closing(Lines):
        def encode(self, message: bytes) -> bytes:
            sender.close(0.1)
            return super().encode(message)

    settings = {"spool": MemorySpool() if has_spool else None, "write_ahead": write_ahead and has_spool}
    with broadcasting(a, framing=Closing(), **settings) as sender:
        all_alive(sender)
        with pytest.raises(PoolClosedError, match="'sensors' is closed"):
            sender.broadcast(b"late")


def test_while_it_ends_nothing_more_is_taken(a):
    futures, refusals = [], []

    def goodbye() -> bytes:
        try:
            sender.broadcast(b"late")
        except PoolClosedError as refusal:
            refusals.append(refusal)
        return b"bye"

    with broadcasting(a, heartbeat=(1_000.0, goodbye)) as sender:
        all_alive(sender)
        futures.append(sender.broadcast_async(b"before"))
    assert a.until_lines(2) == [b"before", b"bye"]
    assert len(futures[0].result(0).sent) == len(refusals) == 1


def test_several_threads_may_close_at_once(a):
    with broadcasting(a) as sender:
        for message in numbered(100):
            sender.broadcast_async(message)
        assert together(*[sender.close] * 4) == [0] * 4
        assert a.until_lines(100) == numbered(100)


def closing_elsewhere(sender: Broadcaster) -> threading.Thread:
    """A thread that closes *sender*, and is at it."""
    closer = threading.Thread(target=sender.close, daemon=True)
    closer.start()
    until(lambda: not sender._closings.are_free(), "the beginning of the end")
    return closer


def test_an_end_that_may_not_last_waits_no_longer_for_another_that_lasts(a):
    a.is_deaf = True
    with broadcasting(a, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent().total > 3)
        closer = closing_elsewhere(sender)
        with taking(0, 3.0):
            assert sender.close(0.1) >= 1
        assert closer.is_alive()
        a.is_deaf = False
        closer.join(GUARD)
        assert a.until_lines(n) == [b"f" * MUCH] * n, "that one goes on"


def test_the_end_waits_no_longer_than_a_look_for_what_others_have_left_takes(a):
    class Slow(MemorySpool):
        def adopt(self) -> dict[str, int]:
            asked.set()
            over.wait(GUARD)
            return {}

    asked, over = threading.Event(), threading.Event()
    with broadcasting(a, spool=Slow(max_age=1_000)) as sender:
        assert asked.wait(GUARD)
        threading.Timer(0.2, over.set).start()
        with taking(0.1, 3.0):
            assert sender.close() == 0


def test_a_sweep_after_the_end_asks_for_no_turns_of_upkeep(a, tmp_path):
    with ConnectionPool(f"{a.endpoint}") as pool:
        sender = Broadcaster(pool, spool=SQLiteSpool(tmp_path / "spool.db"), framing=Lines())
        all_alive(sender)
        sender.close()
        sender.sweep()
    until(lambda: not reapers(), "the end of upkeep")


def test_an_end_that_was_interrupted_may_be_asked_for_again_by_who_sees_to_the_interrupt(a, monkeypatch):
    def interrupted(*_: object, **__: object) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with broadcasting(a) as sender:
        all_alive(sender)
        monkeypatch.setattr(sender._keeping, "close", interrupted)
        try:
            sender.close()
        except KeyboardInterrupt:
            assert sender.close(GUARD) == 0
            assert {link.state for link in sender.links()} == {LinkState.DEAD}


def test_a_signal_handler_waits_for_no_other_end_that_waits_for_what_it_has_interrupted(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        with sender._office._lock:
            closer = closing_elsewhere(sender)
            with taking(0, 3.0):
                assert sender.close() == 0
        closer.join(GUARD)
        assert not closer.is_alive()


def test_a_program_ends_though_one_of_its_threads_waits_for_an_end_that_does_not_come(a):
    program = """
        import sys, threading
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        def confirm(conn, message):
            asked.set()
            threading.Event().wait(60)
        def close():
            closing.set()
            sender.close()
        asked, closing = threading.Event(), threading.Event()
        spool = MemorySpool()
        spool.put([sys.argv[1]], b"hello", bytes(16))
        sender = Broadcaster(ConnectionPool(sys.argv[1]), spool=spool, framing=Lines(), confirm=confirm)
        asked.wait(10)
        threading.Thread(target=close, daemon=True).start()
        closing.wait(10)
        threading.Event().wait(0.1)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.seconds < GUARD


def test_what_a_peer_has_confirmed_while_the_end_waited_for_it_is_not_told_to_be_unsent(a):
    asked, is_made = threading.Event(), threading.Event()

    def confirm(*_: Any) -> None:
        asked.set()
        assert is_made.wait(GUARD)
        until(lambda: sender._office.is_closed, "the end")

    spool = Lasting()
    for number in range(3):
        spool.put([str(a.endpoint)], b"hello", number.to_bytes(16))
    with broadcasting(a, spool=spool, confirm=confirm) as sender:
        is_made.set()
        assert asked.wait(GUARD)
        assert sender.close(0.0) == spool.left
        assert sender.unsent().total == spool.left < 3


@pytest.mark.parametrize("is_end", [True, False])
def test_a_peer_that_is_taken_down_is_asked_for_no_more_of_what_it_has(is_end):
    """Though it has answered: nobody knows how long that would take."""
    confirmed: list[bytes] = []
    asked, over = threading.Event(), threading.Event()

    def confirm(conn: Connection, message: bytes) -> None:
        acknowledged(conn, message)
        confirmed.append(message)
        if len(confirmed) == 2:
            asked.set()
            until(lambda: sender.links()[0].state is LinkState.DEAD)
        elif len(confirmed) > 2:
            assert over.wait(GUARD)

    with Sink(answers=True) as server:
        server.stop()
        with broadcasting(server, confirm=confirm) as sender:
            for line in numbered(10):
                sender.broadcast(line)
            server.start()
            assert asked.wait(GUARD)
            server.until_lines(10)
            if is_end:
                assert sender.close(0.0) == 8
            else:
                sender.mark_dead(server.endpoint)
                sender.mark_alive(server.endpoint)
                until(lambda: len(server.sessions) == 2, "another connection")
            over.set()
            if not is_end:
                assert sender.flush(GUARD) == 0
                assert server.sessions[1] == numbered(10)[2:]


@pytest.mark.parametrize("hangs", ["confirm", "handler", "heartbeat", "goodbye"])
def test_an_end_that_may_not_last_leaves_behind_who_hangs_in_a_function_of_the_user_s(a, hangs):
    over, asked = threading.Event(), threading.Event()

    def hang(*_: Any) -> bytes:
        asked.set()
        over.wait(GUARD)
        return b""

    settings: dict[str, Any] = {"confirm": hang} if hangs == "confirm" else {}
    if hangs in ("heartbeat", "goodbye"):
        settings = {"heartbeat": (QUICK if hangs == "heartbeat" else 1_000.0, hang)}
    spool = MemorySpool()
    spool.put([str(a.endpoint)], b"hello", bytes(16))
    with broadcasting(a, spool=spool, **settings) as sender:
        if hangs == "handler":
            sender.on(LinkEvent.ALIVE, hang)
        all_alive(sender)
        try:
            assert hangs == "goodbye" or asked.wait(GUARD)
            with taking(0.05, 3.0):
                assert sender.close(0.1) == (hangs == "confirm")
            assert asked.is_set()
        finally:
            over.set()


def test_an_end_that_may_not_last_leaves_a_goodbye_behind_that_has_no_spool_and_waits_for_its_peer(a):
    a.is_deaf = True
    goodbye = (1_000.0, b"h" * 3_000_000)
    with broadcasting(a, spool=None, heartbeat=goodbye, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        listens = threading.Timer(5.0, lambda: setattr(a, "is_deaf", False))
        listens.start()
        with taking(0.05, 3.0):
            assert sender.close(0.1) == 0
        listens.cancel()
        listens.join()


def test_a_program_ends_though_the_heartbeat_that_says_goodbye_hangs(a):
    program = """
        import sys, threading
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        def beat():
            print("asked", flush=True)
            threading.Event().wait(60)
        pool = ConnectionPool(sys.argv[1])
        sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines(), heartbeat=(1_000, beat))
        sender.wait_ready(10)
        while not any("watch" in thread.name for thread in threading.enumerate()):
            pass  # it is there a moment after the first connection
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.out, ran.err) == (0, "asked\n", "")
    assert ran.seconds < 3 * GUARD


def test_where_no_thread_can_be_had_for_it_the_end_says_goodbye_itself(a, monkeypatch):
    start = threads.start
    monkeypatch.setattr(
        threads, "start", lambda thread: not thread.name.startswith("connpool-watch") and start(thread)
    )
    with broadcasting(a, heartbeat=(1_000.0, lambda: b"bye")) as sender:
        all_alive(sender)
        until(lambda: sender._watch._thread is not None, "somebody who wants the thread")
        sender.close(3.0)
        a.until_has(b"bye")


def test_a_heartbeat_that_is_a_function_says_goodbye_at_the_end_of_the_program(a):
    program = """
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines
        sender = Broadcaster(ConnectionPool(sys.argv[1]), framing=Lines(), heartbeat=(1_000, lambda: b"bye"))
        sender.wait_ready(10)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    a.until_has(b"bye")


def test_a_program_that_ends_says_goodbye_by_a_heartbeat_also_to_a_member_that_lives_since_a_moment(a):
    program = """
        import logging, sys, threading
        from connpool import Broadcaster, ConnectionPool, Lines
        class Slow(logging.Handler):
            def emit(self, record):
                threading.Event().wait(0.5)
        logging.getLogger("connpool.delivery").addHandler(Slow())
        logging.getLogger("connpool.delivery").setLevel(logging.INFO)
        sender = Broadcaster(ConnectionPool(sys.argv[1]), framing=Lines(), heartbeat=(1_000, lambda: b"bye"))
        sender.wait_ready(10)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    a.until_has(b"bye")


def test_the_end_during_a_flush_keeps_what_is_not_sent_in_the_spool(a):
    spool = Lasting()
    a.stop()
    with broadcasting(a, spool=spool, flush_rate=100.0) as sender:
        for message in numbered(1_000):
            sender.broadcast(message)
        a.start()
        a.until_lines(20)
        with taking(0, 3.0):
            left = sender.close(0.1)
        a.until_open(0)
        assert 0 < left <= 1_000
        assert left == spool.left
        assert a.n_lines + spool.left == 1_000


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
def test_the_end_does_not_take_back_what_was_sent_though_the_peer_said_what_nobody_read(
    certificates, is_secure
):
    """A connection that is closed with input unread is reset, and eats what was sent."""

    def talk(connection: ServedConnection) -> None:
        connection.send(b"welcome\n" * 1_000)

    connector = SocketConnector(tls=certificates.client(), handshake=narrow().handshake)
    spool = Lasting()
    with Sink(tls=certificates.server() if is_secure else None) as a:
        a.script = [talk, a.script]
        with broadcasting(a, spool=spool, pool_settings={"connector": connector}) as sender:
            all_alive(sender)
            a.is_deaf = True
            for n in range(1_000):
                sender.broadcast(b"%d-" % n + b"." * 1_000)
            until(lambda: a.has_unread and sender.unsent().total < 1_000)
            sender.close(0.1)
            n_sent = 1_000 - spool.left
            assert 0 < n_sent < 1_000
            a.is_deaf = False
            lines = a.until_lines(n_sent)
            assert [int(line.split(b"-")[0]) for line in lines] == list(range(len(lines)))


def test_the_pool_may_be_closed_first(a):
    pool = ConnectionPool(str(a.endpoint), name="sensors")
    sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines())
    all_alive(sender)
    sender.broadcast(b"hello")
    assert pool.close() == 1
    a.until_lines(1)
    with taking(0, 3.0):
        sender.close()
    until(lambda: pool.stats().size == 0)


def test_nothing_is_tried_again_once_the_pool_is_closed(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        sender.pool.close()
        a.kill()
        until(lambda: isinstance(sender.links()[0].last_error, PoolClosedError))
        until(lambda: sender.links()[0].retry_at is None)


@pytest.mark.parametrize("how", ["shut down", "paused", "paused, and who comes waits", "full"])
def test_a_pool_that_lends_nothing_for_a_while_has_its_links_again_soon_after(a, how):
    patient = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}  # for peers that fail; none does
    patient |= {"max_size": 1, "connect_timeout": 0.1}
    with broadcasting(a, pool_settings=patient) as sender:
        all_alive(sender)
        pool = sender.pool
        match how:
            case "shut down":
                pool.shutdown()
                refusal, make_good = PoolClosedError, pool.reopen
            case "full":
                sender.mark_dead(a.endpoint)
                refusal, make_good = CheckoutTimeoutError, pool.try_connect().release
            case _:
                pool.pause(fail=how == "paused")
                sender.mark_dead(a.endpoint)
                refusal = PoolPausedError if how == "paused" else CheckoutTimeoutError
                make_good = pool.resume
        until(lambda: sender.links()[0].state is LinkState.DEAD, "the loss of the link")
        sender.mark_alive(a.endpoint)
        until(lambda: isinstance(sender.links()[0].last_error, refusal), "an attempt that is refused")
        until(lambda: sender.links()[0].failures == 1, "the loss as the only failure that counts")
        assert sender.broadcast(b"meanwhile").sent == ()
        make_good()
        a.until_has(b"meanwhile")


def test_a_pool_that_is_cleared_under_it_costs_no_message(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        for n, message in enumerate(numbered(60)):
            sender.broadcast(message)
            a.until_has(message)
            if n % 20 == 10:
                sender.pool.clear(interrupt=True)
        assert a.lines == numbered(60)


# -- forgotten


def test_a_broadcaster_that_is_forgotten_leaves_neither_thread_nor_connection(a, recwarn):
    pool = ConnectionPool(str(a.endpoint))
    sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines())
    sender.on(LinkEvent.DEAD, print)
    sender.recv(0)
    all_alive(sender)
    sender.broadcast(b"hello")
    a.until_lines(1)
    gone = weakref.ref(sender)
    del sender
    until(lambda: gc.collect() >= 0 and gone() is None, "its end")
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith(("connpool-w", "connpool-e"))])
    pool.sweep()
    until(lambda: pool.stats().size == 0, "the end of its connection")
    assert pool.stats().lost == 0
    recwarn.clear()
    pool.close()


# -- fork


def test_a_forked_child_has_connections_of_its_own_and_leaves_the_parent_s_in_peace(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        sender.broadcast(b"parent 0")
        a.until_has(b"parent 0")

        def child() -> Any:
            delivery = sender.broadcast(b"child")
            return [str(endpoint) for endpoint in delivery.sent], sender.unsent().total, sender.close(5)

        assert in_child(child) == ([str(a.endpoint)], 0, 0)
        sender.broadcast(b"parent 1")
        a.until_lines(3)
        assert a.sessions == [[b"parent 0", b"parent 1"], [b"child"]]


def test_a_child_that_is_forked_while_threads_send_does_not_hang(a):
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            sender.broadcast(b"parent")

    with broadcasting(a) as sender:
        all_alive(sender)
        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for n in range(5):

                def child(n: int = n) -> int:
                    sender.broadcast(b"child %d" % n)
                    sender.broadcast_async(b"child %d later" % n).result(GUARD)
                    sender.check_event(0)
                    all_alive(sender)  # else what is spooled by now stays there
                    return sender.close(5)

                assert in_child(child) == 0
                a.until_has(b"child %d" % n, b"child %d later" % n)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert a.accepts == 6


def test_a_confirm_that_forks_may_return_in_the_child_whoever_had_the_locks(a):
    pids: list[int] = []
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        link = sender._office.roster.links[str(a.endpoint)]
        with sender._office._lock, link.writing:
            held.set()
            assert over.wait(GUARD)

    holder = threading.Thread(target=hold)

    def fork_here(conn: Connection, message: bytes) -> None:
        if not pids:
            holder.start()
            assert held.wait(GUARD)
            pids.append(fork_mortally())
            if pids[0] != 0:
                over.set()

    status = 99
    with broadcasting(a, confirm=fork_here) as sender:
        all_alive(sender)
        try:
            sender.broadcast(b"parent")
            status = 0
        finally:
            if pids[0] == 0:
                os._exit(status)
        holder.join()
    assert status_of(pids[0]) == 0


def test_a_child_that_returns_from_the_handler_in_which_it_was_forked_ends(a):
    pids: list[int] = []

    def fork_here(*_: object) -> None:
        if not pids:
            pids.append(fork_mortally())

    with broadcasting(a) as sender:
        sender.on(LinkEvent.ALIVE, fork_here)
        all_alive(sender)
        until(lambda: pids, "the fork")
    assert status_of(pids[0]) == 0


def test_a_forked_child_is_upkept_from_its_first_use_on_and_before_that_dials_nobody(a, b):
    told: list[LinkEvent] = []
    looks: list[int] = []
    beats: list[int] = []

    class Shared(MemorySpool):
        def adopt(self) -> dict[str, int]:
            looks.append(os.getpid())
            return {}

    def beat() -> bytes:
        beats.append(os.getpid())
        return b"beat"

    with broadcasting(a, "||", b, spool=Shared(max_age=1_000), heartbeat=(0.02, beat)) as sender:
        sender.on(LinkEvent.ALIVE | LinkEvent.DEAD, lambda _, event, __: told.append(event))
        all_alive(sender)
        until(lambda: len(told) == 2, "both events")

        def child() -> Any:
            told.clear()
            unused = [link.state for link in sender.links()]
            is_ready = sender.wait_ready(GUARD)
            until(lambda: len(told) == 2, "both events")
            until(lambda: os.getpid() in looks, "a look for what others have left")
            until(lambda: os.getpid() in beats, "a heartbeat")
            return unused, is_ready, told, sender.close(5)

        until(lambda: a.accepts == 1, "the server, which may be behind")
        unused, is_ready, events, unsent = in_child(child)
        assert (unused, is_ready, unsent) == ([LinkState.NEW] * 2, True, 0)
        assert events == [LinkEvent.ALIVE] * 2
        assert a.accepts == 2


def test_a_child_of_a_closed_broadcaster_has_a_closed_one(a):
    with broadcasting(a) as sender:
        sender.close()

        def child() -> str:
            try:
                sender.broadcast(b"hello")
            except PoolClosedError:
                return "closed"
            return "open"

        assert in_child(child) == "closed"


# -- the end of the program


def test_a_program_that_forgets_to_close_ends_without_a_word(a):
    program = """
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines, LinkEvent, MemorySpool
        pool = ConnectionPool(sys.argv[1])
        sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines(), heartbeat=(1, b"beat"))
        sender.on(LinkEvent.ALIVE | LinkEvent.INPUT, lambda *_: None)
        sender.broadcast(b"hello")
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    a.until_has(b"hello")
    a.until_open(0)


def test_nothing_is_started_by_the_import():
    program = """
        import threading
        before = threading.active_count()
        import connpool
        pool = connpool.ConnectionPool("127.0.0.1:1")
        print(threading.active_count() - before)
    """
    assert run_program(program).out.strip() == "0"


def test_a_server_that_speaks_first_and_leaves_is_no_reason_for_haste(a):
    """Links that open and break at once are tried with the back-off, not in a circle."""
    a.script = [Send(b"go away\n"), ServedConnection.close]
    with broadcasting(a, pool_settings={"blacklist_initial": 0.1, "blacklist_max": 10}) as sender:
        threading.Event().wait(0.5)
        assert a.accepts <= 8
        sender.close(1)
