"""Spools and a list, led through the same life by hypothesis."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connpool import MemorySpool, Spool, SpoolCount, Spooled, SpoolFullError, SQLiteSpool
from connpool.delivery import backlog, batch

QUEUES = st.sampled_from(["", "a:1", "b:2"])
MEMORY = Path("/dev/shm")


class Kept(NamedTuple):
    """One message in the model."""

    position: int
    id: bytes
    message: bytes


class SpoolMachine(RuleBasedStateMachine):
    """One spool, limited or not. What it holds is ``kept``, by queue."""

    limit: int | None
    may_drop: bool

    def make(self) -> Spool:
        return MemorySpool(max_messages=self.limit, on_full="drop-oldest" if self.may_drop else "raise")

    @initialize(limit=st.sampled_from([None, 5]), may_drop=st.booleans())
    def build(self, limit: int | None, may_drop: bool) -> None:
        self.limit, self.may_drop = limit, may_drop
        self.kept: dict[str, list[Kept]] = {}
        self.claimed: set[int] = set()
        self.dropped: dict[str, int] = {}
        self.given: set[int] = set()
        self.n = 0
        self.spool = self.make()

    def total(self) -> int:
        return sum(map(len, self.kept.values()))

    def oldest(self) -> list[tuple[int, str, Kept]]:
        """What may be dropped: the low 48 bits of a position tell the order among queues."""
        return sorted(
            (kept.position & (1 << 48) - 1, queue, kept)
            for queue, items in self.kept.items()
            for kept in items
            if kept.position not in self.claimed
        )

    def drop(self, excess: int) -> None:
        for _, queue, kept in self.oldest()[: max(excess, 0)]:
            self.kept[queue].remove(kept)
            self.dropped[queue] = self.dropped.get(queue, 0) + 1

    @rule(queues=st.lists(QUEUES, max_size=3, unique=True), size=st.integers(0, 20))
    def put(self, queues: list[str], size: int) -> None:
        self.n += 1
        id, message = self.n.to_bytes(16), bytes([self.n % 256]) * size
        doomed = self.oldest()
        excess = 0 if self.limit is None else self.total() + len(queues) - self.limit
        if excess > 0 and (not self.may_drop or excess > len(doomed)):
            with pytest.raises(SpoolFullError):
                self.spool.put(queues, message, id)
            return
        positions = self.spool.put(queues, message, id)
        assert self.given.isdisjoint(positions)
        self.given.update(positions)
        self.drop(excess)
        for queue, position in zip(queues, positions, strict=True):
            self.kept.setdefault(queue, []).append(Kept(position, id, message))

    @rule(queue=QUEUES, most=st.integers(1, 4), size=st.integers(0, 40))
    def peek(self, queue: str, most: int, size: int) -> None:
        expected: list[Kept] = []
        for kept in self.kept.get(queue, []):
            if expected and (len(expected) == most or sum(len(k.message) for k in [*expected, kept]) > size):
                break
            expected.append(kept)
        assert self.as_kept(self.spool.peek(queue, most, size)) == expected
        self.claimed.update(kept.position for kept in expected)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        known = [kept.position for items in self.kept.values() for kept in items]
        positions = data.draw(st.lists(st.sampled_from([*known, 12345]), max_size=4))
        self.spool.remove(positions)
        for items in self.kept.values():
            items[:] = [kept for kept in items if kept.position not in positions]
        self.claimed.difference_update(positions)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        positions = data.draw(st.lists(st.sampled_from([*self.claimed, 12345]), max_size=4))
        self.spool.release(positions)
        self.claimed.difference_update(positions)

    @rule(source=QUEUES, to=st.lists(QUEUES, max_size=2, unique=True), most=st.integers(0, 3))
    def move(self, source: str, to: list[str], most: int) -> None:
        leaving = self.kept.get(source, [])[:most]
        assert self.spool.move(source, to, most) == len(leaving)
        self.kept[source] = self.kept.get(source, [])[most:]
        self.claimed.difference_update(kept.position for kept in leaving)
        for queue in to:
            found = self.as_kept(self.all_of(queue))[len(self.kept.get(queue, [])) :]
            assert [(kept.id, kept.message) for kept in found] == [(k.id, k.message) for k in leaving]
            self.kept.setdefault(queue, []).extend(found)
            self.given.update(kept.position for kept in found)

    def all_of(self, queue: str) -> list[Spooled]:
        """All messages of *queue*, with the claims as they were."""
        items = list(self.spool.peek(queue, 1_000, 1_000_000))
        self.spool.release([item.position for item in items if item.position not in self.claimed])
        return items

    def as_kept(self, items: list[Spooled] | tuple[Spooled, ...] | object) -> list[Kept]:
        return [Kept(item.position, item.id, item.message) for item in items]  # type: ignore[attr-defined]

    @invariant()
    def agree(self) -> None:
        counts = {
            queue: SpoolCount(
                len(items), sum(len(kept.message) for kept in items), self.dropped.get(queue, 0)
            )
            for queue in {*self.kept, *self.dropped}
            for items in [self.kept.get(queue, [])]
            if items or queue in self.dropped
        }
        assert self.spool.counts() == counts
        for queue in ("", "a:1", "b:2"):
            assert self.spool.count(queue) == len(self.kept.get(queue, []))
            found = self.as_kept(self.all_of(queue))
            assert found == self.kept.get(queue, [])
            assert found == sorted(found)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()


class SmallChunksMachine(SpoolMachine):
    """The same in memory with chunks of three messages, so that queues have many."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            patch.object(batch, "BATCH", 3),
            patch.object(batch, "BATCH_BYTES", 30),
            patch.object(backlog, "LARGE", 15),
        ]
        for each in self.patches:
            each.start()

    def teardown(self) -> None:
        for each in self.patches:
            each.stop()
        super().teardown()


class SQLiteSpoolMachine(SpoolMachine):
    """The same on a file, which is closed and opened, left behind by the dead and adopted."""

    def make(self) -> Spool:
        if not hasattr(self, "folder"):
            self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        return SQLiteSpool(
            self.folder / "spool.db",
            max_messages=self.limit,
            on_full="drop-oldest" if self.may_drop else "raise",
            durable=False,
        )

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.claimed.clear()
        if self.limit is not None and self.may_drop:
            self.drop(self.total() - self.limit)  # moves may have made it too many
        self.spool = self.make()

    @rule()
    def be_killed_and_reopen(self) -> None:
        """What a process that is killed leaves: the file and its log as they are, and no lock."""
        left = self.folder / "left"
        left.mkdir()
        for name in os.listdir(self.folder):
            if name.endswith((".db", "-wal")):
                shutil.copy(self.folder / name, left)
        self.spool.close()
        for name in os.listdir(left):
            shutil.move(left / name, self.folder / name)
        left.rmdir()
        self.claimed.clear()
        if self.limit is not None and self.may_drop:
            self.drop(self.total() - self.limit)  # moves may have made it too many
        self.spool = self.make()

    @precondition(lambda self: self.limit is None)
    @rule(n=st.integers(0, 4), queue=QUEUES, is_closed_first=st.booleans())
    def adopt(self, n: int, queue: str, is_closed_first: bool) -> None:
        other = self.make()
        ids = []
        for _ in range(n):
            self.n += 1
            ids.append(self.n.to_bytes(16))
            other.put([queue], b"other", ids[-1])
        if not is_closed_first:
            assert self.spool.adopt() == {}
        other.close()
        assert self.spool.adopt() == ({queue: n} if n else {})
        found = self.as_kept(self.all_of(queue))[len(self.kept.get(queue, [])) :]
        assert [kept.id for kept in found] == ids
        self.kept.setdefault(queue, []).extend(found)
        self.given.update(kept.position for kept in found)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestMemorySpool = SpoolMachine.TestCase
TestMemorySpool.settings = settings(max_examples=40, stateful_step_count=30)
TestMemorySpoolInSmallChunks = SmallChunksMachine.TestCase
TestMemorySpoolInSmallChunks.settings = settings(max_examples=40, stateful_step_count=30)
TestSQLiteSpool = SQLiteSpoolMachine.TestCase
TestSQLiteSpool.settings = settings(max_examples=20, stateful_step_count=25)
