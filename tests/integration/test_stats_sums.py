"""The numbers add up, at each instant and in the end, and a snapshot stays what it was."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
import time

import pytest

import connpool.pool
from connpool import (
    CheckoutTimeoutError,
    CloseReason,
    ConnectionPool,
    ConnPoolError,
    ConnState,
    PoolState,
    Request,
)
from connpool.pool.record import Phase
from connpool.pool.snapshots import state_of
from connpool.testing import ScriptedServer
from tests.helpers.preemption import preempting
from tests.helpers.together import together
from tests.stress.stage import Ears, check_lives, kind, make_stage  # noqa: F401 - make_stage is a fixture
from tests.stress.works import A, B, TellingClock, Works, assert_ended, door

MODULES = [
    importlib.import_module(f"connpool.pool.{module.name}")
    for module in pkgutil.iter_modules(connpool.pool.__path__)
]
SIZE = 4


class Watch:
    """Looks at a pool again and again, and keeps what cannot be."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.looks = 0
        self._last = pool.stats()

    def look(self) -> None:
        stats = self.pool.stats()
        self.looks += 1
        counts = (stats.idle, stats.in_use, stats.shared, stats.opening, stats.closing, stats.waiting)
        assert min(counts) >= 0, stats
        assert stats.size == sum(counts[:5]), stats
        assert stats.size <= SIZE, stats
        is_open = stats.opened - sum(stats.closed.values())
        lent_or_idle = stats.idle + stats.in_use + stats.shared
        assert lent_or_idle <= is_open <= lent_or_idle + stats.closing, stats
        for name in ("checkouts", "opened", "timeouts", "connect_failures", "lost"):
            assert getattr(stats, name) >= getattr(self._last, name), (name, self._last, stats)
        for reason, n in self._last.closed.items():
            assert stats.closed[reason] >= n, reason
        self._last = stats
        for info in self.pool.endpoints():
            assert info.size == info.idle + info.in_use + info.opening + info.closing, info
            assert min(info.idle, info.in_use, info.opening, info.closing) >= 0, info
            still_open = info.opened - sum(info.closed.values())
            assert info.idle + info.in_use <= still_open <= info.size - info.opening, info
        connections = self.pool.connections()
        assert len({one.id for one in connections}) == len(connections) <= SIZE
        states = {one.state for one in connections}
        assert ConnState.CLOSED not in states


@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "apart"])
@pytest.mark.parametrize("listening", [False, True])
def test_they_add_up_at_each_instant_of_a_storm(listening, prompt):
    dice = random.Random(1)
    works, clock, ears = Works(prompt=prompt), TellingClock(), Ears()
    pool = ConnectionPool(
        "a:1, b:1",
        connector=works,
        clock=clock,
        max_size=SIZE,
        max_uses=9,
        idle_timeout=5,
        look_after_idle=0.0,
        blacklist_initial=0,
        blacklist_max=0,
        reap_interval=None,
        listeners=[ears] if listening else [],
    )

    def misbehave(_: object) -> object:
        if dice.random() < 0.1:
            raise ConnectionResetError("bad luck")
        return None

    works.opening = misbehave
    works.looking = lambda part: dice.random() > 0.1
    at_it = list(range(8))

    def lend() -> None:
        try:
            for _ in range(12):
                request = Request(dice.choice([None, None, A, B]), timeout=dice.choice([0, 0.002, 5]))
                try:
                    conn = pool.try_connect(request)
                except ConnPoolError:
                    continue
                if dice.random() < 0.2:
                    conn.terminate()
                else:
                    conn.release()
        finally:
            at_it.pop()

    def meddle() -> None:
        while at_it:
            dice.choice([pool.sweep, pool.clear, lambda: clock.leap(1), lambda: pool.blacklist(A, 0.001)])()
            time.sleep(0)

    def watch_on() -> int:
        watch = Watch(pool)  # each of its own: what another saw may be newer than what this one compares
        while at_it:
            watch.look()
        return watch.looks

    with preempting(*MODULES, chance=0.05, seed=3):
        *_, one, other = together(*[lend] * 8, meddle, watch_on, watch_on, limit=50)
    assert one + other > 20
    works.until(lambda: pool.stats().closing == pool.stats().opening == 0)
    Watch(pool).look()
    stats = pool.stats()
    assert stats.opened - sum(stats.closed.values()) == stats.idle == works.n_open
    assert stats.in_use == stats.waiting == 0
    for name, total in {
        "opened": stats.opened,
        "checkouts": stats.checkouts,
        "connect_failures": stats.connect_failures,
    }.items():
        assert sum(getattr(info, name) for info in pool.endpoints()) == total, name
    if listening:
        check_lives(ears.heard)
        assert len(ears.of("CheckedOut")) == len(ears.of("CheckedIn")) == stats.checkouts
        assert len(ears.of("ConnectionOpened")) == stats.opened
        failed = [event.reason.name for event in ears.of("CheckoutFailed")]
        assert failed.count("TIMEOUT") == stats.timeouts
    assert_ended(pool, works)


def test_each_state_of_a_connection_is_counted_as_that(stage):
    s = stage("a:1", Works(prompt=False), max_size=4)
    lent, idle, closing = (s.pool.try_connect() for _ in range(3))
    idle.release()
    with door() as dial, door() as close:
        s.works.opening, s.works.closing = dial, close
        terminator = threading.Thread(target=closing.terminate)
        terminator.start()
        close.until_entered()

        stats = s.pool.stats()
        assert (stats.size, stats.idle, stats.in_use, stats.closing, stats.opening) == (3, 1, 1, 1, 0)
        taken = s.pool.try_connect()
        thread = threading.Thread(target=lambda: s.pool.try_connect(timeout=20).release())
        thread.start()
        dial.until_entered()
        stats = s.pool.stats()
        assert (stats.size, stats.idle, stats.in_use, stats.closing, stats.opening) == (4, 0, 2, 1, 1)
        assert stats.waiting == 1
        assert (stats.opened, sum(stats.closed.values())) in ((3, 0), (3, 1))
        states = sorted(one.state.name for one in s.pool.connections())
        assert states == ["CLOSING", "IN_USE", "IN_USE", "OPENING"]
        (info,) = s.pool.endpoints()
        assert (info.size, info.idle, info.in_use, info.opening, info.closing) == (4, 0, 2, 1, 1)
    terminator.join()
    thread.join()
    taken.release()
    lent.release()
    s.works.until(lambda: s.pool.stats().closing == 0)
    stats = s.pool.stats()
    assert (stats.size, stats.idle, stats.opened, stats.closed) == (3, 3, 4, {CloseReason.TERMINATED: 1})


def test_every_checkout_is_counted_and_every_failure_under_its_own_name(stage):
    s = stage(max_size=1, blacklist_initial=0, blacklist_max=0)
    for _ in range(5):
        s.pool.try_connect().release()
    s.pool.try_connect().terminate()
    s.down.add(A)
    for _ in range(3):
        with pytest.raises(ConnPoolError):
            s.pool.try_connect()
    s.down.clear()
    with s.pool.try_connect():
        with pytest.raises(ConnPoolError):
            s.pool.try_connect(timeout=0)
        threads = [threading.Thread(target=give_up, args=(s.pool,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        s.clock.until_waiting(2)
        assert s.pool.stats().waiting == 2
        s.clock.advance(5)
        for thread in threads:
            thread.join()
    stats = s.pool.stats()
    assert (stats.checkouts, stats.timeouts, stats.connect_failures, stats.waiting) == (7, 2, 3, 0)
    assert (stats.opened, stats.closed) == (2, {CloseReason.TERMINATED: 1})


def give_up(pool):
    with pytest.raises(CheckoutTimeoutError):
        pool.try_connect(timeout=5)


def test_an_adopted_connection_counts_as_opened(stage):
    s = stage()
    s.pool.add_connection(s.works.open(A, None, None))
    stats = s.pool.stats()
    assert (stats.opened, stats.idle, stats.size, stats.checkouts) == (1, 1, 1, 0)


def test_what_is_taken_or_detached_leaves_the_books(stage):
    s = stage()
    conn, other = s.pool.try_connect(), s.pool.try_connect()
    other.release()
    s.works.disown(conn.detach())
    s.works.disown(s.pool.take())
    stats = s.pool.stats()
    assert (stats.size, stats.opened, stats.in_use) == (0, 2, 0)


def test_limits_and_state_are_those_of_the_moment(stage):
    s = stage(max_size=3)
    stats = s.pool.stats()
    assert (stats.name, stats.state, stats.max_size, stats.min_idle) == ("orders", PoolState.OPEN, 3, 0)
    s.pool.pause()
    s.pool.resize(max_size=5, min_idle=2)
    stats = s.pool.stats()
    assert (stats.state, stats.max_size, stats.min_idle) == (PoolState.PAUSED, 5, 2)
    s.pool.shutdown()
    assert s.pool.stats().state is PoolState.SHUT_DOWN
    s.pool.close()
    assert s.pool.stats().state is PoolState.CLOSED


def test_a_snapshot_stays_what_it_was(stage):
    s = stage()
    s.pool.try_connect().terminate()
    stats, (info,) = s.pool.stats(), s.pool.endpoints()
    before = (dict(stats.closed), dict(info.closed))
    s.pool.try_connect().terminate()
    assert (dict(stats.closed), dict(info.closed)) == before == ({CloseReason.TERMINATED: 1},) * 2


def test_what_is_counted_outlives_the_pool(stage):
    s = stage()
    s.pool.try_connect().release()
    s.pool.close()
    stats = s.pool.stats()
    assert (stats.opened, stats.checkouts, stats.closed) == (1, 1, {CloseReason.POOL_CLOSED: 1})


def test_a_pool_at_rest_agrees_with_its_server():
    with ScriptedServer() as server:
        with ConnectionPool(server.endpoint, max_size=3, reap_interval=None) as pool:
            loans = [pool.try_connect() for _ in range(3)]
            loans[0].terminate()
            for loan in loans[1:]:
                loan.release()
            server.until_accepts(3)
            server.until_open(2)
            stats = pool.stats()
            assert (stats.opened, stats.idle, stats.size) == (server.accepts, server.open, 2)
        server.until_open(0)


def test_every_event_has_its_count(stage):
    """What is told and what is counted are the same things."""
    s = stage(max_size=2, blacklist_initial=0, blacklist_max=0)
    dice = random.Random(5)
    for _ in range(200):
        s.down = {A} if dice.random() < 0.3 else set()
        try:
            conn = s.pool.try_connect(timeout=0)
        except ConnPoolError:
            continue
        conn.release() if dice.random() < 0.7 else conn.terminate()
    s.works.until(lambda: s.pool.stats().opening == 0)
    s.pool.close()
    stats = s.pool.stats()
    opened = {event.id for event in s.ears.of("ConnectionOpened")}
    ended = [event for event in s.ears.of("ConnectionClosed") if event.id in opened]
    assert (len(opened), len(s.ears.of("CheckedOut"))) == (stats.opened, stats.checkouts)
    for reason in CloseReason:
        assert [event.reason for event in ended].count(reason) == stats.closed.get(reason, 0), reason
    failed_dials = [event for event in s.ears.of("ConnectionClosed") if event.id not in opened]
    assert len(failed_dials) == stats.connect_failures
    assert {kind(event) for event in failed_dials} <= {"ConnectionClosed"}


def test_a_connection_that_opens_while_it_is_looked_at_is_in_one_state_or_the_other():
    class Opening:
        """A record whose dial ends between any two looks at its phase."""

        def __init__(self) -> None:
            self._phases = [Phase.OPENING, Phase.OPEN]

        @property
        def phase(self) -> Phase:
            return self._phases.pop(0)

    assert state_of(Opening(), is_idle=False) is ConnState.OPENING
