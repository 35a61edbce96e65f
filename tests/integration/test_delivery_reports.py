"""What a spool drops and finds damaged is told to those who listen to the broadcaster's pool."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConnectionPool,
    MemorySpool,
    MessagesDropped,
    SpoolCount,
    SpoolDamaged,
    SQLiteSpool,
)
from connpool.delivery.limits import MOST_UNREPORTED, Teller
from connpool.delivery.reporting import Reporter
from connpool.testing import FakeClock
from tests.helpers.forks import in_child
from tests.helpers.sinks import Sink, broadcasting, refused
from tests.helpers.together import together

ID = bytes(16)


@pytest.fixture
def nobody() -> Iterator[str]:
    with refused() as endpoint:
        yield endpoint


@pytest.fixture(params=["memory", "sqlite"])
def make_spool(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def make(**settings: Any) -> Any:
        if request.param == "memory":
            return MemorySpool(**settings)
        return SQLiteSpool(tmp_path / "spool", durable=False, **settings)

    return make


def damaged(path: Path) -> Path:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", ID)
    spool.close()
    with path.open("rb+") as file:
        file.write(b"!")
    return path


def test_drops_are_told_to_the_listeners_of_the_pool_in_its_name_and_to_the_spools_own(nobody, make_spool):
    own: list[MessagesDropped] = []
    told: list[MessagesDropped] = []
    others: list[SpoolDamaged] = []
    with broadcasting(nobody, spool=make_spool(max_messages=3, listener=own.append)) as sender:
        stop = sender.pool.listen(told.append, MessagesDropped)
        sender.pool.listen(others.append, SpoolDamaged)
        for n in range(5):
            sender.broadcast(b"%d" % n)
        assert [(event.pool, event.queue, event.count) for event in told] == [("sensors", "", 1)] * 2
        assert [(event.pool, event.queue, event.count) for event in own] == [("", "", 1)] * 2
        assert all(0 <= sender.pool._now() - event.at < 60 for event in told)
        stop()
        sender.broadcast(b"5")
        assert (len(told), len(own), others) == (2, 3, [])


def test_damage_that_was_found_before_there_was_a_broadcaster_is_told_once(nobody, tmp_path):
    told: list[SpoolDamaged] = []
    spool = SQLiteSpool(damaged(tmp_path / "spool"))
    settings = {"listeners": (told.append,)}
    with broadcasting(nobody, spool=spool, pool_settings=settings) as sender:
        (event,) = (event for event in told if isinstance(event, SpoolDamaged))
        assert spool.damage is not None
        assert (event.pool, event.path, event.aside) == ("sensors", str(spool.path), spool.damage.aside)
        assert (event.recovered, event.lost) == (1, 0)
        sender.sweep()
    assert sum(isinstance(event, SpoolDamaged) for event in told) == 1


def test_damage_that_shows_while_it_runs_is_told_to_the_listeners_of_the_pool(nobody, tmp_path):
    told: list[SpoolDamaged] = []
    spool = SQLiteSpool(tmp_path / "spool")
    with broadcasting(nobody, spool=spool) as sender:
        sender.pool.listen(told.append, SpoolDamaged)
        sender.broadcast(b"1")
        spool._keeper.ledger.segment.execute("UPDATE message SET checksum = 0")
        assert spool.peek("", 1, 1) == []
        sender.broadcast(b"2")
        assert [(event.pool, event.recovered, event.lost) for event in told] == [("sensors", 0, 1)]
        assert sender.unsent().total == 1


def test_an_event_has_the_time_of_the_pools_clock(make_spool):
    clock, told = FakeClock(), []
    spool = make_spool(max_messages=1)
    for _ in range(2):
        spool.put(["a"], b"1", ID)
    pool = ConnectionPool("127.0.0.1:9", clock=clock, listeners=(told.append,))
    with Broadcaster(pool, spool=spool, standby="cold"):
        assert [clock.now() - 60 < event.at <= clock.now() for event in told if hasattr(event, "queue")] == [
            True
        ]
    pool.close()


def test_every_drop_is_told_once_whoever_causes_it_and_whenever_the_broadcaster_comes(nobody, make_spool):
    told: list[MessagesDropped] = []
    spool = make_spool(max_messages=1)
    pool = ConnectionPool(nobody, name="sensors", listeners=(told.append,))

    def fill() -> None:
        for _ in range(MOST_UNREPORTED // 2):
            spool.put(["a"], b"1", ID)

    def listen() -> Broadcaster:
        while spool.counts().get("a", SpoolCount(0, 0, 0)).dropped < 20:
            pass
        return Broadcaster(pool, spool=spool)

    *_, sender = together(fill, fill, listen)
    fill()
    counts = [event.count for event in told if isinstance(event, MessagesDropped)]
    assert sum(counts) == spool.counts()["a"].dropped == MOST_UNREPORTED * 3 // 2 - 1
    sender.close()
    pool.close()


def test_a_handler_may_use_and_close_the_broadcaster(nobody, make_spool):
    with broadcasting(nobody, spool=make_spool(max_messages=2)) as sender:
        seen: list[int] = []

        def handle(event: MessagesDropped) -> None:
            seen.append(sender.unsent().total)
            sender.flush(0)
            sender.close(0)

        sender.pool.listen(handle, MessagesDropped)
        user = threading.Thread(target=lambda: [sender.broadcast(b"1") for _ in range(3)], daemon=True)
        user.start()
        user.join(10)
        assert not user.is_alive()
        assert seen == [2]


def test_what_a_spool_drops_while_it_is_closed_is_told_with_no_lock_held(nobody):
    class Late(MemorySpool):
        def close(self) -> None:
            self._teller.tell_dropped({"a": 1})
            super().close()

    told: list[int] = []
    with broadcasting(nobody, spool=Late()) as sender:

        def handle(event: MessagesDropped) -> None:
            told.append(event.count)
            if len(told) == 1:
                sender.close(0)

        sender.pool.listen(handle, MessagesDropped)
        closer = threading.Thread(target=sender.close, args=(0,), daemon=True)
        closer.start()
        closer.join(10)
        assert not closer.is_alive()
    assert told


def test_a_handler_that_fails_is_logged_and_costs_no_message(nobody, make_spool, caplog):
    def fail(event: MessagesDropped) -> None:
        raise ValueError("my own")

    with broadcasting(nobody, spool=make_spool(max_messages=1)) as sender:
        sender.pool.listen(fail, MessagesDropped)
        for _ in range(2):
            assert sender.broadcast(b"1").spooled
    assert "my own" in caplog.text


def test_a_spool_that_reports_nothing_is_a_spool():
    class Plain:
        def __init__(self) -> None:
            self._spool = MemorySpool(max_messages=1)

        def __getattr__(self, name: str) -> Any:
            if name == "report_to":
                raise AttributeError(name)
            return getattr(self._spool, name)

    with Sink() as server, broadcasting(server, spool=Plain()) as sender:
        sender.broadcast(b"hello")
        server.until_has(b"hello")


def test_a_spool_keeps_no_pool_alive(nobody, make_spool):
    spool = make_spool(max_messages=1)
    pool = ConnectionPool(nobody)
    spool.report_to(Reporter(pool))
    ref = weakref.ref(pool)
    pool.close()
    del pool
    gc.collect()
    assert ref() is None
    for _ in range(2):
        spool.put(["a"], b"1", ID)
    spool.close()


def test_a_forked_child_tells_its_own_and_waits_for_nobody(make_spool):
    told: list[int] = []
    spool = make_spool(max_messages=1)
    for _ in range(2):
        spool.put(["a"], b"parent", ID)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with spool._teller._lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)

    def child() -> list[int]:
        spool.report_to(lambda event: told.append(event.count))
        for _ in range(3):
            spool.put(["a"], b"child", ID)
        return told

    try:
        assert in_child(child) == [1, 1]
    finally:
        done.set()
        holder.join(10)
    spool.close()


def test_of_what_nobody_asks_for_the_latest_are_kept():
    told: list[int] = []
    teller = Teller("x", None)
    for n in range(MOST_UNREPORTED + 50):
        teller.tell(n)  # type: ignore[arg-type]
    teller.report_to(told.append)
    assert told == list(range(50, MOST_UNREPORTED + 50))
