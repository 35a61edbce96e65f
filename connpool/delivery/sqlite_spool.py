"""A spool in a file, which survives the process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from connpool import clock
from connpool.delivery.books import Draft
from connpool.delivery.desk import Call, Desk
from connpool.delivery.faults import FORKED, ForkedError, UnwritableError
from connpool.delivery.heirs import adopt, nothing
from connpool.delivery.keeper import Keeper
from connpool.delivery.limits import Limits, Teller
from connpool.delivery.segment import disown_all
from connpool.delivery.spool import SpoolCount, Spooled, check_put
from connpool.errors import SpoolError, UsageError
from connpool.model.checks import require_flag, require_path
from connpool.model.events import SpoolDamaged
from connpool.pool.flock import Flock, undisturbed
from connpool.pool.listeners import Handler
from connpool.wire import disk

__all__ = ["SQLiteSpool"]

EXIT_GRACE: Final = 5.0  # seconds that the end of a program, or a fork, waits for a call to end

logger = logging.getLogger("connpool.spool")


class SQLiteSpool:
    """A spool in a file. What a killed process has left, the next one has.

    Several processes, and several spools of one process, may use the same
    *path*: each has a file of its own (the second one ``PATH.2``, ...) and sees
    its own messages only, until the others are closed or dead. ``docs/spool.md``
    tells what is durable when.

    Args:
        path: The file; made if there is none, in a directory that exists, on a local disk.
        max_messages: Most messages in all queues of this spool together; None: no limit.
        max_bytes: Most bytes of messages in them. The file takes at most a tenth
            more, or 1 MiB if that is more. None: no limit.
        on_full: ``"drop-oldest"``: a new message takes the place of the oldest
            that nobody has claimed. ``"raise"``: it is refused.
        durable: True: a message that was put survives that the power fails.
            False: only that the process or the system's other processes die.
        max_age: Seconds after which a message is dropped; None: never.
        listener: Called with ``MessagesDropped`` and ``SpoolDamaged``, on the thread
            that noticed, with no lock held.

    Attributes:
        path: As given, absolute.
        damage: What was last found damaged; None: nothing was.

    Raises:
        ConfigError: an argument is out of range.
        SpoolError: the file cannot be used: no directory, no permission, no space,
            another program's, a later format. Damage is no reason: see ``damage``.

    Locking: no lock; one thread at a time is at the file, and does what all want.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_messages: int | None = None,
        max_bytes: int | None = None,
        on_full: Literal["drop-oldest", "raise"] = "drop-oldest",
        durable: bool = True,
        *,
        max_age: float | None = None,
        listener: Handler | None = None,
    ) -> None:
        limits = Limits(max_messages=max_messages, max_bytes=max_bytes, max_age=max_age, on_full=on_full)
        self.path: Path = disk.absolute(require_path("path", path))
        self.damage: SpoolDamaged | None = None
        self._is_durable = require_flag("durable", durable)
        self._teller = Teller(str(self.path), listener)
        self._keeper = Keeper(disk.followed(self.path), limits)
        self._adoption = Desk()
        _ALL.add(self)
        try:
            try:
                self.adopt()
            except UnwritableError:  # then it opens, if it can be opened, and gives out what it holds
                self._do(nothing)
        except Exception:  # after an interrupt the finalisers do it: the call may still be under way
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<SQLiteSpool {self.path}: {self._keeper.books.messages} message(s)>"

    def put(self, queues: Sequence[str], message: bytes, id: bytes) -> Sequence[int]:
        check_put(queues, message, id)
        work = partial(self._keeper.ledger.put, queues=queues, message=message, id=id)
        positions: Sequence[int] = self._do(work, is_durable=self._is_durable)
        return positions

    def peek(self, queue: str, max_messages: int, max_bytes: int) -> Sequence[Spooled]:
        tally = self._keeper.books.tallies.get(queue)
        if tally is None or not tally.messages:
            self._require_open()
            return []
        work = partial(self._keeper.ledger.peek, queue=queue, max_messages=max_messages, max_bytes=max_bytes)
        try:
            oldest: Sequence[Spooled] = self._do(work)
        except UnwritableError:  # what is too old cannot be dropped, for now
            oldest = self._do(partial(work, drops=False))
        return oldest

    def remove(self, positions: Sequence[int]) -> None:
        try:
            self._do(partial(self._keeper.ledger.remove, positions=positions))
            return
        except UnwritableError:
            pass
        # A removal, too, needs space in the log. Until there is some they are gone for this process alone.
        if self._keeper.books.messages:
            self._do(partial(self._keeper.ledger.remove_later, positions=positions))
        self._keeper.start_over()

    def release(self, positions: Sequence[int]) -> None:
        self._require_open()
        for position in positions:
            self._keeper.ledger.claimed.pop(position, None)

    def move(self, source: str, targets: Sequence[str], max_messages: int) -> int:
        work = partial(self._keeper.ledger.move, source=source, targets=targets, max_messages=max_messages)
        moved: int = self._do(work)
        return moved

    def count(self, queue: str) -> int:
        self._require_open()
        tally = self._keeper.books.tallies.get(queue)
        return tally.messages if tally else 0

    def counts(self) -> Mapping[str, SpoolCount]:
        self._require_open()
        tallies = self._keeper.books.tallies
        return {
            queue: SpoolCount(tally.messages, tally.bytes, tally.dropped)
            for queue, tally in tallies.items()
            if tally.is_worth_noting
        }

    def adopt(self) -> Mapping[str, int]:
        """Take over what others have left at this path: killed processes, and spools that were closed.

        Returns:
            How many messages of each queue are ours from now on.

        Raises:
            SpoolError: a file cannot be read or written. What was not taken over is left for the next call.
        """
        try:
            call = self._adoption.hold(0)
        except UsageError:  # a listener that is told of what is adopted
            call = None
        if call is None:  # somebody is at it
            return {}
        try:
            self._keeper.look_after()
            self._do(self._keeper.ledger.keep_within)
            adopted = adopt(self._keeper)
            if adopted:
                self._do(self._keeper.ledger.keep_within)
        finally:
            call.end()
            self._tell()
        self._teller.log_dropped(clock.now())
        return dict(adopted)

    def report_to(self, listener: Handler) -> None:
        """Tell *listener*, too, of what happens; its broadcaster asks for that, on behalf of the pool's."""
        self._teller.report_to(listener)

    def close(self) -> None:
        """Give no more out and take no more in; again: do nothing. What is in the file stays for the next."""
        self._close(None)

    def _close(self, timeout: float | None) -> None:
        self._require_outside()  # before anything is closed
        try:
            if self._keeper.ledger.late:
                self._make_good()
            self._keeper.close(timeout)
        finally:
            self._tell()
            self._teller.log_dropped(clock.now(), is_last=True)

    def _make_good(self) -> None:
        try:
            self._do(self._keeper.ledger.keep_within)
        except SpoolError:  # there is still no space, or it is closed: they will come again
            pass

    def _require_outside(self) -> None:
        self._keeper.desk.require_outside()

    def _require_open(self) -> None:
        if self._keeper.is_closed:
            raise SpoolError(f"spool {self.path} is closed")

    def _do(self, work: Callable[[Draft], Any], *, is_durable: bool = False) -> Any:
        keeper = self._keeper
        self._require_open()
        try:
            outcome = keeper.do(work, is_durable=is_durable)
        except Exception as error:
            if keeper is self._keeper:
                raise
            raise ForkedError(f"spool {self.path}: {FORKED}") from error
        finally:
            if keeper.news:
                self._tell()
        if keeper is not self._keeper:
            raise ForkedError(f"spool {self.path}: {FORKED}")
        return outcome

    def _tell(self) -> None:
        """Tell what has happened, with nobody kept waiting."""
        while self._keeper.news:
            try:
                news = self._keeper.news.popleft()
            except IndexError:  # another thread was quicker
                return
            if isinstance(news, tuple):
                event, why = news
                self.damage = event
                logger.error(
                    "spool %s is damaged (%s): %s; %d message(s) recovered, %d known to be lost",
                    event.path, why, f"set aside as {event.aside}" if event.aside else "nothing to set aside",
                    event.recovered, event.lost,
                )  # fmt: skip
                self._teller.tell(event)
            else:
                self._teller.tell_dropped(news)

    # -- fork

    def _hold(self) -> list[Call]:
        """Let no thread be at the file: SQLite may not be interrupted by a fork."""
        calls = []
        for desk in (self._adoption, self._keeper.desk):
            with suppress(UsageError):  # it is this very thread: it forks from within a call
                calls.append(desk.hold(EXIT_GRACE))
        return [call for call in calls if call is not None]

    def _start_clean(self) -> None:
        self._keeper = self._keeper.heir()
        self._teller.start_clean()
        self._adoption = Desk()


_ALL: Final[Flock[SQLiteSpool]] = Flock()
_HELD: Final[dict[int, list[Call]]] = {}  # by thread: several may fork at once


def _before_fork() -> None:
    held = _HELD.setdefault(threading.get_ident(), [])
    for spool in _ALL:
        held.extend(spool._hold())


def _after_fork_in_parent() -> None:
    held = _HELD.pop(threading.get_ident(), [])
    while held:
        held.pop().end()


def _after_fork_in_child() -> None:
    disown_all()
    for spool in _ALL:
        spool._start_clean()
    _HELD.clear()


def end() -> None:
    """The end of the program: no connection is left for the interpreter to complain about.

    Called when all broadcasters are closed, which may put into their spools until then.
    """
    for spool in _ALL:
        try:
            spool._close(EXIT_GRACE)
        except SpoolError:  # its disk is gone, say; the others are still to be closed
            logger.exception("spool %s: it could not be closed", spool.path)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=undisturbed(_after_fork_in_child),
)
