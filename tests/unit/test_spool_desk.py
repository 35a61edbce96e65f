"""The desk: jobs of many threads, done by one of them."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections import deque
from collections.abc import Sequence

import pytest

from connpool import UsageError, clock
from connpool.delivery import desk as desks
from connpool.delivery.desk import LATE, LONGEST, PATIENCE, SELDOM, Call, Desk, Job
from connpool.pool.piles import look_through
from tests.helpers.interrupts import SignalStrike, Strike, codes_of
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


class Sitter:
    """Another thread's call that waits at its gate; served unless it is told that it is not."""

    def __init__(self, desk: Desk, thread: int, *, is_done: bool = True, waits: bool = True) -> None:
        self.job = Job(lambda _: None)
        self.job.thread = -thread
        self.call = Call(desk, self.job)
        self.job.is_done = is_done
        if waits:
            self.job.gate = threading.Lock()
            self.job.gate.acquire()

    def is_woken(self) -> bool:
        return self.job.gate is not None and self.job.gate.acquire(timeout=0)


def test_who_leaves_wakes_the_next_who_was_served_and_the_last_of_them_who_was_not() -> None:
    desk = Desk()
    leader = desk.hold()
    assert leader is not None
    served, others = [Sitter(desk, n) for n in (1, 2, 3)], [Sitter(desk, n, is_done=False) for n in (4, 5)]
    sitters = served + others
    woken = []
    for leaving in (leader, *(sitter.call for sitter in served)):
        leaving.end()
        woken.append([sitter.is_woken() for sitter in sitters])
    assert woken == [[at == n for at in range(5)] for n in range(4)]
    assert others[0].call.has_file()
    others[0].call.end()
    assert others[1].is_woken()


def test_who_was_served_leaves_while_another_has_the_file_and_nobody_is_told_that_it_is_free() -> None:
    desk = Desk()
    served, waits, leader = Sitter(desk, 1), *(Sitter(desk, n, is_done=False) for n in (2, 3))
    assert leader.call.has_file()
    served.call.end()
    assert not waits.is_woken()
    leader.call.end()
    assert waits.is_woken()


def test_who_was_served_before_it_came_to_its_gate_finds_out_by_itself_and_keeps_nobody_from_being_told() -> (
    None
):
    desk = Desk()
    leader = desk.hold()
    assert leader is not None
    on_its_way, next_one = Sitter(desk, 1, waits=False), Sitter(desk, 2)
    leader.end()
    assert next_one.is_woken()
    assert on_its_way.job.gate is None


def test_who_was_told_and_does_not_get_on_keeps_nobody_from_being_told() -> None:
    desk = Desk()
    stuck = Sitter(desk, 1)
    for n in range(2, 5):
        served, leader = Sitter(desk, n), desk.hold(10)
        assert leader is not None
        leader.end()
        leader = desk.hold(10)
        assert leader is not None
        leader.end()
        assert served.is_woken()
        served.call.end()
    assert stuck.is_woken()


def test_who_was_served_and_is_not_told_leaves_all_the_same() -> None:
    desk = Desk()
    keeps = Sitter(desk, 1, is_done=False)
    assert keeps.call.has_file()
    job = Job(lambda _: None)

    def waits() -> bool:
        return desk._wait(Call(desk, waiting_of_this_thread(job)), job, None)

    def serves() -> None:
        while job.gate is None:
            threading.Event().wait(0.001)
        job.is_done = True

    assert together(waits, serves) == [True, None]


def test_who_comes_waits_until_all_have_left_who_were_served(monkeypatch) -> None:
    monkeypatch.setattr(desks, "PATIENCE", 60.0)
    desk = Desk()
    desk._leave_until = clock.now() + 60
    served = Sitter(desk, 1)
    runner = Runner(desk)

    def comes(n: int) -> int:
        return int(desk.do(Job(lambda _: n), runner.run))

    def leaves() -> None:
        while sum(job.gate is not None for job in look_through(desk.jobs)) < 4:
            threading.Event().wait(0.001)
        assert not runner.batches
        served.call.end()

    assert together(leaves, *(lambda n=n: comes(n) for n in (1, 2, 3)))[1:] == [1, 2, 3]
    assert [len(batch) for batch in runner.batches] == [3]


@pytest.mark.parametrize("look", [1, 2])
def test_who_was_served_and_leaves_as_another_comes_to_its_gate_keeps_it_from_nothing(
    monkeypatch, look
) -> None:
    monkeypatch.setattr(desks, "PATIENCE", 60.0)
    looks = itertools.count(1)

    class Looked(Desk):
        def _may_go(self, job: Job) -> bool:
            may_go = super()._may_go(job)
            if next(looks) == look:
                served.call.end()
            return may_go

    desk = Looked()
    desk._leave_until = clock.now() + 60
    served = Sitter(desk, 1)
    assert together(lambda: desk.do(Job(lambda _: 7), Runner(desk).run)) == [7]


def test_who_wants_the_file_alone_does_not_wait_for_those_who_were_served() -> None:
    desk = Desk()
    desk._leave_until = clock.now() + 60
    served = Sitter(desk, 1)
    call = desk.hold(0)
    assert call is not None
    call.end()
    assert served.is_woken()


def test_who_was_served_is_told_at_once_if_that_service_began_late_after_the_last(monkeypatch) -> None:
    times = iter((100.0, 110.0, 110.0 + 2.9 * LATE, 120.0, 120.0 + 3.1 * LATE, 130.0))
    monkeypatch.setattr(desks.clock, "now", lambda: next(times))
    desk = Desk()
    told = []
    for _ in range(3):
        sitters = [Sitter(desk, n, is_done=False) for n in (1, 2, 3)]
        desk._serve(Runner(desk).run)
        told.append([sitter.is_woken() for sitter in sitters])
        assert [sitter.job.is_told for sitter in sitters] == told[-1]
        for sitter in sitters:
            sitter.call.end()
    assert told == [[True] * 3, [False] * 3, [True] * 3]


def test_who_was_served_and_does_not_get_on_is_waited_for_no_longer_than_twice_the_service(
    monkeypatch,
) -> None:
    monkeypatch.setattr(desks, "LONGEST", 60.0)
    desk = Desk()
    runner = Runner(desk)
    stuck = Sitter(desk, 1)
    desk._leave_until = clock.now()
    assert desk.do(Job(lambda _: 7), runner.run) == 7
    stuck.call.end()

    ticks = iter((100.0, 103.0, 200.0, 300.0))
    monkeypatch.setattr(desks.clock, "now", lambda: next(ticks))
    seen = []
    for _ in range(2):
        desk._serve(runner.run)
        seen.append(desk._leave_until)
    assert seen == [109.0, 360.0]


def test_who_waits_looks_for_itself_ever_less_often_and_at_last_every_second(monkeypatch) -> None:
    waits: list[float] = []
    desk = Desk()
    job = Job(lambda _: None)

    def wait(gate: object, seconds: float) -> bool:
        waits.append(seconds)
        job.is_done = len(waits) == 6
        return False

    monkeypatch.setattr(desks, "wait", wait)
    keeps = Sitter(desk, 1, is_done=False)
    assert keeps.call.has_file()
    assert desk._wait(Call(desk, job), job, None)
    assert waits == [PATIENCE, 2 * PATIENCE, 4 * PATIENCE, 8 * PATIENCE, SELDOM, SELDOM]


def test_who_comes_and_waits_for_those_who_were_served_soon_looks_for_itself(monkeypatch) -> None:
    waits: list[float] = []
    desk = Desk()
    job = Job(lambda _: None)

    def wait(gate: object, seconds: float) -> bool:
        waits.append(seconds)
        desk._leave_until = clock.now()
        return False

    monkeypatch.setattr(desks, "wait", wait)
    stuck = Sitter(desk, 1)
    desk._leave_until = clock.now() + 60
    assert desk._wait(Call(desk, job), job, None)
    assert waits == [LONGEST]
    stuck.call.end()


def test_who_was_served_and_has_not_left_is_not_served_again() -> None:
    desk = Desk()
    runner, job = Runner(desk), Job(lambda _: 7)
    served = Sitter(desk, 1)
    desk.do(job, runner.run)
    assert runner.batches == [[job]]
    served.call.end()


def test_a_call_that_ends_late_leaves_the_next_call_of_its_thread_on_the_desk() -> None:
    desk = Desk()
    late, mine = Call(desk, Job(None)), Call(desk, Job(None))
    late.end()
    with pytest.raises(UsageError, match="from within"):
        desk.require_outside()
    mine.end()
    desk.require_outside()


def test_who_waits_for_the_file_alone_has_those_who_come_later_wait_though_nobody_has_it(monkeypatch) -> None:
    monkeypatch.setattr(desks, "PATIENCE", 60.0)
    desk = Desk()
    leader, comes = Sitter(desk, 1, is_done=False), Sitter(desk, 2, is_done=False)
    assert leader.call.has_file()

    def hold() -> None:
        call = desk.hold(10)
        assert call is not None
        call.end()

    def leave() -> None:
        while len(desk.jobs) < 3 or desk.jobs[2].gate is None:
            threading.Event().wait(0.001)
        desk.users.clear()  # nobody is told yet
        assert not comes.call.has_file()
        leader.call.end()

    together(hold, leave)
    assert comes.is_woken()


def test_who_leaves_wakes_who_wants_the_file_alone_before_who_came_earlier() -> None:
    desk = Desk()
    leader, earlier, alone = [Sitter(desk, n, is_done=False) for n in (1, 2, 3)]
    assert leader.call.has_file()
    desk.loners.append(alone.job)
    leader.call.end()
    assert [earlier.is_woken(), alone.is_woken()] == [False, True]
    alone.call.end()
    assert earlier.is_woken()


def test_who_leaves_wakes_who_comes_next_though_one_who_was_told_has_not_left() -> None:
    desk = Desk()
    stuck, leader, comes = Sitter(desk, 1), *(Sitter(desk, n, is_done=False) for n in (2, 3))
    stuck.job.is_told = True
    assert leader.call.has_file()
    leader.call.end()
    assert [stuck.is_woken(), comes.is_woken()] == [False, True]


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


@pytest.mark.parametrize("is_done", [False, True], ids=["who waits", "who was served"])
def test_an_interrupt_as_a_call_ends_lets_the_next_know_all_the_same(is_done: bool) -> None:
    for n in itertools.count(1):
        desk = Desk()
        call = Call(desk, Job(None))
        assert call.has_file()
        waits = Sitter(desk, 1, is_done=is_done)
        assert not waits.call.has_file()
        with Strike(n, codes_of(Call.end, Desk.wake_next, Job.wake)) as strike:
            call.end()
        where = strike.where
        del call, strike
        gc.collect()  # the strike keeps its traceback, and that the strike
        assert waits.is_woken(), where
        assert waits.call.has_file()
        if where is None:
            assert n > 20
            return


@pytest.mark.parametrize("name", ["do", "hold"])
def test_after_an_interrupt_the_job_is_off_the_desk_though_somebody_has_the_traceback(
    monkeypatch, name
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what strikes in a finaliser ends there
    for n in itertools.count(1):
        desk = Desk()
        runner = Runner(desk)
        with SignalStrike(n, codes_of(Call, Desk)) as strike:
            held = desk.do(Job(lambda _: None), runner.run) if name == "do" else desk.hold()
        if strike.where is None:
            assert n > 15
            if held is not None:
                held.end()
            return
        assert not [*desk.jobs, *desk.inside, *desk.users, *desk.loners], strike
        assert desk.do(Job(lambda _: 7), runner.run) == 7


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
