"""Ctrl-C at any moment of a call loses no channel and nobody who waits, and leaves no lock held."""

from __future__ import annotations

import gc
import importlib
import math
import pkgutil
import threading
from collections.abc import Iterator

import attrs
import pytest

import connpool.calls
from connpool import (
    CallEnded,
    CallPool,
    CallStarted,
    ChannelClosedError,
    ConnPoolError,
    NoResourceError,
    PoolState,
    Reply,
)
from connpool.clock import Gate
from connpool.testing import FakeClock
from tests.helpers.channels import RESOURCE, Caller, Tape, queue_up
from tests.helpers.interrupts import Place, Strike, Survey, codes_of, needs_monitoring, struck_at_random
from tests.helpers.switchboard import until
from tests.stress.test_interrupts import in_finalisers  # noqa: F401 - a fixture
from tests.stress.works import TellingClock

MODULES = [
    importlib.import_module(f"connpool.calls.{module.name}")
    for module in pkgutil.iter_modules(connpool.calls.__path__)
]
ENOUGH = 50  # strikes for each scene, besides those at places where no scene before it was struck
KNOWN: dict[bool, set[Place]] = {False: set(), True: set()}  # by whether the interrupt is kept


class HelpfulClock(TellingClock):
    """When its thread would wait, *helper* first does what ends the wait."""

    helper = None

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        helper, self.helper = self.helper, None
        if helper is not None:
            helper()
        return super().wait(gate, timeout)


class InterruptingClock(FakeClock):
    """Interrupts whoever asks it while it is armed."""

    is_armed = False

    def now(self) -> float:
        is_armed, self.is_armed = self.is_armed, False
        if is_armed:
            raise KeyboardInterrupt
        return super().now()


class Scene:
    """A pool of one channel, ready for the deed; afterwards nothing may be missing."""

    n_channels = 1

    def __init__(self) -> None:
        self.clock = HelpfulClock()
        self.pool = CallPool(clock=self.clock)
        self.tapes = [Tape() for _ in range(self.n_channels)]
        self.waiting: list[Caller] = []
        self.popped: list[object] = []
        self.handed: list[Tape] = []
        for tape in self.tapes:
            self.pool.init(tape, revive="force")
        self.lines = {line.channel: line for line in self.pool._switch.ledger.lines.values()}
        self.prepare()

    def prepare(self) -> None:
        pass

    def deed(self) -> None:
        self.pool.call(RESOURCE, "get", 1)

    def end(self) -> None:
        """What the test itself still holds."""


class Plain(Scene):
    pass


class Filtered(Scene):
    def deed(self):
        self.pool.call(RESOURCE, "get", 1, where=lambda info: True, timeout=5)


class Resting(Scene):
    def deed(self):
        self.tapes[0].doing = lambda method, payload: Reply(payload, retry_after=0.0001)
        self.pool.call(RESOURCE, "get", 1)
        self.tapes[0].doing = lambda method, payload: payload

    def end(self):
        self.tapes[0].doing = lambda method, payload: payload
        self.clock.leap(1)


class Failing(Scene):
    def deed(self):
        self.tapes[0].doing = lambda method, payload: 1 // 0
        try:
            self.pool.call(RESOURCE, "get", 1)
        except ZeroDivisionError:
            pass

    def end(self):
        self.tapes[0].doing = lambda method, payload: payload


class Handing(Scene):
    """Somebody waits for the channel when the call ends."""

    def prepare(self):
        def meanwhile(method, payload):
            if payload == 1:
                self.waiting = queue_up(self.pool, [2])
            return payload

        self.tapes[0].doing = meanwhile


class Waiting(Scene):
    """The call waits until another's is over."""

    def prepare(self):
        self.gate = threading.Event()
        self.tapes[0].doing = lambda method, payload: payload if payload != 0 else self.gate.wait(10)
        self.other = Caller(self.pool, 0)
        until(lambda: self.tapes[0].calls)

    def deed(self):
        self.clock.helper = self.let_end
        super().deed()

    def let_end(self):
        self.gate.set()
        self.other.outcome()

    def end(self):
        self.let_end()


class Late(Waiting):
    """The call does not wait long enough."""

    def deed(self):
        try:
            self.pool.call(RESOURCE, "get", 1, timeout=0.0001)
        except ConnPoolError:
            pass


class Popping(Scene):
    def deed(self):
        self.popped.append(self.pool.pop(1))


class PoppingAll(Popping):
    n_channels = 2

    def deed(self):
        self.popped += self.pool.pop(resource=RESOURCE)


class Closing(Scene):
    def deed(self):
        self.tapes[0].doing = lambda method, payload: Reply(payload, retry_after=math.inf)
        self.pool.call(RESOURCE, "get", 1)

    def end(self):
        self.tapes[0].doing = lambda method, payload: payload


class Expiring(Scene):
    def prepare(self):
        self.pool.update(RESOURCE, lambda info: attrs.evolve(info, ttl=100.0))
        self.clock.leap(101)

    def deed(self):
        self.pool.sweep()


class Ending(Scene):
    def deed(self):
        self.pool.close()


class EndingInTime(Ending):
    def deed(self):
        self.pool.close(timeout=5)


class Putting(Scene):
    def prepare(self):
        self.info = self.pool.pop(1)

    def deed(self):
        self.pool.put(self.info)

    def end(self):
        self.pool.sweep()
        if id(self.tapes[0]) not in self.pool._switch.ledger.owned:
            self.popped.append(self.info)


class Updating(Scene):
    def deed(self):
        self.pool.update(RESOURCE, lambda info: info)
        self.pool.extra(1, "new")


class Listening(Scene):
    def deed(self):
        stop = self.pool.listen(lambda event: None)
        self.pool.call(RESOURCE, "get", 1)
        stop()


SCENES = [
    Plain, Filtered, Resting, Failing, Handing, Waiting, Late, Popping, PoppingAll, Closing, Expiring,
    Ending, EndingInTime, Putting, Updating, Listening,
]  # fmt: skip


def strikes(scene: type[Scene], known: set[Place]) -> Iterator[tuple[Strike, Scene]]:
    """One strike after the other, each with a fresh scene."""
    survey, stage = Survey(codes_of(*MODULES)), scene()
    with survey:
        stage.deed()
    finish(stage)
    assert len(survey.places) > 5
    for strike in survey.strikes(known, ENOUGH):
        yield strike, scene()


def finish(stage: Scene) -> None:
    stage.end()
    stage.pool.sweep()
    for caller in stage.waiting:
        caller.outcome()
    if stage.pool._switch.ledger.lines and stage.pool._switch.ledger.state is PoolState.OPEN:
        until(lambda: stage.pool.sweep() >= 0 and stage.pool.resources() == [RESOURCE], "a channel")
        assert stage.pool.call(RESOURCE, "get", 3, timeout=5) == 3
    stage.pool.close()
    until(lambda: stage.pool.sweep() >= 0 and all(not tape.is_open for tape in left(stage)), "all closed")


def left(stage: Scene) -> list[Tape]:
    """Those that the pool has to close: the caller has not got them, nor was about to at the last moment."""
    taken = [info.channel for info in stage.popped] + stage.handed
    return [tape for tape in stage.tapes if tape not in taken]


#: Where the channels are the caller's already, though it never gets to know of them.
WAY_OUT = ("take_out,", "Office.pop_one,", "Office.pop_all,", "CallPool.pop,", "keeping_no_key.")


def is_handed_over(stage: Scene, tape: Tape) -> bool:
    return id(tape) not in stage.pool._switch.ledger.owned and not stage.lines[tape].unclosed


@needs_monitoring
@pytest.mark.parametrize("is_kept", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_an_interrupt_at_any_moment_loses_no_channel_and_forgets_nobody(scene, is_kept, in_finalisers):  # noqa: F811
    faults = []
    for strike, stage in strikes(scene, KNOWN[is_kept]):
        with strike:
            stage.deed()
        if not is_kept:
            strike._raised = None  # its frames hold what the deed had in its hands
        gc.collect(0)
        try:
            if isinstance(stage, Popping) and strike.where and strike.where.startswith(WAY_OUT):
                stage.handed = [tape for tape in stage.tapes if is_handed_over(stage, tape)]
            finish(stage)
        except (AssertionError, ConnPoolError, KeyboardInterrupt) as fault:
            faults.append(f"{strike}: {fault!r}"[:300])
            if len(faults) > 2:
                break
    assert not faults, "\n".join(faults)
    assert not in_finalisers


def test_a_call_that_is_interrupted_on_its_way_back_gives_its_channel_up_though_the_interrupt_is_kept():
    clock, tape = InterruptingClock(), Tape()
    pool = CallPool(clock=clock, reap_interval=None)
    pool.init(tape, revive=True)
    stop = pool.listen(lambda event: setattr(clock, "is_armed", True), CallEnded)
    with pytest.raises(KeyboardInterrupt) as kept:
        pool.call(RESOURCE, "get", 1)
    stop()
    with pytest.raises(NoResourceError):  # it is being opened again: nobody knows what the call has done
        pool.call(RESOURCE, "get", 2)
    until(lambda: pool.resources() == [RESOURCE])
    assert pool.call(RESOURCE, "get", 2, timeout=5) == 2
    pool.close()
    assert kept.tb is not None


def interrupt(*args: object) -> object:
    raise KeyboardInterrupt


def test_a_channel_whose_opening_was_interrupted_can_be_added_again_while_the_interrupt_is_kept():
    pool, tape = CallPool(clock=FakeClock(), reap_interval=None), Tape()
    tape.opening = interrupt
    with pytest.raises(KeyboardInterrupt) as kept:
        pool.init(tape)
    tape.opening = tape.closing = lambda *args: None
    pool.sweep()
    tape.opens = tape.closes = 0  # it was closed without having been open
    pool.init(tape)
    assert pool.call(RESOURCE, "get", 1) == 1
    pool.close()
    assert kept.tb is not None


def test_an_interrupted_call_gives_its_channel_up_even_while_the_thread_that_had_it_before_refers_to_it():
    clock, tape = InterruptingClock(), Tape()
    pool = CallPool(clock=clock, reap_interval=None)
    pool.init(tape, revive=True)
    elsewhere = list(pool._switch.ledger.idle[RESOURCE])  # as in the frame of a call that has handed it on
    tape.doing = lambda method, payload: setattr(clock, "is_armed", payload == 1)
    with pytest.raises(KeyboardInterrupt):
        pool.call(RESOURCE, "get", 1)
    with pytest.raises(NoResourceError):  # it is being opened again; no UsageError, as if the call went on
        pool.call(RESOURCE, "get", 2)
    until(lambda: pool.resources() == [RESOURCE])
    pool.call(RESOURCE, "get", 2)
    pool.close()
    assert elsewhere


def test_a_call_that_is_interrupted_before_it_begins_gives_its_channel_up_while_another_refers_to_it():
    pool, tape = CallPool(clock=FakeClock(), reap_interval=None), Tape()
    pool.init(tape)
    stop = pool.listen(interrupt, CallStarted)
    elsewhere = list(pool._switch.ledger.idle[RESOURCE])
    with pytest.raises(KeyboardInterrupt):
        pool.call(RESOURCE, "get", 1)
    stop()
    assert pool.call(RESOURCE, "get", 2) == 2
    pool.close()
    assert tape.calls == [2]
    assert elsewhere


def test_hundreds_of_real_signals_lose_no_channel_and_forget_nobody():
    pool = CallPool(reap_interval=0.005)
    tapes = [Tape(), Tape()]
    for tape in tapes:
        pool.init(tape, revive=True)
    over = threading.Event()

    def rival() -> None:
        while not over.is_set():
            try:
                pool.call(RESOURCE, "get", "rival", timeout=20)
            except (ConnPoolError, ChannelClosedError):
                over.wait(0.001)  # all are down for a moment

    def job() -> None:
        for _ in range(500):
            try:
                pool.call(RESOURCE, "get", "job", timeout=20)
            except ConnPoolError:
                over.wait(0.0005)

    rivals = [threading.Thread(target=rival) for _ in range(3)]
    for thread in rivals:
        thread.start()
    try:
        assert struck_at_random(job, times=200, longest=0.003, seed=2) > 100
    finally:
        over.set()
        for thread in rivals:
            thread.join(20)
    assert not any(thread.is_alive() for thread in rivals)
    gc.collect()
    until(lambda: len(pool.map(RESOURCE, lambda info: info)) == 2, "both")
    until(lambda: pool.resources() == [RESOURCE])
    assert pool.call(RESOURCE, "get", 1, timeout=5) == 1
    pool.close()
    until(lambda: not any(tape.is_open for tape in tapes))
