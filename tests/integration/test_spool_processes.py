"""Several processes on one spool: each has its own messages, and what a dead one leaves goes to one heir."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connpool import SpoolCount, SQLiteSpool
from connpool.delivery import segment, sqlite_spool
from connpool.delivery.desk import Call
from connpool.delivery.keeper import Keeper
from connpool.pool.flock import Flock
from tests.helpers.architecture import ROOT
from tests.helpers.forks import fork, in_child
from tests.helpers.scripts import run_program
from tests.helpers.together import together

ALL = 10_000, 100_000_000
LIMIT = 20.0  # seconds

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs that tell what they do, line by line; each is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(text: str, *arguments: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-u", "-c", textwrap.dedent(text), *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it at once."""
    process.kill()
    process.wait(LIMIT)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def drain(spool: SQLiteSpool, queue: str = "a") -> list[bytes]:
    taken = []
    while items := spool.peek(queue, *ALL):
        taken += [item.message for item in items]
        spool.remove([item.position for item in items])
    return taken


PUT = """
    import sys
    from connpool import SQLiteSpool
    path, name, count = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
    spool = SQLiteSpool(path)
    for n in range(count):
        spool.put(["a"], b"%s %d" % (name, n), n.to_bytes(16))
    print("done")
    sys.stdin.readline()
"""


def test_a_third_process_gets_what_a_killed_one_left_and_nothing_of_the_living(path: Path, start) -> None:
    killed, living = start(PUT, path, "killed", 100), start(PUT, path, "living", 100)
    assert (hear(killed), hear(living)) == ("done", "done")
    kill(killed)

    spool = SQLiteSpool(path)
    assert spool.counts() == {"a": SpoolCount(100, 890, 0)}
    assert drain(spool) == [b"killed %d" % n for n in range(100)]
    assert spool.adopt() == {}
    kill(living)
    assert spool.adopt() == {"a": 100}
    assert drain(spool) == [b"living %d" % n for n in range(100)]
    spool.close()
    assert os.listdir(path.parent) in ([], ["spool.db"])


def test_what_a_dead_one_left_goes_to_one_of_several_heirs(path: Path, start) -> None:
    heirs = [SQLiteSpool(path, durable=False) for _ in range(4)]
    dead = [start(PUT, path, f"dead{i}", 50) for i in range(3)]
    assert [hear(process) for process in dead] == ["done"] * 3
    for process in dead:
        kill(process)

    adopted = together(*(heir.adopt for heir in heirs), limit=30)
    found = Counter(message for heir in heirs for message in drain(heir))

    assert sum(sum(each.values()) for each in adopted) == 150
    assert found == Counter(b"dead%d %d" % (i, n) for i in range(3) for n in range(50))
    for heir in heirs:
        heir.close()


LOOK = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute(sys.argv[2])
    print(connection.execute("SELECT count(*) FROM message").fetchone()[0])
    sys.stdin.readline()
    connection.execute("ROLLBACK" if connection.in_transaction else "SELECT 1")
    print("done")
    sys.stdin.readline()
"""


@pytest.mark.parametrize("statement", ["SELECT 1", "BEGIN"])
def test_an_operator_who_looks_at_what_a_killed_process_left_costs_no_message(
    path: Path, start, statement: str, monkeypatch
) -> None:
    monkeypatch.setattr(segment, "BUSY_TIMEOUT", 0.1)
    spool = SQLiteSpool(path)
    killed = start(PUT, path, "killed", 100)
    assert hear(killed) == "done"
    kill(killed)
    operator = start(LOOK, path.with_name("spool.db.2"), statement)
    assert hear(operator) == "100"

    adopted = spool.adopt().get("a", 0)
    assert adopted == (100 if statement == "SELECT 1" else 0)
    assert bool(adopted) is not any(name.startswith("spool.db.2") for name in os.listdir(path.parent))
    say(operator, "go on")
    assert hear(operator) == "done"
    assert adopted + spool.adopt().get("a", 0) == 100
    assert drain(spool) == [b"killed %d" % n for n in range(100)]
    spool.close()


def test_what_was_put_before_a_kill_is_there_and_what_was_removed_is_not(path: Path, start) -> None:
    """A sender that puts and removes and says so, killed at random moments and started again."""
    program = """
        import sys
        from connpool import SQLiteSpool
        spool = SQLiteSpool(sys.argv[1])
        n = int(sys.argv[2])
        while True:
            for _ in range(5):
                spool.put(["a", "b"], b"%d" % n, n.to_bytes(16))
                print("put", n)
                n += 1
            items = spool.peek("a", 3, 1000)
            print("removing", *(int(item.message) for item in items))
            spool.remove([item.position for item in items])
            print("removed", *(int(item.message) for item in items))
    """
    dice = random.Random(5)
    put: set[int] = set()
    removed: set[int] = set()
    removing: set[int] = set()
    for life in range(6):
        process = start(program, path, life * 1_000_000)
        assert hear(process).startswith("put"), "it must have begun"
        put.add(life * 1_000_000)
        timer = threading.Timer(dice.uniform(0.0, 0.05), process.kill)
        timer.start()
        assert process.stdout is not None
        said = process.stdout.readlines()
        timer.join()
        for line in said:
            word, *numbers = line.split()
            if line.endswith("\n"):
                {"put": put, "removed": removed, "removing": removing}[word].update(map(int, numbers))

    spool = SQLiteSpool(path)
    found = [int(item.message) for item in spool.peek("a", *ALL)]
    both = [int(item.message) for item in spool.peek("b", *ALL)]
    spool.close()
    assert spool.damage is None
    assert len(found) == len(set(found))
    assert removed.isdisjoint(found), "what was removed came again"
    assert put - removing <= set(found), "what was put is missing"
    assert put <= set(both)
    assert found == sorted(found)
    assert both == sorted(both)
    assert set(found) <= set(both), "a message came to one queue and not to the other"


def test_an_heir_that_is_killed_leaves_everything_to_the_next_once(path: Path, start) -> None:
    program = """
        import sys
        from connpool import SQLiteSpool
        spool = SQLiteSpool(sys.argv[1], durable=False)
        print("open")
        sys.stdin.readline()
        spool.adopt()
        print("adopted")
        sys.stdin.readline()
    """
    dice = random.Random(9)
    left = SQLiteSpool(path, durable=False)
    keeper = SQLiteSpool(path, durable=False)  # has the second file, so that heirs get others
    for n in range(3_000):
        left.put(["a"], b"%d" % n, n.to_bytes(16))
    heirs = [start(program, path) for _ in range(4)]
    assert [hear(heir) for heir in heirs] == ["open"] * 4
    left.close()
    for heir in heirs:
        say(heir, "adopt")
        timer = threading.Timer(dice.uniform(0.001, 0.08), heir.kill)
        timer.start()
        heir.wait(LIMIT)
        timer.join()

    while keeper.adopt():
        pass
    assert drain(keeper) == [b"%d" % n for n in range(3_000)]
    assert keeper.damage is None
    keeper.close()
    assert sorted(os.listdir(path.parent)) in ([], ["spool.db"], ["spool.db.2"])


def test_two_processes_mend_a_damaged_file_once(path: Path, start) -> None:
    first = SQLiteSpool(path)
    for n in range(20):
        first.put(["a"], b"%d" % n, n.to_bytes(16))
    first.close()
    with path.open("rb+") as file:
        file.write(b"damaged")
    program = """
        import sys
        from connpool import SQLiteSpool
        print("ready")
        sys.stdin.readline()
        spool = SQLiteSpool(sys.argv[1])
        spool.put(["a"], sys.argv[2].encode(), bytes(16))
        print(spool.count("a"), spool.damage is not None)
        sys.stdin.readline()
    """
    processes = [start(program, path, name) for name in ("x", "y")]
    assert [hear(process) for process in processes] == ["ready"] * 2
    for process in processes:
        say(process, "go")
    assert sorted(hear(process) for process in processes) == ["1 False", "21 True"]
    for process in processes:
        kill(process)

    assert len([name for name in os.listdir(path.parent) if "damaged" in name]) == 1
    spool = SQLiteSpool(path)
    spool.adopt()
    assert sorted(drain(spool)) == sorted([b"%d" % n for n in range(20)] + [b"x", b"y"])
    spool.close()


# -- fork ----------------------------------------------------------------------


def test_a_forked_child_has_a_file_of_its_own_and_leaves_the_parents_alone(path: Path) -> None:
    spool = SQLiteSpool(path)
    spool.put(["a"], b"parent", bytes(16))

    def child() -> tuple[list[bytes], int, list[str]]:
        spool.put(["a"], b"child", bytes(16))
        adopted = spool.adopt()
        return [item.message for item in spool.peek("a", *ALL)], len(adopted), sorted(os.listdir(path.parent))

    seen, n_adopted, names = in_child(child)
    assert (seen, n_adopted) == ([b"child"], 0)
    assert "spool.db.2" in names
    assert [item.message for item in spool.peek("a", *ALL)] == [b"parent"]
    spool.put(["a"], b"after", bytes(16))
    assert spool.adopt() == {"a": 1}, "the child has ended without closing"
    assert drain(spool) == [b"parent", b"after", b"child"]
    assert spool.damage is None
    spool.close()


def test_a_forked_child_never_closes_what_its_parent_has_open(path: Path) -> None:
    spool = SQLiteSpool(path)
    connection = spool._keeper.ledger.segment._connection

    def child() -> int:
        spool.put(["a"], b"child", bytes(16))
        spool.close()
        gc.collect()
        return connection.total_changes  # an error if it is closed

    assert in_child(child) == connection.total_changes
    spool.close()


def test_a_child_that_outlives_its_parent_takes_over_what_that_has_left(path: Path) -> None:
    """As a daemon does: what was put before the fork is the parent's until that is dead."""

    def parent() -> tuple[str, list[bytes]]:
        spool = SQLiteSpool(path)
        spool.put(["a"], b"before", bytes(16))
        own = os.getpid()
        wait = fork(lambda: child(spool, own))
        os.kill(own, signal.SIGSTOP)  # until the child has seen it alive
        del wait
        os._exit(0)

    def child(spool: SQLiteSpool, parent: int) -> None:
        spool.put(["a"], b"child", bytes(16))
        while Path(f"/proc/{parent}/stat").read_text().split()[2] != "T":
            pass
        first = spool.adopt()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            pass
        second = spool.adopt()
        spool.put(["a"], b"later", bytes(16))
        result.write_text(repr((first, second, drain(spool), spool.damage)))
        spool.close()
        done.write_text("done")

    result, done = path.parent / "result", path.parent / "done"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            parent()
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    waited = 0
    while not done.exists() and waited < 10_000:
        threading.Event().wait(0.001)
        waited += 1
    assert result.read_text() == "({}, {'a': 1}, [b'child', b'before', b'later'], None)"


def test_a_fork_waits_until_nobody_is_at_the_file(path: Path) -> None:
    spool = SQLiteSpool(path, durable=False)
    stop = threading.Event()

    def put() -> None:
        while not stop.is_set():
            spool.put(["a"], b"1", bytes(16))

    def child() -> list[bytes]:
        spool.put(["a"], b"2", bytes(16))
        return [item.message for item in spool.peek("a", *ALL)]  # those of earlier children too

    def forks() -> None:
        try:
            for _ in range(10):
                assert set(in_child(child)) == {b"2"}
        finally:
            stop.set()

    together(put, put, forks, limit=60)
    spool.adopt()
    messages = drain(spool)
    assert messages.count(b"2") == 10
    assert spool.damage is None
    spool.close()


def test_a_fork_does_not_come_in_the_midst_of_a_transaction(path: Path, monkeypatch) -> None:
    spool = SQLiteSpool(path, durable=False)
    begun, go_on = threading.Event(), threading.Event()
    is_at_it = [False]
    real = Keeper._attempt

    def attempt(keeper, segment, jobs) -> None:
        is_at_it[0] = True
        begun.set()
        assert go_on.wait(10)
        real(keeper, segment, jobs)
        is_at_it[0] = False

    monkeypatch.setattr(Keeper, "_attempt", attempt)

    def forks() -> bool:
        assert begun.wait(10)
        try:
            return bool(in_child(lambda: is_at_it[0]))
        finally:
            go_on.set()

    def watch() -> None:
        assert begun.wait(10)
        while not (spool._keeper.desk.loners or go_on.is_set()):
            threading.Event().wait(0.001)
        go_on.set()

    _, was_at_it, _ = together(lambda: spool.put(["a"], b"1", bytes(16)), forks, watch)
    assert not was_at_it
    spool.close()


def test_of_two_threads_that_fork_at_once_none_ends_what_the_other_holds(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_spool, "_ALL", Flock())  # no spool that another test has left to the collector
    spool = SQLiteSpool(path, durable=False)
    is_held, may_fork, begun = threading.Event(), threading.Event(), threading.Event()
    real = Call.end

    def end(call: Call) -> None:
        real(call)
        if call._desk is spool._adoption and threading.current_thread() is threading.main_thread():
            begun.set()
            assert is_held.wait(10)  # the other one has come before this one goes on

    def fork_too() -> None:
        assert begun.wait(10)
        sqlite_spool._before_fork()
        is_held.set()
        assert may_fork.wait(10)
        sqlite_spool._after_fork_in_parent()

    monkeypatch.setattr(Call, "end", end)
    other = threading.Thread(target=fork_too)
    other.start()
    sqlite_spool._before_fork()
    sqlite_spool._after_fork_in_parent()
    try:
        assert [job.thread for job in spool._keeper.desk.users] == [other.ident]
    finally:
        may_fork.set()
        other.join(10)
    assert not spool._keeper.desk.users
    spool.close()


def test_a_listener_that_forks_while_files_are_taken_over_keeps_others_from_the_file(path: Path) -> None:
    seen: list[int] = []

    def fork_here(event: object) -> None:
        sqlite_spool._before_fork()
        seen.extend(job.thread for job in spool._keeper.desk.users)
        sqlite_spool._after_fork_in_parent()

    spool = SQLiteSpool(path, durable=False, max_age=0.01, listener=fork_here)
    spool.put(["a"], b"1", bytes(16))
    threading.Event().wait(0.02)
    spool.adopt()
    assert seen == [threading.get_ident()]
    assert not spool._keeper.desk.users
    spool.close()


@pytest.mark.parametrize("is_used", [False, True])
def test_a_call_that_a_handler_has_forked_within_comes_to_nothing_in_the_child(
    path: Path, is_used: bool
) -> None:
    """Wherever in a put the handler strikes: the child writes nothing to the parent's file, nor twice."""
    program = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from connpool import SpoolError, SQLiteSpool
        def handler():
            global child
            child = os.fork()
            if not child and sys.argv[2] == "True":
                spool.put(["a"], b"in the handler", bytes(16))
        def trace(frame, event, argument):
            global left
            if "connpool" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = False
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    handler()
            return trace
        spool = SQLiteSpool(sys.argv[1])
        spool.put(["a"], b"0", bytes(16))
        n = 0
        while True:
            n += 3
            left, child = n, None
            sys.settrace(trace)
            try:
                spool.put(["a"], b"%d" % n, bytes(16))
                how = 0
            except SpoolError as error:
                how = 1 if "forked" in str(error) else 2
            sys.settrace(None)
            if child is None:
                break
            if child == 0:
                os._exit(how)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(n, how, status)
        print("over")
        spool.close()
    """
    ran = run_program(program, path, is_used, flags=())
    assert ran.err == ""
    *told, last = ran.out.splitlines()
    assert last == "over"
    steps = [[int(number) for number in line.split()] for line in told]
    assert len(steps) > 10
    assert [n for n, parent, _ in steps if parent] == []
    assert {child for _, _, child in steps} <= {0, 1}

    spool = SQLiteSpool(path)
    spool.adopt()
    messages = drain(spool)
    assert spool.damage is None
    spool.close()
    in_parent = [m for m in messages if m != b"in the handler"]
    first_cut_off = next(n for n, _, child in steps if child == 1)
    whole = [n for n, _, child in steps if child == 0 and n < first_cut_off]  # not begun, so begun anew
    assert sorted(map(int, in_parent)) == sorted([0, *range(3, 3 * len(steps) + 4, 3), *whole])
    assert messages.count(b"in the handler") == (len(steps) if is_used else 0)


def test_a_child_that_ends_as_programs_do_leaves_the_parents_file_whole(path: Path) -> None:
    program = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from connpool import SQLiteSpool
        spool = SQLiteSpool(sys.argv[1])
        for n in range(10):
            spool.put(["a"], b"%d" % n, bytes(16))
        if os.fork() == 0:
            if sys.argv[2] == "used":
                spool.put(["a"], b"child", bytes(16))
            sys.exit(0)
        os.wait()
        for n in range(10, 20):
            spool.put(["a"], b"%d" % n, bytes(16))
        if sys.argv[3] == "killed":
            os.kill(os.getpid(), 9)
    """
    for use in ("used", "unused"):
        for end in ("killed", "ended") if use == "used" else ("ended",):
            ran = run_program(program, path, use, end)
            assert ran.err == ""
            spool = SQLiteSpool(path)
            spool.adopt()
            messages = drain(spool)
            assert [m for m in messages if m != b"child"] == [b"%d" % n for n in range(20)], (use, end)
            assert messages.count(b"child") == (use == "used")
            assert spool.damage is None
            spool.close()


def test_an_upkeep_that_calls_adopt_often_notices_a_death_within_one_call(path: Path, start) -> None:
    spool = SQLiteSpool(path)
    process = start(PUT, path, "dead", 3)
    assert hear(process) == "done"
    assert spool.adopt() == {}
    kill(process)
    assert spool.adopt() == {"a": 3}
    spool.close()
