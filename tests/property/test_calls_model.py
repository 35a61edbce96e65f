"""A call pool against a model of it: one queue, channels that are idle or busy, the oldest call first."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from connpool import (
    CallPool,
    ChannelClosedError,
    ChannelState,
    FilteredOutError,
    MethodNotSupportedError,
    NoResourceError,
)
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, n_waiting
from tests.helpers.switchboard import until

METHODS = st.sampled_from(["get", "set"])
OFFERS = st.sampled_from([("get",), ("set",), ("get", "set")])


class Wanted:
    """One call of the model: what it wants, and the thread that really makes it."""

    def __init__(self, number: int, method: str, colour: str | None) -> None:
        self.number = number
        self.method = method
        self.colour = colour
        self.caller: Caller | None = None

    def suits(self, part: Part) -> bool:
        return self.method in part.offers and self.colour in (None, part.colour)

    def refusal(self, parts: list[Part]) -> type[Exception] | None:
        if not parts:
            return NoResourceError
        if not any(self.method in part.offers for part in parts):
            return MethodNotSupportedError
        return None if any(self.suits(part) for part in parts) else FilteredOutError


class Part:
    """One channel of the model."""

    def __init__(self, offers: tuple[str, ...], colour: str) -> None:
        self.offers = offers
        self.colour = colour
        self.tape, self.held = Tape(methods=offers), Held()
        self.tape.doing = self.held
        self.id = 0
        self.call: Wanted | None = None


class Calls(RuleBasedStateMachine):
    """Calls begin and end, channels come and go, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = CallPool(reap_interval=None)
        self.parts: list[Part] = []
        self.idle: list[Part] = []  # the least recently called first
        self.queue: list[Wanted] = []
        self.numbers = 0

    # -- the model

    def serve(self) -> None:
        for wanted in list(self.queue):
            if refusal := wanted.refusal(self.parts):
                self.queue.remove(wanted)
                assert type(wanted.caller.outcome()) is refusal
                continue
            for part in self.idle:
                if wanted.suits(part):
                    self.idle.remove(part)
                    self.queue.remove(wanted)
                    self.begin(part, wanted)
                    break

    def begin(self, part: Part, wanted: Wanted) -> None:
        part.call = wanted
        assert part.held.begun.acquire(timeout=10), "the channel was not called"
        assert part.tape.calls[-1] == wanted.number, "another call came first"

    def end(self, part: Part, result: Any) -> Any:
        wanted, part.call = part.call, None
        part.held.result = result
        part.held.may_end.release()
        outcome = wanted.caller.outcome()
        return wanted, outcome

    # -- the steps

    @precondition(lambda self: len(self.parts) < 4)
    @rule(offers=OFFERS, colour=st.sampled_from("ab"))
    def add(self, offers: tuple[str, ...], colour: str) -> None:
        part = Part(offers, colour)
        part.id = self.pool.init(part.tape, extra=colour)
        self.parts.append(part)
        suited = [wanted for wanted in self.queue if wanted.suits(part)]
        if not suited:
            self.idle.append(part)
            return
        assert part.held.begun.acquire(timeout=10), "nobody uses the new channel"
        first = next(wanted for wanted in suited if wanted.number == part.tape.calls[-1])
        # A filter has yet to see the channel, and who has none need not wait for that.
        assert all(wanted.colour for wanted in suited if wanted.number < first.number)
        self.queue.remove(first)
        part.call = first

    @precondition(lambda self: len(self.queue) < 6)
    @rule(method=METHODS, colour=st.sampled_from([None, None, "a", "b"]))
    def call(self, method: str, colour: str | None) -> None:
        self.numbers += 1
        wanted = Wanted(self.numbers, method, colour)
        options = {} if colour is None else {"where": lambda info: info.extra == colour}
        before = n_waiting(self.pool)
        will_wait = wanted.refusal(self.parts) is None and not any(map(wanted.suits, self.idle))
        wanted.caller = Caller(self.pool, wanted.number, method=method, **options)
        if will_wait:
            until(lambda: n_waiting(self.pool) == before + 1, "a call in the queue")
        self.queue.append(wanted)
        self.serve()

    @precondition(lambda self: any(part.call for part in self.parts))
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        part = data.draw(st.sampled_from([part for part in self.parts if part.call]))
        wanted, outcome = self.end(part, None)
        assert outcome == wanted.number
        self.idle.append(part)
        self.serve()

    @precondition(lambda self: any(part.call for part in self.parts))
    @rule(data=st.data())
    def fail(self, data: Any) -> None:
        part, error = data.draw(st.sampled_from([part for part in self.parts if part.call])), ValueError("no")
        _, outcome = self.end(part, error)
        assert outcome is error
        self.idle.append(part)
        self.serve()

    @precondition(lambda self: any(part.call for part in self.parts))
    @rule(data=st.data())
    def break_down(self, data: Any) -> None:
        part = data.draw(st.sampled_from([part for part in self.parts if part.call]))
        _, outcome = self.end(part, ChannelClosedError("gone"))
        assert isinstance(outcome, ChannelClosedError)
        self.parts.remove(part)
        self.serve()
        until(lambda: part.tape.closes == 1)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def take_out(self, data: Any) -> None:
        part = data.draw(st.sampled_from(self.idle))
        assert self.pool.pop(part.id, timeout=5).channel is part.tape
        self.idle.remove(part)
        self.parts.remove(part)
        part.tape.close()
        self.serve()

    @rule()
    def sweep(self) -> None:
        assert self.pool.sweep() == 0

    # -- what holds at every moment

    @invariant()
    def the_pool_says_what_the_model_says(self) -> None:
        assert n_waiting(self.pool) == len(self.queue)
        assert self.pool.is_empty(RESOURCE) is not bool(self.parts)
        infos = self.pool.map(RESOURCE, lambda info: info)
        assert [info.id for info in infos] == [part.id for part in self.parts]
        for info, part in zip(infos, self.parts, strict=True):
            assert info.state is (ChannelState.BUSY if part.call else ChannelState.IDLE)
        assert sum(info.queued for info in infos) == len(self.queue)

    def teardown(self) -> None:
        for part in self.parts:
            part.held.result = None
            for _ in range(20):
                part.held.may_end.release()
        self.pool.close(10)
        for part in self.parts:
            until(lambda part=part: not part.tape.is_open)


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
