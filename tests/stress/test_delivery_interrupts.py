"""Ctrl-C at any moment of a broadcast holds nobody up, tears no message, and costs none that was accepted."""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import pytest

from connpool import Broadcaster, ConnPoolError, LinkEvent, LinkState, MemorySpool, NoEndpointError
from connpool.testing import FakeClock
from tests.helpers.interrupts import SignalStrike, codes_of, needs_monitoring, struck
from tests.helpers.sinks import (
    GUARD,
    MUCH,
    Sink,
    acknowledged,
    broadcasting,
    by_sender,
    first_comings,
    narrow,
    refused,
)
from tests.helpers.switchboard import until
from tests.stress.test_interrupts import in_finalisers  # noqa: F401 - a fixture

MODULES = [
    importlib.import_module(f"connpool.{name}")
    for name in (
        "delivery.encoding",
        "delivery.flushing",
        "delivery.link",
        "delivery.memory_spool",
        "delivery.office",
        "delivery.plan",
        "delivery.roster",
        "delivery.sending",
        "delivery.strand",
        "delivery.tending",
        "delivery.writing",
        "wire.line",
    )
]


class Scene:
    """A broadcaster and its receivers; after each strike nothing may be left half done."""

    settings: ClassVar[dict[str, Any]] = {}
    spools = True
    padding = b""
    heads: tuple[bytes, ...] = (b"m-",)  # what lines may begin with
    enough = 70  # strikes; where there are more points, every n-th is struck

    def __init__(self, stack: ExitStack) -> None:
        self.numbers = itertools.count()
        self.accepted: list[int] = []
        self.sinks = [stack.enter_context(Sink(answers="confirm" in self.settings)) for _ in range(2)]
        settings = dict(self.settings)
        settings["spool"] = MemorySpool() if self.spools else None
        self.sender: Broadcaster = stack.enter_context(broadcasting(*self.members(stack), **settings))
        until(lambda: self.is_well, "the life of all")

    def members(self, stack: ExitStack) -> list[object]:
        return list(self.sinks)

    @property
    def is_well(self) -> bool:
        return all(link.state is LinkState.ALIVE for link in self.sender.links())

    def prepare(self) -> None:
        """What comes before the deed, and is not struck."""

    def deed(self) -> None:
        number = next(self.numbers)
        self.sender.broadcast(b"m-%d-" % number + self.padding)
        self.accepted.append(number)

    def end(self) -> None:
        """What the receivers do now."""

    def rest(self) -> None:
        """Wait until all is at rest, by itself; then send one more."""
        self.end()
        links = self.sender._office.roster.links.values()
        until(lambda: self.is_well and self.unsent() == 0 and all(map(self.is_at_rest, links)), "rest")
        number = next(self.numbers)
        for _ in range(1_000):
            try:
                self.sender.broadcast(b"m-%d-" % number)
                break
            except NoEndpointError:
                until(lambda: self.is_well, "the life of all")
        self.accepted.append(number)
        for sink in self.sinks:
            self.check(sink, number)

    def unsent(self) -> int:
        return self.sender.unsent().total

    def is_at_rest(self, link: Any) -> bool:
        strand = link.strand
        return (
            not (link.is_tended or link.unfinished or link.own or link.done or link.is_flushing)
            and (strand is None or (strand.holder, strand.is_midway) == (None, False))
            and (strand is None) == (link.state is not LinkState.ALIVE)
        )

    def check(self, sink: Sink, last: int) -> None:
        until(lambda: any(line.startswith(b"m-%d-" % last) for line in sink.lines), f"the coming of {last}")
        assert all(line.startswith(self.heads) and len(line) in self.sizes(line) for line in sink.lines), (
            "torn"
        )
        came = by_sender(first_comings(sink.lines))[b"m"]
        assert came == sorted(came)
        assert set(self.accepted) <= set(came), sorted(set(self.accepted) - set(came))

    def sizes(self, line: bytes) -> tuple[int, ...]:
        head = len(b"-".join(line.split(b"-")[:2])) + 1
        return head, head + len(self.padding)


class Plain(Scene):
    pass


class WithoutASpool(Scene):
    spools = False


class Confirmed(Scene):
    settings: ClassVar = {"confirm": acknowledged}


class ConfirmedWithoutASpool(Scene):
    settings: ClassVar = {"confirm": acknowledged}
    spools = False


class WrittenAhead(Scene):
    settings: ClassVar = {"write_ahead": True}


class WrittenAheadAndConfirmed(Scene):
    settings: ClassVar = {"write_ahead": True, "confirm": acknowledged}


class OneAway(Scene):
    """A third member is dead all the time."""

    def members(self, stack):
        self.away = stack.enter_context(refused())
        return [*self.sinks, self.away]

    @property
    def is_well(self):
        states = [link.state for link in self.sender.links()]
        return states == [LinkState.ALIVE, LinkState.ALIVE, LinkState.DEAD]

    def unsent(self):
        return self.sender.unsent().total - self.sender.unsent()[self.away]

    def is_at_rest(self, link):
        return link.queue == self.away or super().is_at_rest(link)


class Broken(Scene):
    """One of the links has just been broken by its peer."""

    def prepare(self):
        self.sinks[0].kill()


class BrokenWithoutASpool(Broken):
    spools = False

    def check(self, sink, last):
        if sink is self.sinks[1]:
            super().check(sink, last)


class Deaf(Scene):
    """One of the peers reads nothing: a part of the message is all it takes for now."""

    settings: ClassVar = {"pool_settings": {"connector": narrow()}}
    padding = b"x" * 5 * MUCH
    enough = 20

    def prepare(self):
        self.sinks[0].is_deaf = True

    def end(self):
        self.sinks[0].is_deaf = False


class DeafWithoutASpool(Deaf):
    """The sender waits until somebody makes the peer read."""

    spools = False

    def deed(self):
        waker = threading.Timer(0.02, self.end)
        waker.start()
        try:
            super().deed()
        finally:
            waker.join()


SCENES = [
    Plain, WithoutASpool, Confirmed, ConfirmedWithoutASpool, WrittenAhead, WrittenAheadAndConfirmed, OneAway,
    Broken, BrokenWithoutASpool, Deaf, DeafWithoutASpool,
]  # fmt: skip


def strikes(stage: Scene) -> Iterator[SignalStrike]:
    """One strike after the other, until all points were struck that one broadcast has."""
    codes = codes_of(*MODULES)
    stage.prepare()
    counter = SignalStrike(sys.maxsize, codes)
    with counter:
        stage.deed()
    stage.rest()
    points = sys.maxsize - counter._left
    assert points > 5
    for n in range(1, points + 1, max(1, points // stage.enough)):
        yield SignalStrike(n, codes)


@needs_monitoring
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_an_interrupt_at_any_moment_tears_nothing_and_holds_nobody_up(scene, in_finalisers):  # noqa: F811
    faults = []
    with ExitStack() as stack:
        stage = scene(stack)
        for strike in strikes(stage):
            stage.prepare()
            with strike:
                stage.deed()
            strike._raised = None
            gc.collect(0)
            try:
                stage.rest()
            except (AssertionError, ConnPoolError, KeyboardInterrupt) as fault:
                faults.append(f"{strike}: {fault!r}"[:600])
                break
    assert not faults, "\n".join(faults)
    assert not in_finalisers


def test_a_hundred_real_signals_tear_nothing_and_hold_nobody_up(in_finalisers):  # noqa: F811
    with ExitStack() as stack:
        stage = Plain(stack)

        def job() -> None:
            for _ in range(2_000):
                stage.deed()

        n_struck = sum(struck(job, 0.001 * (n % 10)) for n in range(100))
        assert n_struck > 10
        stage.rest()
        assert stage.sender.flush(GUARD) == 0
    assert not in_finalisers


def reopen(sender: Broadcaster) -> None:
    (link,) = sender.links()
    sender.mark_dead(link.endpoint)
    sender.mark_alive(link.endpoint)


def send_apart(sender: Broadcaster) -> None:
    sender.broadcast_async(b"m")


def hear(sender: Broadcaster) -> None:
    sender.on(LinkEvent.DEAD, lambda *_: None)


@pytest.mark.parametrize(
    ("name", "use"), [("connpool-link", reopen), ("connpool-async", send_apart), ("connpool-events", hear)]
)
def test_an_interrupt_that_leaves_a_lock_of_a_starting_thread_in_disorder_is_that_interrupt(
    name: str, use: Callable[[Broadcaster], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith(name):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise RuntimeError("release unlocked lock")  # noqa: B904 - as a Condition does

    with Sink() as sink, broadcasting(sink) as sender:
        assert sender.wait_ready(GUARD)
        until(lambda: all(not link.is_tended for link in sender._office.roster.links.values()))
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            use(sender)
        monkeypatch.undo()
        assert sender.flush(GUARD) == 0


NONE = RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("connpool-events", KeyboardInterrupt()),
        ("connpool-events", NONE),
        ("connpool-keeping", NONE),
        ("connpool-watch", NONE),  # started by a thread of ours, which no interrupt reaches
    ],
    ids=repr,
)
def test_a_thread_that_could_not_be_started_is_started_later(
    name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    kept_back: list[threading.Thread] = []

    def refused_once(thread: threading.Thread) -> None:
        if thread.name.startswith(name) and not kept_back:
            kept_back.append(thread)
            raise error
        start(thread)

    told: list[LinkEvent] = []
    monkeypatch.setattr(threading.Thread, "start", refused_once)
    with Sink() as sink, broadcasting(sink, heartbeat=(0.05, b"beat")) as sender:
        with suppress(KeyboardInterrupt):
            sender.on(LinkEvent.DEAD, lambda _, event, __: told.append(event))
        until(lambda: kept_back, "a thread that could not be started")
        sink.until_has(b"beat")
        sink.kill()
        until(lambda: told, "the news of the end")


def test_upkeep_that_an_interrupt_has_kept_from_starting_a_thread_starts_one_later(monkeypatch) -> None:
    def interrupted(thread: threading.Thread) -> None:
        del thread
        raise KeyboardInterrupt

    clock = FakeClock()
    with (
        Sink() as sink,
        broadcasting(sink, heartbeat=(1.0, b"beat"), pool_settings={"clock": clock}) as sender,
    ):
        assert sender.wait_ready(GUARD)
        clock.advance(1.0)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sender.sweep()
        sender.sweep()
        sink.until_has(b"beat")
