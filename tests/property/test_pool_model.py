"""A pool and a simple model of it, led through the same life by hypothesis: one thread, virtual time."""

from __future__ import annotations

import time
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connpool import (
    CloseReason,
    Connection,
    ConnectionPool,
    Endpoint,
    EndpointState,
    NoEndpointError,
    PoolExhaustedError,
    UsageError,
)
from connpool.testing import FakeClock
from tests.stress.works import A, B, Part, Works

IDLE, LIFE, USES, FRESH = 60.0, 300.0, 5, 10.0
ENDPOINTS = st.sampled_from([A, B])


class Fact:
    """What must be true of one part."""

    def __init__(self, part: Part, now: float) -> None:
        self.part = part
        self.endpoint = part.endpoint
        self.opened_at = self.since = now
        self.uses = 0
        self.is_lent = False
        self.has_left = False
        self.is_stale = False
        self.is_dead = False
        self.order = 0

    @property
    def is_idle(self) -> bool:
        return self.part.is_open and not self.is_lent and not self.has_left

    def may_be_lent(self, now: float) -> bool:
        is_young = now - self.opened_at < LIFE and now - self.since < IDLE
        return self.is_idle and is_young and not self.is_stale and self.uses < USES


class PoolMachine(RuleBasedStateMachine):
    """The rules are what users do; each checks what the pool does against ``facts``."""

    @initialize(max_size=st.integers(1, 4), in_caller=st.booleans(), prompt=st.booleans())
    def build(self, max_size: int, in_caller: bool, prompt: bool) -> None:
        self.clock = FakeClock()
        self.works = Works(prompt=prompt)
        self.works.looking = self.on_look
        self.max_size = max_size
        self.pool = ConnectionPool(
            "a:1, b:1", connector=self.works, clock=self.clock, max_size=max_size, dial_in_caller=in_caller,
            idle_timeout=IDLE, max_lifetime=LIFE, lifetime_jitter=0, max_uses=USES, look_after_idle=FRESH,
            reap_interval=None, checkout_timeout=0, fail_fast=True,
        )  # fmt: skip
        self.facts: dict[int, Fact] = {}
        self.loans: list[Connection] = []
        self.ended: list[Connection] = []
        self.looked_at: dict[int, float] = {}  # found alive then; may have ended after its checkout had
        self.blacklisted: set[Endpoint] = set()
        self.left = self.released = 0

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for loan in self.loans:
            loan.release()
        assert self.pool.close() == 0
        self.settle(lambda: self.works.n_open == 0)

    def settle(self, predicate: Callable[[], object] = lambda: True) -> None:
        """Let closes that run on threads of their own come to their end."""
        until = time.monotonic() + 2
        while self.pool.stats().closing or not predicate():
            assert time.monotonic() < until, "it does not come to rest"
            time.sleep(0)

    def on_look(self, part: Part) -> bool:
        is_alive = not self.facts[part.number].is_dead
        if is_alive:
            self.looked_at[part.number] = self.clock.now()
        return is_alive

    def known_since(self, fact: Fact) -> float:
        """When it was last used, or found alive by a look."""
        return max(fact.since, self.looked_at.get(fact.part.number, 0.0))

    def learn(self) -> None:
        """Note what was opened."""
        for part in self.works.parts[len(self.facts) :]:
            self.facts[part.number] = Fact(part, self.clock.now())

    def best_idle(self, endpoint: Endpoint) -> Fact | None:
        """The one a checkout must get, of those that need no look or survive it."""
        now = self.clock.now()
        fit = [f for f in self.facts.values() if f.endpoint == endpoint and f.may_be_lent(now)]
        alive = [f for f in fit if not f.is_dead or now - self.known_since(f) < FRESH]
        return max(alive, key=lambda f: f.order, default=None)

    # -- what users do

    @rule(req=st.one_of(st.none(), ENDPOINTS))
    def check_out(self, req: Endpoint | None) -> None:
        now, known = self.clock.now(), len(self.works.parts)
        n_lent = len(self.loans)
        best = self.best_idle(req) if req is not None else None
        wanted = {req} if req is not None else {A, B}
        try:
            loan = self.pool.try_connect(req)
        except PoolExhaustedError:
            assert n_lent >= self.max_size
            return
        except NoEndpointError:
            # What is idle at a blacklisted endpoint may still be lent, if it is alive and suits.
            assert wanted <= self.blacklisted
            self.settle()  # what a look has just found dead may be closed after the answer
            assert not any(self.best_idle(endpoint) for endpoint in wanted)
            self.learn()
            return
        self.learn()
        assert n_lent < self.max_size
        fact = self.facts[loan.raw.number]
        assert fact.endpoint in wanted
        assert loan.endpoint == fact.endpoint
        if fact.part.number > known:
            assert fact.endpoint not in self.blacklisted
        else:
            assert fact.may_be_lent(now), "it had expired, was cleared, or was lent already"
            assert now - self.known_since(fact) < (FRESH if fact.endpoint not in self.blacklisted else 1e-9)
        if best is not None and req not in self.blacklisted:
            assert fact is best, "not the one released last"
        assert loan.uses == fact.uses
        fact.uses += 1
        fact.is_lent = True
        self.loans.append(loan)

    def end(self, index: int) -> tuple[Connection, Fact]:
        loan = self.loans.pop(index % len(self.loans))
        self.ended.append(loan)
        fact = self.facts[loan.raw.number]
        fact.is_lent = False
        return loan, fact

    @precondition(lambda self: self.loans)
    @rule(index=st.integers(0, 9))
    def release(self, index: int) -> None:
        size = self.pool.stats().size
        loan, fact = self.end(index)
        now = self.clock.now()
        keeps = now - fact.opened_at < LIFE and fact.uses < USES and not fact.is_stale
        loan.release()
        fact.since = now
        self.released += 1
        fact.order = self.released
        if not keeps or size > self.max_size:
            self.settle(lambda: not fact.part.is_open)
        else:
            assert fact.part.is_open

    @precondition(lambda self: self.loans)
    @rule(index=st.integers(0, 9))
    def terminate(self, index: int) -> None:
        loan, fact = self.end(index)
        loan.terminate()
        self.settle(lambda: not fact.part.is_open)

    @precondition(lambda self: self.loans)
    @rule(index=st.integers(0, 9))
    def detach(self, index: int) -> None:
        loan, fact = self.end(index)
        assert loan.detach() is fact.part
        fact.has_left = True
        self.left += 1
        self.works.disown(fact.part)

    @precondition(lambda self: self.ended)
    @rule(index=st.integers(0, 99), how=st.sampled_from(["release", "terminate", "detach"]))
    def give_back_again(self, index: int, how: str) -> None:
        before = self.pool.stats()
        with pytest.raises(UsageError):
            getattr(self.ended[index % len(self.ended)], how)()
        assert self.pool.stats() == before

    @rule(req=st.one_of(st.none(), ENDPOINTS))
    def take(self, req: Endpoint | None) -> None:
        now, dials = self.clock.now(), self.works.dials
        candidates = [f for f in self.facts.values() if f.may_be_lent(now) and req in (None, f.endpoint)]
        part = self.pool.take(req)
        assert self.works.dials == dials
        if part is None:
            assert all(fact.is_dead for fact in candidates)
            return
        fact = self.facts[part.number]
        assert fact in candidates
        fact.has_left = True
        self.left += 1
        self.works.disown(fact.part)

    # -- what operators do

    @rule(seconds=st.sampled_from([1.0, 9.0, 30.0, 70.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        now = self.clock.now()
        over = [f for f in self.facts.values() if f.is_idle and not f.may_be_lent(now)]
        self.pool.sweep()
        self.settle(lambda: not any(fact.part.is_open for fact in over))

    @rule(endpoint=st.one_of(st.none(), ENDPOINTS))
    def clear(self, endpoint: Endpoint | None) -> None:
        hit = [f for f in self.facts.values() if endpoint in (None, f.endpoint)]
        idle = [fact for fact in hit if fact.is_idle]
        self.pool.clear(endpoint)
        self.settle(lambda: not any(fact.part.is_open for fact in idle))
        for fact in hit:
            fact.is_stale = True

    @rule(max_size=st.integers(1, 4))
    def resize(self, max_size: int) -> None:
        self.pool.resize(max_size=max_size)
        self.max_size = max_size
        self.settle(lambda: self.pool.stats().size <= max(max_size, len(self.loans)))

    @rule(endpoint=ENDPOINTS)
    def blacklist(self, endpoint: Endpoint) -> None:
        self.pool.blacklist(endpoint)
        self.blacklisted.add(endpoint)

    @rule(endpoint=ENDPOINTS)
    def unblacklist(self, endpoint: Endpoint) -> None:
        self.pool.unblacklist(endpoint)
        self.blacklisted.discard(endpoint)

    @rule(index=st.integers(0, 99))
    def kill_one(self, index: int) -> None:
        idle = [fact for fact in self.facts.values() if fact.is_idle]
        if idle:
            fact = idle[index % len(idle)]
            fact.is_dead = True
            self.looked_at.pop(fact.part.number, None)

    # -- what is always so

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.learn()
        self.settle()
        stats = self.pool.stats()
        held = [fact for fact in self.facts.values() if fact.part.is_open and not fact.has_left]
        assert stats.size == stats.idle + stats.in_use == len(held)
        assert stats.in_use == len(self.loans) == sum(fact.is_lent for fact in held)
        assert stats.opened == len(self.works.parts)
        assert stats.opened == stats.size + self.left + sum(stats.closed.values())
        assert stats.checkouts == sum(fact.uses for fact in self.facts.values())
        assert stats.lost == stats.closed.get(CloseReason.LOST, 0) == 0
        assert stats.max_size == self.max_size
        assert stats.size <= max(self.max_size, len(self.loans))
        assert (stats.waiting, stats.opening, stats.shared) == (0, 0, 0)

    @invariant()
    def each_loan_is_of_a_connection_of_its_own(self) -> None:
        if hasattr(self, "pool"):
            parts = [loan.raw for loan in self.loans]
            assert all(part.is_open for part in parts)
            assert len({part.number for part in parts}) == len(parts)

    @invariant()
    def the_lists_agree_with_the_numbers(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        infos = self.pool.connections()
        assert len({info.id for info in infos}) == len(infos) == stats.size
        endpoints = {info.endpoint: info for info in self.pool.endpoints()}
        assert sum(info.size for info in endpoints.values()) == stats.size
        assert sum(info.idle for info in endpoints.values()) == stats.idle
        for endpoint in (A, B):
            is_down = endpoints[endpoint].state is not EndpointState.UP
            assert is_down == (endpoint in self.blacklisted)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
