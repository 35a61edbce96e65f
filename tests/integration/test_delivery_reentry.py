"""Whoever comes back into a broadcaster from one of its hooks gets an answer or an error, and never hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from connpool import Broadcaster, Connection, ConnectionClosed, ConnPoolError, MemorySpool, UsageError
from tests.helpers.sinks import GUARD, Sink, acknowledged, broadcasting
from tests.helpers.switchboard import until
from tests.helpers.wire import taking


@pytest.fixture
def a() -> Iterator[Sink]:
    with Sink(answers=True) as server:
        yield server


def is_at_rest(sender: Broadcaster) -> bool:
    return not any(link.is_tended for link in sender._office.roster.links.values())


def test_a_listener_may_close_when_the_end_closes_connections(a):
    told: list[int] = []
    with broadcasting(a) as sender:
        assert sender.wait_ready(GUARD)
        until(lambda: is_at_rest(sender))

        def listen(event: object) -> None:
            told.append(sender.close())

        sender.pool.listen(listen, ConnectionClosed)
        with taking(0, GUARD / 3):
            sender.close()
        until(lambda: told, "the end that the listener asked for")


@pytest.mark.parametrize("when", ["in between", "at the end"])
def test_a_heartbeat_may_close(a, when):
    ends: list[int] = []

    def beat() -> bytes:
        if made.is_set():
            ends.append(sender.close())
        return b"beat"

    made = threading.Event()
    with broadcasting(a, heartbeat=(0.02 if when == "in between" else 1_000.0, beat)) as sender:
        assert sender.wait_ready(GUARD)
        made.set()
        if when == "in between":
            until(lambda: ends, "the end that the heartbeat asked for")
        with taking(0, GUARD / 3):
            sender.close()
        assert ends


@pytest.mark.parametrize("call", ["close", "flush"])
def test_a_confirm_on_the_thread_that_empties_a_queue_does_not_wait_for_itself(a, call):
    results: list[int] = []

    def confirm(conn: Connection, message: bytes) -> None:
        acknowledged(conn, message)
        if not results:
            results.append(getattr(sender, call)())

    a.stop()
    with broadcasting(a, confirm=confirm) as sender:
        sender.broadcast(b"hello")
        a.start()
        until(lambda: results, f"the end of {call}")
        assert results == [1]  # it counts until it is confirmed


@pytest.mark.parametrize("spool", [None, MemorySpool()], ids=["no spool", "spool"])
def test_a_broadcast_from_within_a_confirm_waits_in_the_spool_or_is_refused_at_once(a, spool):
    results: list[object] = []

    def confirm(conn: Connection, message: bytes) -> None:
        acknowledged(conn, message)
        if not results:
            try:
                results.append(sender.broadcast(b"inner").spooled)
            except ConnPoolError as error:
                results.append(type(error))

    with broadcasting(a, spool=spool, confirm=confirm, send_timeout=None) as sender:
        assert sender.wait_ready(GUARD)
        assert sender.broadcast(b"outer").sent == (a.endpoint,)
        assert results == [UsageError if spool is None else (str(a.endpoint),)]
        assert sender.flush(GUARD) == 0
        sender.broadcast(b"last")
        assert a.until_lines(2) == [b"outer", b"last"] if spool is None else [b"outer", b"inner", b"last"]


def test_a_broadcaster_whose_spool_was_closed_first_comes_to_its_end(a):
    spool = MemorySpool()
    with broadcasting(a, spool=spool, heartbeat=(1_000.0, b"bye")) as sender:
        assert sender.wait_ready(GUARD)
        spool.close()
        assert sender.close() == 0
        a.until_accepts(1).until_eof()


def test_a_listener_that_hangs_does_not_keep_the_end_from_coming(a, monkeypatch):
    monkeypatch.setattr("connpool.delivery.starting.GRACE", 0.05)
    over = threading.Event()
    with broadcasting(a) as sender:
        assert sender.wait_ready(GUARD)
        until(lambda: is_at_rest(sender))
        sender.pool.listen(lambda _: over.wait(GUARD), ConnectionClosed)
        a.kill()
        try:
            with taking(0, GUARD / 3):
                sender.close()
        finally:
            over.set()
