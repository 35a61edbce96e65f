"""What it costs to keep messages in a file: beside a bare database, from many threads, in memory."""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.compare import interleave, rates, versus
from benchmarks.plan import Plan, Workload
from benchmarks.race import Result, Running, Spinner, Track, spin
from benchmarks.report import Row, Unit, at_least, at_most
from connpool import SQLiteSpool

MESSAGE = b"x" * 100
QUEUE = "collector:7000"
BATCH = 100  # messages that are looked at and removed together
THREADS = 16
FULL = 10  # so many times the backlog for the memory


class Bare:
    """A table of messages, and a transaction for each, flushed to the disk."""

    def __init__(self, folder: Path) -> None:
        self.connection = sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, message BLOB)")

    def spin(self, running: Running, track: Track) -> None:
        execute = self.connection.execute
        while running:
            for _ in track.bundle:
                execute("BEGIN")
                execute("INSERT INTO message (message) VALUES (?)", (MESSAGE,))
                execute("COMMIT")
            track.turns += len(track.bundle)

    def close(self) -> None:
        self.connection.close()


class Ours:
    """A spool in a file. Threads may share it."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.spool = SQLiteSpool(folder / f"ours-{durable}.db", durable=durable)

    def spin(self, running: Running, track: Track) -> None:
        put, queues, id = self.spool.put, [QUEUE], os.urandom(16)
        while running:
            for _ in track.bundle:
                put(queues, MESSAGE, id)
            track.turns += len(track.bundle)

    def close(self) -> None:
        self.spool.close()


def spool(plan: Plan) -> list[Row]:
    """How many messages of 100 bytes are put on the disk, for each that a bare database takes?"""
    contenders: dict[str, tuple[Callable[[Path], Spinner], int]] = {
        "bare": (Bare, 1),
        "ours": (Ours, 1),
        "ours, 16 threads": (Ours, THREADS),
        "ours, not durable": (partial(Ours, durable=False), 1),
    }

    with folder() as where:

        def run(contender: tuple[Callable[[Path], Spinner], int]) -> Result:
            make, threads = contender
            spinner = make(where)
            try:
                return spin(spinner, threads, plan.seconds, plan.warm_up, bundle=1)
            finally:
                spinner.close()

        results = interleave(contenders, run, plan.repeats)
    return [
        *rates(results),
        versus(results, "ours", "bare", at_least(0.7)),
        versus(results, "ours, 16 threads", "bare", at_least(5.0)),
    ]


def drain(plan: Plan) -> list[Row]:
    """How fast are messages of 100 bytes taken out again, a hundred at a time?"""
    return [*rates(interleave({"ours": drain_all}, lambda run: run(plan.backlog), plan.repeats))]


def drain_all(count: int) -> Result:
    with filled(count) as kept:
        began = perf_counter()
        while items := kept.peek(QUEUE, BATCH, 1 << 20):
            kept.remove([item.position for item in items])
        return Result((count,), perf_counter() - began)


def weight(plan: Plan) -> list[Row]:
    """What does a process keep in memory for a message of 100 bytes that waits?"""
    count = plan.backlog * FULL
    before = resident()
    with filled(count) as kept:
        kept.peek(QUEUE, BATCH, 1 << 20)
        grown = resident() - before
    return [Row("ours", "per spooled message", Unit.BYTES, (grown / count,), at_most(100))]


@contextmanager
def filled(count: int) -> Iterator[SQLiteSpool]:
    """A spool with *count* messages."""
    with folder() as where:
        kept = SQLiteSpool(where / "filled.db", durable=False)
        try:
            kept.put([QUEUE], MESSAGE, os.urandom(16))
            while missing := count - kept.count(QUEUE):
                kept.move(QUEUE, [QUEUE] * 2, min(missing, 10_000))
            yield kept
        finally:
            kept.close()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


WORKLOADS: Mapping[str, Workload] = {"spool": spool, "spool-drain": drain, "spool-memory": weight}
