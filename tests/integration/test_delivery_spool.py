"""Messages outlive what happens to the program: limits, a kill at any moment, other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConnectionPool,
    Identified,
    Lines,
    LinkState,
    MemorySpool,
    NoEndpointError,
    SpoolError,
    SpoolFullError,
    SQLiteSpool,
    UsageError,
)
from tests.helpers.architecture import ROOT
from tests.helpers.sinks import (
    GUARD,
    Sink,
    SinkProcess,
    acknowledged,
    broadcasting,
    by_sender,
    check_ascending,
    first_comings,
    numbered,
    refused,
)
from tests.helpers.switchboard import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(params=["memory", "sqlite"])
def make_spool(request: pytest.FixtureRequest, path: Path) -> Any:
    def make(**settings: Any) -> Any:
        return MemorySpool(**settings) if request.param == "memory" else SQLiteSpool(path, **settings)

    return make


# -- limits


def test_limits_may_be_given_in_their_order(path: Path) -> None:
    spool = SQLiteSpool(path, 1, 100, "raise", False)
    with refused() as nobody, broadcasting(nobody, spool=spool) as sender:
        sender.broadcast(b"first")
        with pytest.raises(SpoolFullError):
            sender.broadcast(b"second")
    MemorySpool(1, 100, "raise").close()


def test_a_full_spool_drops_the_oldest_and_delivers_the_newest_in_order(a, make_spool):
    a.stop()
    with broadcasting(a, spool=make_spool(max_messages=10)) as sender:
        for message in numbered(15):
            sender.broadcast(message)
        assert sender.unsent().total == 10
        a.start()
        assert a.until_lines(10) == numbered(10, 5)


def test_a_limit_in_bytes_is_kept(a, make_spool):
    a.stop()
    with broadcasting(a, spool=make_spool(max_bytes=1_000)) as sender:
        for n in range(15):
            sender.broadcast(b"%03d" % n + b"." * 97)
        a.start()
        assert [line[:3] for line in a.until_lines(10)] == [b"%03d" % n for n in range(5, 15)]


def test_what_a_full_spool_refuses_was_not_accepted_and_what_it_has_is_delivered(a, make_spool):
    a.stop()
    with broadcasting(a, spool=make_spool(max_messages=5, on_full="raise")) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        for _ in range(3):
            with pytest.raises(SpoolFullError):
                sender.broadcast(b"too much")
        a.start()
        assert a.until_lines(5) == numbered(5)
        until(lambda: sender.unsent().total == 0)
        sender.broadcast(b"m-5")
        assert a.until_lines(6) == numbered(6)


def test_what_could_not_be_sent_is_the_oldest_again_when_a_full_spool_drops_some(a, make_spool):
    def never(*_: Any) -> None:
        raise OSError("no answer")

    spool = make_spool(max_messages=10)
    for number in range(5):
        spool.put([str(a.endpoint)], b"old", number.to_bytes(16))
    patient = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}
    with broadcasting(a, spool=spool, confirm=never, pool_settings=patient) as sender:
        until(lambda: sender.links()[0].last_error is not None, "an attempt")
        until(lambda: not sender._office.roster.links[str(a.endpoint)].is_tended)
        for message in numbered(10):
            sender.broadcast(message)
        left = spool.peek(str(a.endpoint), 100, 100_000) or spool.peek("", 100, 100_000)
        assert [each.message for each in left] == numbered(10)


def test_a_spool_filled_by_a_dead_member_does_not_cut_off_a_living_one(a, make_spool):
    with refused() as nobody:
        spool = make_spool(max_messages=5, on_full="raise")
        with broadcasting(a, nobody, spool=spool) as sender:
            refusals = [sender.broadcast(message).refused for message in numbered(300)]
            assert refusals[-1] == (nobody,)
            assert a.until_lines(300) == numbered(300)


def test_a_spool_that_fails_costs_no_copy_of_a_living_member(a):
    class Broken(MemorySpool):
        def put(self, *_: Any) -> Any:
            raise SpoolError("no space left on the device")

    with refused() as nobody, broadcasting(a, nobody, spool=Broken()) as sender:
        delivery = sender.broadcast(b"hello")
        assert (delivery.sent, delivery.refused, delivery.spooled) == ((a.endpoint,), (nobody,), ())
        a.until_has(b"hello")
        a.stop()
        until(lambda: not sender.ready)
        with pytest.raises(SpoolError, match="no space left"):
            sender.broadcast(b"lost")


def test_a_listener_that_sends_when_messages_were_dropped_does_no_harm(a):
    told: list[Any] = []

    def listener(event: Any) -> None:
        if not told:
            told.append(event)
            sender.broadcast(b"some were dropped")

    a.stop()
    spool = MemorySpool(max_messages=3, listener=listener)
    with broadcasting(a, spool=spool) as sender:
        for message in numbered(10):
            sender.broadcast(message)
        a.start()
        lines = a.until_lines(3)
        assert len(told) == 1
        assert lines[-1] == b"m-9"


# -- restarts


def test_what_was_unsent_is_sent_by_the_next_broadcaster_on_the_same_file(a, b, path):
    a.stop()
    with broadcasting(a, b, spool=SQLiteSpool(path)) as sender:
        for message in numbered(50):
            sender.broadcast(message)
        b.until_lines(50)
    a.start()
    with broadcasting(a, b, spool=SQLiteSpool(path)) as sender:
        sender.broadcast(b"m-50")
        assert a.until_lines(51) == numbered(51)
        assert b.until_lines(51) == numbered(51)


def test_ids_outlive_a_restart_so_that_a_receiver_knows_what_comes_twice(a, path):
    framing = Identified(Lines())
    a.stop()
    with broadcasting(a, spool=SQLiteSpool(path), framing=framing) as sender:
        ids = [sender.broadcast(message).id for message in numbered(5)]
    a.start()
    with broadcasting(a, spool=SQLiteSpool(path), framing=framing):
        got = [Identified.split(line) for line in a.until_lines(5)]
    assert got == list(zip(ids, numbered(5), strict=True))
    assert len(set(ids)) == 5


def test_a_message_that_is_sent_at_once_goes_with_its_id_too(a):
    with broadcasting(a, framing=Identified(Lines())) as sender:
        assert sender.wait_ready(GUARD)
        ids = [sender.broadcast(message).id for message in numbered(3)]
        assert [Identified.split(line) for line in a.until_lines(3)] == list(
            zip(ids, numbered(3), strict=True)
        )
        assert len(set(ids)) == 3


def test_two_broadcasters_on_one_file_have_files_of_their_own(a, path):
    a.stop()
    with (
        broadcasting(a, spool=SQLiteSpool(path)) as first,
        broadcasting(a, spool=SQLiteSpool(path), pool_settings={"name": "other"}) as second,
    ):
        for one, other in zip(numbered(20, who="s"), numbered(20, who="t"), strict=True):
            first.broadcast(one)
            second.broadcast(other)
        a.start()
        lines = a.until_lines(40)
        check_ascending(lines)
        until(lambda: first.unsent().total + second.unsent().total == 0)
        assert len(a.lines) == 40


def test_a_spool_is_closed_with_its_broadcaster_and_not_before(a, make_spool):
    spool = make_spool()
    with broadcasting(a, spool=spool) as sender:
        with pytest.raises(UsageError):
            Broadcaster(sender.pool, spool=spool)
        sender.broadcast(b"hello")
        assert spool.count("") == 0
    with pytest.raises(SpoolError, match="closed"):
        spool.count("")


# -- the program is killed

SENDER = textwrap.dedent(
    """
    import sys
    from connpool import Broadcaster, ConnectionPool, Lines, SQLiteSpool
    path, route, who, first, n = sys.argv[1:6]
    def confirm(conn, message):
        assert conn.recv_until(b"\\n", 1000, timeout=10) == b"got " + message + b"\\n"
    pool = ConnectionPool(route, blacklist_initial=0.02, blacklist_max=0.05)
    sender = Broadcaster(
        pool, spool=SQLiteSpool(path), framing=Lines(), write_ahead=True, confirm=confirm
    )
    for number in range(int(first), int(first) + int(n)):
        sender.broadcast(f"{who}-{number}".encode())
        print(number, flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
    sender.close(10)
    """
)


class Sender:
    """A sender in a process of its own.

    Attributes:
        accepted: How many messages ``broadcast`` has accepted.
    """

    def __init__(self, path: Path, route: Any, who: str, first: int, n: int, *options: str) -> None:
        arguments = [str(each) for each in (path, route, who, first, n, *options)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SENDER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.accepted = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            self.accepted += 1

    def until_accepted(self, n: int) -> None:
        until(lambda: self.accepted >= n, f"the acceptance of {n}, not only {self.accepted},")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(2 * GUARD)
        self._reader.join(GUARD)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_a_kill_at_any_moment_loses_nothing_that_was_accepted(path, tmp_path):
    with SinkProcess(tmp_path / "log") as server:
        accepted: set[bytes] = set()
        for n in (1, 7, 23, 60):
            first = 1_000 * n
            sender = Sender(path, server.endpoint, "m", first, 1_000)
            sender.until_accepted(n)
            sender.kill()
            accepted |= set(numbered(sender.accepted, first))
        with broadcasting(server, spool=SQLiteSpool(path), confirm=acknowledged) as heir:
            until(lambda: accepted <= set(server.lines), "all that was accepted")
            assert heir.flush(GUARD) == 0
        check_ascending(first_comings(server.lines))
        again = sorted(int(line[2:]) for line, times in Counter(server.lines).items() if times > 1)
        for life in (1, 7, 23, 60):  # what was on its way at a kill: one, or a batch that waited
            twice = [number for number in again if number // 1_000 == life]
            assert twice == [*range(min(twice, default=0), max(twice, default=-1) + 1)]
        assert len(again) < 40, again


def test_a_kill_between_sending_and_removing_brings_the_message_again(path, a):
    """The receiver does not answer, so the message cannot leave the spool before the kill."""
    sender = Sender(path, a.endpoint, "m", 0, 1)
    a.until_lines(1)
    sender.kill()
    assert sender.accepted == 0
    with broadcasting(a, spool=SQLiteSpool(path)) as heir:
        assert a.until_lines(2) == [b"m-0", b"m-0"]
        assert heir.flush(GUARD) == 0


def test_a_killed_process_s_messages_are_adopted_once_by_one_that_lives(path, tmp_path):
    with SinkProcess(tmp_path / "log") as server:
        server.kill()  # nobody can take anything
        doomed = Sender(path, server.endpoint, "d", 0, 50, "wait")
        doomed.until_accepted(50)
        alive = Sender(path, server.endpoint, "l", 0, 50, "wait")
        alive.until_accepted(50)
        doomed.kill()
        server.start()
        lines = server.until_lines(100)
        alive.end()
        assert len(server.lines) == 100
        assert by_sender(lines) == {b"d": list(range(50)), b"l": list(range(50))}


# -- without one


def test_without_a_spool_nothing_is_accepted_that_nobody_has(a):
    with broadcasting(a, spool=None) as sender:
        accepted = []
        for n, message in enumerate(numbered(200)):
            if n == 50:
                a.until_lines(50)
                a.refuse()
                a.kill()
            if n == 100:
                a.start()
                assert sender.wait_ready(GUARD)
            try:
                sender.broadcast(message)
            except NoEndpointError:
                continue
            accepted.append(message)
        a.until_has(b"m-199")
        assert set(numbered(50)) | set(numbered(100, 100)) <= set(accepted)
        assert set(a.lines) == set(accepted)


def test_what_was_looked_at_and_not_confirmed_may_be_dropped_again():
    """It is released: while it is claimed a full spool refuses what is new."""
    refusals, released = iter([False, False, True]), list[int]()

    class Noting(MemorySpool):
        def release(self, positions: Sequence[int]) -> None:
            released.append(len(positions))
            super().release(positions)

    def confirm(conn: object, message: bytes) -> None:
        if next(refusals, False):
            raise ValueError("not taken")

    with Sink() as a:
        a.stop()
        with broadcasting(a, spool=Noting(max_messages=5), confirm=confirm) as sender:
            for message in numbered(5):
                sender.broadcast(message)
            a.start()
            assert sender.flush(GUARD) == 0
            assert released == [3]


def test_a_pool_of_something_else_than_sockets_is_refused_with_a_reason():
    pool = ConnectionPool.of(object, blacklist_initial=1_000, blacklist_max=1_000)
    pool.route = "a:1"
    with pool, Broadcaster(pool, spool=MemorySpool()) as sender:
        until(lambda: sender.links()[0].state is LinkState.DEAD)
        assert "is not a socket" in str(sender.links()[0].last_error)
        until(lambda: pool.stats().size == 0)
        assert (pool.stats().lost, pool.stats().closed.total()) == (0, 1)
