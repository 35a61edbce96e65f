"""Fork, at the worst moments, with transports that say goodbye: the child is new, the parent undisturbed."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import connpool
from connpool import (
    CheckedIn,
    CheckedOut,
    CheckoutStarted,
    Connection,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionPool,
    Event,
    PoolCleared,
    PoolClosedError,
    UsageError,
)
from connpool.pool.census import KEPT
from connpool.testing import ScriptedServer
from tests.helpers.forks import fork, fork_mortally, in_child, status_of
from tests.helpers.interrupts import in_a_handler
from tests.helpers.switchboard import Switchboard, until
from tests.helpers.upkeep import OFTEN, REAPER, fill, the_reaper, turn

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

LOCKS = (type(threading.Lock()), type(threading.RLock()))


def ask(conn: Connection, text: bytes = b"hello") -> bytes:
    conn.sendall(text, timeout=5)
    return conn.recv_exactly(len(text), timeout=5)


def port_of(conn: Connection) -> int:
    return int(conn.socket.getsockname()[1])


# -- a lock that is held -----------------------------------------------------------------------------


def locks_of(pool: ConnectionPool) -> list[Any]:
    """Every lock in reach of *pool*, and those of the package itself."""
    todo: list[Any] = [pool]
    todo += [module for module in vars(connpool).values() if isinstance(module, types.ModuleType)]
    seen, found = set(), []
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, LOCKS):
            found.append(thing)
        elif isinstance(thing, types.ModuleType):
            if thing.__name__.startswith("connpool") and "testing" not in thing.__name__:
                todo += vars(thing).values()
        elif type(thing).__module__.startswith("connpool") or isinstance(
            thing, dict | list | tuple | set | threading.Condition
        ):
            todo += gc.get_referents(thing)
    return found


@pytest.mark.parametrize("reap_interval", [None, OFTEN])
def test_a_fork_while_another_thread_holds_every_lock_gives_a_child_that_works(
    reap_interval: float | None,
) -> None:
    settings: dict[str, Any] = {"max_size": 3, "reap_interval": reap_interval}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        fill(pool, 2)
        loan = pool.try_connect()
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            taken = [lock for lock in locks_of(pool) if lock.acquire(blocking=False)]
            counts.append(len(taken))
            held.set()
            over.wait(15)
            for lock in taken:
                with contextlib.suppress(RuntimeError):  # a gate, which somebody has opened meanwhile
                    lock.release()

        counts: list[int] = []
        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        assert held.wait(10)
        assert counts[0] >= 1

        def job() -> tuple[bytes, int, int]:
            conn = pool.try_connect(timeout=5)
            answer = ask(conn)
            conn.release()
            pool.try_connect(timeout=5).terminate()
            pool.clear()
            pool.sweep()
            pool.resize(max_size=2)
            pool.configure(idle_timeout=5)
            with ConnectionPool(server.endpoint, min_idle=1, reap_interval=OFTEN) as other:
                until(lambda: other.stats().idle == 1)
            return answer, pool.stats().in_use, pool.close(timeout=2)

        try:
            assert in_child(job) == (b"hello", 0, 0)
        finally:
            over.set()
            holder.join(10)
        assert ask(loan) == b"hello"
        loan.release()
        with pool.try_connect() as again:
            assert ask(again, b"again") == b"again"


def test_a_fork_in_the_middle_of_a_turn_gives_a_child_whose_reaper_works() -> None:
    inside, over, board = threading.Event(), threading.Event(), Switchboard()

    def dawdle(event: object) -> None:
        inside.set()
        over.wait(15)

    settings: dict[str, Any] = {"idle_timeout": 0.05, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=board, **settings) as pool:
        turn(pool)
        stop = pool.listen(dawdle, ConnectionClosed)
        assert inside.wait(10)
        stop()

        def job() -> set[str]:
            over.set()
            n, names = len(board.lines), set()

            def is_reaped() -> bool:
                names.update(thread.name for thread in threading.enumerate())
                return len(board.lines) > n and not board.lines[-1].is_open

            turn(pool)
            until(is_reaped, "a turn in the child")
            return names

        try:
            assert REAPER in in_child(job)
        finally:
            over.set()
        turn(pool)
        until(lambda: not board.lines[-1].is_open, "a turn in the parent")


# -- the reaper on both sides -----------------------------------------------------------------------


def test_the_childs_reaper_keeps_its_own_reserve_and_the_parents_goes_on() -> None:
    settings: dict[str, Any] = {"min_idle": 2, "keepalive_interval": 0.05, "reap_interval": OFTEN}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        until(lambda: pool.stats().idle == 2)
        server.until_accepts(2)
        ids = {info.id for info in pool.connections()}

        def job() -> int:
            turn(pool)
            until(lambda: pool.stats().idle == 2, "the child's own reserve")
            the_reaper()
            return pool.stats().lost

        assert in_child(job) == 0
        server.until_accepts(4)
        server.until_open(2)
        assert {info.id for info in pool.connections()} == ids
        the_reaper()
        server.until_accepts(1).reset()
        server.until_accepts(5)
        until(lambda: pool.stats().idle == 2)


def test_a_child_that_only_looks_has_no_reaper_and_reaps_nothing_of_the_parents() -> None:
    settings: dict[str, Any] = {"idle_timeout": 0.1, "reap_interval": None, "revive": "force"}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        loan = pool.try_connect()
        fill(pool, 2)

        def job() -> tuple[int, int, int]:
            threading.Event().wait(0.15)
            return pool.sweep(), pool.sweep(), threading.active_count()

        assert in_child(job) == (0, 0, 1)
        server.until_accepts(3)
        assert server.open == 3
        assert ask(loan) == b"hello"
        loan.release()


def test_a_loan_of_the_parents_that_the_child_drops_is_no_loss() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, track_origin=True) as pool:
        held = [pool.try_connect()]

        def job() -> tuple[list[str], int, int]:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                held.clear()
                gc.collect()
                pool.sweep()
            return [str(warning.message) for warning in seen], pool.stats().lost, pool.stats().size

        assert in_child(job) == ([], 0, 0)
        assert pool.stats().lost == 0
        assert ask(held[0]) == b"hello"
        held.pop().release()


def test_a_pool_that_was_closed_before_the_fork_is_closed_in_the_child() -> None:
    pool = ConnectionPool("a:1", connector=Switchboard(), min_idle=1)
    pool.close()

    def job() -> str:
        with pytest.raises(PoolClosedError):
            pool.try_connect(timeout=1)
        return pool.stats().state.name

    assert in_child(job) == "CLOSED"


def test_a_pool_that_was_paused_before_the_fork_is_paused_in_the_child() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        pool.pause()

        def job() -> tuple[str, str]:
            state = pool.stats().state.name
            pool.resume()
            turn(pool)
            return state, pool.stats().state.name

        assert in_child(job) == ("PAUSED", "OPEN")


# -- a pool that is listened to -----------------------------------------------------------------------


def test_a_checkout_that_was_kept_before_the_fork_lends_what_is_the_childs_and_tells_its_listeners() -> None:
    heard: list[type[Event]] = []
    later: list[Event] = []
    with ConnectionPool("a:1", connector=Switchboard(), max_size=1) as pool:
        stop = pool.listen(lambda event: heard.append(type(event)), CheckoutStarted, CheckedOut, CheckedIn)
        lend = pool.try_connect
        held = lend()

        def job() -> tuple[int, int]:
            heard.clear()
            lend(timeout=5).release()
            assert heard == [CheckoutStarted, CheckedOut, CheckedIn]
            assert pool.stats().idle == 1
            stop()
            pool.listen(later.append, CheckedOut)
            lend(timeout=5).release()
            return len(heard), len(later)

        assert in_child(job) == (3, 1)
        held.release()


@pytest.mark.parametrize("end", [Connection.release, Connection.terminate, Connection.detach])
def test_of_a_loan_of_the_parents_the_child_hears_no_return(end: Callable[[Connection], object]) -> None:
    heard: list[type[Event]] = []
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        pool.listen(lambda event: heard.append(type(event)))
        held = pool.try_connect()

        def job() -> list[str]:
            heard.clear()
            with pytest.raises(UsageError):
                end(held)
            return [kind.__name__ for kind in heard]

        assert in_child(job) == []
        held.release()
        assert heard[-1] is CheckedIn


# -- transports of other libraries ------------------------------------------------------------------


class Driver:
    """What a database driver is like: closing it, or forgetting it, says goodbye to the server."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            try:
                self.sock.sendall(b"BYE")
            finally:
                self.sock.close()

    def __del__(self) -> None:
        try:
            self.close()
        except OSError:
            pass


class DriverWithFileno(Driver):
    def fileno(self) -> int:
        return self.sock.fileno()


@pytest.fixture(params=[Driver, DriverWithFileno])
def driver(request: pytest.FixtureRequest) -> Iterator[type[Driver]]:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("ends", ["forgets everything", "closes its pool", "forgets its pool"])
def test_a_child_says_no_goodbye_on_connections_of_the_parent(driver: type[Driver], ends: str) -> None:
    with ScriptedServer(script=[]) as server:
        pools = [ConnectionPool.of(lambda: driver(server.port), close=driver.close, min_idle=0)]
        loans = [pools[0].try_connect(), pools[0].try_connect()]
        loans.pop().release()
        server.until_accepts(2)

        def job() -> int:
            if ends == "forgets everything":
                loans.clear()
            elif ends == "closes its pool":
                pools[0].close(timeout=1)
                pools[0].shutdown()
            else:
                pools.clear()
            gc.collect()
            for pool in pools:
                pool.sweep()
            return len(pools)

        in_child(job)
        for loan in (loans[0], pools[0].try_connect()):
            loan.raw.sock.sendall(b"ALIVE")
            loan.release()
        for served in server.connections:
            served.until_received(b"ALIVE")
            assert served.received == b"ALIVE"
        pools[0].close()
        server.until_accepts(2)
        server.until_open(0)
        assert server.received == [b"ALIVEBYE"] * 2


def test_a_signal_that_comes_while_the_child_begins_leaves_it_no_pool_of_the_parents() -> None:
    class Rude:
        name = "rude"

        def _pace(self) -> None:
            """It has no turns."""

        def _take_turn(self, *, is_leap: bool) -> None:
            """Never."""

        def _start_clean(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

        def _close_at_exit(self, until: float) -> None:
            """Nothing is open."""

    def stop(*_: object) -> None:
        raise SystemExit

    rude = Rude()
    KEPT.add(rude)  # before the pool: it comes first
    before = signal.signal(signal.SIGUSR1, stop)
    unraised, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with ConnectionPool("a:1", connector=Switchboard()) as pool:
            fill(pool, 2)
            assert in_child(lambda: (pool.stats().size, signal.pthread_sigmask(signal.SIG_BLOCK, []))) == (
                0,
                set(),
            )
    finally:
        KEPT.discard(rude)
        sys.unraisablehook = unraised
        signal.signal(signal.SIGUSR1, before)


# -- calls that go on in the child --------------------------------------------------------------------


Fork = Callable[[ConnectionPool], bool]  # true in the parent


def fork_within(deed: Callable[[Fork], object]) -> tuple[Any, Any]:
    """Do *deed*, which forks with what it is given. Returns what became of it here, and in the child.

    A thread that is not there in the child has every lock in reach at that moment.
    """
    pids: list[int] = []
    over = threading.Event()
    ours, theirs = os.pipe()

    def fork_here(pool: ConnectionPool) -> bool:
        held = threading.Event()

        def hold() -> None:
            taken = [lock for lock in locks_of(pool) if lock.acquire(blocking=False)]
            held.set()
            over.wait(15)
            for lock in taken:
                with contextlib.suppress(RuntimeError):  # a gate, which somebody has opened meanwhile
                    lock.release()

        if not pids:
            holder = threading.Thread(target=hold)
            holder.start()
            assert held.wait(10)
            pids.append(fork_mortally())
            if pids[0] != 0:
                over.set()
                holder.join(10)
        return pids[0] != 0

    outcome: object = None
    try:
        outcome = deed(fork_here)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    finally:
        if pids == [0]:
            os.write(theirs, pickle.dumps(outcome))
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        data = answer.read()
    assert status_of(pids[0]) == 0
    return outcome, pickle.loads(data)


@pytest.mark.parametrize("kind", [ConnectionOpened, ConnectionClosed, PoolCleared])
def test_a_listener_that_forks_may_return_in_the_child_whoever_had_the_lock(kind: type[Event]) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), dial_in_caller=True) as pool:

        def deed(fork_here: Fork) -> tuple[int, int]:
            pool.listen(lambda event: fork_here(pool), kind)
            with contextlib.suppress(UsageError):  # in the child: what is being opened is the parent's
                pool.try_connect().release()
            pool.clear()
            with pool.try_connect(timeout=5):
                return pool.stats().in_use, pool.stats().size

        assert fork_within(deed) == ((1, 1), (1, 1))


def test_what_was_about_to_be_closed_is_left_to_the_parent_by_a_child() -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board) as pool:
        fill(pool, 2)

        def deed(fork_here: Fork) -> int:
            pool.listen(lambda event: fork_here(pool), PoolCleared)
            pool.clear()
            return board.n_open

        assert fork_within(deed) == (0, 2)


def test_a_wait_within_which_a_signal_handler_forks_ends_in_the_child() -> None:
    settings: dict[str, Any] = {"max_size": 1, "checkout_timeout": None}
    with ConnectionPool("a:1", connector=Switchboard(), name="orders", **settings) as pool:
        held = pool.try_connect()

        def deed(fork_here: Fork) -> int:
            with in_a_handler(lambda: fork_here(pool) and held.release(), 0.05), pool.try_connect() as conn:
                return conn.uses

        error = "UsageError: pool 'orders': the process was forked while this checkout waited"
        assert fork_within(deed) == (1, error)


def test_an_end_that_waits_for_loans_does_not_wait_for_the_parents_in_a_child() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        held = pool.try_connect()

        def deed(fork_here: Fork) -> int:
            with in_a_handler(lambda: fork_here(pool) and held.release(), 0.05):
                return pool.close(timeout=60)

        assert fork_within(deed) == (0, 0)


# -- servers that fork their workers -----------------------------------------------------------------


def test_a_pool_made_and_used_before_the_fork_serves_each_worker_by_itself() -> None:
    settings: dict[str, Any] = {
        "max_size": 2,
        "min_idle": 1,
        "keepalive_interval": 0.05,
        "reap_interval": OFTEN,
    }
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        with pool.try_connect() as conn:
            ports = {port_of(conn)}

        def job() -> set[int]:
            used = set()

            def work() -> None:
                for n in range(20):
                    with pool.try_connect(timeout=10) as conn:
                        assert ask(conn, b"%06d" % n) == b"%06d" % n
                        used.add(port_of(conn))

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            until(lambda: pool.stats().in_use == 0)  # one that upkeep looks at counts as well
            assert pool.stats().checkouts == 60
            return used

        waits = [fork(job) for _ in range(3)]
        for _ in range(20):
            with pool.try_connect(timeout=10) as conn:
                assert ask(conn) == b"hello"
                ports.add(port_of(conn))
        all_ports = [ports, *(wait() for wait in waits)]
        assert len(set.union(*all_ports)) == sum(map(len, all_ports)), "no connection in two processes"
        with pool.try_connect(timeout=10) as conn:
            assert ask(conn) == b"hello"
