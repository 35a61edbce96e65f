"""The benchmarks measure what they say. No speed is asserted here, only that all of it is reported."""

import json
import math
from time import sleep

import pytest

from benchmarks import compare
from benchmarks.__main__ import main, measure
from benchmarks.adapters import Ours
from benchmarks.compare import interleave, spin_all
from benchmarks.floors import FloorA, FloorB
from benchmarks.plan import Plan
from benchmarks.race import Result, TimedResult, Track, race, spin, spin_timed
from benchmarks.report import (
    Curve,
    Gap,
    Row,
    Section,
    Unit,
    as_json,
    as_text,
    at_least,
    at_most,
    surroundings,
)
from benchmarks.workloads import WORKLOADS

BLINK = Plan(repeats=1, seconds=0.03, warm_up=0.01, idle=50)

FLOOR_B_AND_OURS = ("floor B", "ours")

TARGETS = {
    ("W1", "ours", "x floor A"): (">=", 0.55),
    ("W1", "ours, through with", "x floor A"): (">=", 0.45),
    ("W1", "ours, three endpoints", "x ours"): (">=", 0.7),
    ("W1", "ours, listened to", "x floor A"): (">=", 0.25),
    ("W2", "ours", "x floor A"): (">=", 2.5),
    ("W2", "ours, three endpoints", "x ours"): (">=", 0.7),
    ("W3", "ours", "x floor B"): (">=", 1.0),
    ("W4", "ours", "x floor B"): (">=", 2.5),
    ("W4", "ours", "p99 wait"): ("<=", 0.005),
    ("W4", "ours", "starved threads"): ("<=", 0),
    ("W5", "ours", "x ideal rate"): (">=", 0.97),
    ("W5", "ours", "p99 wait x ideal"): ("<=", 1.3),
    ("W5", "ours", "most / least served"): ("<=", 1.3),
    ("W5", "ours", "starved threads"): ("<=", 0),
    ("W6", "ours", "p99 wait x ideal"): ("<=", 1.5),
    ("W6", "ours", "starved threads"): ("<=", 0),
    ("C1", "ours", "x locked call"): (">=", 1 / 6),
    ("C2", "ours", "x ideal rate"): (">=", 0.95),
    ("memory", "ours", "per idle connection"): ("<=", 400),
}

HELD = (
    "turns",
    "mean hold",
    "x ideal rate",
    "p99 wait",
    "longest wait",
    "p99 wait x ideal",
    "most / least served",
    "starved threads",
    "processor a turn",
)

W1 = ("floor A", "floor B", "ours", "ours, through with", "ours, three endpoints", "ours, listened to")

ROWS = {
    "W1": [
        *((who, "turns") for who in W1),
        ("ours", "x floor A"),
        ("ours", "x floor B"),
        ("ours, through with", "x floor A"),
        ("ours, three endpoints", "x ours"),
        ("ours, listened to", "x floor A"),
        *((who, "processor a turn") for who in W1),
    ],
    "W2": [
        ("floor A", "turns"),
        ("floor B", "turns"),
        ("ours", "turns"),
        ("ours, three endpoints", "turns"),
        ("ours", "x floor A"),
        ("ours", "x floor B"),
        ("ours, three endpoints", "x ours"),
        *((who, "processor a turn") for who in ("floor A", "floor B", "ours", "ours, three endpoints")),
    ],
    "W3": [
        ("floor B", "turns"),
        ("ours", "turns"),
        ("ours", "x floor B"),
        ("floor B", "processor a turn"),
        ("ours", "processor a turn"),
    ],
    "W4": [
        ("floor B", "turns"),
        ("ours", "turns"),
        ("ours", "x floor B"),
        *(
            (who, what)
            for what in ("p99 wait", "longest wait", "starved threads", "processor a turn")
            for who in FLOOR_B_AND_OURS
        ),
    ],
    "W5": [(who, what) for what in HELD for who in ("floor B", "floor C", "ours")],
    "W6": [(who, what) for what in HELD for who in ("floor B", "floor C", "ours")],
    "C1": [("locked call", "turns"), ("ours", "turns"), ("ours", "x locked call")],
    "C2": [
        (who, what)
        for what in ("turns", "mean hold", "x ideal rate", "starved threads")
        for who in ("floor C", "ours")
    ],
    "memory": [("ours", "per idle connection")],
}


def timed(*, served=(1,), waits=(0.0,), hold=0.0, away=0.0):
    return TimedResult(served, 1.0, waits=waits, hold=hold, away=away)


@pytest.mark.parametrize("name", ROWS)
def test_each_workload_answers_its_question_with_every_row(name):
    section = measure(name, BLINK)

    assert section.question.endswith("?")
    assert ROWS[name] == [(row.who, row.what) for row in section.rows]
    assert {1} == {len(row.values) for row in section.rows}
    for row in section.rows:
        target = row.target and (row.target.sign, row.target.bound)
        assert TARGETS.get((name, row.who, row.what)) == target


def test_contenders_take_turns_round_by_round():
    runs = []
    results = interleave({"a": 1, "b": 2}, lambda contender: runs.append(contender) or len(runs), repeats=2)

    assert runs == [1, 2, 1, 2]
    assert results == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize("name", ["lock", "places"])
def test_the_threads_of_a_floor_contend_for_one_and_the_same_thing(name):
    class Counting:
        entered = 0

        def acquire(self):
            self.entered += 1
            running.clear()

        def release(self, *_):
            pass

        __enter__, __exit__ = acquire, release

    floor = FloorA(1) if name == "lock" else FloorB(1)
    shared = Counting()
    setattr(floor, name, shared)
    running, track = [True], Track(range(10))
    floor.spin(running, track)

    assert track.turns == 10
    assert shared.entered == (20 if name == "lock" else 10)
    assert len(floor.idle) == 1


def test_turns_are_counted_one_by_one_where_threads_wait_for_each_other(monkeypatch):
    bundles = []
    monkeypatch.setattr(compare, "spin", lambda *_, bundle: bundles.append(bundle))
    spin_all(BLINK, {"floor B": FloorB}, threads=8, size=8)
    spin_all(BLINK, {"floor B": FloorB}, threads=9, size=8)

    assert bundles == [10, 1]


def test_every_thread_of_a_race_counts_in_the_bundles_asked_for():
    class Noting(FloorA):
        def spin(self, running, track):
            bundles.append(track.bundle)

    bundles = []
    spin(Noting(2), 2, seconds=0.0, warm_up=0.0, bundle=7)

    assert bundles == [range(7), range(7)]


def test_only_turns_inside_the_window_are_counted():
    def work_early(running, track):
        track.turns += 1_000
        track.waits.append(9.0)
        while running:
            sleep(0.001)
        track.turns += 1_000
        track.waits.append(1.0)  # it may have begun inside the window: it belongs to it

    tracks, _, _ = race(work_early, threads=2, seconds=0.05, warm_up=0.5)

    assert [track.served for track in tracks] == [0, 0]
    assert [list(track.waits) for track in tracks] == [[1.0], [1.0]]


def test_turns_inside_the_window_are_counted():
    def work(running, track):
        while running:
            track.turns += 1
            sleep(0.001)

    tracks, seconds, _ = race(work, threads=2, seconds=0.1, warm_up=0.01)

    assert all(0 < track.served <= track.turns for track in tracks)
    assert all(track.served <= seconds / 0.001 + 1 for track in tracks)


def test_the_failure_of_one_thread_fails_the_race():
    def fail(running, track):
        raise LookupError("no such turn")

    with pytest.raises(LookupError, match="no such turn"):
        race(fail, threads=2, seconds=0.0, warm_up=0.0)


def test_a_timed_race_gives_back_all_it_took():
    floor = FloorB(2)
    result = spin_timed(floor, 4, seconds=0.02, warm_up=0.0, hold=0.001, away=0.001)

    assert len(floor.idle) == 2
    assert len(result.served) == 4
    # A turn whose wait was over before the window opened still counts: one at most for each thread.
    assert len(result.waits) >= sum(result.served) - 4
    assert result.hold >= 0.001
    assert result.away >= 0.001


def test_a_thread_with_under_a_hundredth_of_the_mean_starves():
    assert Result((100, 100, 1), 1.0).starved == 0
    assert Result((1000, 1000, 1), 1.0).starved == 1
    assert Result((0, 0), 1.0).starved == 2


def test_a_thread_that_is_never_served_makes_the_spread_endless():
    assert Result((4, 2), 1.0).most_to_least == 2.0
    assert math.inf == Result((4, 0), 1.0).most_to_least


def test_p99_is_what_all_but_one_of_a_hundred_checkouts_keep_within():
    result = timed(waits=tuple(float(wait) for wait in range(200, 0, -1)))

    assert result.p99_wait == 198.0
    assert result.longest_wait == 200.0


def test_the_ideal_wait_is_a_round_less_the_own_hold_and_the_time_away():
    there = timed(served=(1,) * 32, hold=1.5)
    elsewhere = timed(served=(1,) * 32, hold=1.5, away=1.0)

    assert there.ideal_wait(8) == 4.5
    assert elsewhere.ideal_wait(8) == 3.5
    assert there.ideal_rate(8) == 8 / 1.5


def test_the_median_decides_about_a_speed_and_every_round_about_a_rule():
    assert at_least(1.0).is_met([0.5, 1.0, 1.1])
    assert not at_least(1.0).is_met([0.5, 0.9, 1.1])
    assert at_most(0).is_met([0, 0, 1])
    assert not at_most(0, always=True).is_met([0, 0, 1])


def test_the_table_shows_each_row_with_its_range_and_its_target():
    rows = (
        Row("ours", "turns", Unit.RATE, (2e6, 1e6, 3e3)),
        Row("ours", "x floor A", Unit.RATIO, (0.5,), at_least(0.55)),
        Row("ours", "p99 wait", Unit.SECONDS, (0.004,), at_most(0.005)),
    )
    title, *lines = as_text(Section("W9", "Why?", rows)).splitlines()

    assert title == "W9  Why?"
    assert lines[0].split() == ["ours", "turns", "1.00", "M/s", "(3.0", "k/s", "to", "2.00", "M/s)"]
    assert lines[1].endswith(">= 0.55  MISSED")
    assert lines[2].endswith("<= 5.00 ms  met")


def test_what_a_contender_cannot_do_is_said_in_the_table_and_curves_are_kept_for_the_pictures():
    findings = (Gap("urllib3", "it has no such thing"), Curve("ours", "turns", ((1.0, 2.0),)))
    section = Section("W9", "Why?", findings)
    written = json.loads(as_json([section], {}, {}))["workloads"]["W9"]

    assert as_text(section).splitlines()[1].split(maxsplit=2) == ["urllib3", "-", "it has no such thing"]
    assert written["gaps"] == {"urllib3": "it has no such thing"}
    assert written["curves"] == [{"who": "ours", "what": "turns", "points": [[1.0, 2.0]]}]


def test_every_workload_begins_with_its_question():
    for name, workload in WORKLOADS.items():
        assert workload.__doc__.partition("\n")[0].endswith("?"), name


def test_the_json_says_where_it_was_measured_and_null_for_what_has_no_end():
    row = Row("ours", "most / least served", Unit.RATIO, (math.inf,), at_most(1.3))
    document = json.loads(as_json([Section("W9", "Why?", (row,))], {"repeats": 1}, surroundings()))

    assert {"began", "machine", "python", "commit", "plan", "workloads"} == document.keys()
    (shown,) = document["workloads"]["W9"]["rows"]
    assert shown["values"] == [None]
    assert shown["median"] is shown["min"] is shown["max"] is None
    assert shown["target"] == {"sign": "<=", "bound": 1.3, "met": False}


def test_a_run_by_hand_prints_what_was_asked_for_and_writes_it_down(tmp_path, capsys):
    path = tmp_path / "figures.json"

    assert main(["--quick", "--alone", "--repeats", "1", "--only", "memory,w3", "--json", str(path)]) == 0

    document = json.loads(path.read_text())
    assert list(document["workloads"]) == ["memory", "W3"]
    assert document["plan"]["repeats"] == 1
    printed = capsys.readouterr().out
    assert "per idle connection" in printed
    assert "x floor B" in printed


def test_a_workload_that_fails_is_told_and_the_others_run(monkeypatch, capsys):
    def fail(plan):
        """Why?"""
        raise LookupError("no such pool")

    monkeypatch.setitem(WORKLOADS, "W1", fail)

    assert main(["--quick", "--alone", "--repeats", "1", "--only", "W1,W3"]) == 0
    printed = capsys.readouterr().out
    assert "LookupError('no such pool')" in printed
    assert "x floor B" in printed


def test_with_upkeep_the_reaper_is_at_work_and_without_it_is_not(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(Ours, "is_kept_up", False)
    monkeypatch.setattr(Ours, "close", lambda self: (seen.append(self.pool.config), self.pool.close()))

    assert main(["--quick", "--alone", "--repeats", "1", "--only", "W3"]) == 0
    assert main(["--quick", "--alone", "--repeats", "1", "--only", "W3", "--upkeep"]) == 0

    without, kept_up = seen
    assert without.keepalive_interval is None
    assert (kept_up.min_idle, kept_up.keepalive_interval) == (1, 0.1)


@pytest.mark.parametrize("arguments", [["--only", "W1,W77"], ["--repeats", "0"], ["--quick", "--full"]])
def test_what_cannot_be_run_is_refused_before_anything_runs(arguments, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(arguments)

    assert refusal.value.code == 2
    assert not capsys.readouterr().out
