"""Who listens hears what it asked for, and costs nothing when it is gone."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any, ClassVar

import pytest
from attrs import define

import connpool
from connpool import (
    CheckedIn,
    CheckedOut,
    CheckoutFailed,
    CheckoutStarted,
    Connection,
    ConnectionOpened,
    ConnectionPool,
    ConnPoolError,
    Endpoint,
    EndpointDown,
    Event,
    PoolClosed,
    PoolExhaustedError,
)
from connpool.pool import hearing
from connpool.pool.loan_events import InDraft, OutDraft, StartDraft
from connpool.testing import FakeClock
from tests.helpers.together import together
from tests.stress.stage import FIELDS, Ears, check_lives, make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Caller, Works, assert_whole, door

# -- listening and leaving ------------------------------------------------------------------------


@define
class Counts:
    """A handler that is equal to any other that has heard as much."""

    n: int = 0

    def __call__(self, _: Event) -> None:
        self.n += 1


def test_who_names_no_kind_hears_everything_and_who_names_some_hears_those(stage):
    s = stage()
    everything, loans, ends = Ears(), Ears(), Ears()
    s.pool.listen(everything)
    s.pool.listen(loans, connpool.CheckedOut, connpool.CheckedIn)
    s.pool.listen(ends, connpool.ConnectionClosed)
    s.pool.try_connect().release()
    s.pool.clear()
    assert everything.heard == s.ears.heard[1:]
    assert loans.kinds() == ["CheckedOut", "CheckedIn"]
    assert ends.kinds() == ["ConnectionClosed"]


def test_who_names_what_all_events_are_hears_everything_once_and_may_stop(stage):
    s = stage()
    ears = Ears()
    stop = s.pool.listen(ears, Event, connpool.CheckedOut)
    s.pool.try_connect().release()
    assert ears.heard == s.ears.heard[1:]
    stop()
    s.pool.clear()
    assert "PoolCleared" not in ears.kinds()


def test_listeners_given_at_construction_hear_everything_from_the_opening_on():
    first, second = Ears(), Ears()
    works = Works(prompt=True)
    with ConnectionPool("a:1", connector=works, listeners=(first, second)) as pool:
        pool.try_connect().release()
    assert first.heard == second.heard
    assert first.kinds()[0] == "PoolOpened"
    assert "PoolClosed" in first.kinds()


def test_of_takes_listeners_too():
    ears = Ears()
    with ConnectionPool.of(object, listeners=[ears]) as pool:
        pool.try_connect().release()
    assert ears.kinds()[0] == "PoolOpened"
    assert "CheckedIn" in ears.kinds()


def test_who_stopped_hears_no_more_and_stopping_twice_is_harmless(stage):
    s = stage()
    gone, stays = Ears(), Ears()
    stop = s.pool.listen(gone)
    s.pool.listen(stays)
    s.pool.try_connect().release()
    before = gone.kinds()
    stop()
    stop()
    s.pool.try_connect().release()
    assert gone.kinds() == before
    assert len(stays.heard) > len(before)
    assert stays.heard == s.ears.heard[1:]


def test_stopping_ends_one_listening_of_a_handler_and_not_its_others(stage):
    s = stage()
    ears = Ears()
    stop = s.pool.listen(ears, connpool.CheckedOut)
    s.pool.listen(ears, connpool.CheckedIn)
    stop()
    stop()
    s.pool.try_connect().release()
    assert ears.kinds() == ["CheckedIn"]


def test_stopping_ends_the_listening_of_that_handler_and_not_of_one_that_is_equal_to_it(stage):
    s = stage()
    first, second = Counts(), Counts()
    s.pool.listen(first, CheckedOut)
    s.pool.listen(second, CheckedOut)()
    s.pool.try_connect().release()
    assert (first.n, second.n) == (1, 0)


def test_a_kind_that_is_named_twice_is_heard_once(stage):
    s = stage()
    heard = []
    stop = s.pool.listen(heard.append, CheckedOut, CheckedIn, CheckedOut)
    s.pool.try_connect().release()
    assert [type(event) for event in heard] == [CheckedOut, CheckedIn]
    stop()
    s.pool.try_connect().release()
    assert len(heard) == 2


def test_a_handler_may_stop_itself_while_it_is_told(stage):
    s = stage()
    heard = []

    def once(event):
        heard.append(event)
        stop()

    stop = s.pool.listen(once)
    after = Ears()
    s.pool.listen(after)
    s.pool.try_connect().release()
    assert len(heard) == 1
    assert after.heard == s.ears.heard[1:], "who listens behind it misses nothing"


def test_a_handler_may_stop_all_others_while_it_is_told(stage):
    s = stage()
    stops = []

    def stop_all(event):
        for stop in stops:
            stop()

    ears = [Ears() for _ in range(3)]
    stops.append(s.pool.listen(ears[0]))
    s.pool.listen(stop_all)
    stops.append(s.pool.listen(ears[1]))
    stops.append(s.pool.listen(ears[2]))
    s.pool.try_connect().release()
    assert all(len(each.heard) <= 1 for each in ears)


def test_a_handler_that_adds_another_has_it_hear_what_comes_next(stage):
    s = stage()
    late = Ears()

    def add(event):
        if not late.heard and not stops:
            stops.append(s.pool.listen(late))

    stops = []
    s.pool.listen(add, connpool.CheckedOut)
    s.pool.try_connect().release()
    assert late.kinds()[-1] == "CheckedIn"
    assert late.kinds().count("CheckedIn") == 1


def test_stopping_does_not_wait_for_a_handler_that_hangs(stage):
    s = stage()
    with door() as hearing:
        stop = s.pool.listen(hearing, connpool.CheckedOut)
        caller = Caller(s.pool)
        hearing.until_entered()
        together(stop, limit=5)
        s.pool.try_connect(timeout=5).release()
        assert hearing.entered == 1
    caller.loan().release()


def test_who_begins_to_listen_while_loans_are_out_hears_of_their_return(stage):
    s = stage(listeners=())
    conn = s.pool.try_connect()
    id = conn.info.id
    s.clock.advance(2)
    s.pool.listen(s.ears)
    s.clock.advance(3)
    conn.release()
    assert s.story() == [("CheckedIn", id, 5.0)]


def test_who_stops_to_listen_while_loans_are_out_harms_none(stage):
    s = stage(listeners=())
    stop = s.pool.listen(s.ears)
    conn = s.pool.try_connect()
    stop()
    conn.release()
    assert s.ears.kinds()[-1] == "CheckedOut"
    assert_whole(s.pool, s.works)


def test_listening_to_a_closed_pool_is_harmless(stage):
    s = stage()
    conn = s.pool.try_connect()
    s.pool.close()
    ears = Ears()
    stop = s.pool.listen(ears)
    conn.release()
    stop()
    assert ears.kinds() == ["CheckedIn", "ConnectionClosed"]


def test_a_listener_keeps_no_forgotten_pool_alive():
    ears = Ears()
    pool = ConnectionPool("a:1", connector=Works(prompt=True), listeners=[ears])
    stop = pool.listen(ears)
    gone = weakref.ref(pool)
    del pool, stop
    gc.collect()
    assert gone() is None


# -- what it costs --------------------------------------------------------------------------------


OF_EVERY_DAY = {name for name in FIELDS if name.startswith(("Check", "Connection"))}


@pytest.fixture
def made(monkeypatch):
    """The names of the events that are made, whoever makes them."""
    names = []
    types = [(name, getattr(connpool, name)) for name in FIELDS]
    types += [("CheckoutStarted", StartDraft), ("CheckedOut", OutDraft), ("CheckedIn", InDraft)]
    for name, event_type in types:

        def init(self, *args, _original=event_type.__init__, _name=name, **kwargs):
            names.append(_name)
            _original(self, *args, **kwargs)

        monkeypatch.setattr(event_type, "__init__", init)
    return names


def live(pool, works, clock):
    """A bit of everything."""
    for _ in range(3):
        pool.try_connect().release()
    pool.try_connect().terminate()
    pool.blacklist(A)
    with contextlib.suppress(ConnPoolError):
        pool.try_connect()
    pool.unblacklist(A)
    pool.pause()
    pool.resume()
    pool.clear()
    with pool.try_connect():
        clock.advance(9)
        pool.sweep()


def test_with_nobody_listening_no_event_is_made(made):
    works, clock = Works(prompt=True), FakeClock()
    with ConnectionPool(
        Endpoint("a", 1), connector=works, clock=clock, warn_after=5, reap_interval=None
    ) as pool:
        live(pool, works, clock)
        stop = pool.listen(lambda event: None)
        pool.try_connect().release()
        assert "CheckedOut" in made, "the trap works"
        stop()
        made.clear()
        live(pool, works, clock)
    assert OF_EVERY_DAY.isdisjoint(made)


def test_what_nobody_asked_for_is_not_made(made):
    works, clock = Works(prompt=True), FakeClock()
    with ConnectionPool("a:1", connector=works, clock=clock, reap_interval=None) as pool:
        pool.listen(lambda event: None, connpool.PoolClosed)
        live(pool, works, clock)
    assert OF_EVERY_DAY.isdisjoint(made)


def test_without_the_gil_no_event_changes_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """There that stops all threads of the process until it is done."""

    def refuse() -> None:
        raise AssertionError("a draft")

    monkeypatch.setattr(hearing, "HAS_GIL", False)
    for draft in (StartDraft, OutDraft, InDraft):
        monkeypatch.setattr(hearing, draft.__name__, refuse)
    heard: list[Event] = []
    clock = FakeClock(start=5.0)
    with ConnectionPool.of(object, max_size=1, clock=clock, name="p") as pool:
        pool.listen(heard.append, CheckoutStarted, CheckedOut, CheckedIn)
        with pool.try_connect():
            clock.advance(2.0)
        endpoint = pool.endpoints()[0].endpoint
    assert heard == [
        CheckoutStarted("p", 5.0),
        CheckedOut("p", 5.0, 1, endpoint, 0.0),
        CheckedIn("p", 7.0, 1, 2.0),
    ]


@pytest.mark.parametrize("kind", [CheckoutStarted, CheckedOut, CheckoutFailed, CheckedIn])
def test_who_listens_to_one_kind_of_loan_events_alone_hears_of_it(kind: type[Event]) -> None:
    heard: list[Event] = []
    with ConnectionPool.of(object, max_size=1) as pool:
        pool.listen(heard.append, kind)
        with pool.try_connect(), pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)
    assert {type(event) for event in heard} == {kind}


def test_who_listens_to_other_things_has_loans_go_their_usual_way() -> None:
    with ConnectionPool.of(object, max_size=1) as pool:
        usual = pool.try_connect
        stop = pool.listen(lambda event: None, EndpointDown, ConnectionOpened, PoolClosed)
        assert pool.try_connect == usual
        also = pool.listen(lambda event: None, CheckedIn)
        assert pool.try_connect != usual
        stop()
        also()
        assert pool.try_connect == usual


def test_a_class_of_ones_own_is_told_of_and_lends_in_its_own_way() -> None:
    class Counting(ConnectionPool):
        labels: ClassVar[list[str]] = []

        def try_connect(self, *args: Any, label: str = "", **kwargs: Any) -> Connection:
            self.labels.append(label)
            return super().try_connect(*args, **kwargs)

    heard: list[type[Event]] = []
    with Counting.of(object, max_size=1, listeners=[lambda event: heard.append(type(event))]) as pool:
        pool.try_connect(timeout=1.0, label="mine").release()
        with pytest.raises(PoolExhaustedError), pool.try_connect():
            pool.try_connect(timeout=0, label="two")
    assert Counting.labels == ["mine", "", "two"]
    loans = [kind for kind in heard if kind in (CheckoutStarted, CheckedOut, CheckoutFailed, CheckedIn)]
    assert loans == [
        CheckoutStarted, CheckedOut, CheckedIn,
        CheckoutStarted, CheckedOut, CheckoutStarted, CheckoutFailed, CheckedIn,
    ]  # fmt: skip


def test_a_class_of_ones_own_lends_in_its_own_way_where_origins_are_kept_too() -> None:
    class Labelled(ConnectionPool):
        def try_connect(self, *args: Any, label: str = "", **kwargs: Any) -> Connection:
            conn = super().try_connect(*args, **kwargs)
            conn.extra = label
            return conn

    with (
        Labelled.of(object, track_origin=True) as pool,
        pool.try_connect(timeout=1.0, label="mine") as conn,
    ):
        assert conn.extra == "mine"


def test_several_who_hear_of_a_loan_get_one_and_the_same_event_and_one_that_fails_hinders_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise ValueError(type(event).__name__)

    kinds = (CheckoutStarted, CheckedOut, CheckedIn)
    with ConnectionPool.of(object, max_size=1) as pool:
        for handler in (heard.append, fail, heard.append):
            pool.listen(handler, *kinds)
        pool.try_connect().release()
        assert pool.stats().idle == 1
    assert [type(event) for event in heard] == [kind for kind in kinds for _ in range(2)]
    assert all(one is other for one, other in zip(heard[::2], heard[1::2], strict=True))
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        kind.__name__ for kind in kinds
    ]


@pytest.mark.parametrize("kind", [CheckoutStarted, CheckedOut, CheckedIn])
def test_a_loan_goes_on_though_its_only_listener_fails(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise ValueError("no")

    with ConnectionPool.of(object, max_size=1) as pool:
        pool.listen(fail, kind)
        for _ in range(2):
            pool.try_connect(timeout=1.0).release()
        assert (pool.stats().idle, pool.stats().opened) == (1, 1)
    failures = [record for record in caplog.records if record.name == "connpool.events"]
    assert len(failures) == 2
    assert kind.__name__ in failures[0].getMessage()


def test_who_hears_of_one_thing_alone_is_told_of_nothing_else() -> None:
    for kind in (CheckoutStarted, CheckedOut, CheckoutFailed, CheckedIn):
        heard: list[Event] = []
        with ConnectionPool.of(object, max_size=1) as pool:
            pool.listen(heard.append, kind)
            with pool.try_connect(), pytest.raises(PoolExhaustedError):
                pool.try_connect(timeout=0)
        assert {type(event) for event in heard} == {kind}
