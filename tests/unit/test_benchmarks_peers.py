"""The other pools of the benchmarks, as far as they are installed, and what is told about them."""

import json
import socket
import subprocess
import sys
import threading

import pytest

from benchmarks import peers, pictures, strikes
from benchmarks.compare import versus_fair, versus_peers
from benchmarks.interrupts import strike
from benchmarks.lending import w3, w5
from benchmarks.outages import Log, Theirs, crowd
from benchmarks.peers.lifo_queue import Pool as LifoQueue
from benchmarks.plan import Plan
from benchmarks.race import Result, TimedResult, Track
from benchmarks.report import Curve, Gap, Row, Section, Unit
from benchmarks.summary import as_markdown
from benchmarks.workloads import WORKLOADS

BLINK = Plan(repeats=1, seconds=0.02, warm_up=0.01, peers=True)


@pytest.fixture(params=peers.PEERS)
def make(request):
    found = peers.find(request.param)
    if isinstance(found, peers.Missing):
        pytest.skip(found.why)
    return found


def test_a_peer_tells_how_it_is_used_and_in_what_it_is_better(make):
    assert make.name in peers.PEERS
    assert make.better
    assert __import__(make.__module__, fromlist=["Pool"]).__doc__


def test_a_peer_lends_each_connection_to_one_at_a_time_and_lends_it_again(make):
    pool = make(1)
    first = pool.get()
    pool.put(first)
    second = pool.get()
    pool.put(second)
    pool.close()


def test_a_peer_that_waits_serves_who_waits_and_another_says_that_it_does_not(make):
    pool = make(1)
    held = pool.get()
    served = threading.Event()
    failed = []

    def want():
        try:
            pool.take()()
        except RuntimeError as error:
            failed.append(error)
        served.set()

    other = threading.Thread(target=want)
    other.start()
    if make.waits:
        assert not served.wait(0.05)
    pool.put(held)
    other.join(10)
    pool.close()

    assert served.is_set()
    assert bool(failed) is not make.waits


def test_a_peer_counts_its_turns_by_the_bundle(make):
    running, track = [True], Track(range(5))
    pool = make(1)
    stopper = threading.Timer(0.02, running.clear)
    stopper.start()
    pool.spin(running, track)
    stopper.join()
    pool.close()

    assert track.turns > 0
    assert track.turns % 5 == 0


def test_a_peer_that_is_missing_says_why(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "nobody's", "nobodys")
    found = peers.find("nobody's")

    assert found.why.startswith("not installed (No module named")
    assert "nobody's" not in peers.here()
    assert peers.versions()["nobody's"] == found.why
    assert not peers.waits_when_full("nobody's")


def test_the_peers_stand_in_the_table_and_who_cannot_wait_says_so():
    findings = w3(BLINK)
    ratios = [row.what for row in findings if isinstance(row, Row) and row.who == "ours"]
    told = {gap.who for gap in findings if isinstance(gap, Gap)}

    assert "x queue.LifoQueue" in ratios
    assert told == {name for name, peer in peers.here().items() if not peer.waits}


def test_a_race_with_waits_leaves_what_the_pictures_are_drawn_from():
    kinds = {curve.what for curve in w5(BLINK) if isinstance(curve, Curve) and curve.who == "ours"}

    assert kinds == {"waits", "turns of each thread"}


def test_only_pools_that_starve_nobody_are_a_measure_of_waits():
    def waited(wait, served):
        return TimedResult(served, 1.0, waits=(wait,), hold=0.0, away=0.0)

    results = {
        "ours": [waited(2.0, (5, 5))],
        "floor C": [waited(0.5, (5, 5))],
        "queue.LifoQueue": [waited(0.1, (10, 0))],
        "psycopg_pool": [waited(4.0, (5, 5))],
    }
    (row,) = versus_fair(results)

    assert row.values == (0.5,)


def test_only_a_peer_that_waits_is_to_be_beaten():
    results = {
        "ours": [Result((4,), 1.0)],
        "floor A": [Result((9,), 1.0)],
        "queue.LifoQueue": [Result((2,), 1.0)],
    }
    (row,) = versus_peers(results, 2.0)

    assert (row.what, row.values, row.target.bound) == ("x queue.LifoQueue", (2.0,), 2.0)


def test_a_turn_that_failed_is_told_apart_from_one_that_did_not():
    class Failing:
        dials = 0
        turns = 0

        def turn(self, hold):
            self.turns += 1
            if self.turns % 2:
                raise ConnectionResetError
            hold("there")
            if self.turns == 6:
                done.set()

        def close(self):
            pass

    done = threading.Event()
    (log,) = crowd(Failing(), 1, lambda logs: done.wait(10))

    assert len(log.done) >= 3
    assert set(log.failed) == {None}
    assert isinstance(log, Log)


def test_a_peer_of_several_servers_goes_on_to_the_next_when_one_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as live, socket.create_server(("127.0.0.1", 0)) as dead:
        ports = [dead.getsockname()[1], live.getsockname()[1]]
        client = Theirs(LifoQueue, ports, 2)
        mute, _ = dead.accept()
        mute.close()

        def echo():
            conn, _ = live.accept()
            with conn:
                conn.sendall(conn.recv(64))

        server = threading.Thread(target=echo)
        server.start()
        asked = []
        client.turn(asked.append)
        server.join()
        client.close()

    assert asked == ports


def test_strikes_find_that_a_queue_loses_its_place_and_that_our_pool_does_not():
    theirs = strike((sys.executable, "benchmarks.peers.lifo_queue", "Pool"), 12)
    ours = strike((sys.executable, "benchmarks.adapters", "OursHeld"), 12)

    assert theirs["lost"] > 0
    assert ours["lost"] == ours["lost by signals"] == 0
    assert ours["struck"] == 12
    assert 0 < ours["struck by signals"] <= 12


# -- what is written


def document():
    row = {"values": [1.0], "min": 1.0, "max": 1.0, "unit": "count", "target": None}
    return {
        "began": "2026-01-01T00:00:00",
        "machine": {"cpus": 2, "cpu": "some processor"},
        "python": {"implementation": "CPython", "version": "3.11.7"},
        "commit": "abc",
        "peers": {"urllib3": "2.8.0", "pymongo": "not installed (whatever)"},
        "workloads": {
            "W13": {
                "rows": [
                    {**row, "who": who, "what": "lost by 1,000 signals", "median": median}
                    for who, median in (("ours", 0.0), ("urllib3", 545.0))
                ],
                "gaps": {},
                "curves": [],
            }
        },
    }


def test_the_caption_of_a_picture_names_the_machine_the_versions_and_the_commit():
    text = pictures.caption(document())

    assert "2 cores, some processor" in text
    assert "CPython 3.11.7" in text
    assert "connpool abc" in text
    assert text.endswith("urllib3 2.8.0")


def test_a_picture_is_drawn_for_each_workload_that_was_run(tmp_path):
    pytest.importorskip("matplotlib")
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(document()))
    # In a process of its own: matplotlib keeps its fonts open.
    subprocess.run(
        [sys.executable, "-m", "benchmarks.pictures", figures, tmp_path / "img"], cwd=strikes.ROOT, check=True
    )

    assert {path.name for path in (tmp_path / "img").iterdir()} == {"interrupts.png", "interrupts.svg"}


def test_the_table_for_people_has_a_line_for_each_contender_and_a_dash_for_what_it_lacks():
    lost = [Row("ours", "lost by 1,000 signals", Unit.COUNT, (0.0,))]
    turns = [Row(who, "turns", Unit.RATE, (2e6,)) for who in ("ours", "urllib3")]
    table = as_markdown([Section("W1", "?", tuple(turns)), Section("W13", "?", tuple(lost))])

    assert table.splitlines() == [
        "| | 1 thread | lost by 1,000 Ctrl-C |",
        "| --- | --- | --- |",
        "| ours | 2.00 M/s | 0 |",
        "| urllib3 | 2.00 M/s | - |",
    ]


ALONE = Plan(repeats=1, seconds=0.03, warm_up=0.02)


@pytest.mark.parametrize("name", ["W7", "W8", "W9"])
def test_a_workload_with_real_servers_has_figures_for_us_and_leaves_none_running(name):
    findings = WORKLOADS[name](ALONE)
    ours = {row.what: row.values for row in findings if isinstance(row, Row) and row.who == "ours"}
    told = [finding.why for finding in findings if isinstance(finding, Gap)]

    assert all(value >= 0 for values in ours.values() for value in values)
    assert ours or told
    if name == "W9":
        assert ours["dials"][0] >= 1
        assert ours["all served again after"][0] < 12  # as a rule 0.7; after 1.2 nobody waits any more
