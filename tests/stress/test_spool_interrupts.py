"""Ctrl-C at any moment of a call to a spool loses no message and leaves nobody waiting."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import connpool.wire.disk
from connpool import SQLiteSpool
from connpool.delivery import (
    books,
    checkup,
    desk,
    heirs,
    keeper,
    ledger,
    limits,
    mend,
    rows,
    salvage,
    segment,
    sqlite_spool,
)
from tests.conftest import open_files
from tests.helpers.interrupts import SignalStrike, codes_of, struck_at_random

MODULES = books, checkup, desk, heirs, keeper, ledger, limits, mend, rows, salvage, segment, sqlite_spool
MEMORY = Path("/dev/shm")
ALL = 1_000, 1_000_000
ENOUGH = 60  # strikes for each deed


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def in_finalisers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An interrupt that strikes in a finaliser ends there, which is Python's way; nothing else may."""
    raised: list[BaseException | None] = []

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        if not isinstance(args.exc_value, KeyboardInterrupt | ResourceWarning):
            raised.append(args.exc_value)

    monkeypatch.setattr(sys, "unraisablehook", on_unraisable)
    yield
    assert not raised


class Scene:
    """A spool with some messages, another one that was closed with some, and what was promised so far."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        self.path = folder / "spool.db"
        self.spool = SQLiteSpool(self.path, durable=False)
        self.promised: Counter[bytes] = Counter()
        self.removed: Counter[bytes] = Counter()
        for n in range(3):
            self.put(b"old %d" % n)

    def put(self, message: bytes) -> None:
        self.spool.put(["a", "b"], message, bytes(16))
        self.promised[message] += 2

    def put_and_remove(self) -> None:
        self.put(b"new")
        items = self.spool.peek("a", 2, 1_000)
        self.spool.remove([item.position for item in items])
        self.removed.update(item.message for item in items)
        self.put(b"newer")

    def move(self) -> None:
        self.spool.move("a", ["b"], 2)
        self.spool.move("b", ["a"], 2)

    def adopt(self) -> None:
        other = SQLiteSpool(self.path, durable=False)
        other.put(["a"], b"other", bytes(16))
        other.close()
        self.promised[b"other"] += 1
        self.spool.adopt()

    def mend(self) -> None:
        self.spool.close()
        with self.path.open("rb+") as file:
            file.write(b"!")
        self.spool = SQLiteSpool(self.path, durable=False)

    def check(self) -> None:
        """What was promised is there once; what was not may be there or not."""
        error: list[BaseException] = []

        def use() -> None:
            try:
                if self.spool._keeper.is_closed:
                    self.spool.close()
                    self.spool = SQLiteSpool(self.path, durable=False)
                self.put(b"last")
                self.spool.adopt()
            except BaseException as failure:
                error.append(failure)

        user = threading.Thread(target=use, daemon=True)
        user.start()
        user.join(10)
        assert not user.is_alive(), "somebody waits for ever"
        if error:
            raise error[0]
        counts = self.spool.counts()
        found: Counter[bytes] = Counter()
        for queue in counts:
            items = self.spool.peek(queue, *ALL)
            size = sum(len(item.message) for item in items)
            assert (len(items), size) == (counts[queue].messages, counts[queue].bytes)
            assert len({item.position for item in items}) == len(items)
            found.update(item.message for item in items)
        for message, copies in self.promised.items():
            if not message.startswith((b"old 0", b"old 1")):
                assert found[message] == copies, (message, found)
            assert found[message] <= copies
            assert found[message] >= copies - 1 - (message in self.removed)
        self.spool.close()
        again = SQLiteSpool(self.path, durable=False)
        assert again.counts() == counts
        again.close()


DEEDS = {"put": Scene.put_and_remove, "move": Scene.move, "adopt": Scene.adopt, "mend": Scene.mend}


@pytest.mark.parametrize("name", DEEDS)
def test_an_interrupt_at_any_moment_loses_nothing_and_leaves_nobody_waiting(folder: Path, name: str) -> None:
    deed: Callable[[Scene], None] = DEEDS[name]
    codes = codes_of(*MODULES, connpool.wire.disk)
    counter, scene = SignalStrike(sys.maxsize, codes), Scene(folder)
    with counter:
        deed(scene)
    scene.check()
    points = sys.maxsize - counter._left
    assert points > 100
    faults = []
    for n in range(1, points + 1, max(1, points // ENOUGH)):
        strike, scene = SignalStrike(n, codes), Scene(folder)
        before = open_files()
        with strike:
            deed(scene)
        strike._raised = None  # its frames hold what the deed had in its hands
        gc.collect()
        try:
            scene.check()
            assert open_files() <= before, "a descriptor is left open"
        except Exception as fault:
            faults.append(f"{strike}: {fault!r}"[:300])
            if len(faults) > 2:
                break
    assert not faults, "\n".join(faults)


def test_real_signals_in_one_thread_cost_the_others_nothing(folder: Path) -> None:
    spool = SQLiteSpool(folder / "spool.db", durable=False)
    stop = threading.Event()
    acknowledged: list[list[int]] = [[], [], []]

    def put(own: list[int], name: int) -> None:
        while not stop.is_set():
            spool.put(["a"], b"%d %d" % (name, len(own)), bytes(16))
            own.append(len(own))

    threads = [threading.Thread(target=put, args=(own, name)) for name, own in enumerate(acknowledged)]
    for thread in threads:
        thread.start()
    main: list[int] = []
    tried = [0]

    def put_some() -> None:
        for _ in range(500):  # far more than there is time for, or it would be luck to be struck
            tried[0] += 1
            spool.put(["a"], b"main %d" % tried[0], bytes(16))
            main.append(tried[0])

    struck = struck_at_random(put_some, times=150, longest=0.01, seed=3)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert struck > 50
    found = [item.message for item in spool.peek("a", 1_000_000, 1_000_000_000)]
    for name, own in enumerate(acknowledged):
        assert [message for message in found if message.startswith(b"%d " % name)] == [
            b"%d %d" % (name, n) for n in own
        ]
    mine = [int(message.split()[1]) for message in found if message.startswith(b"main")]
    assert mine == sorted(set(mine))
    assert set(main) <= set(mine) <= set(range(1, tried[0] + 1))
    spool.close()
