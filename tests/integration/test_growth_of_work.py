"""What there is much of costs in proportion: endpoints, waiters, loans."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from connpool import (
    CallPool,
    CheckoutTimeoutError,
    ConnectionPool,
    Endpoint,
    MemorySpool,
    PoolClosedError,
    PoolExhaustedError,
    Request,
    Route,
)
from connpool.calls.forecast import n_queued
from connpool.calls.tickets import Ticket
from connpool.delivery import backlog, memory_spool
from connpool.delivery.roster import Roster
from connpool.pool.connection import HAS_GIL
from connpool.pool.service import Service
from connpool.testing import FakeClock
from tests.helpers.channels import RESOURCE, Tape
from tests.helpers.switchboard import Switchboard, until
from tests.helpers.work import grows_no_faster_than_n, n_steps


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pool_of(n: int, stack: ExitStack, route: str = "a:1", **settings: object) -> ConnectionPool:
    """A pool of *n* places, to be closed with *stack*."""
    settings = {"max_size": n, "reap_interval": None, "dial_in_caller": True} | settings
    return stack.enter_context(ConnectionPool(route, connector=Switchboard(), **settings))


def route_of(n: int) -> str:
    return ", ".join(f"h{number}:1" for number in range(n))


@contextmanager
def waiting(pool: ConnectionPool, *requests: Request) -> Iterator[None]:
    """Have a thread wait for each of *requests* in turn; at the end let each have it."""
    threads = [threading.Thread(target=lambda r=r: pool.try_connect(r).release()) for r in requests]
    before = pool.stats().waiting
    for number, thread in enumerate(threads, 1):
        thread.start()
        while pool.stats().waiting < before + number:
            pass
    yield
    for thread in threads:
        thread.join()


def test_an_endpoint_that_goes_or_comes_back_costs_in_proportion_to_the_endpoints(stack: ExitStack) -> None:
    def going(n: int) -> Callable[[], object]:
        pool = pool_of(n, stack, route_of(n))
        return lambda: pool.blacklist(Endpoint("h0", 1))

    grows_no_faster_than_n(going)


@pytest.mark.parametrize("timeout", [0, 1e-3])
def test_endpoints_that_were_pinned_in_vain_are_not_kept_in_mind(stack: ExitStack, timeout: float) -> None:
    pool = pool_of(1, stack, "a:1")
    with pool.try_connect():
        for number in range(3):
            with pytest.raises((PoolExhaustedError, CheckoutTimeoutError)):
                pool.try_connect(f"h{number}:1", timeout=timeout)
        assert [str(info.endpoint) for info in pool.endpoints()] == ["a:1"]


@pytest.mark.parametrize(
    "close",
    [ConnectionPool.clear, lambda pool: pool.resize(max_size=pool.config.max_size // 2)],
    ids=["clear", "resize"],
)
def test_many_connections_to_many_endpoints_are_closed_in_proportion_to_them(
    stack: ExitStack, close: Callable[[ConnectionPool], object]
) -> None:
    def closing(n: int) -> Callable[[], object]:
        pool = pool_of(n, stack, route_of(n))
        for loan in [pool.try_connect() for _ in range(n)]:
            loan.release()
        assert [info.size for info in pool.endpoints()] == [1] * n
        return lambda: close(pool)

    grows_no_faster_than_n(closing)


def test_the_text_of_a_time_out_costs_in_proportion_to_the_loans_and_the_threads(stack: ExitStack) -> None:
    def timing_out(n: int) -> Callable[[], object]:
        pool = pool_of(n, stack)
        held_by_threads(pool, n, stack)

        def time_out() -> None:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=1e-3)

        return time_out

    grows_no_faster_than_n(timing_out)


def test_connections_names_the_holders_at_a_cost_in_proportion_to_them(stack: ExitStack) -> None:
    def listing(n: int) -> Callable[[], object]:
        pool = pool_of(n, stack)
        held_by_threads(pool, n, stack)
        return pool.connections

    grows_no_faster_than_n(listing)


def held_by_threads(pool: ConnectionPool, n: int, stack: ExitStack) -> None:
    """Have each of *n* threads hold a connection until *stack* ends."""
    is_over = threading.Event()
    gate = threading.Barrier(n + 1)

    def hold() -> None:
        with pool.try_connect():
            gate.wait()
            is_over.wait()

    threads = [threading.Thread(target=hold, name=f"holder {number}") for number in range(n)]
    for thread in threads:
        thread.start()
        stack.callback(thread.join)
    stack.callback(is_over.set)
    gate.wait()
    assert {info.holder for info in pool.connections()} == {thread.name for thread in threads}


def test_long_loans_are_reviewed_at_a_cost_in_proportion_to_them(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "connpool")

    def reviewing(n: int) -> Callable[[], object]:
        clock = FakeClock()
        pool = pool_of(n, stack, warn_after=1.0, clock=clock)
        loans = [pool.try_connect() for _ in range(n)]
        clock.advance(2.0)
        pool.sweep()

        def review() -> None:
            pool.sweep()  # they are all known, and last
            for loan in loans:
                loan.release()
            pool.sweep()  # they are all back

        return review

    grows_no_faster_than_n(reviewing, n=200)


def test_of_many_who_pin_a_busy_endpoint_one_looks_for_all(stack: ExitStack) -> None:
    pool = pool_of(1, stack, "a:1, b:1")
    loan = pool.try_connect("a:1")
    request = Request(endpoint=Endpoint("b", 1))

    def serve() -> None:
        pool.unblacklist(Endpoint("a", 1))

    n_steps(serve)  # what is done once
    steps = []
    with ExitStack() as queue:
        for _ in range(2):
            queue.enter_context(waiting(pool, *[request] * 10))
            steps.append(n_steps(serve))
        loan.release()
    assert steps[1] - steps[0] < 10 * 150, "a look is a thousand steps; to see it is needless, a hundred"


def links_of(n: int, net: int, each: int = 1) -> Route:
    """A route of *n* members with *each* endpoints, of their own for each *net*."""
    members = (", ".join(f"h{net}.{number}:{port}" for port in range(1, each + 1)) for number in range(n))
    return Route.parse(" && ".join(members))


@pytest.mark.parametrize("each", [1, 2])
def test_a_broadcaster_takes_another_route_at_a_cost_in_proportion_to_the_members(each: int) -> None:
    def following(n: int) -> Callable[[], object]:
        before, after = links_of(n, 0, each), links_of(n, 1, each)
        roster = Roster(MemorySpool(), fail_back_after=0.0, failover=True)
        roster.follow(before, 0.0)

        def follow() -> None:
            roster.follow(after, 1.0)
            roster.follow(after, 2.0)  # nobody comes or goes

        return follow

    grows_no_faster_than_n(following)


def test_messages_for_members_of_another_route_are_looked_through_once() -> None:
    def beginning(n: int) -> Callable[[], object]:
        route, waiting = links_of(n, 0), [f"h1.{number}:1" for number in range(n)]
        roster = Roster(MemorySpool(), fail_back_after=0.0, failover=True)
        return lambda: roster.follow(route, 0.0, waiting)

    grows_no_faster_than_n(beginning)


def test_what_a_full_spool_drops_of_many_queues_is_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(find: Callable[..., Any]) -> Callable[..., Any]:
        def found(*values: Any, **settings: Any) -> Any:
            compared.append(len(values[0]) if isinstance(values[0], Sized) else len(values))
            return find(*values, **settings)

        return found

    for module, find in itertools.product((backlog, memory_spool), (min, max)):
        monkeypatch.setattr(module, find.__name__, counted(find), raising=False)
    spool, queues = MemorySpool(max_messages=200), [f"h{number}:1" for number in range(100)]
    for number in range(3):
        spool.put(queues, b"hello", bytes([number] * 16))
    assert {count.dropped for count in spool.counts().values()} == {1}
    assert sum(compared) < 100 * 10


@pytest.mark.parametrize(("limits", "most"), [({"max_age": 60.0}, 100), ({"max_messages": 10_000}, 40)])
def test_a_spool_with_nothing_to_drop_hardly_looks_at_its_queues(limits: dict[str, Any], most: int) -> None:
    def steps(n: int) -> int:
        spool, queues = MemorySpool(**limits), [f"h{number}:1" for number in range(n)]
        spool.put(queues, b"hello", b"x" * 16)
        return n_steps(lambda: spool.put(queues[:1], b"hello", b"y" * 16))

    n_steps(lambda: steps(1))
    assert steps(300) - steps(100) < 200 * most, "it would be more to go to the messages of each"


@pytest.mark.parametrize("is_called_before", [True, False])
def test_many_calls_that_wait_for_many_channels_are_foreseen_in_one_go(
    stack: ExitStack, *, is_called_before: bool
) -> None:
    def foreseeing(n: int) -> Callable[[], object]:
        pool = stack.enter_context(CallPool())
        for _ in range(n):
            pool.init(Tape())
            if is_called_before:
                pool.call(RESOURCE, "get")
        resource = pool._switch.ledger.resources[RESOURCE]
        for number in range(n):
            resource.enqueue(Ticket(resource, "get", number))
        assert set(n_queued(resource, 0.0).values()) == {1}
        return lambda: n_queued(resource, 0.0)

    grows_no_faster_than_n(foreseeing)


@pytest.mark.skipif(not HAS_GIL, reason="without the GIL each looks for itself: it may have slept too long")
def test_of_many_who_wait_for_what_is_down_the_first_that_wakes_looks_for_all(monkeypatch):
    board, serve, counts = Switchboard("h0:1", "h1:1", "h2:1", "h3:1"), Service.serve, Counter()

    def count(*args: Any, **options: Any) -> None:
        counts["serve"] += 1
        serve(*args, **options)

    def wait(pool: ConnectionPool) -> None:
        with pytest.raises(PoolClosedError):
            pool.try_connect(timeout=30)

    monkeypatch.setattr(Service, "serve", count)
    settings = {"fail_fast": False, "blacklist_initial": 0.05, "blacklist_max": 0.05}
    with ConnectionPool(route_of(4), connector=board, **settings) as pool:
        threads = [threading.Thread(target=wait, args=(pool,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        until(lambda: pool.stats().waiting == 40)
        failed, served = pool.stats().connect_failures, counts["serve"]
        until(lambda: pool.stats().connect_failures >= failed + 40)
        n_dials, n_looks = pool.stats().connect_failures - failed, counts["serve"] - served
    for thread in threads:
        thread.join()
    assert n_looks < 8 * n_dials  # one for each of them that waits would be forty
