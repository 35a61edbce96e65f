"""Whoever comes back into a broadcaster from one of its hooks gets an answer or an error, and never hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from connpool import (
    Broadcaster,
    Connection,
    ConnectionClosed,
    ConnPoolError,
    MemorySpool,
    SQLiteSpool,
    UsageError,
    clock,
)
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


@pytest.mark.parametrize("hook", ["heartbeat", "confirm"])
def test_a_hook_that_closes_what_another_thread_is_closing_does_not_wait_for_that(a, hook):
    ends: list[int] = []

    def close_too(*_: object) -> bytes:
        if not is_called.is_set():
            is_called.set()
            until(lambda: not sender._closings.are_free(), "the end that waits for us")
            ends.append(sender.close())
        return b"beat"

    is_called = threading.Event()
    a.stop()
    settings = {"heartbeat": (0.02, close_too)} if hook == "heartbeat" else {"confirm": close_too}
    with broadcasting(a, **settings) as sender:
        sender.broadcast(b"hello")
        a.start()
        assert is_called.wait(GUARD)
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


@pytest.mark.parametrize("call", ["close", "flush"])
def test_a_confirm_on_the_thread_that_broadcasts_does_not_wait_for_what_waits_for_it(a, call):
    results: list[int] = []

    def confirm(conn: Connection, message: bytes) -> None:
        acknowledged(conn, message)
        if not results:
            assert sender.broadcast(b"inner").spooled == (str(a.endpoint),)
            results.append(getattr(sender, call)())

    with broadcasting(a, confirm=confirm) as sender:
        assert sender.wait_ready(GUARD)
        with taking(0, GUARD / 3):
            assert sender.broadcast(b"outer").sent == (a.endpoint,)
        assert results == [1]  # "inner", which cannot be sent before "outer" is confirmed
        assert sender.flush(GUARD) == (0 if call == "flush" else 1)


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


def within_a_put(monkeypatch: pytest.MonkeyPatch, visit: Callable[[], object]) -> None:
    """Have *visit* called once in the midst of the next transaction of this thread, like a signal handler."""
    here, ask = threading.current_thread(), clock.wall

    def wall() -> float:
        if threading.current_thread() is here:
            monkeypatch.setattr(clock, "wall", ask)
            visit()
        return ask()

    monkeypatch.setattr(clock, "wall", wall)


@pytest.mark.parametrize("call", ["close", "flush"])
def test_a_signal_handler_within_a_call_to_the_file_is_turned_away_and_closes_nothing(
    a, tmp_path, monkeypatch, call
):
    """A worker that sends what waits would wait for the file, and the handler for the worker."""
    results: list[str] = []

    def visit() -> None:
        a.start()
        sender.mark_alive(a.endpoint)
        a.until_accepts(1)
        try:
            getattr(sender, call)()
        except UsageError as error:
            results.append(str(error))

    a.stop()
    with broadcasting(a, spool=SQLiteSpool(Path(tmp_path, "spool.db"), durable=False)) as sender:
        sender.broadcast(b"first")
        within_a_put(monkeypatch, visit)
        with taking(0, GUARD / 3):
            sender.broadcast(b"second")
        assert results == ["a spool is used from within a call to it"]
        sender.broadcast(b"third")
        assert sender.flush(GUARD) == 0
        assert a.until_lines(3) == [b"first", b"second", b"third"]


def test_a_spool_that_is_closed_from_within_a_call_to_it_goes_on(tmp_path, monkeypatch):
    def visit() -> None:
        with pytest.raises(UsageError):
            spool.close()

    with closing(SQLiteSpool(Path(tmp_path, "spool.db"), durable=False)) as spool:
        within_a_put(monkeypatch, visit)
        spool.put(["q"], b"first", bytes(16))
        spool.put(["q"], b"second", bytes(16))
        assert spool.count("q") == 2
