"""Write down who borrowed what and when, and judge the whole afterwards."""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple

EVENTS: Final = ("opened", "closed", "asked", "left", "granted", "returned")


class Entry(NamedTuple):
    """One thing that happened."""

    event: str  # one of EVENTS
    at: float  # seconds
    id: int | None  # of the connection, where the event is about one
    thread: str


class History:
    """A log that any thread may write in, and that convicts a pool only of what it surely did.

    Write inside of what happens, never around it: ``opened`` after the connect and
    ``closed`` before the close, ``granted`` after the checkout returned and ``returned``
    before the release. Each interval is then shorter than the true one, so two that overlap
    did overlap.
    """

    def __init__(self, entries: list[Entry] | None = None) -> None:
        self.entries = [] if entries is None else entries

    def note(self, event: str, id: int | None = None) -> None:
        """Write down that *event* happens, now and in this thread."""
        assert event in EVENTS, event
        self.entries.append(Entry(event, time.monotonic(), id, threading.current_thread().name))

    def check(self, *, max_open: int | None = None, patience: float | None = None) -> None:
        """Check all of it, and that nothing is lent at the end.

        Args:
            max_open: Most connections that may be open at once.
            patience: Seconds that a waiter may still wait after a later comer was
                served before it; None: any order will do.

        Raises:
            AssertionError: with every fault found.
        """
        faults = [*self._overlaps(), *self._excess(max_open)]
        if patience is not None:
            faults += self._overtaken(patience)
        assert not faults, "\n".join(faults)

    def _overlaps(self) -> list[str]:
        faults: list[str] = []
        holders: dict[int | None, str] = {}
        for entry in self.entries:
            if entry.event == "granted":
                if entry.id in holders:
                    faults.append(f"{entry} while {holders[entry.id]} holds it")
                holders[entry.id] = entry.thread
            elif entry.event == "returned" and holders.pop(entry.id, None) != entry.thread:
                faults.append(f"{entry} by who does not hold it")
            elif entry.event == "closed" and entry.id in holders:
                faults.append(f"{entry} while {holders[entry.id]} holds it")
        return faults + [f"connection {id} never came back from {who}" for id, who in holders.items()]

    def _excess(self, max_open: int | None) -> list[str]:
        faults: list[str] = []
        now_open: set[int | None] = set()
        for entry in self.entries:
            if entry.event == "opened":
                now_open.add(entry.id)
                if max_open is not None and len(now_open) > max_open:
                    faults.append(f"{entry}: {len(now_open)} are open, {max_open} allowed")
            elif entry.event == "closed":
                now_open.discard(entry.id)
        return faults

    def _overtaken(self, patience: float) -> list[str]:
        faults: list[str] = []
        waiting: dict[str, float | None] = {}  # thread, in order of arrival: overtaken since when
        for entry in self.entries:
            if entry.event == "asked":
                waiting[entry.thread] = None
            elif entry.event == "left":
                waiting.pop(entry.thread, None)
            elif entry.event == "granted" and entry.thread in waiting:
                since = waiting[entry.thread]
                if since is not None and entry.at - since > patience:
                    faults.append(f"{entry} was overtaken {entry.at - since:g} s earlier")
                for earlier, overtaken_at in waiting.items():
                    if earlier == entry.thread:
                        break
                    if overtaken_at is None:
                        waiting[earlier] = entry.at
                del waiting[entry.thread]
        starved = [thread for thread, since in waiting.items() if since is not None]
        return faults + [f"{thread} was overtaken and never served" for thread in starved]
