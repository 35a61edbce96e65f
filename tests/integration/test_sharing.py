"""Several holders, one connection: who joins which, and what the last one leaves behind."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool import (
    CheckedIn,
    CheckedOut,
    CheckoutStarted,
    CheckoutTimeoutError,
    CloseReason,
    Connection,
    ConnectionInfo,
    ConnectionPool,
    ConnState,
    Endpoint,
    LoanHeldLong,
    LoanLost,
    NoEndpointError,
    NotSharableError,
    PoolClosedError,
    PoolExhaustedError,
    Repository,
    Request,
    UsageError,
)
from connpool.pool import checkout, stock
from connpool.pool.dialing import Dialler
from connpool.pool.failures import timed_out
from connpool.pool.record import Record
from connpool.pool.turns import Turn
from connpool.testing import Answer, Deaf, FakeClock, ScriptedServer, Send
from connpool.wire.io import Stream
from tests.helpers.forks import in_child
from tests.helpers.interrupts import SignalStrike, at_every_bytecode, in_a_handler, needs_monitoring
from tests.helpers.switchboard import Line, Switchboard, until
from tests.helpers.together import together
from tests.helpers.upkeep import OFTEN, fill, settle
from tests.helpers.wire import taking
from tests.stress.works import Caller

ECHO = Answer(lambda request: request, delimiter=b"\n")


@pytest.fixture(name="board")
def make_board() -> Switchboard:
    return Switchboard()


@pytest.fixture(name="pool")
def make_pool(board: Switchboard, clock: FakeClock) -> Iterator[ConnectionPool]:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, max_size=3) as pool:
        yield pool


def raws(connections: list[Any]) -> list[Any]:
    return [connection.raw for connection in connections]


def end(connections: list[Any]) -> None:
    for connection in connections:
        connection.release()


def numbers(pool: ConnectionPool) -> tuple[int, int, int]:
    stats = pool.stats()
    assert stats.size == stats.idle + stats.in_use + stats.shared + stats.opening + stats.closing
    return stats.idle, stats.in_use, stats.shared


# -- who joins which ----------------------------------------------------------------------------------


def test_nine_shares_on_three_members_are_three_each_in_turn(pool: ConnectionPool) -> None:
    fill(pool, 3)
    shares = [pool.share() for _ in range(9)]
    lines = raws(shares)
    assert len(set(lines)) == 3
    assert lines[:3] == lines[3:6] == lines[6:]
    assert numbers(pool) == (0, 0, 3)
    end(shares)
    assert numbers(pool) == (3, 0, 0)


def test_the_least_shared_is_joined_first(pool: ConnectionPool) -> None:
    fill(pool, 2)
    shares = [pool.share() for _ in range(4)]
    gone = shares.pop(1)  # of the one that was joined last
    line = gone.raw
    gone.release()
    shares.append(pool.share())
    assert shares[-1].raw is line
    end(shares)


def test_of_several_shared_alike_each_is_joined_in_turn(pool: ConnectionPool) -> None:
    fill(pool, 3)
    shares = [pool.share() for _ in range(3)]
    joined = []
    for _ in range(6):
        with pool.share() as conn:
            joined.append(conn.raw)
    assert joined == 2 * raws(shares)
    end(shares)


def test_the_uses_of_a_share_are_the_loans_before_it(pool: ConnectionPool) -> None:
    shares = [pool.share() for _ in range(3)]
    assert [conn.uses for conn in shares] == [0, 1, 2]
    end(shares)
    with pool.share() as conn:
        assert conn.uses == 3


def test_a_limit_of_uses_that_was_lowered_meanwhile_holds_for_what_is_shared(pool: ConnectionPool) -> None:
    first = pool.share()
    pool.configure(max_uses=1)
    second = pool.share()
    assert second.raw is not first.raw
    end([first, second])


def test_one_is_opened_if_there_is_none_and_shared_rather_than_another_opened(
    pool: ConnectionPool, board: Switchboard
) -> None:
    shares = [pool.share() for _ in range(5)]
    assert len(board.lines) == 1
    assert pool.stats().checkouts == 5
    end(shares)


def test_above_the_most_sharers_another_is_opened_then_waited_for(
    board: Switchboard, clock: FakeClock
) -> None:
    settings: dict[str, Any] = {"sharable": True, "max_sharers": 2, "max_size": 2}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        shares = [pool.share() for _ in range(4)]
        assert Counter(raws(shares)) == {board.lines[0]: 2, board.lines[1]: 2}
        with pytest.raises(PoolExhaustedError):
            pool.share(timeout=0)
        order: list[int] = []

        def wait(n: int) -> None:
            with pool.share(timeout=50):
                order.append(n)

        threads = []
        for n in range(3):
            threads.append(threading.Thread(target=wait, args=(n,)))
            threads[-1].start()
            until(lambda n=n: pool.stats().waiting == n + 1)
        shares.pop().release()
        for thread in threads:
            thread.join(5)
        assert order == [0, 1, 2]
        end(shares)


def test_who_has_given_up_gets_no_share_while_it_tells_why(
    board: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell_why(*args: Any) -> CheckoutTimeoutError:
        shares.pop().release()
        return timed_out(*args)

    monkeypatch.setattr(checkout, "timed_out", tell_why)
    settings: dict[str, Any] = {"sharable": True, "max_sharers": 2, "max_size": 1}
    with ConnectionPool("a:1", connector=board, **settings) as pool:
        shares = [pool.share() for _ in range(2)]
        with pytest.raises(CheckoutTimeoutError):
            pool.share(timeout=0.01)
        assert pool.stats().checkouts == 2, "a loan that nobody had is none"
        end(shares)


def test_a_share_that_its_request_refuses_is_no_loan(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=1) as pool:
        one = pool.share()
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(Request(shared=True, where=lambda _: False), timeout=0.01)
        other = pool.share()
        assert pool.stats().checkouts == pool.endpoints()[0].checkouts == 2
        assert (one.uses, other.uses) == (0, 1)
        end([one, other])


def test_a_request_that_is_shared_is_a_share(pool: ConnectionPool) -> None:
    with pool.try_connect(Request(shared=True)) as one, pool.share("a:1") as other:
        assert one.raw is other.raw
        assert one.info.state is other.info.state is ConnState.SHARED
        assert pool.connections()[0].state is ConnState.SHARED


def test_a_pool_that_is_not_sharable_says_so(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board) as pool:
        for ask in (pool.share, lambda: pool.try_connect(Request(shared=True)), lambda: pool.share("a:1")):
            with pytest.raises(NotSharableError, match="not sharable"):
                ask()
        assert board.dialled == []


def test_what_the_request_does_not_like_is_not_joined(pool: ConnectionPool) -> None:
    fill(pool, 2)
    first = pool.share()
    first.extra = "mine"
    liked: list[ConnState] = []

    def is_mine(info: ConnectionInfo) -> bool:
        if info.extra == "mine":
            liked.append(info.state)
        return info.extra == "mine"

    shares = [pool.share(Request(where=is_mine)) for _ in range(3)]
    assert set(raws(shares)) == {first.raw}
    assert set(liked) == {ConnState.SHARED}
    others = [pool.share(Request(where=lambda info: info.extra is None)) for _ in range(3)]
    assert first.raw not in raws(others)
    end([first, *shares, *others])
    assert numbers(pool)[1:] == (0, 0)


def test_a_question_that_fails_leaves_no_share_behind(pool: ConnectionPool) -> None:
    def ask(info: object) -> bool:
        raise ZeroDivisionError

    held = pool.share()
    with pytest.raises(ZeroDivisionError) as caught:
        pool.share(Request(where=ask))
    held.release()
    assert numbers(pool) == (1, 0, 0)
    assert pool.stats().lost == 0
    assert caught.tb is not None  # kept till now, and every frame with it


def test_one_that_was_idle_for_long_is_looked_at_and_shared(
    pool: ConnectionPool, board: Switchboard, clock: FakeClock
) -> None:
    fill(pool, 1)
    clock.advance(1)
    with pool.share() as conn:
        assert board.looked_at == [conn.raw]
    assert (pool.stats().lost, len(board.lines)) == (0, 1)


# -- exclusive or shared, never both ---------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [None, "a:1"])
def test_an_exclusive_loan_waits_for_the_last_share_and_shares_wait_for_it(
    pinned: str | None, board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, max_size=1) as pool:
        shares = [pool.share(), pool.share()]
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
        got: list[str] = []

        def alone() -> None:
            with pool.try_connect(pinned, timeout=50):
                got.append("alone")
                assert numbers(pool) == (0, 1, 0)

        def join() -> None:
            with pool.share(timeout=50):
                got.append("shared")

        first = threading.Thread(target=alone)
        first.start()
        until(lambda: pool.stats().waiting == 1)
        second = threading.Thread(target=join)
        second.start()
        until(lambda: pool.stats().waiting == 2, "who comes later does not overtake")
        shares.pop().release()
        assert got == []
        shares.pop().release()
        first.join(5)
        second.join(5)
        assert got == ["alone", "shared"]
        assert numbers(pool) == (1, 0, 0)


def test_when_who_waits_alone_is_served_those_behind_it_join(board: Switchboard, clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, max_size=2) as pool:
        share, alone = pool.share(), pool.try_connect()
        got: list[Any] = []

        def ask(*, is_shared: bool) -> None:
            got.append(pool.try_connect(Request(shared=is_shared, timeout=50)))

        threads = []
        for is_shared in (False, True):
            threads.append(threading.Thread(target=lambda is_shared=is_shared: ask(is_shared=is_shared)))
            threads[-1].start()
            until(lambda: pool.stats().waiting == len(threads))
        alone.release()
        for thread in threads:
            thread.join(5)
        assert numbers(pool) == (0, 1, 1)
        end([share, *got])


def test_in_a_full_pool_one_joins_without_waiting(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=1) as pool:
        shares = [pool.share()]
        shares += [pool.try_connect(Request(shared=True, timeout=0)), pool.share("a:1", timeout=0)]
        assert len(set(raws(shares))) == 1
        end(shares)


def test_who_gets_one_of_its_own_by_a_dial_keeps_nobody_from_joining(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=2) as pool:
        share = pool.share()
        board.hold("a:1")

        def wait() -> None:
            pool.try_connect(timeout=20).release()

        def join() -> None:
            board.until_dialling("a:1")
            try:
                with pool.share(timeout=0) as joined:
                    assert joined.raw is share.raw
            finally:
                board.let_go("a:1")

        together(wait, join)
        share.release()


def test_who_waits_for_the_first_to_be_opened_joins_it_at_once(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=1) as pool:
        all_have_it = threading.Barrier(4)
        board.hold("a:1")

        def ask() -> None:
            with pool.share(timeout=10):
                all_have_it.wait(5)

        def open_up() -> None:
            until(lambda: pool.stats().waiting == 4)
            board.let_go("a:1")

        together(ask, ask, ask, ask, open_up)
        assert len(board.lines) == 1


def test_who_waits_alone_behind_it_keeps_nobody_from_joining(board: Switchboard, clock: FakeClock) -> None:
    settings = {"sharable": True, "max_size": 1, "max_sharers": 2}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        shares = [pool.share(), pool.share()]
        first = Caller(pool, Request(shared=True))
        clock.until_waiting(1)
        alone = Caller(pool)
        clock.until_waiting(2)
        shares.pop().release()
        shares.append(first.loan())
        end(shares)
        alone.loan().release()


def test_who_waits_for_a_share_that_it_likes_keeps_nobody_from_joining_another(
    board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, max_size=1) as pool:
        share = pool.share()
        picky = Caller(pool, Request(shared=True, where=lambda info: info.uses > 1))
        until(lambda: pool.stats().waiting == 1)
        other = Caller(pool, Request(shared=True))
        shares = [other.loan(), share]
        clock.advance(1)
        end(shares)
        picky.loan().release()


def test_who_is_interrupted_when_it_was_just_given_a_share_leaves_it_to_others(board: Switchboard) -> None:
    class Struck(FakeClock):
        is_struck = False

        def wait(self, gate: Any, timeout: float | None) -> bool:
            is_woken = super().wait(gate, timeout)
            if self.is_struck:
                raise KeyboardInterrupt
            return is_woken

    clock, told = Struck(), []
    settings = {"sharable": True, "max_size": 1, "max_sharers": 2}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        shares = [pool.share(), pool.share()]
        caller = Caller(pool, Request(shared=True))
        clock.until_waiting(1)
        clock.is_struck = True
        pool.listen(told.append, CheckedIn)
        end(shares)
        caller.failure(KeyboardInterrupt)
        assert numbers(pool) == (1, 0, 0)
        assert len(told) == 2, "of the third share nobody was told"


def test_who_gives_up_waiting_alone_lets_the_shares_behind_it_join(board: Switchboard) -> None:
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=1) as pool:
        share = pool.share()

        def alone() -> None:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.2)

        def join() -> None:
            until(lambda: pool.stats().waiting == 1)
            pool.share(timeout=10).release()

        together(alone, join)
        share.release()


def test_a_shared_connection_to_a_blacklisted_endpoint_is_joined_only_as_the_last_resort(
    board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, sharable=True) as pool:
        first = pool.share()
        pool.blacklist("a:1")
        elsewhere = pool.share()
        assert str(elsewhere.endpoint) == "b:1"
        pool.blacklist("b:1")
        joined = pool.share()
        assert joined.raw in (first.raw, elsewhere.raw)
        pinned = pool.share("a:1")
        assert pinned.raw is first.raw
        end([first, elsewhere, joined, pinned])


def test_a_shared_connection_off_the_route_is_joined_by_those_alone_who_pin_its_endpoint(
    board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True) as pool:
        elsewhere = pool.share("b:1")
        pool.blacklist("a:1")
        with pytest.raises(NoEndpointError):
            pool.share()
        pinned = pool.share("b:1")
        assert pinned.raw is elsewhere.raw
        end([elsewhere, pinned])


def test_where_no_endpoint_serves_nobody_gets_a_share_who_did_not_ask_for_one(
    board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True) as pool, pool.share():
        pool.blacklist("a:1")
        with pytest.raises(NoEndpointError):
            pool.try_connect()


def test_without_a_route_a_shared_connection_to_a_blacklisted_endpoint_is_joined_too(
    board: Switchboard, clock: FakeClock
) -> None:
    with ConnectionPool(None, connector=board, clock=clock, sharable=True) as pool:
        pool.add_connection(Line(Endpoint.of("a:1")), "a:1")
        first = pool.share()
        pool.blacklist("a:1")
        joined = pool.share(timeout=0)
        assert joined.raw is first.raw
        end([first, joined])


def test_a_contended_member_is_never_seen_as_none() -> None:
    with ConnectionPool.of(object, sharable=True, max_size=1) as pool, Repository() as repo:
        fill(repo.new("one", "a:1", connector=Switchboard(), sharable=True, max_size=1), 1)
        counts = []

        def share_and_leave() -> None:
            for _ in range(1_000):
                pool.share(timeout=30).release()
            for _ in range(50):
                found = repo.share_from_pool("one")
                assert found is not None
                found.release()
            counts.append(1)

        together(*[share_and_leave] * 32, limit=50)
        assert len(counts) == 32
        assert pool.stats().opened == 1
        assert numbers(pool) == (1, 0, 0)


# -- how it ends -------------------------------------------------------------------------------------


def test_after_a_termination_nobody_joins_and_the_last_one_closes_it(pool: ConnectionPool) -> None:
    shares = [pool.share() for _ in range(3)]
    line = shares[0].raw
    shares.pop().terminate(OSError("bad answer"))
    other = pool.share()
    assert other.raw is not line
    shares.pop().release()
    assert line.is_open
    shares.pop().release()
    assert not line.is_open
    assert pool.stats().closed == {CloseReason.TERMINATED: 1}
    other.release()
    assert numbers(pool) == (1, 0, 0)


def test_a_block_that_raises_terminates_its_share(pool: ConnectionPool) -> None:
    rest = pool.share()
    with pytest.raises(ZeroDivisionError), pool.share():
        1 / 0  # noqa: B018
    rest.release()
    assert pool.stats().closed == {CloseReason.TERMINATED: 1}


def test_a_termination_that_interrupts_ends_the_others_reads() -> None:
    with ScriptedServer(script=[]) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        reader, ender = pool.share(timeout=5), pool.share(timeout=5)

        def read() -> None:
            with pytest.raises(OSError, match="another holder terminated it"):
                reader.recv(1, timeout=20)
            reader.release()

        def terminate() -> None:
            time.sleep(0.05)
            ender.terminate(interrupt=True)

        began = time.monotonic()
        together(read, terminate)
        assert time.monotonic() - began < 5
        assert pool.stats().size == 0


def test_a_share_is_given_back_once(pool: ConnectionPool) -> None:
    mine, other = pool.share(), pool.share()
    mine.release()
    for again in (
        mine.release,
        mine.terminate,
        lambda: mine.raw,
        lambda: mine.uses,
        lambda: mine.sendall(b"x"),
    ):
        with pytest.raises(UsageError, match="given back already"):
            again()
    assert numbers(pool) == (0, 0, 1)
    other.release()


def test_a_share_cannot_leave_the_pool_or_change_its_protocol(pool: ConnectionPool) -> None:
    with pool.share() as share:
        with pytest.raises(UsageError, match="it is shared"):
            share.detach()
        with pytest.raises(UsageError, match="it is shared"):
            share.start_tls(None)  # type: ignore[arg-type]
    assert numbers(pool) == (1, 0, 0)


def test_a_share_that_is_dropped_is_found_and_the_connection_closed(pool: ConnectionPool) -> None:
    rest = pool.share()
    with pytest.warns(ResourceWarning, match="a share of connection 1 .* was not given back"):
        pool.share()
    pool.sweep()
    assert pool.stats().lost == 1
    assert numbers(pool) == (0, 0, 1)
    rest.release()
    assert pool.stats().closed == {CloseReason.LOST: 1}


def test_a_share_that_is_dropped_is_found_by_who_waits_where_there_is_no_thread(board: Switchboard) -> None:
    settings: dict[str, Any] = {"max_size": 1, "max_sharers": 1, "connect_timeout": 60, "reap_interval": None}
    with ConnectionPool("a:1", connector=board, sharable=True, **settings) as pool:
        held: list[Connection] = []

        def wait() -> None:
            until(lambda: held)
            pool.share(timeout=20).release()

        def forget() -> None:  # what another thread has made would wait for that one without the GIL
            held.append(pool.share())
            until(lambda: pool.stats().waiting == 1)
            with pytest.warns(ResourceWarning):
                held.clear()

        with taking(0, 8):
            together(wait, forget)


def test_the_thread_finds_a_share_that_is_dropped_though_nobody_waits(board: Switchboard) -> None:
    settings: dict[str, Any] = {"idle_timeout": None, "max_lifetime": None, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=board, sharable=True, **settings) as pool:
        held = [pool.share()]
        with pytest.warns(ResourceWarning):
            held.clear()
        until(lambda: pool.stats().lost == 1)
        until(lambda: not board.n_open)


def apart(work: Callable[[], object], name: str) -> None:
    """Do *work* on a thread of that name, to its end."""
    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join(10)


def test_of_a_share_that_is_dropped_its_own_holder_is_named(board: Switchboard, clock: FakeClock) -> None:
    told: list[LoanLost] = []
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, track_origin=True) as pool:
        pool.listen(told.append, LoanLost)
        rest = [pool.share()]

        def forget() -> None:
            share = pool.share()
            apart(lambda: rest.append(pool.share()), "another")  # and is not the one who took it last
            clock.advance(5)
            del share

        text = "dropped 5.0 s after thread 'forgetful' took it at .* forget"
        with pytest.warns(ResourceWarning, match=text):
            apart(forget, "forgetful")
        pool.sweep()
        (event,) = told
        assert "'forgetful'" in event.where
        assert "in forget" in event.where
        end(rest)


@contextlib.contextmanager
def another_holder(pool: ConnectionPool) -> Iterator[tuple[threading.Thread, list[Connection]]]:
    """A thread that shares from when it is started until the block ends, and what it has got."""
    taken: list[Connection] = []
    over = threading.Event()

    def hold_on() -> None:
        with pool.share() as share:
            taken.append(share)
            assert over.wait(10)

    holder = threading.Thread(target=hold_on, name="holder")
    try:
        yield holder, taken
    finally:
        over.set()
        if holder.ident is not None:
            holder.join(10)


def test_who_has_shared_it_for_longest_is_named_as_its_holder(pool: ConnectionPool, clock: FakeClock) -> None:
    with another_holder(pool) as (holder, taken):
        first = pool.share()
        clock.advance(1)
        holder.start()
        until(lambda: taken)
        clock.advance(2)
        apart(lambda: pool.share().release(), "brief")
        assert pool.connections()[0].holder == threading.current_thread().name
        first.release()
        assert pool.connections()[0].holder == "holder"
        error = timed_out(pool._lender.books, 1, clock.now())
        assert "longest held: connection 1 to a:1 for 2.0 s by thread 'holder')" in str(error)


@pytest.mark.parametrize("n_long", [0, 1, 2])
def test_each_share_that_lasts_is_warned_of_and_not_a_connection_that_is_always_shared(
    n_long: int, board: Switchboard, clock: FakeClock
) -> None:
    told: list[LoanHeldLong] = []
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, warn_after=10) as pool:
        pool.listen(told.append, LoanHeldLong)
        long_ones = [pool.share() for _ in range(n_long)]
        brief = pool.share()
        for _ in range(10):
            clock.advance(3)
            after = pool.share()
            brief.release()
            brief = after
            pool.sweep()
        assert [(event.id, event.seconds) for event in told] == [(1, 12)] * n_long
        end([*long_ones, brief])


def test_a_share_that_lasts_is_warned_of_after_another_of_the_same_connection(
    board: Switchboard, clock: FakeClock
) -> None:
    told: list[tuple[float, float]] = []
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, warn_after=10) as pool:
        pool.listen(lambda event: told.append((clock.now() - began, event.seconds)), LoanHeldLong)
        began, shares = clock.now(), []
        for _ in range(3):
            shares.append(pool.share())
            clock.advance(3)
        for _ in range(4):
            clock.advance(3)
            pool.sweep()
        assert told == [(12, 12), (15, 12), (18, 12)]
        end(shares)


def test_a_share_that_another_thread_hands_over_is_its_holders(board: Switchboard, clock: FakeClock) -> None:
    settings: dict[str, Any] = {"sharable": True, "max_size": 1, "max_sharers": 2}
    with (
        ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool,
        another_holder(pool) as (holder, taken),
    ):
        first, second = pool.share(), pool.share()
        holder.start()
        until(lambda: pool.stats().waiting == 1)
        first.release()
        until(lambda: taken)
        second.release()
        assert pool.connections()[0].holder == "holder"


def test_who_waited_in_vain_is_told_of_loans_longest_first(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=8) as pool:
        loans = []
        for _ in range(8):
            loans.append(pool.try_connect())
            clock.advance(1)
        loans.append(loans.pop(0))  # nobody knows its place by its number
        loans[-1].release()
        loans[-1] = pool.try_connect()
        clock.advance(1)
        told = str(timed_out(pool._lender.books, 1, clock.now()))
        seconds = [float(text) for text in re.findall(r"for ([\d.]+) s by", told)]
        assert seconds == sorted(seconds, reverse=True)
        assert "longest held: connection 2 to a:1 for 8.0 s" in told
        end(loans)


def test_expiry_clear_and_uses_hold_for_shares_too(board: Switchboard, clock: FakeClock) -> None:
    settings: dict[str, Any] = {"max_lifetime": 100, "lifetime_jitter": 0, "max_uses": 3, "sharable": True}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        old = pool.share()
        clock.advance(101)
        new = pool.share()
        assert new.raw is not old.raw
        old.release()
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}
        pool.clear()
        newer = [pool.share() for _ in range(4)]
        assert new.raw not in raws(newer)
        assert Counter(raws(newer)).most_common(1)[0][1] == 3
        end([new, *newer])
        assert pool.stats().closed == {CloseReason.EXPIRED: 1, CloseReason.STALE: 1, CloseReason.USED_UP: 1}
        assert numbers(pool) == (1, 0, 0)


def test_what_has_grown_too_old_while_it_lay_idle_is_not_shared(board: Switchboard, clock: FakeClock) -> None:
    settings: dict[str, Any] = {"max_lifetime": 100, "lifetime_jitter": 0}
    settings |= {
        "look_after_idle": 1_000,
        "connect_timeout": 1_000,
    }  # nothing else forbids the short way
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, **settings) as pool:
        fill(pool, 1)
        clock.advance(100)
        share = pool.share()
        assert share.raw is board.lines[1]
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}
        share.release()


def test_a_connection_is_idle_since_its_last_share_came_back(board: Switchboard, clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, idle_timeout=60) as pool:
        share = pool.share()
        clock.advance(100)
        settle(pool)
        share.release()
        clock.advance(10)
        settle(pool)
        assert numbers(pool) == (1, 0, 0)


def test_who_wants_a_share_of_one_endpoint_gets_what_nobody_has_first(pool: ConnectionPool) -> None:
    share = pool.share()
    pool.try_connect("a:1").release()
    with pool.try_connect(Request("a:1", shared=True, where=lambda info: True)) as other:
        assert other.raw is not share.raw
    share.release()


@pytest.mark.parametrize("error", [None, OSError("broken")])
def test_a_share_has_another_opened_in_its_place_if_it_is_terminated_for_an_error(
    board: Switchboard, clock: FakeClock, error: OSError | None
) -> None:
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True, revive=True) as pool:
        pool.share().terminate(error)
        settle(pool)
        assert len(board.dialled) == (1 if error is None else 2)


def test_the_last_share_comes_back_as_any_loan_does(board: Switchboard, clock: FakeClock) -> None:
    lines: list[Any] = []
    board.reset = lines.append  # type: ignore[attr-defined]
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True) as pool:
        shares = [pool.share(), pool.share()]
        shares[0].release()
        assert lines == []
        shares[1].release()
        assert lines == board.lines[:1]
        assert numbers(pool) == (1, 0, 0)


def test_what_the_last_share_has_left_unread_ends_the_connection() -> None:
    with (
        ScriptedServer(script=Send(b"one\ntwo\n")) as server,
        ConnectionPool(server.endpoint, sharable=True) as pool,
    ):
        share = pool.share()
        server.until_accepts(1)
        assert share.recv_until(b"two", 100, timeout=10) == b"one\ntwo"
        share.release()
        until(lambda: pool.stats().closed == {CloseReason.DIRTY: 1})


def test_the_end_of_the_pool_waits_for_shares(pool: ConnectionPool) -> None:
    shares = [pool.share(), pool.share()]
    assert pool.close() == 1
    with pytest.raises(PoolClosedError):
        pool.share()
    shares.pop().release()
    assert pool.close() == 1
    shares.pop().release()
    assert pool.close() == 0
    assert pool.stats().closed == {CloseReason.POOL_CLOSED: 1}


def test_shutdown_interrupts_every_sharer() -> None:
    with ScriptedServer(script=[]) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        shares = [pool.share(timeout=5) for _ in range(3)]

        def read(share: Connection) -> None:
            with pytest.raises(OSError, match="shut down"):
                share.recv(1, timeout=20)
            share.release()

        def stop() -> None:
            time.sleep(0.05)
            assert pool.shutdown() == 1

        together(*(lambda share=share: read(share) for share in shares), stop)
        assert pool.shutdown() == 0


def test_the_parents_share_is_none_of_the_childs() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        share, other = pool.share(timeout=5), pool.share(timeout=5)

        def job() -> tuple[int, int]:
            with pytest.raises(UsageError):
                share.release()
            with pool.share(timeout=5) as mine:
                assert mine.exchange([b"child\n"], lambda conn: conn.recv_until(b"\n"), 5) == b"child\n"
            return numbers(pool)[2], pool.stats().idle

        assert in_child(job) == (0, 1)
        assert share.exchange([b"parent\n"], lambda conn: conn.recv_until(b"\n"), 5) == b"parent\n"
        end([share, other])


def test_each_share_is_heard_of(pool: ConnectionPool) -> None:
    heard: list[Any] = []
    pool.listen(heard.append, CheckedOut, CheckedIn)
    shares = [pool.share() for _ in range(3)]
    end(shares)
    assert [type(event) for event in heard] == [CheckedOut] * 3 + [CheckedIn] * 3
    assert {event.id for event in heard} == {1}


def test_a_share_comes_back_though_its_hearer_is_interrupted(pool: ConnectionPool) -> None:
    def strike(event: object) -> None:
        raise KeyboardInterrupt

    pool.listen(strike, CheckedIn)
    share = pool.share()
    with pytest.raises(KeyboardInterrupt):
        share.release()
    assert numbers(pool) == (1, 0, 0)


def test_a_share_that_its_request_does_not_like_is_not_heard_of(pool: ConnectionPool) -> None:
    heard: list[Any] = []
    pool.resize(max_size=1)
    with pool.share():
        pool.listen(heard.append, CheckedOut, CheckedIn)
        with pytest.raises(PoolExhaustedError):
            pool.share(Request(where=lambda info: False, timeout=0))
        assert heard == []


# -- what is written -------------------------------------------------------------------------------------


def test_frames_of_many_threads_are_whole() -> None:
    """16 threads, 200 frames of 64 KB each, on 3 connections; the server checks length and sum."""
    faults: list[str] = []
    frames = Counter[int]()

    def decode(served: Any) -> None:
        data = bytearray()

        def exactly(n: int) -> bytes:
            while len(data) < n:
                data.extend(served.receive())
            taken = bytes(data[:n])
            del data[:n]
            return taken

        while True:
            head = exactly(12)
            who, length, checksum = (int.from_bytes(head[i : i + 4]) for i in (0, 4, 8))
            if length != 65_536 or zlib.crc32(exactly(length)) != checksum:
                faults.append(f"frame of {who}")
                return
            with counting:
                frames[who] += 1

    counting = threading.Lock()
    with (
        ScriptedServer(script=decode) as server,
        ConnectionPool(server.endpoint, sharable=True, max_size=3, max_sharers=6) as pool,
    ):

        def send(who: int) -> None:
            body = bytes([who]) * 65_536
            for _ in range(200):
                head = b"".join(n.to_bytes(4) for n in (who, len(body), zlib.crc32(body)))
                with pool.share(timeout=30) as share:
                    share.writev_all([head, body[:1000], body[1000:]], timeout=30)

        together(*(lambda who=who: send(who) for who in range(16)), limit=50)
        until(lambda: faults or sum(frames.values()) == 16 * 200, "the last frame")
    assert faults == []
    assert frames == dict.fromkeys(range(16), 200)


def test_an_answer_stays_with_its_request() -> None:
    with (
        ScriptedServer(script=ECHO) as server,
        ConnectionPool(server.endpoint, sharable=True, max_size=2, max_sharers=8) as pool,
    ):

        def ask(who: int) -> None:
            with pool.share(timeout=30) as share:
                for n in range(50):
                    text = b"%d of %d\n" % (n, who)
                    assert (
                        share.exchange([text[:2], text[2:]], lambda conn: conn.recv_until(b"\n"), 20) == text
                    )

        together(*(lambda who=who: ask(who) for who in range(12)), limit=50)
        assert pool.stats().opened <= 2


def test_a_reading_that_fails_breaks_the_connection_for_all() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        one, other = pool.share(timeout=5), pool.share(timeout=5)

        def misread(conn: Connection) -> bytes:
            raise ValueError("no such answer")

        with pytest.raises(ValueError, match="no such answer"):
            one.exchange([b"x\n"], misread)
        third = pool.share(timeout=5)
        assert third.info.id != other.info.id
        end([one, other, third])
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def interrupt(conn: Connection) -> bytes:
    raise KeyboardInterrupt


def run_out_of_time(conn: Connection) -> bytes:
    return conn.recv_until(b"\n", timeout=0.02)


@pytest.mark.parametrize("read", [run_out_of_time, interrupt])
def test_after_an_exchange_that_was_broken_off_nobody_meets_its_answer(
    read: Callable[[Connection], bytes],
) -> None:
    may_answer = threading.Event()

    def answer(request: bytes) -> bytes:
        assert may_answer.wait(5)
        return request

    with (
        ScriptedServer(script=Answer(answer, delimiter=b"\n")) as server,
        ConnectionPool(server.endpoint, sharable=True) as pool,
    ):
        one, other = pool.share(timeout=5), pool.share(timeout=5)
        with pytest.raises((TimeoutError, KeyboardInterrupt)):
            one.exchange([b"one\n"], read)
        may_answer.set()
        for share in (one, other):
            with pytest.raises(ConnectionAbortedError, match="another write or exchange was broken off"):
                share.exchange([b"other\n"], lambda conn: conn.recv_until(b"\n", timeout=5))
        end([one, other])
        with pool.share(timeout=5) as third:
            assert third.exchange([b"third\n"], lambda conn: conn.recv_until(b"\n", timeout=5)) == b"third\n"
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_nobody_writes_behind_half_a_message() -> None:
    with (
        ScriptedServer(script=Deaf()) as server,
        ConnectionPool(server.endpoint, sharable=True) as pool,
    ):
        one, other = pool.share(timeout=5), pool.share(timeout=5)
        with pytest.raises(TimeoutError):
            one.sendall(bytes(50_000_000), timeout=0.1)
        with pytest.raises(ConnectionAbortedError, match="another write or exchange was broken off"):
            other.sendall(b"x", timeout=5)
        end([one, other])


def test_nobody_writes_behind_half_a_message_that_a_signal_handler_has_ended() -> None:
    """Whatever its error says: that of a share used twice at once says that arguments are wrong."""
    with (
        ScriptedServer(script=Deaf()) as server,
        ConnectionPool(server.endpoint, sharable=True) as pool,
    ):
        one, other = pool.share(timeout=5), pool.share(timeout=5)
        with (
            in_a_handler(lambda: one.sendall(b"bye", timeout=5), 0.2),
            pytest.raises(UsageError, match="in the middle of an exchange on it"),
        ):
            one.sendall(bytes(50_000_000), timeout=5)
        with pytest.raises(ConnectionAbortedError, match="another write or exchange was broken off"):
            other.sendall(b"x", timeout=5)
        end([one, other])
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@pytest.mark.parametrize(
    "write",
    [lambda conn, data: conn.sendall(data, timeout=5), lambda conn, data: conn.writev_all([data], timeout=5)],
    ids=["sendall", "writev_all"],
)
def test_a_connection_with_half_a_message_is_not_lent_again(
    write: Callable[[Connection, bytes], None],
) -> None:
    def fail() -> None:
        raise ValueError("what the settings say cannot be read")

    with ScriptedServer(script=Deaf()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        with in_a_handler(fail, 0.2), pytest.raises(ValueError, match="cannot be read"):
            write(conn, bytes(50_000_000))
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_a_write_whose_arguments_are_wrong_breaks_nothing() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        one, other = pool.share(timeout=5), pool.share(timeout=5)
        with pytest.raises(TypeError):
            one.exchange(["text"], lambda conn: conn.recv_until(b"\n"))  # type: ignore[list-item]
        assert other.exchange([b"x\n"], lambda conn: conn.recv_until(b"\n", timeout=5)) == b"x\n"
        end([one, other])
        assert pool.stats().idle == 1


@needs_monitoring
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # last strikes: in a finaliser
def test_who_is_interrupted_at_the_end_of_its_turn_holds_up_nobody_though_the_interrupt_is_kept() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        for strike in at_every_bytecode(Turn.end, kind=SignalStrike):
            share, other = pool.share(timeout=5), pool.share(timeout=5)
            next_one = threading.Thread(target=other.sendall, args=(b"y\n",), kwargs={"timeout": 30})

            def ask(conn: Connection, next_one: threading.Thread = next_one) -> bytes:
                next_one.start()
                until(lambda: len(conn._key.hold.turns._gates) == 2)  # type: ignore[attr-defined]
                return conn.recv_until(b"\n", timeout=5)

            with strike:
                share.exchange([b"x\n"], ask)
            next_one.join(10)
            assert not next_one.is_alive(), strike
            end([share, other])


def test_who_writes_on_a_shared_connection_in_its_own_exchange_is_told_so() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        share = pool.share(timeout=5)
        with pytest.raises(UsageError, match="in the middle of an exchange on it"):
            share.exchange([b"x\n"], lambda conn: conn.sendall(b"y\n", timeout=5))
        share.release()


def test_a_share_that_ends_in_the_middle_of_its_exchange_ends_the_connection() -> None:
    with ScriptedServer(script=ECHO) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        share = pool.share(timeout=5)

        def release(conn: Connection) -> None:
            conn.release()

        share.exchange([b"x\n"], release)
        assert pool.stats().idle == 0
        until(lambda: pool.stats().closed == {CloseReason.BROKEN: 1})


def test_an_exclusive_connection_exchanges_too() -> None:
    with (
        ScriptedServer(script=ECHO) as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert conn.exchange([b"x", b"y\n"], lambda conn: conn.recv_until(b"\n")) == b"xy\n"


def test_a_write_has_what_the_wait_for_ones_turn_has_left_of_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []

    def note(stream: object, buffers: object, timeout: float) -> None:
        given.append(timeout)

    with ScriptedServer() as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        with pool.share(timeout=5) as conn:
            monkeypatch.setattr(Stream, "writev_all", note)
            conn.writev_all([b"hello"], timeout=5)
        assert given[0] < 5


def test_the_deadline_of_a_write_covers_the_wait_for_ones_turn() -> None:
    with ScriptedServer(script=[]) as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        slow, quick = pool.share(timeout=5), pool.share(timeout=5)
        is_at_it, may_end = threading.Event(), threading.Event()

        def hold_on(conn: Connection) -> None:
            is_at_it.set()
            may_end.wait(5)

        def late() -> None:
            assert is_at_it.wait(5)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                quick.sendall(b"x", timeout=0.1)
            assert time.monotonic() - began < 0.35
            may_end.set()
            quick.sendall(b"x", timeout=5)

        together(lambda: slow.exchange([b"x"], hold_on), late)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            end([slow, quick])
        assert pool.stats().idle == 1, "who never wrote has broken nothing"


# -- the repository --------------------------------------------------------------------------------------


def test_a_repository_shares_what_is_there_and_dials_nothing(board: Switchboard) -> None:
    with Repository() as repo:
        pool = repo.new("one", "a:1", connector=board, sharable=True, max_sharers=2)
        assert repo.share_from_pool("one") is None
        assert board.dialled == []
        fill(pool, 1)
        shares = [repo.share_from_pool("one") for _ in range(3)]
        assert [share is None for share in shares] == [False, False, True]
        end(shares[:2])
        assert numbers(pool) == (1, 0, 0)
        repo.new("other", "a:1", connector=board)
        with pytest.raises(NotSharableError):
            repo.share_from_pool("other")


def test_a_repository_shares_nothing_where_no_checkout_goes_just_now(board: Switchboard) -> None:
    with Repository() as repo:
        pool = repo.new("one", "a:1", connector=board, sharable=True)
        fill(pool, 1)
        pool.blacklist("a:1")
        assert repo.share_from_pool("one") is None
        pool.unblacklist("a:1")
        end([repo.share_from_pool("one")])


@pytest.mark.parametrize(("after", "reason"), [(1, CloseReason.BROKEN), (5_000, CloseReason.EXPIRED)])
def test_a_repository_shares_nothing_that_is_dead_or_too_old(
    after: float, reason: CloseReason, board: Switchboard, clock: FakeClock
) -> None:
    settings: dict[str, Any] = {"sharable": True, "idle_timeout": None}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        fill(pool, 1)
        board.lines[0].is_alive = reason is not CloseReason.BROKEN
        clock.advance(after)
        assert pool._control.stock.share() is None  # a repository's pools have no clock of a test's
        assert pool.stats().closed == {reason: 1}


@pytest.fixture
def doubted(board: Switchboard) -> Iterator[ConnectionPool]:
    """A pool whose one connection is looked at before each loan."""
    with ConnectionPool("a:1", connector=board, sharable=True, max_size=1, look_after_idle=0) as pool:
        fill(pool, 1)
        yield pool


def test_nobody_joins_what_a_repository_still_looks_at(
    doubted: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at TLS reads: it would take a byte of another's answer. Who comes meanwhile waits."""
    shares: list[Connection] = []
    joining = threading.Thread(target=lambda: shares.append(doubted.share(timeout=20)))

    def look(self: Dialler, record: Record) -> bool:
        assert doubted._control.stock.share() is None  # it would wait for itself
        joining.start()
        until(lambda: doubted.stats().waiting == 1)
        return True

    monkeypatch.setattr(stock.Look, "wait", None)
    monkeypatch.setattr(Dialler, "is_usable", look)
    share = doubted._control.stock.share()
    assert share is not None
    joining.join(10)
    assert [one.info.id for one in shares] == [share.info.id]
    end([*shares, share])


def test_who_asks_a_repository_while_another_looks_shares_the_same_connection(
    doubted: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at, waits = threading.Event(), threading.Event()
    looks: list[stock.Look] = []  # it is over when it is, though somebody still knows it
    real = stock.Look.wait

    def wait(look: stock.Look, timeout: float | None = None) -> bool:
        looks.append(look)
        waits.set()
        return real(look, 20)

    def look(self: Dialler, record: Record) -> bool:
        looked_at.set()
        assert waits.wait(10)
        return True

    monkeypatch.setattr(stock.Look, "wait", wait)
    monkeypatch.setattr(Dialler, "is_usable", look)
    shares = together(
        doubted._control.stock.share, lambda: looked_at.wait(10) and doubted._control.stock.share()
    )
    assert shares[0].info.id == shares[1].info.id
    end(shares)
    assert not list(doubted._control.stock._looks)


def test_a_look_that_hangs_keeps_nobody_else_waiting_who_asks_a_repository(
    doubted: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at, has_tried = threading.Event(), threading.Event()

    def look(self: Dialler, record: Record) -> bool:
        looked_at.set()
        return has_tried.wait(10)

    def other() -> None:
        assert looked_at.wait(10)
        assert doubted._control.stock.share() is None
        has_tried.set()

    monkeypatch.setattr(Dialler, "is_usable", look)
    share, _ = together(doubted._control.stock.share, other)
    share.release()


def test_what_a_repository_shares_is_heard_of_like_any_loan(board: Switchboard) -> None:
    heard: list[Any] = []
    with Repository() as repo:
        pool = repo.new("one", "a:1", connector=board, sharable=True)
        pool.listen(heard.append, CheckoutStarted, CheckedOut, CheckedIn)
        assert repo.share_from_pool("one") is None
        assert heard == [], "nothing was had"
        fill(pool, 1)
        heard.clear()
        shares = [repo.share_from_pool("one") for _ in range(2)]
        end(shares)
        assert [type(event) for event in heard] == [CheckoutStarted, CheckedOut] * 2 + [CheckedIn] * 2


def test_a_repository_lets_nobody_join_past_one_who_waits_alone(board: Switchboard) -> None:
    with Repository() as repo:
        pool = repo.new("one", "a:1", connector=board, sharable=True, max_size=1)
        fill(pool, 1)
        share = repo.share_from_pool("one")
        assert share is not None
        alone: list[Connection] = []
        waiter = threading.Thread(target=lambda: alone.append(pool.try_connect(timeout=20)))
        waiter.start()
        until(lambda: pool.stats().waiting == 1)
        assert repo.share_from_pool("one") is None
        share.release()
        waiter.join(20)
        end(alone)


@pytest.mark.parametrize("has_come_from_outside", [False, True])
def test_holders_who_begin_at_the_same_moment_read_and_write_over_one_stream(
    has_come_from_outside: bool,
) -> None:
    """Two would share neither what was read ahead nor the lock that OpenSSL needs."""
    with ScriptedServer() as server, ConnectionPool(server.endpoint, sharable=True) as pool:
        if has_come_from_outside:
            pool.add_connection(socket.create_connection((server.endpoint.host, server.port)))
        with pool.share(timeout=5) as one, pool.share(timeout=5) as other:
            first = one._held().stream  # nobody has read or written yet
            other.exchange([b"ping"], lambda conn: conn.recv_exactly(4, timeout=5), timeout=5)
            assert first is not None
            assert first is one._held().stream is other._held().stream
