"""The life of each connection is told in the order it was lived, with the reason of its end."""

from __future__ import annotations

import gc
import threading
import warnings
from collections import Counter

import pytest

import connpool
from connpool import CloseReason, ConnectionPool, ConnPoolError
from connpool.testing import Close, Echo, ScriptedServer
from tests.helpers.switchboard import until
from tests.stress.stage import Ears, check_lives, lives, make_stage  # noqa: F401 - make_stage is a fixture
from tests.stress.works import A, B, Caller, Part, ResettingWorks, Works, balanced, door

PROMPT = pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "apart"])


def refuse(*_):
    return False


# -- how a connection can end: what makes it so, the settings it takes ----------------------------


def by_clearing(s):
    s.pool.try_connect().release()
    s.pool.clear()


def by_clearing_while_lent(s):
    with s.pool.try_connect():
        s.pool.clear()


def by_leaving_the_route(s):
    s.pool.try_connect().release()
    s.pool.route = "b:1"


def by_idling(s):
    s.pool.try_connect().release()
    s.clock.advance(11)
    assert s.pool.sweep() == 1


def by_ageing(s):
    s.pool.try_connect().release()
    s.clock.advance(21)
    assert s.pool.sweep() == 1


def by_ageing_while_lent(s):
    with s.pool.try_connect():
        s.clock.advance(21)


def by_use(s):
    for _ in range(2):
        s.pool.try_connect().release()


def by_a_look(s):
    s.pool.try_connect().release()
    s.clock.advance(1)
    s.works.looking = refuse
    s.pool.try_connect().release()


def by_hand(s):
    s.pool.try_connect().terminate()


def by_hand_with_an_error(s):
    s.pool.try_connect().terminate(OSError("gone"))


def by_an_exception(s):
    with pytest.raises(ZeroDivisionError), s.pool.try_connect():
        raise ZeroDivisionError


def by_a_reset(s):
    s.works.resetting = refuse
    s.pool.try_connect().release()


def by_another_endpoint(s):
    s.pool.try_connect(A).release()
    s.pool.try_connect(B, timeout=20).release()


def by_shrinking(s):
    first, second = s.pool.try_connect(), s.pool.try_connect()
    second.release()
    first.release()
    s.pool.resize(max_size=1)


def by_forgetting(s):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        s.pool.try_connect()
        gc.collect()
    s.pool.sweep()


def by_the_end(s):
    s.pool.try_connect().release()
    s.pool.close()


def by_the_end_while_lent(s):
    with s.pool.try_connect():
        s.pool.close()


ENDS = [
    (by_clearing, {}, "STALE"),
    (by_clearing_while_lent, {}, "STALE"),
    (by_leaving_the_route, {}, "STALE"),
    (by_idling, {"idle_timeout": 10}, "IDLE"),
    (by_ageing, {"max_lifetime": 20, "idle_timeout": None}, "EXPIRED"),
    (by_ageing_while_lent, {"max_lifetime": 20}, "EXPIRED"),
    (by_use, {"max_uses": 2}, "USED_UP"),
    (by_a_look, {}, "BROKEN"),
    (by_hand, {}, "TERMINATED"),
    (by_hand_with_an_error, {}, "TERMINATED"),
    (by_an_exception, {}, "TERMINATED"),
    (by_a_reset, {}, "DIRTY"),
    (by_another_endpoint, {"max_size": 1}, "EVICTED"),
    (by_shrinking, {"max_size": 2}, "SURPLUS"),
    (by_forgetting, {}, "LOST"),
    (by_the_end, {}, "POOL_CLOSED"),
    (by_the_end_while_lent, {}, "POOL_CLOSED"),
]


@PROMPT
@pytest.mark.parametrize(
    ("end", "settings", "reason"), ENDS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_connection_that_ends_is_told_with_its_reason_and_counted_by_it(
    stage, end, settings, reason, prompt
):
    s = stage("a:1, b:1" if end is by_another_endpoint else "a:1", ResettingWorks(prompt=prompt), **settings)
    end(s)
    closed = s.ears.until("ConnectionClosed")
    assert (closed.reason, closed.endpoint) == (CloseReason[reason], A)
    assert lives(s.ears.heard)[closed.id][:2] == ["ConnectionOpening", "ConnectionOpened"]
    assert lives(s.ears.heard)[closed.id].count("ConnectionClosed") == 1
    reason = CloseReason[reason]  # the place is freed after that was told
    until(lambda: balanced(s.pool).closed.get(reason) == 1, "the count")
    check_lives(s.ears.heard)


def test_every_reason_has_a_story_here():
    assert {reason for *_, reason in ENDS} == set(CloseReason.__members__)


# -- beginnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_dial_that_fails_has_a_beginning_and_an_end_but_never_was_open(stage, in_caller):
    s = stage(dial_in_caller=in_caller)
    s.down.add(A)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect()
    s.ears.until("ConnectionClosed")
    opening, closed = s.ears.of("ConnectionOpening", "ConnectionOpened", "ConnectionClosed")
    assert (opening.id, opening.endpoint) == (closed.id, closed.endpoint)
    assert (closed.endpoint, closed.reason) == (A, CloseReason.BROKEN)
    stats = balanced(s.pool)
    assert (stats.opened, sum(stats.closed.values()), stats.connect_failures) == (0, 0, 1)


def test_no_number_is_given_twice(stage):
    s = stage(blacklist_initial=0, blacklist_max=0)
    for turn in range(10):
        s.down.symmetric_difference_update({A})
        try:
            s.pool.try_connect().terminate()
        except ConnPoolError:
            assert turn % 2 == 0
    s.ears.until("ConnectionClosed", 10)
    assert len({event.id for event in s.ears.of("ConnectionOpening")}) == 10
    check_lives(s.ears.heard)


def test_an_adopted_connection_begins_like_any_other(stage):
    s = stage()
    s.pool.add_connection(s.works.open(A, None, None))
    assert s.ears.kinds()[1:] == ["ConnectionOpening", "ConnectionOpened"]
    assert {event.endpoint for event in s.ears.heard[1:]} == {A}
    with s.pool.try_connect() as conn:
        assert s.ears.only("CheckedOut").id == s.ears.only("ConnectionOpened").id == conn.info.id
    assert s.ears.kinds("ConnectionOpening", "ConnectionOpened", "CheckedOut", "CheckedIn") == [
        "ConnectionOpening",
        "ConnectionOpened",
        "CheckedOut",
        "CheckedIn",
    ]


def test_an_adoption_that_is_refused_is_not_told(stage):
    s = stage(max_size=1)
    with s.pool.try_connect():
        s.ears.forget()
        part = Part(99, A)
        with pytest.raises(ConnPoolError):
            s.pool.add_connection(part)
        assert s.ears.heard == []


def test_what_is_detached_comes_back_and_is_never_closed(stage):
    s = stage()
    conn = s.pool.try_connect()
    s.clock.advance(2)
    s.works.disown(conn.detach())
    assert s.story()[-1] == ("CheckedIn", 1, 2.0)
    s.pool.close()
    assert s.ears.of("ConnectionClosed") == []


def test_what_is_taken_is_told_no_more(stage):
    s = stage()
    s.pool.try_connect().release()
    s.ears.forget()
    s.works.disown(s.pool.take())
    assert s.ears.heard == []
    s.pool.close()
    assert s.ears.of("ConnectionClosed") == []


# -- what is true while it is told ----------------------------------------------------------------


def test_an_opened_connection_is_nobodys_until_its_listeners_have_heard_of_it(stage):
    s = stage(max_size=1)
    with door() as hearing:
        s.pool.listen(hearing, connpool.ConnectionOpened)
        caller = Caller(s.pool, timeout=20)
        hearing.until_entered()
        assert s.ears.of("CheckedOut") == []
        assert caller.is_waiting
        stats = balanced(s.pool)
        assert (stats.size, stats.idle) == (1, 0)
    caller.loan().release()
    check_lives(s.ears.heard)


def test_a_connection_that_comes_back_is_still_in_use_while_it_is_told(stage):
    s = stage(max_size=1)
    seen = []
    s.pool.listen(lambda event: seen.append(balanced(s.pool)), connpool.CheckedIn)
    conn = s.pool.try_connect()
    caller = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    conn.release()
    caller.loan().release()
    assert [(stats.in_use, stats.idle) for stats in seen] == [(1, 0)] * 2
    check_lives(s.ears.heard)


def test_a_connection_is_handed_to_nobody_before_its_return_was_told(stage):
    s = stage(max_size=1)
    conn = s.pool.try_connect()
    caller = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    with door() as hearing:
        s.pool.listen(hearing, connpool.CheckedIn)
        releaser = threading.Thread(target=conn.release)
        releaser.start()
        hearing.until_entered()
        assert caller.is_waiting
        assert len(s.ears.of("CheckedOut")) == 1
    releaser.join()
    caller.loan().release()
    check_lives(s.ears.heard)


@PROMPT
def test_the_end_of_a_connection_is_told_when_it_is_closed_and_before_another_takes_its_place(stage, prompt):
    """So who counts what was opened and what was closed never counts more than max_size."""
    s = stage("a:1", Works(prompt=prompt), max_size=1)
    seen = []
    s.pool.listen(lambda event: seen.append((s.works.n_open, s.works.dials)), connpool.ConnectionClosed)
    conn = s.pool.try_connect()
    caller = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    conn.terminate()
    caller.loan().release()
    assert seen == [(0, 1)]
    assert s.ears.kinds("ConnectionOpening", "ConnectionClosed") == [
        "ConnectionOpening",
        "ConnectionClosed",
        "ConnectionOpening",
    ]


def test_a_loan_is_in_use_when_it_is_told(stage):
    s = stage()
    seen = []
    s.pool.listen(lambda event: seen.append(balanced(s.pool).in_use), connpool.CheckedOut)
    for _ in range(2):
        s.pool.try_connect().release()
    assert seen == [1, 1]


def test_a_hand_over_is_told_as_a_return_and_then_a_loan(stage):
    s = stage(max_size=1)
    conn = s.pool.try_connect()
    callers = []
    for i in range(3):
        callers.append(Caller(s.pool, timeout=20))
        s.clock.until_waiting(i + 1)
    s.ears.forget()
    conn.release()
    for caller in callers:
        caller.loan().release()
    assert s.ears.kinds() == ["CheckedIn", "CheckedOut"] * 3 + ["CheckedIn"]


# -- real sockets ---------------------------------------------------------------------------------


def test_a_connection_the_server_closed_is_told_broken_and_another_opened():
    ears = Ears()
    with ScriptedServer(script=[Echo(times=1), Close()]) as server:
        with ConnectionPool(server.endpoint, look_after_idle=0, reap_interval=None, listeners=[ears]) as pool:
            for turn in range(3):
                with pool.try_connect() as conn:
                    conn.sendall(b"x", timeout=5)
                    assert conn.recv_exactly(1, timeout=5) == b"x"
                server.connections[turn].until_ended()
            assert [event.reason for event in ears.of("ConnectionClosed")] == [CloseReason.BROKEN] * 2
            stats = balanced(pool)
            assert stats.closed == {CloseReason.BROKEN: 2}
            assert stats.opened == server.accepts == len(ears.of("ConnectionOpened")) == 3
        check_lives(ears.heard)
        reasons = Counter(event.reason for event in ears.of("ConnectionClosed"))
        assert reasons == {CloseReason.BROKEN: 2, CloseReason.POOL_CLOSED: 1}


def test_a_dial_that_is_broken_off_by_a_shutdown_has_its_end_told():
    ears = Ears()
    with ScriptedServer() as server:
        server.black_hole()
        with ConnectionPool(server.endpoint, listeners=[ears]) as pool:
            caller = Caller(pool)
            ears.until("ConnectionOpening")
            pool.shutdown()
            caller.failure(ConnPoolError)
            ears.until("ConnectionClosed")
            assert [type(event).__name__ for event in ears.of("ConnectionOpened")] == []
    check_lives(ears.heard)
