"""Whoever comes back into a broadcaster from inside of it gets an answer or an error, and never hangs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConnPoolError,
    PoolClosedError,
    UsageError,
)
from tests.helpers.interrupts import NOT_AGAIN, SignalStrike, codes_of, needs_monitoring, signal_points
from tests.helpers.sinks import GUARD, Sink, by_sender, first_comings
from tests.helpers.wire import taking
from tests.stress.test_delivery_interrupts import (
    MODULES,
    SCENES,
    BrokenWithoutASpool,
    Confirmed,
    DeafWithoutASpool,
    Plain,
    Scene,
    WithoutASpool,
    WrittenAhead,
)

FORGETFUL = BrokenWithoutASpool, DeafWithoutASpool  # what is for the broken member there comes to nobody


class Visit(SignalStrike):
    """Lets a signal handler run before the *n*-th bytecode at which one could, and nothing is raised."""

    def __init__(self, n: int, handler: Callable[[], object]) -> None:
        super().__init__(n, codes_of(*MODULES))
        self._handler = handler

    def _on_instruction(self, code: Any, offset: int) -> Any:
        if offset not in signal_points(code):
            return NOT_AGAIN
        if self.where is None and threading.get_ident() == self._thread:
            self._left -= 1
            if self._left == 0:
                self.where = f"{code.co_qualname}, offset {offset}"
                self._handler()
        return None


def visits(stage: Scene, handler: Callable[[], object], enough: int) -> Iterator[Visit]:
    """One visit after the other, until about *enough* points were visited that one broadcast has."""
    stage.prepare()
    counter = Visit(0, handler)
    with counter:
        stage.deed()
    stage.rest()
    points = -counter._left
    assert points > 5
    for n in range(1, points + 1, max(1, points // enough)):
        yield Visit(n, handler)


class Guest:
    """Uses what a broadcaster has, once, from wherever it is called."""

    def __init__(self, stage: Scene) -> None:
        self.stage = stage
        self.accepted: list[int] = []
        self._numbers = itertools.count()

    def __call__(self) -> None:
        sender = self.stage.sender
        uses = self.send, sender.links, sender.unsent, sender.sweep, lambda: sender.flush(0), sender.__repr__
        for use in uses:
            with suppress(ConnPoolError):  # it may be turned away
                use()

    def send(self) -> None:
        number = next(self._numbers)
        if not self.stage.sender.broadcast(b"guest-%d-" % number).refused:
            self.accepted.append(number)


def with_guest(scene: type[Scene], stack: ExitStack) -> tuple[Scene, Guest]:
    """*scene*, and a guest whose messages have to come, too."""

    class Visited(scene):  # type: ignore[misc, valid-type]
        heads = (b"m-", b"guest-")

        def check(self, sink: Sink, last: int) -> None:
            super().check(sink, last)
            came = by_sender(first_comings(sink.lines)).get(b"guest", [])
            assert came == sorted(came)
            assert set(guest.accepted) <= set(came), set(guest.accepted) - set(came)

    stage = Visited(stack)
    guest = Guest(stage)
    return stage, guest


@needs_monitoring
@pytest.mark.parametrize(
    "scene", [each for each in SCENES if each not in FORGETFUL], ids=lambda scene: scene.__name__
)
def test_a_signal_handler_may_use_a_broadcaster_wherever_it_strikes_in_a_broadcast(scene):
    with ExitStack() as stack:
        stage, guest = with_guest(scene, stack)
        for visit in visits(stage, guest, enough=min(40, stage.enough // 2)):
            stage.prepare()
            with visit:
                stage.deed()
            try:
                stage.rest()
            except AssertionError as fault:
                raise AssertionError(f"{visit}: {fault}") from fault
        assert guest.accepted


@needs_monitoring
@pytest.mark.parametrize(
    "scene", [Plain, WithoutASpool, Confirmed, WrittenAhead], ids=lambda scene: scene.__name__
)
def test_a_signal_handler_may_close_a_broadcaster_wherever_it_strikes_in_a_broadcast(scene):
    for n in itertools.count(1, 9):
        with ExitStack() as stack:
            sender = (stage := scene(stack)).sender

            def close(sender: Broadcaster = sender) -> None:
                with suppress(UsageError):  # it has interrupted a call to the spool
                    sender.close()

            visit = Visit(n, close)
            with taking(0, GUARD / 2), visit, suppress(ConnPoolError):
                stage.deed()
            if visit.where is None:
                break
            with taking(0, GUARD / 2):
                sender.close()
            with pytest.raises(PoolClosedError):
                stage.deed()
    assert n > 20
