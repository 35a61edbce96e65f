"""A connection that breaks says something of those that lie idle beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from connpool import CloseReason, ConnectionInfo, ConnectionPool, Request
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard
from tests.stress.works import Caller


def test_when_one_breaks_the_dead_ones_beside_it_are_not_lent_one_by_one() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, look_after_idle=None) as pool:
        loans = [pool.try_connect(timeout=5) for _ in range(4)]
        server.until_accepts(4)
        for loan in loans[1:]:
            loan.release()
        server.kill()
        server.until_open(0)
        with pytest.raises(ConnectionError), loans[0]:
            loans[0].recv_exactly(1, timeout=5)
        assert pool.stats().closed == {CloseReason.BROKEN: 4}


def test_those_that_live_stay_and_keep_their_age() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        one, other = pool.try_connect(timeout=5), pool.try_connect(timeout=5)
        server.until_accepts(2)
        other.release()
        (before,) = [info for info in pool.connections() if info.idle_since is not None]
        server.until_accepts(1).reset()
        with pytest.raises(ConnectionError), one:
            one.recv_exactly(1, timeout=5)
        (after,) = pool.connections()
        assert (after.id, after.idle_since) == (before.id, before.idle_since)


def test_an_endpoint_that_is_back_gets_its_turns_in_a_full_pool() -> None:
    with ScriptedServer() as a, ScriptedServer() as b:
        b.refuse()
        with ConnectionPool([a.endpoint, b.endpoint], max_size=4, blacklist_initial=0) as pool:
            loans = [pool.try_connect(timeout=5) for _ in range(4)]
            assert {loan.endpoint for loan in loans} == {a.endpoint}
            for loan in loans:
                loan.release()
            b.start()
            served = {b.endpoint: 0, a.endpoint: 0}
            for _ in range(20):
                with pool.try_connect(timeout=5) as conn:
                    served[conn.endpoint] += 1
            assert served[b.endpoint] >= 8, "from the first turns on it has its own"
            assert pool.stats().size <= 4


def test_a_repetition_at_the_limit_of_its_endpoint_makes_room_for_itself() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_size=3, max_per_endpoint=1, look_after_idle=None) as pool,
    ):
        pool.try_connect(timeout=5).release()
        server.until_accepts(1)
        server.until_accepts(1).close()
        server.until_open(0)

        def ask(conn):
            conn.sendall(b"x", timeout=5)
            return conn.recv_exactly(1, timeout=5)

        assert pool.run(ask, idempotent=True) == b"x"


def test_who_comes_while_they_are_looked_at_gets_one_as_soon_as_it_is_found_good(clock: FakeClock) -> None:
    class Slow(Switchboard):
        def is_usable(self, line: Any) -> bool:
            callers.append(Caller(pool))
            self.until_dialling("a:1")
            return super().is_usable(line)

    board = Slow()
    callers: list[Caller] = []
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=2) as pool:
        broken, other = pool.try_connect(), pool.try_connect()
        other.release()
        board.hold("a:1")
        broken._held().condemn(CloseReason.BROKEN)
        broken.release()
        with callers[0].loan() as conn:
            assert conn.uses == 1
        board.let_go("a:1")


def test_who_comes_just_before_one_is_laid_down_gets_it(clock: FakeClock) -> None:
    """After the look who waits, and before what comes back can be seen."""

    class Shelf(deque[Any]):
        deeds: tuple[Callable[[], object], ...] = ()

        def append(self, key: Any) -> None:
            deeds, self.deeds = self.deeds, ()
            for deed in deeds:
                deed()
            super().append(key)

    callers: list[Caller] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=1) as pool:
        (host,) = pool._lender.books.fleet.hosts.values()
        host.idle = shelf = Shelf()
        pool.sweep()
        loan = pool.try_connect()
        shelf.deeds = (lambda: callers.append(Caller(pool)), lambda: clock.until_waiting(1))
        loan.release()
        callers[0].loan().release()


def test_who_comes_while_they_are_judged_by_who_wants_one_for_good_gets_one(clock: FakeClock) -> None:
    def judge(info: ConnectionInfo) -> bool:
        callers.append(Caller(pool))
        clock.until_waiting(1)
        return False

    callers: list[Caller] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=1) as pool:
        pool.try_connect().release()
        assert pool.take(Request(where=judge)) is None
        callers[0].loan().release()
