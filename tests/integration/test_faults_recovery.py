"""An endpoint comes back while a crowd waits: nobody stays behind, and nobody runs it over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import pytest

from connpool import ConnectionPool, SocketConnector
from connpool.clock import SystemClock
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.faults import WatchedConnector, turn, use
from tests.helpers.switchboard import check_books, until
from tests.helpers.together import together

CROWD = 60


@contextmanager
def crowd_of(n: int, job: Callable[[], object]):
    """Have *job* done by *n* threads, whose failures are raised when the block ends."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, name=f"crowd-{i}", daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {n} were not served", errors[:3])


@pytest.mark.parametrize("max_connecting", [1, 2, 3])
def test_at_the_moment_of_recovery_a_crowd_is_served_by_few_dials_at_a_time(max_connecting: int) -> None:
    pause = threading.Event()
    connector = WatchedConnector(before=lambda endpoint: pause.wait(0.005))  # dials that overlap if they may
    settings = {
        "max_size": 10,
        "max_connecting": max_connecting,
        "fail_fast": False,
        "blacklist_initial": 0.05,
        "blacklist_max": 0.2,
    }
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, connector=connector, **settings) as pool:
            with crowd_of(CROWD, lambda: turn(pool, timeout=15)):
                until(lambda: pool.stats().waiting == CROWD, "the crowd")
                connector.until_dials(3)
                server.start()
            assert connector.peak[server.endpoint] <= max_connecting
            assert server.peak <= 10
            assert pool.stats().waiting == 0
            until(lambda: pool.stats().opening == 0, "the last dials, for whom nobody waits any more")
            check_books(pool)


def test_who_waits_is_served_by_releases_too_and_not_only_by_dials() -> None:
    connector = WatchedConnector()
    settings = {"max_size": 10, "fail_fast": False, "blacklist_initial": 0.05, "blacklist_max": 0.1}
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, connector=connector, **settings) as pool:
            with ExitStack() as stack, crowd_of(CROWD, lambda: turn(pool, timeout=15)):
                stack.callback(connector.let_go)
                until(lambda: pool.stats().waiting == CROWD, "the crowd")
                connector.hang(1_000)
                server.start()
                pool.add_connection(SocketConnector().open(server.endpoint, 5, None))
                until(lambda: pool.stats().waiting == 0, "everybody's turn")
            assert pool.stats().checkouts == CROWD
            until(lambda: pool.stats().opening == 0)


def test_ten_seconds_of_outage_cost_at_most_thirty_dials_and_two_seconds_after_it_all_are_served(
    clock: FakeClock,
) -> None:
    connector = WatchedConnector(clock=clock)
    settings = {"max_size": 10, "fail_fast": False, "blacklist_initial": 0.1, "blacklist_max": 1}
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, connector=connector, clock=clock, **settings) as pool:
            with crowd_of(CROWD, lambda: turn(pool, timeout=3_600)):
                until(lambda: pool.stats().waiting == CROWD, "the crowd")
                for _ in range(200):
                    clock.advance(0.05)
                    pool.sweep()
                    until(lambda: connector.n_under_way == 0 and pool.stats().opening == 0)
                n_during = len(connector.dials)
                assert 10 <= n_during <= 30
                assert pool.stats().waiting == CROWD
                server.start()
                over_at = clock.now()
                for _ in range(40):
                    clock.advance(0.05)
                    pool.sweep()
                    until(lambda: connector.n_under_way == 0)
                assert clock.now() <= over_at + 2.001
                until(lambda: pool.stats().waiting == 0, "everybody's turn")
            assert connector.peak[server.endpoint] <= 2
            assert len(connector.dials) - n_during <= 11
            assert pool.stats().checkouts == CROWD
            check_books(pool)


def test_a_second_of_outage_in_real_time_with_the_reaper() -> None:
    connector = WatchedConnector()
    settings = {
        "max_size": 10,
        "min_idle": 2,
        "fail_fast": False,
        "reap_interval": 0.05,
        "blacklist_initial": 0.02,
        "blacklist_max": 0.2,
    }
    with ScriptedServer() as server:
        server.refuse()
        with ConnectionPool(server.endpoint, connector=connector, **settings) as pool:
            with crowd_of(CROWD, lambda: turn(pool, timeout=15)):
                until(lambda: pool.stats().waiting == CROWD, "the crowd")
                began, before = SystemClock.now(), len(connector.dials)
                threading.Event().wait(1.0)
                assert len(connector.dials) - before <= 10 * (SystemClock.now() - began) + 10
                server.start()
                back_at = SystemClock.now()
                until(lambda: pool.stats().waiting == 0, "everybody's turn")
                assert SystemClock.now() - back_at < 4
            assert connector.peak[server.endpoint] <= 2
            check_books(pool)


def test_two_pools_with_the_same_settings_do_not_dial_in_step(clock: FakeClock) -> None:
    settings = {"fail_fast": False, "blacklist_initial": 0.1, "blacklist_max": 1, "clock": clock}
    connectors = [WatchedConnector(clock=clock), WatchedConnector(clock=clock)]
    with ScriptedServer() as server:
        server.refuse()
        pools = [ConnectionPool(server.endpoint, connector=watched, **settings) for watched in connectors]
        with pools[0], pools[1]:
            with crowd_of(2, jobs(*[lambda pool=pool: turn(pool, timeout=3_600) for pool in pools])):
                for pool in pools:
                    until(lambda pool=pool: pool.stats().waiting == 1, "the waiter")
                for _ in range(1_500):  # 15 s
                    clock.advance(0.01)
                    for pool, watched in zip(pools, connectors, strict=True):
                        pool.sweep()
                        until(lambda pool=pool, watched=watched: quiet(pool, watched))
                server.start()
                for _ in range(110):
                    clock.advance(0.01)
                    for pool in pools:
                        pool.sweep()
            one, two = ([round(at, 2) for at, _ in watched.dials[1:]] for watched in connectors)
            assert min(len(one), len(two)) >= 12
            assert len(set(one) & set(two)) <= 2 * len(one) // 3, (one, two)  # some fall together by chance


def quiet(pool: ConnectionPool, connector: WatchedConnector) -> bool:
    return connector.n_under_way == 0 and pool.stats().opening == 0


def jobs(*each: Callable[[], object]) -> Callable[[], object]:
    """One job for each thread that comes."""
    waiting = list(each)

    def take_one() -> None:
        waiting.pop()()

    return take_one


def test_many_pools_that_lost_the_same_server_come_back_spread(clock: FakeClock) -> None:
    with ScriptedServer() as server:
        server.refuse()
        retries = []
        for _ in range(40):
            with ConnectionPool(server.endpoint, clock=clock, blacklist_initial=10) as pool:
                with pytest.raises(ConnectionError):
                    pool.try_connect()
                at = pool.endpoints()[0].retry_at
                assert at is not None
                retries.append(at - clock.now())
    assert max(retries) - min(retries) > 0.5
    assert max(sum(low <= at < low + 0.1 for at in retries) for low in retries) < 15


def test_a_loan_held_through_the_whole_outage_is_not_needed_for_recovery() -> None:
    settings = {"max_size": 3, "fail_fast": False, "blacklist_initial": 0.05, "blacklist_max": 0.1}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        held = pool.try_connect()
        use(held)
        server.refuse()
        with crowd_of(20, lambda: turn(pool, timeout=10)):
            until(lambda: pool.stats().waiting == 20, "the crowd")
            server.start()
        use(held)
        held.release()
        together(lambda: turn(pool), lambda: turn(pool))
        check_books(pool)
