"""The test house itself: each helper catches what it is there to catch."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.architecture import ROOT
from tests.helpers.history import Entry, History
from tests.helpers.interrupts import (
    SignalStrike,
    Survey,
    at_every_bytecode,
    codes_of,
    needs_monitoring,
    struck,
    struck_at_random,
    worth_striking,
)
from tests.helpers.preemption import preempting
from tests.helpers.together import together

# -- leaks -----------------------------------------------------------------------

LEAKS = """
import socket, threading, time, warnings
from tests import conftest
conftest.GRACE = 0.5
kept = []

def test_a_thread():
    done = threading.Event()
    kept.append(done)
    threading.Thread(target=done.wait, name="forgotten", daemon=True).start()

def test_a_descriptor():
    kept.append(socket.socket())

def test_a_warning():
    warnings.warn("careless")

def test_a_thread_that_dies():
    def die():
        raise LookupError
    thread = threading.Thread(target=die)
    thread.start()
    thread.join()

def test_nothing_left():
    with socket.socket():
        thread = threading.Thread(target=int)
        thread.start()
    thread.join()

def test_a_thread_that_is_ending():
    threading.Timer(0.05, int).start()
"""


def test_a_leaked_thread_descriptor_or_warning_fails_a_test_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-rA"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    outcomes = set(re.findall(r"^(\w+) .*::(\w+)", ran.stdout, re.MULTILINE))
    assert outcomes == {
        ("PASSED", "test_a_thread"),
        ("ERROR", "test_a_thread"),  # at its end
        ("PASSED", "test_a_descriptor"),
        ("ERROR", "test_a_descriptor"),
        ("FAILED", "test_a_warning"),
        ("FAILED", "test_a_thread_that_dies"),
        ("PASSED", "test_nothing_left"),
        ("PASSED", "test_a_thread_that_is_ending"),
    }
    assert "threads left running: ['forgotten']" in ran.stdout
    assert "descriptors left open: [('" in ran.stdout


# -- together --------------------------------------------------------------------


def test_jobs_run_at_once_and_give_their_results_in_order() -> None:
    all_there = threading.Barrier(3)

    def job(i: int) -> int:
        all_there.wait(5)
        return i

    assert together(*(lambda i=i: job(i) for i in range(3))) == [0, 1, 2]


def test_what_a_job_raises_reaches_the_test() -> None:
    def fail() -> None:
        raise LookupError("in a thread")

    with pytest.raises(LookupError, match="in a thread"):
        together(fail, lambda: None)
    with pytest.raises(ExceptionGroup) as caught:
        together(fail, fail)
    assert len(caught.value.exceptions) == 2


def test_a_job_that_hangs_fails_the_test_and_says_where_it_stands() -> None:
    freed = threading.Event()
    with pytest.raises(AssertionError, match=r"still running after 0.1 s:\n(?s:.*)freed\.wait"):
        together(lambda: freed.wait(20), lambda: None, limit=0.1)
    freed.set()


def test_a_job_that_hangs_because_another_failed_says_how_that_one_failed() -> None:
    freed = threading.Event()

    def fail() -> None:
        raise LookupError("in a thread")

    with pytest.raises(AssertionError, match="still running") as caught:
        together(lambda: freed.wait(20), fail, limit=0.1)
    freed.set()
    assert isinstance(caught.value.__cause__, LookupError)


# -- preemption ------------------------------------------------------------------

CARELESS = """
class Counter:
    def __init__(self):
        self.value = 0

    def add(self):
        value = self.value
        value = value + 1
        self.value = value
"""


def careless_module(folder: Path) -> types.ModuleType:
    path = folder / "careless.py"
    path.write_text(CARELESS)
    module = types.ModuleType("careless")
    module.__file__ = str(path)
    exec(compile(CARELESS, str(path), "exec"), module.__dict__)
    return module


def count_together(counter: Any) -> int:
    def work() -> None:
        for _ in range(300):
            counter.add()

    together(work, work, work)
    return int(counter.value)


@pytest.mark.parametrize("seed", range(3))
def test_a_missing_lock_shows_under_preemption(tmp_path: Path, seed: int) -> None:
    careless = careless_module(tmp_path)
    with preempting(careless, chance=0.2, seed=seed):
        assert count_together(careless.Counter()) < 900


def test_preemption_also_touches_the_calling_thread_and_ends_with_its_block(tmp_path: Path) -> None:
    careless = careless_module(tmp_path)
    before = sys.gettrace(), threading.gettrace()
    with preempting(careless):
        assert sys.gettrace() is not before[0]
        assert threading.gettrace() is sys.gettrace()
    assert (sys.gettrace(), threading.gettrace()) == before


# -- history ---------------------------------------------------------------------


def history(text: str) -> History:
    """``"asked:A granted1:A"``: one event a second, each of a connection and a thread."""
    entries = []
    for at, word in enumerate(text.split()):
        what, _, thread = word.partition(":")
        event = what.rstrip("0123456789")
        entries.append(Entry(event, float(at), int(what[len(event) :] or 0), thread))
    return History(entries)


def test_an_orderly_history_passes() -> None:
    history(
        "asked:A opened1:A granted1:A asked:B asked:C left:C returned1:A granted1:B returned1:B closed1:B"
    ).check(max_open=1, patience=0)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("granted1:A granted1:B returned1:B", "while A holds it"),
        ("granted1:A returned1:A returned1:A", "by who does not hold it"),
        ("granted1:A returned1:B", "by who does not hold it"),
        ("granted1:A", "never came back from A"),
        ("granted1:A closed1:R returned1:A", "while A holds it"),
        ("opened1:A opened2:A opened3:A", "3 are open, 2 allowed"),
        ("asked:A asked:B granted1:B returned1:B granted1:A returned1:A", "overtaken 2 s earlier"),
        ("asked:A asked:B granted1:B returned1:B", "A was overtaken and never served"),
    ],
)
def test_a_fault_in_a_history_is_found(text: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        history(text).check(max_open=2, patience=1.0)


def test_a_waiter_that_is_soon_served_after_all_was_not_overtaken() -> None:
    history("asked:A asked:B granted1:B granted2:A returned1:B returned2:A").check(patience=1.0)
    history("asked:A asked:B granted1:B left:A returned1:B").check(patience=0)
    history("asked:A asked:B granted1:B returned1:B granted1:A returned1:A").check()


def test_a_history_notes_who_and_when() -> None:
    log = History()
    log.note("opened", 7)
    assert log.entries[0][::2] == ("opened", 7)
    assert log.entries[0].thread == threading.current_thread().name
    with pytest.raises(AssertionError, match="borrowed"):
        log.note("borrowed")


# -- interrupts ------------------------------------------------------------------


class Careless:
    """Loses its place if it is interrupted between taking and giving."""

    def __init__(self) -> None:
        self.taken = 0

    def turn(self) -> None:
        self.taken += 1
        self.taken -= 1


class Careful(Careless):
    """Writes its books with one store."""

    def turn(self) -> None:
        taken = self.taken + 1
        taken -= 1
        self.taken = taken


@pytest.mark.parametrize(("kind", "is_sound"), [(Careless, False), (Careful, True)])
def test_a_strike_at_every_bytecode_finds_the_one_that_hurts(kind: type[Careless], is_sound: bool) -> None:
    strikes = hurt = 0
    for strike in at_every_bytecode(kind.turn):
        thing = kind()
        with strike:
            thing.turn()
        strikes += strike.where is not None
        hurt += thing.taken != 0
    assert strikes >= 8
    assert (hurt == 0) is is_sound


def test_a_strike_swallows_its_own_interrupt_only_and_says_where_it_struck() -> None:
    def fail() -> None:
        raise LookupError

    strike, *_ = at_every_bytecode(fail, step=1000)
    with strike:
        fail()
    assert strike.where is not None
    assert "fail, line" in strike.where
    for strike in at_every_bytecode(Careless.turn):
        with pytest.raises(KeyboardInterrupt), strike:
            raise KeyboardInterrupt("somebody else's")


def test_a_strike_leaves_other_threads_alone() -> None:
    strike = next(at_every_bytecode(Careless.turn))
    with strike:
        together(Careless().turn)
    assert strike.where is None


def test_what_is_new_is_worth_striking_and_of_what_is_known_every_nth() -> None:
    code = Careless.turn.__code__
    places, known = [(code, offset) for offset in (1, 2, 1, 2, 1, 2, 3)], {(code, 2)}
    assert list(worth_striking(places, known, 2)) == [1, 3, 6, 7]
    assert known == set(places)
    assert list(worth_striking(places, known, 2)) == [3, 6]
    assert list(worth_striking(places, known, 100)) == [1, 2, 3, 4, 5, 6, 7]


@needs_monitoring
def test_a_survey_strikes_nowhere_and_its_strikes_are_where_signals_could() -> None:
    def call_twice() -> None:
        for _ in range(2):
            len("")

    with Survey(codes_of(call_twice)) as survey:
        call_twice()
    places = []
    for strike in survey.strikes(set(), 100):
        with strike:
            call_twice()
        places.append(strike.where)
    expected = []
    for strike in at_every_bytecode(call_twice, kind=SignalStrike):
        with strike:
            call_twice()
        expected.append(strike.where)
    assert [*places, None] == expected
    assert len(survey.places) == len(places) > len(set(places)) > 1  # the loop's come again


def test_the_code_of_classes_and_modules_is_found_with_all_that_is_nested() -> None:
    class Example:
        @property
        def prop(self) -> list[int]:
            return list(map(lambda x: x, [1]))  # noqa: C417 - the nested function is the point

        @staticmethod
        def static() -> None: ...

        @classmethod
        def of_class(cls) -> None: ...

    names = {code.co_name for code in codes_of(Example)}
    assert {"prop", "<lambda>", "static", "of_class"} <= names
    assert {"codes_of", "struck", "__enter__"} <= {
        code.co_name for code in codes_of(sys.modules[codes_of.__module__])
    }


def test_a_real_signal_strikes_a_job_that_waits_and_misses_one_that_is_done() -> None:
    began = time.monotonic()
    assert struck(lambda: threading.Event().wait(20), delay=0.01) is True
    assert struck(lambda: None, delay=20) is False
    assert time.monotonic() - began < 15


def test_an_interrupt_that_is_not_ours_goes_through() -> None:
    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        struck(press_ctrl_c, delay=20)


def test_random_signals_strike_at_different_places() -> None:
    reached = []

    def job() -> None:
        reached.append(0)
        while reached[-1] < 100_000_000:
            reached[-1] += 1

    assert struck_at_random(job, times=5, longest=0.02) == 5
    assert len(set(reached)) > 1
