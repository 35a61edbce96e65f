"""``python -m connpool demo``: what it shows, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading

import pytest

from connpool import ConnectionPool
from connpool.cli import line_server
from connpool.cli.crowd import Asker, Crowd
from connpool.cli.line_server import answer_to
from connpool.cli.main import main
from connpool.cli.outcome import Outage, is_success, summary
from connpool.cli.servers import ServerProcess
from connpool.testing import Answer, Reset, ScriptedServer, ServedConnection
from tests.helpers.architecture import ROOT
from tests.helpers.programs import LIMIT, is_running, processes_named_in, read_until, running


def read_some(terminal: int) -> bytes:
    """What the program painted; b"" when it has ended."""
    try:
        return os.read(terminal, 1_024)
    except OSError:  # how Linux says it
        return b""


def test_a_killed_server_costs_no_answer_and_serves_again() -> None:
    with running("demo", "--act", "1", "--seconds", "2", "--plain") as program:
        told, complaints = program.communicate(timeout=LIMIT)
    assert (program.returncode, complaints) == (0, b""), told.decode()
    for sign in (
        b"server B is killed",
        b"server B is back on",
        b" 0 wrong; 0 requests without",
        b"every answer was right",
    ):
        assert sign in told
    assert b"\r" not in told
    servers = processes_named_in(told)
    assert len(servers) == 4  # three, and the one that came back
    assert not any(map(is_running, servers))


def test_ctrl_c_ends_it_with_130_and_without_a_trace() -> None:
    with running("demo", "--act", "1", "--seconds", "60", "--plain") as program:
        told = read_until(program, b"turns/s")
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of the group
        rest, complaints = program.communicate(timeout=LIMIT)
    assert (program.returncode, complaints) == (130, b"")
    assert b"interrupted" in rest
    assert b" 0 wrong; 0 requests without an answer" in rest
    assert b"verdict" not in rest
    assert not any(map(is_running, processes_named_in(told)))


def test_on_a_terminal_one_line_is_painted_over() -> None:
    ours, its = pty.openpty()
    try:
        with running("demo", "--act", "1", "--seconds", "60", stdout=its) as program:
            os.close(its)
            told = b""
            while told.count(b"\r\x1b[K") < 3:
                told += read_some(ours)
            program.send_signal(signal.SIGINT)
            while more := read_some(ours):
                told += more
            assert program.wait(LIMIT) == 130
    finally:
        os.close(ours)
    assert told.count(b"turns/s") >= 2
    live = [line for line in told.split(b"\n") if b"turns/s" in line]
    assert len(live) == 1, "each of them replaced the one before"
    assert max(map(len, live[0].rstrip(b"\r").split(b"\r\x1b[K"))) == 59, "else it would wrap"


def test_it_ends_when_nobody_reads_what_it_says() -> None:
    with running("demo", "--act", "1", "--seconds", "60", "--plain") as program:
        told = read_until(program, b"turns/s")
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert (program.wait(LIMIT), program.stderr.read()) == (141, b"")
    assert not any(map(is_running, processes_named_in(told)))


def test_it_runs_where_standard_output_is_closed() -> None:
    command = f"exec {sys.executable} -m connpool demo --act 1 --seconds 0.5 --threads 2 >&-"
    ran = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, timeout=LIMIT, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize(
    "arguments",
    [[], ["dmeo"], ["demo", "--seconds", "0"], ["demo", "--seconds", "nan"], ["demo", "--threads", "many"]],
    ids=" ".join,
)
def test_a_mistake_in_the_arguments_gets_the_help_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m connpool" in capsys.readouterr().err


def test_the_help_is_followed_by_what_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--threads", "many"])
    assert "a whole number from 1 to 1000 expected, got 'many'" in capsys.readouterr().err


def test_servers_that_do_not_start_are_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    before = signal.getsignal(signal.SIGINT)
    assert main(["demo", "--plain", "--act", "1"]) == 1
    assert capsys.readouterr().err.startswith("server A did not start: ")
    assert signal.getsignal(signal.SIGINT) is before


# -- the servers


def test_a_server_that_was_killed_comes_back_on_its_port_as_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: (killed.append(self.pid), kill(self)))
    with ServerProcess("A", line_server.__file__) as server:
        endpoint, process = server.endpoint, server.pid
        server.kill()
        assert (killed, is_running(process)) == ([process], False)
        server.start()
        assert (server.endpoint, server.pid != process) == (endpoint, True)
        with socket.create_connection((endpoint.host, endpoint.port), timeout=LIMIT) as client:
            client.sendall(b"hello\n")
            assert client.recv(100).startswith(b"%d " % server.pid)
    assert not is_running(server.pid)


def test_ctrl_c_at_the_terminal_does_not_reach_the_servers() -> None:
    with ServerProcess("A", line_server.__file__) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_server_does_not_outlive_the_program_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "connpool.cli.line_server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert len(server.stdout.readline().split()) == 2
        server.stdin.close()  # what the end of the other process does
        assert server.wait(LIMIT) == 0


# -- who asks, and who judges


def answer_once_then_break(connection: ServedConnection) -> None:
    connection.send(answer_to(connection.request(b"\n")))
    connection.request(b"\n")
    connection.reset()


@pytest.mark.parametrize("lets_pool_repeat", [True, False])
def test_a_request_on_a_connection_that_breaks_is_answered_all_the_same(lets_pool_repeat: bool) -> None:
    with ScriptedServer(script=answer_once_then_break) as server, ConnectionPool(server.endpoint) as pool:
        asker = Asker(pool, 1, lets_pool_repeat=lets_pool_repeat)
        for _ in range(2):
            asker.ask(threading.Event())
        assert (asker.right, asker.wrong, asker.lost) == (2, 0, 0)
        assert asker.repeated_by_pool == (1 if lets_pool_repeat else 0)
        assert dict(asker.errors) == ({} if lets_pool_repeat else {"ConnectionResetError": 1})
        assert 0 < asker.slowest_repeated < LIMIT
        assert (asker.turns, dict(asker.served), [*asker.first_served_at]) == (
            2,
            {os.getpid(): 2},
            [os.getpid()],
        )
        assert b"".join(server.received) == b"1 1\n1 2\n1 2\n"


def test_an_answer_to_another_request_is_wrong_and_no_success() -> None:
    to_another = Answer(lambda request: answer_to(b"x" + request), delimiter=b"\n")
    with ScriptedServer(script=to_another) as server, ConnectionPool(server.endpoint) as pool:
        asker = Asker(pool, 1, lets_pool_repeat=True)
        asker.ask(threading.Event())
        assert (asker.right, asker.wrong, asker.turns) == (0, 1, 1)
        assert not asker.served
        assert not is_success([asker], Outage("B", served_at=1.0))
        assert "1 wrong answers" in summary([asker], pool.stats(), Outage("B", back_at=0.5), 1.0)


def test_a_request_that_is_never_answered_is_given_up_and_no_success() -> None:
    hurry = threading.Event()
    hurry.set()  # no pause between the attempts
    with ScriptedServer(script=Reset()) as server, ConnectionPool(server.endpoint) as pool:
        asker = Asker(pool, 1, lets_pool_repeat=False)
        asker.ask(hurry)
        assert (asker.right, asker.lost, asker.errors.total()) == (0, 1, 6)
        assert not is_success([asker], Outage("B", served_at=1.0))


def test_a_request_that_the_end_of_the_pool_cuts_off_is_lost_and_no_error() -> None:
    pool = ConnectionPool("127.0.0.1:1")
    pool.close()
    asker = Asker(pool, 1, lets_pool_repeat=False)
    asker.run(threading.Event())
    assert (asker.lost, dict(asker.errors)) == (1, {})


def test_a_server_that_never_serves_again_is_no_success() -> None:
    assert not is_success([], Outage("B", killed_at=1.0, back_at=2.0))
    assert is_success([], Outage("B", killed_at=1.0, back_at=2.0, served_at=3.0))


def test_a_crowd_asks_through_one_pool_and_ends_together() -> None:
    script = Answer(answer_to, delimiter=b"\n")
    with ScriptedServer(script=script) as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        with Crowd(pool, 6) as crowd:
            server.until_accepts(2)
        assert sum(asker.right for asker in crowd.askers) > 0
        assert sum(asker.wrong + asker.lost for asker in crowd.askers) == 0
        assert crowd.take_waits()
        assert crowd.take_waits() == []
        assert server.peak == 2
        assert {asker.slowest_repeated for asker in crowd.askers} == {0.0}, "nobody had to repeat"
