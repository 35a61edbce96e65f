"""A handler may do anything with the pool, from its own thread or another, whatever it is told."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable

import pytest

import connpool
from connpool import ConnectionPool, ConnPoolError
from tests.helpers.switchboard import until
from tests.helpers.together import together, whereabouts
from tests.stress.stage import FIELDS, Ears, check_lives
from tests.stress.works import A, TellingClock, Works, balanced

pytestmark = pytest.mark.filterwarnings("ignore:connection .* was not given back:ResourceWarning")

SHORT = 0.02  # seconds that anybody waits in these stories


def look(pool: ConnectionPool) -> None:
    balanced(pool)
    pool.connections()
    pool.endpoints()
    repr(pool)


def lend(pool: ConnectionPool) -> None:
    pool.try_connect(timeout=SHORT).release()


def lend_and_end(pool: ConnectionPool) -> None:
    pool.try_connect(timeout=SHORT).terminate()


def lend_at_once(pool: ConnectionPool) -> None:
    pool.try_connect(timeout=0).release()


def adopt(pool: ConnectionPool) -> None:
    works = pool.works  # type: ignore[attr-defined]
    part = works.open(A, None, None)
    try:
        pool.add_connection(part)
    except ConnPoolError:
        works.close(part)


def take(pool: ConnectionPool) -> None:
    part = pool.take()
    if part is not None:
        pool.works.close(part)  # type: ignore[attr-defined]


def change_the_route(pool: ConnectionPool) -> None:
    pool.route = "b:1"
    pool.route = "a:1 || b:1"


def listen_and_stop(pool: ConnectionPool) -> None:
    stop = pool.listen(lambda event: None)
    stop()


def blacklist_and_back(pool: ConnectionPool) -> None:
    pool.blacklist(A)
    pool.unblacklist(A)


def pause_and_resume(pool: ConnectionPool) -> None:
    pool.pause()
    pool.resume()


def shut_and_reopen(pool: ConnectionPool) -> None:
    pool.shutdown()
    pool.reopen()


ACTS: dict[str, Callable[[ConnectionPool], object]] = {
    "look": look,
    "lend": lend,
    "lend_and_end": lend_and_end,
    "lend_at_once": lend_at_once,
    "sweep": lambda pool: pool.sweep(),
    "clear": lambda pool: pool.clear(interrupt=True),
    "resize": lambda pool: pool.resize(max_size=1),
    "configure": lambda pool: pool.configure(max_size=3, idle_timeout=9),
    "blacklist": blacklist_and_back,
    "blacklist_and_leave": lambda pool: pool.blacklist(A),
    "pause": pause_and_resume,
    "pause_and_leave": lambda pool: pool.pause(),
    "pause_and_fail": lambda pool: pool.pause(fail=True),
    "shutdown": shut_and_reopen,
    "shutdown_and_leave": lambda pool: pool.shutdown(),
    "close": lambda pool: pool.close(),
    "close_and_wait": lambda pool: pool.close(timeout=SHORT),
    "take": take,
    "adopt": adopt,
    "route": change_the_route,
    "listen": listen_and_stop,
}
TOLD = [name for name in FIELDS if name != "PoolOpened"]  # then nobody has the pool yet


class Meddler:
    """A listener that does something with the pool the first time it is told of one kind of event."""

    def __init__(self, name: str, act: Callable[[ConnectionPool], object], *, elsewhere: bool) -> None:
        self.kind = getattr(connpool, name)
        self.act = act
        self.elsewhere = elsewhere
        self.pool: ConnectionPool | None = None
        self.is_done = False
        self.faults: list[object] = []

    def __call__(self, event: object) -> None:
        if self.is_done or not isinstance(event, self.kind):
            return
        self.is_done = True
        if not self.elsewhere:
            self._meddle()
            return
        thread = threading.Thread(target=self._meddle, daemon=True)
        thread.start()
        thread.join(5)
        if thread.is_alive():
            self.faults.append(f"a lock is held while {event} is told: {whereabouts(thread)}")

    def _meddle(self) -> None:
        assert self.pool is not None
        try:
            self.act(self.pool)
        except ConnPoolError:
            pass  # an answer
        except BaseException as fault:
            self.faults.append(fault)


def live(pool: ConnectionPool, clock: TellingClock) -> None:
    """Let everything be told; whatever has become of the pool meanwhile."""
    with contextlib.suppress(ConnPoolError):
        lend(pool)
        lend_and_end(pool)
    with contextlib.suppress(ConnPoolError), contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(pool.try_connect(timeout=0 if _ == 2 else SHORT))
    pool.blacklist(A)
    pool.unblacklist(A)
    pool.clear()
    with contextlib.suppress(ConnPoolError):
        pool.pause()
        pool.resume()
    with contextlib.suppress(ConnPoolError):
        pool.try_connect(timeout=SHORT)  # and lost
    gc.collect()  # without the GIL its finaliser may be left to a thread that sleeps
    pool.sweep()
    with contextlib.suppress(ConnPoolError), pool.try_connect(timeout=SHORT):
        clock.leap(2)
        pool.sweep()
    pool.close()


def play(name: str, act: Callable[[ConnectionPool], object], *, elsewhere: bool = False) -> None:
    works, clock, ears = Works(prompt=True), TellingClock(), Ears()
    meddler = Meddler(name, act, elsewhere=elsewhere)
    pool = ConnectionPool(
        "a:1 || b:1",
        connector=works,
        clock=clock,
        max_size=2,
        warn_after=1,
        checkout_timeout=SHORT,
        reap_interval=None,
        listeners=[ears, meddler],
    )
    pool.works = works  # type: ignore[attr-defined]
    meddler.pool = pool
    together(lambda: live(pool, clock), limit=15)
    what = f"{act} at {name}"
    assert meddler.is_done, f"{name} was never told: {ears.kinds()}"
    assert not meddler.faults, (what, meddler.faults)
    works.until(lambda: works.n_open == 0)
    until(lambda: pool.stats().opening == 0, "the end of the last dial")
    stats = balanced(pool)
    assert (stats.in_use, stats.idle, stats.opening, stats.waiting) == (0, 0, 0, 0), (what, stats)
    assert ears.kinds("PoolClosed") == ["PoolClosed"], what
    meddler.pool = None


@pytest.mark.parametrize("name", TOLD)
def test_a_handler_may_do_anything(name):
    for act in ACTS.values():
        play(name, act)


@pytest.mark.parametrize("name", TOLD)
def test_no_lock_is_held_while_anything_is_told(name):
    """Another thread would meet it, even a lock that its own holder may take again."""

    def act(pool: ConnectionPool) -> None:
        look(pool)
        for each in (lend_at_once, pause_and_resume, blacklist_and_back, listen_and_stop):
            with contextlib.suppress(ConnPoolError):
                each(pool)
        pool.sweep()
        pool.clear()
        pool.resize(max_size=2)

    play(name, act, elsewhere=True)


@pytest.mark.parametrize("name", TOLD)
def test_another_thread_may_close_the_pool_while_anything_is_told(name):
    play(name, lambda pool: pool.close(), elsewhere=True)


def test_a_handler_that_lends_from_inside_of_its_own_telling_is_told_of_that_too():
    works, ears = Works(prompt=True), Ears()
    pool = ConnectionPool("a:1", connector=works, max_size=3, reap_interval=None, listeners=[ears])
    depth = [0]

    def deeper(event: object) -> None:
        if depth[0] < 2:
            depth[0] += 1
            pool.try_connect(timeout=5).release()

    pool.listen(deeper, connpool.CheckedOut)
    together(lambda: pool.try_connect(timeout=5).release(), limit=10)
    assert len(ears.of("CheckedOut")) == len(ears.of("CheckedIn")) == 3
    assert balanced(pool).in_use == 0
    check_lives(ears.heard)
    pool.close()


def test_a_handler_that_closes_the_pool_at_the_return_of_a_loan_has_that_closed_too():
    works, ears = Works(prompt=True), Ears()
    pool = ConnectionPool("a:1", connector=works, reap_interval=None, listeners=[ears])
    pool.listen(lambda event: pool.close(), connpool.CheckedIn)
    pool.try_connect().release()
    works.until(lambda: works.n_open == 0)
    assert ears.kinds()[-3:].count("ConnectionClosed") == 1
    assert ears.only("ConnectionClosed").reason is connpool.CloseReason.POOL_CLOSED
    assert balanced(pool).size == 0


def test_a_handler_that_closes_the_pool_at_a_checkout_leaves_the_loan_to_its_holder():
    works, ears = Works(prompt=True), Ears()
    pool = ConnectionPool("a:1", connector=works, reap_interval=None, listeners=[ears])
    pool.listen(lambda event: pool.close(), connpool.CheckedOut)
    conn = pool.try_connect()
    assert balanced(pool).in_use == 1
    conn.release()
    assert works.n_open == 0
    check_lives(ears.heard)


def test_a_handler_that_closes_the_pool_when_a_checkout_begins_has_it_fail():
    works, ears = Works(prompt=True), Ears()
    pool = ConnectionPool("a:1", connector=works, reap_interval=None, listeners=[ears])
    pool.listen(lambda event: pool.close(), connpool.CheckoutStarted)
    with pytest.raises(connpool.PoolClosedError):
        pool.try_connect()
    assert ears.only("CheckoutFailed").reason is connpool.FailReason.CLOSED
