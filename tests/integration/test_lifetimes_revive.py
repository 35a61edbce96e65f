"""Which connections are replaced in the background, where, and in which order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import CloseReason, ConnectionPool
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, down, until
from tests.helpers.upkeep import OFTEN, fill, let_pass, settle, sweep_until, turn

MANNERS = [False, True, "force"]
NEVER: set[object] = set()
IF_ASKED: set[object] = {True, "force"}
IF_FORCED: set[object] = {"force"}


def dies_of_age(pool: ConnectionPool, clock: FakeClock) -> None:
    turn(pool)
    clock.advance(101)


def dies_of_an_error(pool: ConnectionPool, clock: FakeClock) -> None:
    with pool.try_connect() as conn:
        conn.socket.close()
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system says of it
            conn.sendall(b"x", timeout=1)


def is_ended_in_order(pool: ConnectionPool, clock: FakeClock) -> None:
    pool.try_connect().terminate()


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize(
    ("end", "reason", "replaced"),
    [
        (dies_of_age, CloseReason.EXPIRED, IF_ASKED),
        (dies_of_an_error, CloseReason.BROKEN, IF_ASKED),
        (is_ended_in_order, CloseReason.TERMINATED, IF_FORCED),
    ],
)
def test_expired_broken_and_ended_ones_are_replaced_as_revive_says(
    end: Callable[[ConnectionPool, FakeClock], None],
    reason: CloseReason,
    replaced: set[object],
    manner: Any,
    clock: FakeClock,
) -> None:
    settings: dict[str, Any] = {"max_lifetime": 100, "idle_timeout": None, "revive": manner}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, **settings) as pool:
        end(pool, clock)
        expected = 2 if manner in replaced else 1
        sweep_until(pool, lambda: server.accepts >= expected, "the dials")
        settle(pool)
        server.until_open(expected - 1)
        assert server.accepts == expected, "each is replaced once"
        stats = pool.stats()
        assert (stats.idle, stats.size) == (expected - 1, expected - 1)
        assert stats.closed == {reason: 1}
        check_books(pool)


# -- every other end ----------------------------------------------------------------------


def drop(pool: ConnectionPool) -> None:
    held = [pool.try_connect()]
    with pytest.warns(ResourceWarning):
        held.clear()
    gc.collect()


def raise_inside(pool: ConnectionPool) -> None:
    with pytest.raises(ZeroDivisionError), pool.try_connect():
        raise ZeroDivisionError


def end_with_error(pool: ConnectionPool) -> None:
    pool.try_connect().terminate(ConnectionResetError("seen by the user"))


def leave_idle(pool: ConnectionPool, clock: FakeClock) -> None:
    turn(pool)
    clock.advance(50)


End = tuple[Callable[[ConnectionPool, FakeClock], object], dict[str, Any], set[object]]
ENDS: dict[CloseReason | str, End] = {
    "terminate with an error": (lambda pool, clock: end_with_error(pool), {}, IF_ASKED),
    "an exception in the block": (lambda pool, clock: raise_inside(pool), {}, IF_ASKED),
    CloseReason.USED_UP: (lambda pool, clock: turn(pool), {"max_uses": 1}, IF_ASKED),
    CloseReason.LOST: (lambda pool, clock: drop(pool), {}, IF_ASKED),
    CloseReason.STALE: (lambda pool, clock: (turn(pool), pool.clear()), {}, IF_FORCED),
    CloseReason.IDLE: (leave_idle, {"idle_timeout": 40}, NEVER),
    CloseReason.SURPLUS: (lambda pool, clock: (fill(pool, 2), pool.resize(max_size=1)), {}, NEVER),
    CloseReason.EVICTED: (
        lambda pool, clock: (turn(pool), pool.try_connect("b:1").release()),
        {"max_size": 1},
        NEVER,
    ),
    "detached": (lambda pool, clock: pool.try_connect().detach(), {}, NEVER),
    "taken": (lambda pool, clock: (turn(pool), pool.take()), {}, NEVER),
}


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("end", ENDS, ids=str)
def test_other_ends_are_made_good_if_nobody_meant_them(
    end: CloseReason | str, manner: Any, clock: FakeClock
) -> None:
    board = Switchboard()
    act, settings, replaced = ENDS[end]
    settings = {"max_size": 4, "max_lifetime": None, "idle_timeout": None, "revive": manner, **settings}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        act(pool, clock)
        before = pool.stats().opened
        settle(pool)
        if manner in replaced:
            sweep_until(pool, lambda: pool.stats().idle == 1, "a replacement")
            settle(pool)
        n_new = len(board.dialled) - (2 if end in (CloseReason.SURPLUS, CloseReason.EVICTED) else 1)
        assert n_new == (1 if manner in replaced else 0), board.dialled
        assert pool.stats().opened <= max(before, len(board.dialled))
        if isinstance(end, CloseReason):
            assert end in pool.stats().closed


@pytest.mark.parametrize("manner", MANNERS)
def test_one_that_comes_back_dirty_is_replaced_if_asked(manner: Any, clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, clock=clock, revive=manner) as pool,
    ):
        with pool.try_connect() as conn:
            conn.sendall(b"two lines\nat once\n", timeout=5)
            assert conn.recv_until(b"\n", 100) == b"two lines\n"
        expected = 2 if manner else 1
        sweep_until(pool, lambda: server.accepts >= expected)
        settle(pool)
        assert server.accepts == expected
        assert pool.stats().closed == {CloseReason.DIRTY: 1}


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_nothing_is_replaced_in_a_pool_that_ends(end: str, clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, revive="force", min_idle=1) as pool:
        loan = pool.try_connect()
        getattr(pool, end)()
        loan.terminate(OSError("cut off"))
        dialled = len(board.dialled)
        settle(pool)
        assert len(board.dialled) == dialled
        assert pool.stats().opening == 0


def test_with_max_uses_one_a_replacement_is_dialled_for_each_use_and_no_more(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, revive=True, max_uses=1, max_size=3) as pool:
        for n in range(1, 6):
            turn(pool)
            sweep_until(pool, lambda n=n: len(board.dialled) == n + 1)
            settle(pool)
            assert (len(board.dialled), board.n_open) == (n + 1, 1)


# -- where to, and when that is down --------------------------------------------------------


def test_a_replacement_goes_to_the_endpoint_that_lost_one(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1 || c:1", connector=board, clock=clock, revive=True) as pool:
        for endpoint in ("b:1", "b:1", "c:1", "a:1"):
            pool.try_connect(endpoint).terminate(OSError("gone"))
            dialled = len(board.dialled)
            sweep_until(pool, lambda n=dialled: pool.stats().idle and len(board.dialled) >= n)
            settle(pool)
            assert board.dialled[-1] == endpoint
            while pool.take() is not None:
                pass


@pytest.mark.parametrize("reconnect", [True, False])
def test_a_replacement_is_owed_until_its_endpoint_is_back(reconnect: bool, clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"revive": True, "reconnect": reconnect, "blacklist_initial": 5}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        loan = pool.try_connect()
        pool.blacklist("a:1")
        loan.terminate(OSError("gone"))
        for _ in range(3):
            clock.advance(1_000)
            settle(pool)
        assert board.dialled == ["a:1"], "it was blacklisted by hand: until lifted"
        pool.unblacklist("a:1")
        sweep_until(pool, lambda: pool.stats().idle == 1, "the replacement that was owed")
        settle(pool)
        assert board.dialled == ["a:1", "a:1"]


def test_a_replacement_that_cannot_be_dialled_is_tried_again_by_the_back_off(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"revive": True, "blacklist_initial": 10, "blacklist_max": 10}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        loan = pool.try_connect()
        board.fail("a:1")
        loan.terminate(OSError("gone"))
        sweep_until(pool, lambda: down(pool) == ["a:1"], "the failure of the replacement")
        settle(pool, 10)
        assert board.dialled == ["a:1"] * 2, "not before the back-off allows it"
        board.mend("a:1")
        clock.advance(10.1)
        sweep_until(pool, lambda: pool.stats().idle == 1, "the replacement")
        settle(pool)
        assert board.dialled == ["a:1"] * 3
        assert board.n_open == 1, "the probe's connection is the replacement"


def turn_at(pool: ConnectionPool, endpoint: str) -> None:
    with pool.try_connect(endpoint) as conn:
        assert str(conn.endpoint) == endpoint


def test_a_replacement_that_hangs_holds_up_neither_the_turn_nor_the_traffic(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, revive=True) as pool:
        loan = pool.try_connect("a:1")
        board.hold("a:1")
        loan.terminate(OSError("gone"))
        sweep_until(pool, lambda: "a:1" in board.dialled[1:])
        board.until_dialling("a:1")
        for _ in range(20):
            pool.sweep()
            turn_at(pool, "b:1")
        assert board.peak["a:1"] == 1
        assert board.dialled.count("a:1") == 2
        board.let_go("a:1")
        until(lambda: pool.stats().opening == 0)


# -- the new one before the old one -----------------------------------------------------------


def grown_old(clock: FakeClock, board: Switchboard, **settings: Any) -> ConnectionPool:
    """A pool with one idle connection whose lifetime is over."""
    settings = {"max_lifetime": 10, "lifetime_jitter": 0, "idle_timeout": None, "revive": True, **settings}
    pool = ConnectionPool("a:1", connector=board, clock=clock, **settings)
    turn(pool)
    clock.advance(11)
    return pool


def test_the_replacement_is_open_before_the_old_one_is_closed(clock: FakeClock) -> None:
    board = Switchboard()
    with grown_old(clock, board, max_size=2) as pool:
        board.hold("a:1")
        pool.sweep()
        board.until_dialling("a:1")
        assert board.lines[0].is_open
        board.let_go("a:1")
        sweep_until(pool, lambda: board.n_open == 1 and len(board.lines) == 2, "the change of guard")
        assert board.lines[1].is_open
        settle(pool)
        assert len(board.lines) == 2
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_without_a_place_for_both_the_old_one_goes_first(clock: FakeClock) -> None:
    settings: dict[str, Any] = {"max_lifetime": 10, "lifetime_jitter": 0, "max_size": 1, "revive": True}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, **settings) as pool:
        turn(pool)
        for n in range(2, 6):
            clock.advance(11)
            sweep_until(pool, lambda n=n: server.accepts == n)
            settle(pool)
        assert server.peak == 1, "the server never sees more than max_size"


def test_an_old_one_is_not_lent_while_its_replacement_is_dialled(clock: FakeClock) -> None:
    board = Switchboard()
    with grown_old(clock, board, max_size=2) as pool:
        board.hold("a:1")
        pool.sweep()
        board.until_dialling("a:1")
        lent: list[object] = []
        asker = threading.Thread(target=lambda: lent.append(turn(pool)))
        asker.start()
        until(lambda: pool.stats().waiting == 1)
        board.let_go("a:1")
        asker.join(10)
        assert len(lent) == 1
        assert lent[0] is not board.lines[0]


def test_an_old_one_goes_even_if_its_replacement_cannot_be_dialled(clock: FakeClock) -> None:
    board = Switchboard()
    with grown_old(clock, board, max_size=2) as pool:
        board.fail("a:1")
        sweep_until(pool, lambda: board.n_open == 0, "the end of the old one")
        settle(pool)
        assert pool.stats().size == 0


def test_one_that_is_kept_ready_is_replaced_before_it_is_closed_too(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"min_idle": 2, "max_size": 4, "max_lifetime": 10, "lifetime_jitter": 0}
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=None, **settings) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 2)
        clock.advance(11)
        board.hold("a:1")
        pool.sweep()
        board.until_dialling("a:1", 2)
        assert all(line.is_open for line in board.lines), "a burst would find none"
        board.let_go("a:1")
        sweep_until(pool, lambda: len(board.lines) == 4 and board.n_open == 2)
        settle(pool)
        assert len(board.lines) == 4


def test_in_real_time_the_thread_replaces_what_has_expired() -> None:
    settings: dict[str, Any] = {"max_lifetime": 0.15, "lifetime_jitter": 0, "reap_interval": OFTEN}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, revive=True, **settings) as pool:
        turn(pool)
        server.until_accepts(3)
        assert server.until_accepts(1).ending is not None
        pool.configure(revive=False)
        server.until_open(0)
        accepts = server.accepts
        let_pass(5 * OFTEN)
        assert server.accepts == accepts
