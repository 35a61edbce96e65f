"""The second act of ``python -m connpool demo``: what it shows, how it ends, and who takes part."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from connpool import Route
from connpool.cli import collector, main, second_act
from connpool.cli.audit import Audit, line_of
from connpool.cli.logbook import NAMES, Logbook, Sample, is_success, live_line, rates, summary
from connpool.cli.servers import ServerProcess
from connpool.cli.shipping import Shipper
from tests.helpers.architecture import ROOT
from tests.helpers.programs import LIMIT, is_running, processes_named_in, read_until, running
from tests.helpers.scripts import run_program

CLEAN = Audit((), (), {"A": 7, "B": 7, "C": 0}, {("A", "shipper"): 2})


def sample(at: float, accepted: int = 0, state: bool | None = True, unsent: int | None = 0) -> Sample:
    return Sample(at, accepted, dict.fromkeys(NAMES, state), dict.fromkeys((*NAMES, "any"), unsent))


# -- the whole


def test_every_line_is_where_it_was_due_whoever_is_killed() -> None:
    with running("demo", "--act", "2", "--seconds", "3", "--plain") as program:
        told, complaints = program.communicate(timeout=LIMIT)
    assert (program.returncode, complaints) == (0, b""), told.decode()
    for sign in (
        b"A is killed",
        b"the shipper is killed",
        b"the shipper is back",
        b"A and B and C are killed",
        b"missing     0\n",
        b"overtaken   0\n",
        b"every accepted line is in each log",
    ):
        assert sign in told, told.decode()
    assert b"turns/s" not in told, "the first act was not asked for"
    processes = processes_named_in(told)
    assert len(processes) == 4
    assert not any(map(is_running, processes))


def test_ctrl_c_ends_it_with_130_and_without_a_trace() -> None:
    with running("demo", "--act", "2", "--seconds", "60", "--plain") as program:
        told = read_until(program, b"lines/s")
        os.killpg(program.pid, signal.SIGINT)
        rest, complaints = program.communicate(timeout=LIMIT)
    assert (program.returncode, complaints) == (130, b"")
    assert b"interrupted" in rest
    assert b"verdict" not in rest
    assert not any(map(is_running, processes_named_in(told)))


def test_servers_that_do_not_start_are_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main.main(["demo", "--plain", "--act", "2"]) == 1
    assert capsys.readouterr().err.startswith("server A did not start: ")


@pytest.mark.parametrize(
    ("arguments", "outcomes", "status", "played"),
    [
        ([], (0, 0), 0, [1, 2]),
        (["--act", "1"], (0, 0), 0, [1]),
        (["--act", "2"], (0, 0), 0, [2]),
        ([], (1, 0), 1, [1, 2]),
        ([], (0, 1), 1, [1, 2]),
        ([], (130, 0), 130, [1]),
    ],
)
def test_both_acts_are_played_unless_one_is_asked_for_or_ctrl_c_ends_the_first(
    arguments: list[str],
    outcomes: tuple[int, int],
    status: int,
    played: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(main, "demo", lambda _: seen.append(1) or outcomes[0])
    monkeypatch.setattr(main, "second_act", lambda *_, **__: seen.append(2) or outcomes[1])
    assert main.main(["demo", *arguments]) == status
    assert seen == played


# -- what came of it


def test_it_is_a_success_if_lines_were_accepted_and_all_arrived_in_order() -> None:
    done, begun = Logbook(status=0), Logbook(status=3)
    lost = Audit(("shipper 1 is not at A",), (), CLEAN.received, {})
    late = Audit((), ("shipper 1 came to A after 2",), CLEAN.received, {})
    assert is_success(done, {1: 0}, CLEAN)
    assert "every accepted line" in summary(done, {1: 0}, CLEAN, 1.0)
    for log, accepted, found, why in (
        (done, {}, CLEAN, "no line was accepted"),
        (begun, {1: 0}, CLEAN, "the shipper ended with status 3"),
        (done, {1: 0}, lost, "1, the first: shipper 1 is not at A"),
        (done, {1: 0}, late, "1, the first: shipper 1 came to A after 2"),
    ):
        assert not is_success(log, accepted, found)
        told = summary(log, accepted, found, 1.0)
        assert "not as promised" in told
        assert why in told


def test_the_summary_counts_groups_kills_and_duplicates() -> None:
    log = Logbook(status=0, samples=[sample(0.0, unsent=5), sample(1.0, unsent=2)])
    log.kills.update(["A", "A", "shipper"])
    told = summary(log, {1: 0, 2: 0, 3: 1, 4: None}, CLEAN, 2.0)
    for matter in (
        "4 accepted in 2.0 s, by 2 processes",
        "2 by A && B, 1 by C, 1 by whichever came back first",
        "A 2x, shipper 1x",
        "20 copies at most; none in the end",
        "2 (A 2, B 0, C 0)",
    ):
        assert matter in told


def test_the_live_line_fits_and_shows_what_nobody_knows_as_unknown() -> None:
    known = live_line([sample(1_000.0, 0), sample(1_000.4, 40_000, state=False, unsent=10_000)])
    assert len(known) <= 79
    assert known.count("dead  10000") == 3
    assert live_line([sample(0.1, state=None, unsent=None)]).count("?") == 7


def test_a_rate_is_that_of_the_last_half_second() -> None:
    samples = [sample(0.0, 0), sample(0.25, 100), sample(0.5, 100), sample(1.0, 300)]
    assert rates(samples) == [0.0, 400.0, 200.0, 400.0]


# -- the picture


def test_a_picture_without_matplotlib_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "connpool.ext.plot", raising=False)
    monkeypatch.setattr(main, "demo", lambda _: pytest.fail("it has begun"))
    assert main.main(["demo", "--plot", str(tmp_path / "demo.svg")]) == 2
    assert "threaded-connpool[plot]" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(main, "demo", lambda _: pytest.fail("it was begun"))
    for path in (tmp_path, tmp_path / "none" / "demo.svg"):
        assert main.main(["demo", "--plot", str(path)]) == 2
        assert f"{path} cannot be written" in capsys.readouterr().err


def test_the_picture_shows_the_marks_and_everybody(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="threaded-connpool[plot] is not installed")
    path = tmp_path / "demo.svg"
    ran = run_program(  # matplotlib keeps its fonts open
        """
        import sys
        from pathlib import Path
        from connpool.cli.logbook import NAMES, Logbook, Sample
        from connpool.ext.plot import draw_delivery, spells

        log = Logbook(marks=[(1.0, "A killed")])
        for at, state in enumerate((True, False, None, None, True)):
            unsent = dict.fromkeys((*NAMES, "any"), None if state is None else at)
            log.samples.append(Sample(float(at), at * 10, dict.fromkeys(NAMES, state), unsent))
        log.draw(draw_delivery, Path(sys.argv[1]))
        print(list(spells([0, 1, 2, 3], [True, True, None, False])))
        """,
        path,
        flags=(),
    )
    assert (ran.status, ran.err) == (0, "")
    drawn = path.read_text("utf-8")
    for text in ("A killed", "unsent", "for any"):
        assert f"<!-- {text} -->" in drawn
    assert ran.out == "[(0, 2, True), (2, 3, None), (3, 3, False)]\n"  # a state lasts until the next one


# -- who takes part


def test_a_collector_acknowledges_what_is_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"torn by a ki")
    with ServerProcess("A", collector.__file__, f"--log={log}") as server:
        with socket.create_connection((server.endpoint.host, server.endpoint.port), LIMIT) as client:
            client.sendall(b"s 1\ns 2\ns ")
            with client.makefile("rb") as answers:
                assert [answers.readline(), answers.readline()] == [b"ok s 1\n", b"ok s 2\n"]
                assert log.read_bytes() == b"torn by a ki\ns 1\ns 2\n"
                client.sendall(b"3\n")
                assert answers.readline() == b"ok s 3\n"
        server.kill()
        server.start()
    assert log.read_bytes() == b"torn by a ki\ns 1\ns 2\ns 3\n\n"


def test_a_killed_shipper_goes_on_with_the_number_after_the_last_that_was_accepted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ServerProcess("A", collector.__file__, f"--log={log}") as server:
        with Shipper("s", Route.of(server.endpoint), tmp_path / "spool", rate=200) as shipper:
            for _ in range(2):
                before = len(shipper.accepted)
                shipper.start()
                with shipper.changed:
                    assert shipper.changed.wait_for(lambda n=before: len(shipper.accepted) > n + 5, LIMIT)
                shipper.kill()
                assert not is_running(shipper.pid)
            shipper.start()
            assert shipper.finish() == 0
        numbers = sorted(shipper.accepted)
        assert numbers == list(range(1, numbers[-1] + 1))
        assert set(shipper.accepted.values()) == {0}
        lines = log.read_bytes().split(b"\n")
        assert {line_of("s", number) for number in numbers} <= set(lines)


def test_a_shipper_does_not_outlive_the_program_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            *("-W", "error", "-m", "connpool.cli.shipper"),
            *("--route", "127.0.0.1:1", "--spool", str(tmp_path / "spool")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as shipper:
        assert shipper.stdin is not None
        shipper.stdin.close()
        assert shipper.wait(LIMIT) == 0
        assert shipper.stderr is not None
        assert shipper.stderr.read() == b""


def test_every_cue_kills_who_lives_and_brings_back_who_does_not() -> None:
    living = {"A", "B", "C", "shipper"}
    for cue in second_act.CUES:
        for name in cue.whom:
            assert (name in living) is (cue.deed == "kill"), cue
            living.symmetric_difference_update([name])
    assert living == {"A", "B", "C", "shipper"}
    moments = [cue.at for cue in second_act.CUES]
    assert moments == sorted(moments)
    assert moments[-1] < 1
