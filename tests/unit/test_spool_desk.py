"""The desk: jobs of many threads, done by one of them."""

from __future__ import annotations

import gc
import itertools
import threading
from collections import deque
from collections.abc import Sequence

import pytest

from connpool import UsageError, clock
from connpool.delivery import desk as desks
from connpool.delivery.desk import PATIENCE, Call, Desk, Job
from tests.helpers.interrupts import Strike, codes_of
from tests.helpers.together import together


class Runner:
    """Does jobs, and waits in the first batch until the desk holds as many as are told."""

    def __init__(self, desk: Desk, wait_for: int = 0) -> None:
        self.desk = desk
        self.batches: list[list[Job]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        if not wait_for:
            self.go_on.set()

    def run(self, jobs: Sequence[Job]) -> None:
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.go_on.wait(10)
        for job in jobs:
            job.outcome = job.work(None)  # type: ignore[arg-type,misc]
            job.is_done = True
            job.wake()

    def let_go_when(self, jobs: int) -> None:
        while len(self.desk.jobs) < jobs:
            threading.Event().wait(0.001)
        self.go_on.set()


def test_one_thread_does_its_own_job() -> None:
    desk = Desk()
    assert desk.do(Job(lambda _: 7), Runner(desk).run) == 7
    assert not desk.jobs
    assert not desk.users


def test_who_has_the_file_does_what_the_others_want_and_each_has_its_own_outcome() -> None:
    desk = Desk()
    runner = Runner(desk, wait_for=5)

    def first() -> int:
        return int(desk.do(Job(lambda _: 0), runner.run))

    def later(n: int) -> int:
        assert runner.begun.wait(10)
        return int(desk.do(Job(lambda _: n), runner.run))

    outcomes = together(first, *(lambda n=n: later(n) for n in range(1, 5)), lambda: runner.let_go_when(5))

    assert outcomes[:5] == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in runner.batches] == [1, 4]


def test_an_error_is_raised_where_the_job_came_from() -> None:
    desk = Desk()

    def fail(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.error = LookupError("no")
            job.is_done = True

    with pytest.raises(LookupError, match="no"):
        desk.do(Job(lambda _: 1), fail)
    assert desk.do(Job(lambda _: 1), Runner(desk).run) == 1


def test_what_a_failed_leader_leaves_undone_the_next_does() -> None:
    desk = Desk()
    runner = Runner(desk)

    def die(jobs: Sequence[Job]) -> None:
        runner.begun.set()
        while len(desk.jobs) < 3:
            threading.Event().wait(0.001)
        raise KeyboardInterrupt

    def leader() -> str:
        with pytest.raises(KeyboardInterrupt):
            desk.do(Job(lambda _: "leader"), die)
        return "interrupted"

    def other(n: int) -> int:
        assert runner.begun.wait(10)
        return int(desk.do(Job(lambda _: n), runner.run))

    assert together(leader, lambda: other(1), lambda: other(2)) == ["interrupted", 1, 2]
    assert not desk.jobs
    assert not desk.users


def test_who_wants_the_file_alone_comes_before_those_who_come_later() -> None:
    desk = Desk()
    runner = Runner(desk, wait_for=3)
    order: list[str] = []

    def first() -> None:
        desk.do(Job(lambda _: order.append("first")), runner.run)

    def alone() -> None:
        assert runner.begun.wait(10)
        call = desk.hold()
        assert call is not None
        assert len(desk.users) == 1
        order.append("alone")
        call.end()

    def later() -> None:
        while len(desk.jobs) < 2:
            threading.Event().wait(0.001)
        desk.do(Job(lambda _: order.append("later")), runner.run)

    together(first, alone, later, lambda: runner.let_go_when(3))
    assert order == ["first", "alone", "later"]


def test_who_comes_while_another_wants_the_file_alone_does_not_have_it_though_nobody_has() -> None:
    desk = Desk()
    alone, later = Call(desk, job := Job(None)), Call(desk, Job(None))
    desk.loners.append(job)
    assert not later.has_file()
    assert alone.has_file()
    alone.end()
    assert later.has_file()


def test_who_waits_for_it_alone_may_give_up_and_leaves_it_to_the_others() -> None:
    desk = Desk()
    mine = desk.hold()
    assert mine is not None

    assert together(lambda: desk.hold(0)) == [None]
    assert together(lambda: desk.hold(0.01)) == [None]
    mine.end()
    mine.end()
    assert together(lambda: desk.do(Job(lambda _: 3), Runner(desk).run)) == [3]


def test_a_call_from_within_a_call_is_turned_away() -> None:
    desk = Desk()

    def nested(_: object) -> None:
        with pytest.raises(UsageError, match="from within"):
            desk.do(Job(lambda _: 1), Runner(desk).run)
        with pytest.raises(UsageError, match="from within"):
            desk.hold(0)

    desk.do(Job(nested), Runner(desk).run)
    assert not desk.jobs


def test_a_call_that_is_dropped_ends() -> None:
    desk = Desk()
    call: Call | None = desk.hold()
    assert desk.users
    del call
    assert not desk.users
    assert not desk.jobs
    assert not desk.loners


def test_an_interrupt_of_who_leaves_just_before_it_wakes_the_next_leaves_nobody_waiting() -> None:
    class Struck(Desk):
        def wake_next(self) -> None:
            if strikes:
                raise strikes.pop()
            super().wake_next()

    strikes = [KeyboardInterrupt()]
    desk = Struck()
    runner = Runner(desk, wait_for=2)

    def first() -> None:
        try:
            desk.do(Job(lambda _: 1), runner.run)
        except KeyboardInterrupt:
            return
        raise AssertionError("it was not struck")

    def later() -> None:
        assert runner.begun.wait(10)
        desk.do(Job(lambda _: 2), runner.run)

    together(first, later, lambda: runner.let_go_when(2))
    assert not desk.jobs
    assert not desk.users


def test_who_comes_with_another_that_leaves_in_that_very_moment_has_the_file() -> None:
    desk = Desk()
    other, mine = Call(desk, Job(None)), Call(desk, job := Job(None))

    class Users(deque[Job]):
        def append(self, coming: Job, /) -> None:
            if coming is job and not mine_has_looked:
                mine_has_looked.append(True)
                assert other.has_file()
            super().append(coming)

        def remove(self, leaving: Job, /) -> None:
            if leaving is job:
                other.end()  # it finds one that comes, and so wakes nobody
            super().remove(leaving)

    mine_has_looked: list[bool] = []
    desk.users = Users()
    assert mine.has_file()
    mine.end()
    assert not desk.users


@pytest.mark.parametrize("is_left_open", [False, True], ids=["", "a gate was left open"])
def test_who_has_the_file_waits_until_all_have_come_who_were_served_just_now(monkeypatch, is_left_open):
    monkeypatch.setattr(desks, "PATIENCE", 60.0)
    desk = Desk()
    runner = Runner(desk)
    known = threading.Event()
    if is_left_open:  # by one who came when nobody waited any more
        desk._all_here.release()

    def first() -> int:
        assert known.wait(10)
        desk._waits_until = clock.now() + 60
        return int(desk.do(Job(lambda _: 1), runner.run))

    def second() -> int:
        desk._served = frozenset([threading.get_ident()])
        known.set()
        while not desk.users:
            threading.Event().wait(0.0001)
        return int(desk.do(Job(lambda _: 2), runner.run))

    assert together(first, second) == [1, 2]
    assert [len(batch) for batch in runner.batches] == [2]


def test_who_has_the_file_does_not_wait_for_those_who_are_there(monkeypatch) -> None:
    monkeypatch.setattr(desks, "_wait", None)
    desk = Desk()
    runner = Runner(desk)
    other = Job(lambda _: 2)
    other.thread = -1
    desk.jobs[-1] = other
    desk._served = frozenset([-1])
    desk._waits_until = clock.now() + 60
    assert desk.do(Job(lambda _: 1), runner.run) == 1
    assert [len(batch) for batch in runner.batches] == [2]


def test_who_has_the_file_waits_for_nobody_who_was_served_long_ago_and_never_long(monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(desks, "_wait", lambda gate, seconds: waits.append(seconds))
    desk = Desk()
    for seconds, n_waits in ((0.0, 0), (1e9, 1)):  # a clock that was set back
        desk._served = frozenset([-1])
        desk._waits_until = clock.now() + seconds
        assert desk.do(Job(lambda _: 1), Runner(desk).run) == 1
        assert len(waits) == n_waits
    assert waits[0] <= PATIENCE


def test_served_just_now_are_those_of_the_last_two_batches_for_half_the_time_of_the_last(monkeypatch) -> None:
    desk = Desk()
    ticks = itertools.count(0, 2)
    monkeypatch.setattr(desks.clock, "now", lambda: float(next(ticks)))
    seen = []
    for threads in ([1, 2], [3], [4]):
        desk.jobs = {thread: Job(lambda _: 0) for thread in threads}
        for thread, job in desk.jobs.items():
            job.thread = thread
        desk._serve(Runner(desk).run)
        seen.append((set(desk._served), desk._waits_until))
    assert seen == [({1, 2}, 3.0), ({1, 2, 3}, 7.0), ({3, 4}, 11.0)]


def test_one_thread_alone_waits_for_nobody() -> None:
    desk = Desk()
    desk._all_here = None  # type: ignore[assignment]
    for n in range(3):
        assert desk.do(Job(lambda _, n=n: n), Runner(desk).run) == n
        desk._waits_until = clock.now() + 10
    assert desk._served == {threading.get_ident()}


def test_who_was_told_that_it_is_its_turn_and_leaves_tells_the_next() -> None:
    desk = Desk()
    mine = desk.hold()
    assert mine is not None
    gone, waiting = threading.Event(), Job(lambda _: 5)

    def leaves() -> None:
        job = Job(None)
        call = desk._join(job)
        job.gate = threading.Lock()
        job.gate.acquire()
        gone.set()
        assert job.gate.acquire(timeout=10), "it is told first"
        call.end()

    def waits() -> int:
        assert gone.wait(10)
        return int(desk.do(waiting_of_this_thread(waiting), Runner(desk).run))

    def ends() -> None:
        assert gone.wait(10)
        while waiting.gate is None:
            threading.Event().wait(0.001)

    holder = threading.Thread(target=lambda: (ends(), mine.end()))
    holder.start()
    assert together(leaves, waits)[1] == 5
    holder.join(10)


def waiting_of_this_thread(job: Job) -> Job:
    job.thread = threading.get_ident()
    return job


def test_who_looks_at_a_desk_that_a_loner_leaves_in_that_very_moment_has_the_file() -> None:
    class Left(deque[Job]):
        """Whoever looks whether there is one finds it, and it has gone when looked at."""

        def __bool__(self) -> bool:
            return True

    desk = Desk()
    desk.loners = Left()
    assert desk.do(Job(lambda _: 7), Runner(desk).run) == 7


def test_an_interrupt_as_a_call_ends_lets_the_next_have_the_file_all_the_same() -> None:
    for n in itertools.count(1):
        desk = Desk()
        call, waits = Call(desk, Job(None)), Job(lambda _: 7)
        assert call.has_file()
        waits.thread, waits.gate = -1, threading.Lock()
        waits.gate.acquire()
        next_call = Call(desk, waits)
        assert not next_call.has_file()
        with Strike(n, codes_of(Call.end, Desk.wake_next, Job.wake)) as strike:
            call.end()
        where = strike.where
        del call, strike
        gc.collect()  # the strike keeps its traceback, and that the strike
        assert waits.gate.acquire(timeout=0), where
        assert next_call.has_file()
        if where is None:
            assert n > 20
            return


def test_an_interrupt_just_as_others_are_to_be_told_that_they_are_done_leaves_none_of_them_waiting() -> None:
    desk = Desk()
    waits = Job(lambda _: 7)
    waits.thread, waits.gate = -1, threading.Lock()
    waits.gate.acquire()
    next_call = Call(desk, waits)

    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.is_done = True
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.do(Job(lambda _: 0), run)
    assert waits.gate.acquire(timeout=0)
    next_call.end()
