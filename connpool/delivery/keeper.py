"""Has one file of a spool: opens it when it is needed, does jobs on it, and mends it."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from connpool.delivery.books import Books, Draft
from connpool.delivery.desk import Desk, Job
from connpool.delivery.faults import Damaged, Told, told
from connpool.delivery.ledger import Ledger
from connpool.delivery.limits import Limits
from connpool.delivery.mend import damage_of, mend, open_whole, remove_file, renewed, rescue
from connpool.delivery.places import take
from connpool.delivery.rows import Note
from connpool.delivery.segment import Segment
from connpool.errors import SpoolCorruptError, SpoolError
from connpool.model.events import SpoolDamaged
from connpool.wire import disk
from connpool.wire.disk import FileLock

__all__ = ["HEIRLOOM", "Keeper", "News"]

HEIRLOOM: Final = r"\.inherited-[0-9a-f]{16}"  # how the name of a file goes on that another one inherited

News: TypeAlias = dict[str, int] | tuple[SpoolDamaged, str]


class Keeper:
    """One file that this process has to itself.

    Attributes:
        base: The path that the spool was given. Others' files are called like it.
        path: The file; None: it has none yet.
        books: What is in it. Replaced as a whole, never changed: to be read by any thread.
        desk: Where calls wait for each other.
        ledger: What jobs call.
        news: What happened and is still to be told.
        shunned: Files of dead owners that could not be taken over so far.
    """

    def __init__(self, base: Path, limits: Limits) -> None:
        self.base = base
        self._limits = limits
        self.shunned: set[Path] = set()
        self.is_closed = False
        self.path: Path | None = None
        self.books = Books()
        self.desk = Desk()
        self.ledger = Ledger(self._limits, str(self.base))
        self.news: deque[News] = deque()
        self._lock: FileLock | None = None
        self._is_bare = False  # the file is to be begun anew: all that was in it is gone
        self._merged: list[Note] = []  # and how far heirlooms were copied into it, which is still to be known
        self._is_at_it = False  # a transaction has begun and is not settled
        self._unsettled: tuple[Sequence[Job], Draft] | None = None  # what is being committed

    def heir(self) -> Keeper:
        """In a forked child: let go of the parent's file. Returns another keeper, which has none yet.

        A call that a signal handler has forked within may go on here, and comes to nothing.
        """
        if self._lock is not None:
            self._lock.abandon()
        new = Keeper(self.base, self._limits)
        new.is_closed, self.is_closed = self.is_closed, True
        return new

    def own(self, path: Path, lock: FileLock) -> None:
        """Have the file *path*, whose *lock* is ours."""
        self._lock = lock
        self.path = path

    def close(self, timeout: float | None = None) -> None:
        """Close the file, and let others have it; an empty one of a second owner is removed."""
        self.is_closed = True
        call = self.desk.hold(timeout)
        if call is None:
            return
        try:
            self._settle()
            try:
                if self.books.messages:
                    self._rescue()
            except Exception:  # not after an interrupt: what is open may be all that there is of it
                self._let_go()
                raise
            self._let_go()
        finally:
            call.end()

    def _let_go(self) -> None:
        segment, self.ledger.segment = self.ledger.segment, None
        if segment is not None:
            segment.close()
        try:
            if segment is not None and not self._is_of_use(segment.path) and segment.has_no_successor():
                remove_file(segment.path)
        finally:  # the lock ends also if the directory is gone
            if self._lock is not None:
                self._lock.end()

    def _is_of_use(self, path: Path) -> bool:
        """Whether our file *path* is to stay: how far heirlooms are copied is in it."""
        return path == self.base or self.books.are_worth_noting or bool(disk.names_like(path, HEIRLOOM))

    def open(self) -> Segment:
        """Open the file unless it is. With nobody else at it.

        Raises:
            SpoolError: it cannot be opened, or the keeper is closed.
        """
        if self.is_closed:
            raise SpoolError(f"spool {self.base} is closed")
        if self.ledger.segment is None:
            if self._lock is None or not self._lock.is_in_place():
                disk.require_directory(self.base)
                self.own(*take(self.base, self.path, is_vacant=self._is_bare))
            assert self.path is not None
            if self._is_bare:
                return self._begin_anew(self.path)
            segment = open_whole(self.path, self.note)
            self.ledger.segment = segment
            self._reread()
        return self.ledger.segment

    def look_after(self) -> None:
        """If somebody has removed or replaced the file, go on in a new one with all that is in the open one.

        Raises:
            SpoolError: there can be none: its directory is gone, too, say.
        """
        if self._is_in_place():
            return
        call = self.desk.hold()
        try:
            self._settle()
            self._rescue()
        finally:
            if call is not None:
                call.end()

    def _is_in_place(self) -> bool:
        segment, lock = self.ledger.segment, self._lock
        if segment is None or lock is None:
            return True
        return segment.path == self.path and lock.is_in_place() and segment.is_in_place()

    def _rescue(self) -> None:
        segment, lock = self.ledger.segment, self._lock
        if segment is None or lock is None or self._is_in_place():  # it was just about to be mended
            return
        disk.require_directory(self.base)
        if not lock.is_in_place():
            self.own(*take(self.base, segment.path, is_vacant=True, segment=segment))
            if segment.is_in_place() and self.path == segment.path:
                return  # nothing else was removed
        assert self.path is not None
        known = self.books.messages
        aside = rescue(segment, self.path, self.ledger.late)
        self.ledger.segment = None
        segment.close() if self.path == segment.path else segment.let_go()
        self.ledger.segment = open_whole(self.path, self.note)
        self._reread()
        found = self.books.messages
        event = damage_of(self.path, aside, found, max(0, known - found))
        self.note(event, "it was removed or replaced while it was in use")

    def start_over(self) -> None:
        """Begin a new file if all that is in this one was removed, and a full disk keeps it there."""
        call = self.desk.hold()
        try:
            self._settle()
            segment = self.ledger.segment
            if segment is None or self.books.messages or not self.ledger.late or not self._is_in_place():
                return
            # Its notes are damaged, or the disk is not to be had: whoever needs the file tries again.
            with suppress(Damaged, SpoolError), Told(segment.path):
                self._merged = [note for note in segment.notes() if note.kind == "merged"]
                self.ledger.segment = None
                segment.close()
                self._is_bare = True
                self._begin_anew(segment.path)
        finally:
            if call is not None:
                call.end()

    def _begin_anew(self, path: Path) -> Segment:
        """Put a new file in the place of the one whose messages are gone."""
        self.ledger.segment = new = renewed(path, self.books, self._merged)
        self.ledger.late.clear()
        self._is_bare = False
        return new

    def note(self, event: SpoolDamaged, why: str) -> None:
        """Damage was found, to be told when nobody is at the file."""
        self.news.append((event, why))

    # -- jobs

    def do(self, work: Callable[[Draft], Any], *, is_durable: bool = False) -> Any:
        """Do *work* within a transaction, on this thread or another; returns its outcome.

        Raises:
            SpoolError: it failed, and has changed nothing.
        """
        return self.desk.do(Job(work, is_durable), self._run)

    def _run(self, jobs: Sequence[Job]) -> None:
        """Do *jobs* in one transaction; if that fails, each in one of its own."""
        if self._is_at_it:
            self._settle()
            jobs = [job for job in jobs if not job.is_done]
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for the thread whose job it is
            self._roll_back()
            if len(jobs) == 1:
                jobs[0].error = error
                jobs[0].is_done = True
                return
            for job in jobs:
                self._run([job])
                job.tell()  # the others may take long, each as long as all of them did

    def _transact(self, jobs: Sequence[Job]) -> None:
        for is_mended in (False, True):
            segment = self.open()
            try:
                self._attempt(segment, jobs)
                return
            except (sqlite3.Error, Damaged) as error:
                damage = told(error, segment.path) if isinstance(error, sqlite3.Error) else error
                if isinstance(damage, SpoolError):
                    raise damage from error
                if is_mended:
                    raise SpoolCorruptError(f"spool {segment.path}: damaged again: {damage}") from error
                self._mend(segment, str(damage))

    def _attempt(self, segment: Segment, jobs: Sequence[Job]) -> None:
        draft = Draft(self.books)
        self._is_at_it = True
        segment.begin(is_durable=True in [job.is_durable for job in jobs])
        self.ledger.remove_later(draft, self.ledger.again)
        for job in jobs:
            assert job.work is not None
            job.error = None
            try:
                job.outcome = job.work(draft)
            except SpoolError as error:  # it has changed nothing that must be undone
                job.error = error
        self.ledger.written(draft)
        if draft.gone and not draft.late:  # else there is no space for that either
            segment.tidy()
        self._unsettled = jobs, draft
        segment.commit()
        self._settle()

    def _settle(self) -> None:
        """Bring to its end what a transaction has left: its own thread does, or after an interrupt the next.

        Once the commit has begun, the file alone knows whether it has come to its end.
        """
        segment = self.ledger.segment
        if segment is not None and segment.is_in_transaction:
            self._roll_back()
        if self._unsettled is None:
            self._is_at_it = False
            return
        jobs, draft = self._unsettled
        self.books = draft.books
        self.ledger.claimed.update(draft.claimed)
        for position in draft.gone:
            self.ledger.claimed.pop(position, None)
        self.ledger.late.update(draft.late)
        self.ledger.late.difference_update(draft.made_good)
        self.ledger.again.clear()
        if draft.dropped:
            self.news.append(draft.dropped)
            draft.dropped = {}
        for job in jobs:
            job.is_done = True
        self._unsettled = None
        self._is_at_it = False

    def _roll_back(self) -> None:
        self._unsettled = None
        segment = self.ledger.segment
        if segment is not None:
            try:
                with Told(segment.path):
                    segment.roll_back()
            except (Damaged, SpoolError):  # whoever opens it next will see what is the matter
                self.ledger.segment = None
                segment.close()

    def _mend(self, segment: Segment, why: str) -> None:
        self._unsettled = None
        self.ledger.segment = None
        segment.close()
        self.ledger.segment = mend(segment.path, why, self.note, self.books.messages)
        self._reread()

    def _reread(self) -> None:
        """Go by what is in the file, which was mended or opened anew, and not by what was known of it."""
        assert self.ledger.segment is not None
        books = self.ledger.segment.books
        books.serial = books.reserved = max(books.serial, self.books.serial)  # of what was lost, too
        self.books = books
        self.ledger.doubt()
