"""A pool that is listened to lends and takes back as every other does, though on ways of its own."""

from __future__ import annotations

import threading

import pytest

from connpool import CloseReason, ConnectionPool, Request
from connpool.pool import hearing
from connpool.testing import Echo, FakeClock, ScriptedServer, Send
from tests.stress.stage import Ears, make_stage  # noqa: F401 - a fixture


def turn(s):
    """Lend a connection and give it back; return its endpoint and its number."""
    with s.pool.try_connect() as conn:
        return str(conn.endpoint), conn.info.id


# -- lending


def test_endpoints_take_turns_though_each_connection_is_looked_at_first(stage):
    s = stage("a:1, b:1", max_size=4)
    turns = []
    for _ in range(6):
        turns.append(turn(s)[0])
        s.clock.advance(10)
    assert turns == ["a:1", "b:1"] * 3


def test_a_connection_that_is_used_up_is_lent_no_more(stage):
    s = stage(max_uses=2)
    assert [turn(s)[1] for _ in range(5)] == [1, 1, 2, 2, 3]
    assert s.pool.stats().closed == {CloseReason.USED_UP: 2}


def test_a_connection_that_expired_while_it_lay_idle_is_lent_no_more(stage):
    s = stage(max_lifetime=3, look_after_idle=1000, idle_timeout=None)
    assert turn(s)[1] == 1
    s.clock.advance(4)
    assert turn(s)[1] == 2
    assert s.pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_a_loan_begins_when_it_is_lent_and_has_the_name_of_the_thread_that_took_it(stage):
    s = stage()
    turn(s)
    s.clock.advance(0.25)
    holders = []

    def lend():
        with s.pool.try_connect():
            s.clock.advance(3)
            (info,) = s.pool.connections()
            holders.append((info.holder, info.since))

    thread = threading.Thread(target=lend, name="second")
    thread.start()
    thread.join()
    assert holders == [("second", s.ears.of("CheckedOut")[-1].at)]
    assert s.ears.of("CheckedIn")[-1].seconds == 3


@pytest.mark.parametrize("how", ["try_connect", "share"])
@pytest.mark.parametrize("listeners", [None, ()], ids=["heard", "unheard"])
@pytest.mark.parametrize("what", ["look", "filter"])
def test_what_it_takes_to_look_at_a_connection_is_no_part_of_its_loan(stage, what, listeners, how):
    s = stage(sharable=True, **({} if listeners is None else {"listeners": listeners}))
    turn(s)
    s.clock.advance(10)

    def dawdle(_):
        s.clock.advance(3)
        return True

    where = None
    if what == "look":
        s.works.looking = dawdle
    else:
        where = dawdle
    with getattr(s.pool, how)(Request(where=where)) as conn:
        assert conn.info.since == s.clock.now()
        s.clock.advance(2)
    if listeners is None:
        assert s.ears.of("CheckedOut")[-1].seconds == 3
        assert s.ears.of("CheckedIn")[-1].seconds == 2


def test_what_a_class_of_ones_own_does_before_it_lends_counts_as_waiting():
    clock, ears = FakeClock(), Ears()

    class Hesitant(ConnectionPool):
        def try_connect(self, *args, **kwargs):
            clock.advance(2)
            return super().try_connect(*args, **kwargs)

    with Hesitant.of(object, clock=clock, listeners=[ears]) as pool:
        began = clock.now()
        pool.try_connect().release()
        lent = ears.only("CheckedOut")
        assert (lent.seconds, lent.at) == (2, began + 2)


class StrikingClock(FakeClock):
    """Its *n*-th look from now on is interrupted."""

    n = 0

    def now(self):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt
        return super().now()


@pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")
def test_an_interrupt_just_as_a_connection_was_taken_holds_it_no_longer_though_it_is_itself_kept(stage):
    clock = StrikingClock()
    s = stage(max_size=1, clock=clock)
    turn(s)
    clock.n = 2
    with pytest.raises(KeyboardInterrupt) as kept:
        s.pool.try_connect()
    s.pool.sweep()
    assert kept.value.__traceback__ is not None
    assert (s.pool.stats().in_use, s.pool.stats().lost) == (0, 1)
    assert s.ears.kinds("CheckedOut", "CheckoutFailed")[-1] == "CheckoutFailed"


@pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")
@pytest.mark.parametrize("listeners", [(), (repr,)], ids=["unheard", "heard"])
def test_an_interrupt_just_as_a_loan_comes_back_holds_it_no_longer_though_it_is_itself_kept(stage, listeners):
    clock = StrikingClock()
    s = stage(max_size=1, clock=clock, listeners=listeners)
    conn = s.pool.try_connect()
    clock.n = 1
    with pytest.raises(KeyboardInterrupt) as kept:
        conn.release()
    s.pool.sweep()
    assert kept.value.__traceback__ is not None
    assert (s.pool.stats().in_use, s.pool.stats().lost) == (0, 1)


@pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")
def test_an_interrupt_while_it_is_kept_where_a_loan_was_taken_holds_it_no_longer(stage, monkeypatch):
    def strike(frame):
        raise KeyboardInterrupt

    s = stage(max_size=1, track_origin=True)
    turn(s)
    monkeypatch.setattr(hearing, "origin_of", strike)
    with pytest.raises(KeyboardInterrupt) as kept:
        s.pool.try_connect()
    s.pool.sweep()
    assert kept.value.__traceback__ is not None
    assert (s.pool.stats().in_use, s.pool.stats().lost) == (0, 1)


def test_origins_are_kept_for_as_long_as_they_are_asked_for(stage):
    s = stage(sharable=True)
    for is_tracked in (False, True, False):
        s.pool.configure(track_origin=is_tracked)
        for lend in (s.pool.try_connect, s.pool.share):
            for _ in range(2):  # by the fast path the second time
                with lend():
                    origin = s.pool.connections()[0].origin
                assert (__file__ in str(origin)) is is_tracked


# -- taking back


def test_a_connection_lies_idle_from_its_return_on(stage):
    s = stage()
    conn = s.pool.try_connect()
    s.clock.advance(3)
    conn.release()
    (info,) = s.pool.connections()
    assert info.idle_since == s.clock.now() == s.ears.only("CheckedIn").at


def test_a_connection_that_comes_back_with_bytes_that_nobody_read_is_closed():
    ears = Ears()
    with (
        ScriptedServer(script=[Send(b"one\ntwo\n"), Echo()]) as server,
        ConnectionPool(server.endpoint, listeners=[ears]) as pool,
    ):
        with pool.try_connect() as conn:
            assert conn.recv_until(b"\n", timeout=5) == b"one\n"
        assert ears.until("ConnectionClosed").reason is CloseReason.DIRTY
        assert ears.kinds("CheckedIn", "ConnectionClosed") == ["CheckedIn", "ConnectionClosed"]


@pytest.mark.parametrize("how", ["try_connect", "share"])
def test_however_many_loans_end_in_one_instant_how_long_they_took_is_kept_of_a_few_alone(stage, how):
    s = stage(sharable=True)
    for _ in range(1000):
        getattr(s.pool, how)().release()
    assert not s.pool._lender.books.timings.is_behind()
    assert s.pool.stats().hold.p50 == 0
