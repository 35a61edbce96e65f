"""How long an endpoint is left alone, by hand or after failures."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import threading
import time
from typing import Any

import pytest

from connpool import (
    ConnectionPool,
    EndpointState,
    EndpointUp,
    NoEndpointError,
    UsageError,
)
from connpool.pool.attempts import Attempts
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.interrupts import SignalStrike, Strike, at_every_bytecode
from tests.helpers.switchboard import Switchboard, down, info_of, until
from tests.helpers.together import together

# -- by hand -----------------------------------------------------------------------


def test_a_blacklisted_endpoint_is_hidden_for_its_seconds_and_back_afterwards(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1", 0.4)
        assert info_of(pool, "a:1").state is EndpointState.BLACKLISTED
        assert info_of(pool, "a:1").retry_at == pytest.approx(clock.now() + 0.4)
        clock.advance(0.2)
        for _ in range(4):
            pool.try_connect().terminate()
        assert set(board.dialled) == {"b:1"}
        clock.advance(0.3)
        for _ in range(4):
            pool.try_connect().terminate()
        assert "a:1" in board.dialled
        assert down(pool) == []


def test_real_seconds_of_a_blacklist_pass_too() -> None:
    with ScriptedServer() as a, ConnectionPool(a.endpoint) as pool:
        pool.blacklist(a.endpoint, 0.1)
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect()
        assert caught.value.retry_at is not None
        threading.Event().wait(max(0.0, caught.value.retry_at - time.monotonic()))
        pool.try_connect().release()
        a.until_accepts(1)


def test_without_seconds_it_is_hidden_until_it_is_lifted(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1")
        assert info_of(pool, "a:1").retry_at is None
        clock.advance(1_000_000)
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect()
        assert caught.value.retry_at is None
        assert [str(endpoint) for endpoint, _ in caught.value.causes] == ["a:1"]
        assert board.dialled == []
        pool.unblacklist("a:1")
        pool.try_connect().release()
        assert down(pool) == []


def test_a_blacklist_given_again_counts_from_then(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        pool.blacklist("a:1", 5)
        clock.advance(3)
        pool.blacklist("a:1", 5)
        assert info_of(pool, "a:1").retry_at == pytest.approx(clock.now() + 5)
        clock.advance(3)
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        clock.advance(2.5)
        pool.try_connect().release()


@pytest.mark.parametrize("seconds", [5, None])
def test_an_endpoint_off_the_route_is_told_up_and_forgotten_when_its_blacklist_ends(
    seconds: float | None, clock: FakeClock
) -> None:
    told: list[str] = []
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.listen(lambda event: told.append(str(event.endpoint)), EndpointUp)
        conn = pool.try_connect("b:1")
        pool.blacklist("b:1", seconds)
        conn.terminate()
        assert down(pool) == ["b:1"]
        if seconds is None:
            pool.unblacklist("b:1")
        else:
            clock.advance(seconds)
            pool.sweep()
        assert told == ["b:1"]
        assert [str(info.endpoint) for info in pool.endpoints()] == ["a:1"]


def test_an_unknown_endpoint_cannot_be_blacklisted(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        with pytest.raises(UsageError, match=r"x:1 \(it knows a:1\)") as caught:
            pool.blacklist("x:1", 5)
        assert isinstance(caught.value, LookupError)
        assert len(pool.endpoints()) == 1


@pytest.mark.parametrize("seconds", [-1, math.nan, "5", True])
def test_the_seconds_of_a_blacklist_must_be_seconds(seconds: object, clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        with pytest.raises(ValueError, match="seconds"):
            pool.blacklist("a:1", seconds)  # type: ignore[arg-type]
        assert down(pool) == []


def test_lifting_what_is_not_blacklisted_changes_nothing(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock) as pool:
        before = pool.endpoints()
        pool.unblacklist("a:1")
        assert pool.endpoints() == before


def test_blacklisting_twice_and_lifting_once_is_up_again(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock) as pool:
        pool.blacklist("a:1")
        pool.blacklist("a:1")
        assert down(pool) == ["a:1"]
        pool.unblacklist("a:1")
        assert down(pool) == []


def test_a_blacklist_for_good_outlasts_the_success_of_a_dial_that_was_under_way(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:

        def ask() -> None:
            pool.try_connect().release()

        def blacklist() -> None:
            board.until_dialling("a:1")
            pool.blacklist("a:1")
            board.let_go("a:1")

        together(ask, blacklist)
        until(lambda: pool.stats().opening == 0)
        assert down(pool) == ["a:1"]


def test_the_success_of_a_dial_that_was_under_way_lifts_what_the_failure_of_another_has_caused(
    clock: FakeClock,
) -> None:
    may_end, dials = [threading.Event(), threading.Event()], itertools.count()

    class Connector:
        def open(self, *_: object) -> object:
            number = next(dials)
            assert may_end[number].wait(10)
            if number == 0:
                raise ConnectionRefusedError
            return object()

    with ConnectionPool("a:1", connector=Connector(), clock=clock) as pool:

        def ask() -> None:
            with contextlib.suppress(NoEndpointError):
                pool.try_connect().release()

        def end() -> None:
            until(lambda: pool.stats().opening == 2)
            may_end[0].set()
            until(lambda: down(pool) == ["a:1"])
            may_end[1].set()

        together(ask, ask, end)
        until(lambda: down(pool) == [])


@pytest.mark.parametrize("pinned", [None, "a:1"])
def test_what_was_blacklisted_by_hand_is_not_said_to_have_failed(
    pinned: str | None, clock: FakeClock
) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.blacklist("a:1")
        with pytest.raises(NoEndpointError, match=r"(only endpoint|asked for): a:1 is blacklisted by hand$"):
            pool.try_connect(pinned)


def test_what_went_wrong_before_is_told_with_what_was_blacklisted_by_hand(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        reason = ValueError("it recovers")
        pool.try_connect().terminate(reason)
        pool.blacklist("a:1")
        with pytest.raises(NoEndpointError, match=r"by hand \(its last error: it recovers\)$") as caught:
            pool.try_connect()
        assert caught.value.__cause__ is reason


# -- by failure --------------------------------------------------------------------


def fail_until_due(pool: ConnectionPool, board: Switchboard, clock: FakeClock) -> float:
    """Meet one failure, see that nobody dials before the time is up, let it pass; return how long it was."""
    n = len(board.dialled)
    with pytest.raises(NoEndpointError) as caught:
        pool.try_connect()
    assert len(board.dialled) == n + 1
    assert caught.value.retry_at is not None
    delay = caught.value.retry_at - clock.now()
    clock.advance(delay * 0.95)
    with pytest.raises(NoEndpointError):
        pool.try_connect()
    assert len(board.dialled) == n + 1, "dialled while blacklisted"
    clock.advance(delay * 0.06)
    return delay


def test_each_failure_doubles_the_delay_up_to_the_cap_and_a_success_begins_anew(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings = {"blacklist_initial": 1, "blacklist_max": 10}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        delays = [fail_until_due(pool, board, clock) for _ in range(8)]
        for delay, nominal in zip(delays, [1, 2, 4, 8, 10, 10, 10, 10], strict=True):
            assert nominal * 0.5 <= delay <= min(nominal * 1.25, 10 + 1e-6), delays
        assert info_of(pool, "a:1").failures == 8
        board.mend("a:1")
        pool.try_connect().terminate()
        assert info_of(pool, "a:1").failures == 0
        board.fail("a:1")
        assert 0.5 <= fail_until_due(pool, board, clock) <= 1.25


def test_thousands_of_failures_overflow_nothing(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings = {"blacklist_initial": 0.001, "blacklist_max": 2, "dial_in_caller": True}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        for _ in range(2_000):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
            clock.advance(2.01)
        assert len(board.dialled) == 2_000
        retry_at = info_of(pool, "a:1").retry_at
        assert retry_at is not None
        assert retry_at <= clock.now() + 2


def test_delays_differ_by_chance_so_that_clients_do_not_come_back_together(clock: FakeClock) -> None:
    delays = set()
    for _ in range(20):
        with ConnectionPool("a:1", connector=Switchboard("a:1"), clock=clock) as pool:
            with pytest.raises(NoEndpointError) as caught:
                pool.try_connect()
            delays.add(caught.value.retry_at)
    assert len(delays) > 10


def test_lifting_a_blacklist_dials_at_once_and_the_next_failure_is_noted(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        for n in (1, 2):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
            assert len(board.dialled) == n
            assert down(pool) == ["a:1"]
            pool.unblacklist("a:1")


def test_a_pinned_failure_is_a_failure_of_the_endpoint_and_no_other(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("b:1", connector=board, clock=clock) as pool:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                pool.try_connect("a:1")
        assert info_of(pool, "b:1").state is EndpointState.UP
        pool.try_connect().release()


def test_a_pinned_failure_does_not_blacklist_and_counts_for_nobody_else(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:
        with pytest.raises(ConnectionError):
            pool.try_connect("a:1")
        info = info_of(pool, "a:1")
        assert (info.state, info.failures, info.last_error) == (EndpointState.UP, 0, None)
        assert info.connect_failures == 1


class Slow:
    """A connector whose first dial waits to be let go on, whose second fails, and whose others succeed."""

    def __init__(self) -> None:
        self.n_dials = 0
        self.goes_on = threading.Event()

    def open(self, *_: Any) -> object:
        self.n_dials += 1
        if self.n_dials == 1:
            assert self.goes_on.wait(10)
        elif self.n_dials == 2:
            raise ConnectionRefusedError
        return object()


def says_at_once() -> ConnectionError:
    error = ConnectionError("busy")
    error.retry_after = 0  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("wanted", "settings", "error", "pauses"),
    [
        ("a:1", {}, None, (1.0, 2.0, 4.0)),
        ("a:1", {"dial_in_caller": True}, None, (1.0, 2.0, 4.0)),
        (None, {"blacklist_initial": 0}, None, (0.02, 0.02, 0.02)),
        (None, {}, says_at_once(), (0.02, 0.02, 0.02)),
    ],
    ids=["pinned", "pinned, dialled by itself", "no back-off", "the server says at once"],
)
def test_who_waits_for_an_endpoint_that_is_not_left_alone_leaves_pauses_of_its_own_between_dials(
    wanted: str | None,
    settings: dict[str, Any],
    error: BaseException | None,
    pauses: tuple[float, ...],
    clock: FakeClock,
) -> None:
    board = Switchboard()
    board.fail("a:1", error)
    options = {"fail_fast": False, "reconnect": False, "reap_interval": None} | settings
    with ConnectionPool("a:1", connector=board, clock=clock, **options) as pool:

        def wait() -> None:
            pool.try_connect(wanted, timeout=100).release()

        def move() -> None:
            for n, pause in enumerate(pauses, start=1):
                until(lambda n=n: len(board.dialled) == n, f"dial {n}")
                clock.until_waiting(1)
                clock.advance(0.8 * pause)
                clock.until_waiting(1)
                assert len(board.dialled) == n
                if n == len(pauses):
                    board.mend("a:1")
                clock.advance(0.25 * pause)

        together(wait, move)
        assert len(board.dialled) == len(pauses) + 1


def test_who_waits_dials_what_is_blacklisted_as_soon_as_its_time_is_up(clock: FakeClock) -> None:
    board = Switchboard("a:1", "b:1", "c:1")
    options = {"fail_fast": False, "reconnect": False, "reap_interval": None}
    with ConnectionPool("a:1, b:1, c:1", connector=board, clock=clock, **options) as pool:

        def wait() -> None:
            pool.try_connect(timeout=100).release()

        def move() -> None:
            until(lambda: len(board.dialled) == 3, "a dial of each")
            clock.until_waiting(1)
            board.mend("b:1")
            clock.advance(1.05)

        together(wait, move)


def test_who_pins_an_endpoint_and_has_dialled_it_in_vain_gets_what_comes_back_to_it(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, fail_fast=False, max_size=2) as pool:
        loan = pool.try_connect()
        board.fail("a:1")

        def wait() -> None:
            pool.try_connect("a:1", timeout=100).release()

        def give_back() -> None:
            until(lambda: len(board.dialled) == 2, "a dial in vain")
            clock.until_waiting(1)
            loan.release()

        together(wait, give_back)
        assert len(board.dialled) == 2


def test_who_pins_an_endpoint_and_has_dialled_it_in_vain_dials_again_when_another_has_had_success(
    clock: FakeClock,
) -> None:
    slow = Slow()
    with ConnectionPool("a:1", connector=slow, clock=clock, fail_fast=False) as pool:
        came = threading.Event()

        def wait_longer() -> None:
            conn = pool.try_connect(timeout=100)
            assert came.wait(10)
            conn.release()

        def wait() -> None:
            until(lambda: slow.n_dials == 1, "the first dial")
            pool.try_connect("a:1", timeout=100).release()
            came.set()

        def go_on() -> None:
            until(lambda: slow.n_dials == 2, "a dial in vain")
            clock.until_waiting(2)
            slow.goes_on.set()

        together(wait_longer, wait, go_on)
        assert slow.n_dials == 3


def test_jitter_that_is_seeded_repeats_itself_and_else_does_not() -> None:
    def instants(rng: random.Random | None) -> tuple[float | None, float | None]:
        clock, board = FakeClock(), Switchboard("b:1")
        settings = {"connector": board, "clock": clock, "rng": rng, "max_lifetime": 100}
        with ConnectionPool("b:1 || a:1", **settings) as pool, pool.try_connect() as conn:
            return conn.info.expires_at, info_of(pool, "b:1").retry_at

    assert instants(random.Random(7)) == instants(random.Random(7)) != instants(random.Random(8))
    assert instants(None) != instants(None)


def test_who_waits_hears_of_an_order_that_comes_in_the_midst_of_a_locked_section(clock: FakeClock) -> None:
    """So it is in a signal handler or finaliser: there nothing is decided."""
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, fail_fast=False) as pool:
        pool.blacklist("a:1")

        def order() -> None:
            clock.until_waiting(1)
            with pool._lender._lock:
                pool.unblacklist("a:1")
                assert pool.stats().opening == 0

        together(order, lambda: pool.try_connect(timeout=100).release())


def test_an_interrupt_of_a_blacklisting_that_is_kept_keeps_no_dial_from_who_waits() -> None:
    for strike in at_every_bytecode(Attempts.begin_dial, Attempts._attempt, kind=SignalStrike):
        with ConnectionPool(
            "a:1 || b:1", connector=Switchboard(), max_per_endpoint=1, reap_interval=None
        ) as pool:
            held = pool.try_connect(timeout=5)

            def blacklist(pool: ConnectionPool = pool, strike: Strike = strike) -> None:
                until(lambda: pool.stats().waiting == 1)
                with strike:
                    pool.blacklist("a:1")
                pool.sweep()

            def wait(pool: ConnectionPool = pool) -> None:
                with pool.try_connect(timeout=2) as conn:
                    assert str(conn.endpoint) == "b:1"

            together(blacklist, wait)
            held.release()
