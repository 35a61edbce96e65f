"""The thread that notices what peers send, and that they have gone, while nobody sends to them."""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Callable
from typing import Final

from connpool.clock import now, open_gate
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.starting import BREATH, Starter, join
from connpool.delivery.strand import Strand
from connpool.errors import FramingError
from connpool.wire.line import Poller

__all__ = ["Watch"]

MOST_READS: Final = 64  # of one connection before the others have their turn
SLICE: Final = 0.1  # seconds between looks whether the thread still runs that has an errand

logger = logging.getLogger("connpool.delivery")


class Watch:
    """Reads what comes, and buries links whose peers have left. One thread, while there are any.

    The thread holds the office weakly: a broadcaster that is forgotten ends it.
    """

    def __init__(self, office: Office) -> None:
        self._office = weakref.ref(office, lambda _: self._wake())
        self._name = f"connpool-watch-{office.name}"
        self._lock = threading.RLock()  # guards the thread's coming and going
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        self._poller: Poller | None = None
        self._starter: Starter | None = None  # of the thread
        self._is_over = False
        self._errand: Callable[[], object] | None = None

    def _wake(self) -> None:
        """A finaliser's: takes no lock."""
        poller = self._poller
        if poller is not None:
            poller.wake()

    def look(self) -> bool:
        """Connections have come or gone, or somebody wants input: see to it. Starts the thread.

        Returns:
            Whether it will look soon.
        """
        office = self._office()
        if office is None:
            return False
        if self._is_inside():  # a signal handler's or finaliser's: what it has interrupted starts the thread
            self._wake()
            return False
        with self._lock:
            if self._poller is not None:
                self._poller.wake()
            else:
                is_needed = any(link.strand is not None for link in office.roster.links.values())
                if self._is_over or not is_needed:
                    return False
                poller = Poller()
                self._starter = Starter(
                    threading.Thread(target=self._run, args=(poller,), name=self._name, daemon=True)
                )
                self._poller = poller  # last: an interrupt before leaves all of it to the next look
        self.start(office)
        return True

    def start(self, office: Office) -> None:
        """See that the thread runs, if there is to be one."""
        starter = self._starter
        if starter is not None:
            starter.start(office)

    def stop(self, *, waits: bool = True) -> None:
        """Watch no more. *waits*: a while for the thread, unless called by it."""
        with self._lock:
            self._is_over = True
            poller, thread = self._poller, self._thread
            if poller is not None:
                poller.wake()
        if waits and self._errand is None:  # else it is at something that takes too long
            join(thread)
        if poller is not None and thread is not None and thread.ident is None:
            poller.close()  # nobody has started it; if somebody does by now, it ends at once

    def have_done(self, errand: Callable[[], object], timeout: float | None) -> bool:
        """Have the thread do *errand*, which may take for ever. False: it is not done.

        At the end of the program no other thread can be had. Where there is none, nobody is connected, or
        only since a moment: then it is done here.

        Args:
            timeout: Seconds to wait for it.
        """
        done = threading.Event()

        def do() -> None:
            try:
                errand()
            finally:
                self._errand = None
                done.set()

        self._errand = do
        self.look()  # wakes the thread, or starts it
        until = math.inf if timeout is None else now() + timeout
        while self._is_running() and (left := until - now()) > 0:
            if self._can_not_start():
                do()
            if done.wait(min(left, SLICE)):
                return True
        return done.is_set()

    def _is_running(self) -> bool:
        thread = self._thread
        return thread is not None and (thread.is_alive() or thread.ident is None)

    def _can_not_start(self) -> bool:
        starter = self._starter
        return starter is not None and starter.is_left()

    @property
    def _thread(self) -> threading.Thread | None:
        starter = self._starter
        return None if starter is None else starter.thread

    def is_at_it(self, thread: threading.Thread) -> bool:
        """Whether *thread* is the one that watches."""
        return thread is self._thread

    def hear_out(self, strand: Strand) -> None:
        """Take in what the peer has said before it left, if it did. Nobody uses *strand* any more."""
        office = self._office()
        if office is None:
            return
        try:
            if strand.line.error is not None:
                while not self._take_in(office, strand, is_last=True)[0]:
                    pass
        finally:  # after an interrupt, too, or its end would not be told
            office.mailbox.hear_no_more(strand)

    # -- the thread

    def _run(self, poller: Poller) -> None:
        watched: dict[int, tuple[Link, Strand]] = {}
        interest: dict[int, bool] = {}
        try:
            while True:
                office = self._office()
                if office is None or self._is_over:
                    return
                hasty = office.mailbox.take_hasty()
                patience = None
                try:
                    self._attend(office, poller, watched, interest)
                except Exception:
                    logger.exception("broadcaster %r: reading failed", office.name)
                    patience = BREATH
                if not watched and self._may_leave(office):
                    return
                if self._errand is not None:
                    self._errand()
                del office
                for fd, has_hung_up in poller.wait(0 if hasty else patience):
                    office = self._office()
                    if office is not None and fd in watched:
                        self._read(office, *watched[fd], has_hung_up=has_hung_up)
                    del office
                for gate in hasty:
                    open_gate(gate)
        finally:
            self._end(poller, watched)

    def _attend(
        self,
        office: Office,
        poller: Poller,
        watched: dict[int, tuple[Link, Strand]],
        interest: dict[int, bool],
    ) -> None:
        """Watch what is open now, and nothing else."""
        for fd, (link, strand) in list(watched.items()):
            if strand.is_dropped:
                poller.forget(strand.line)
                del watched[fd]
                interest.pop(fd, None)
                office.close_strand(link.leave(strand))
        for_input = office.settings.confirm is None and office.mailbox.wants_input()
        with office._lock:
            links = list(office.roster.links.values())
        for link in links:
            open_one = link.strand
            if open_one is None:
                continue
            fd = open_one.line.fd
            if fd not in watched:
                if not link.enter(open_one):
                    continue
                watched[fd] = (link, open_one)
            if interest.get(fd) is not for_input:
                poller.watch(open_one.line, for_input=for_input)
                interest[fd] = for_input
                if for_input and open_one.line.has_more():
                    self._read(office, link, open_one, has_hung_up=False)

    def _read(self, office: Office, link: Link, strand: Strand, *, has_hung_up: bool) -> None:
        """Take what has come; the end of the stream is the end of the link."""
        try:
            is_over, error = self._take_in(office, strand, is_last=has_hung_up)
            if is_over:
                strand.line.is_alive()  # finds the error
                office.lower(link, error or strand.line.error, strand)
        except Exception:  # short of memory, perhaps: upkeep sees to what is left undone
            logger.exception("broadcaster %r: reading failed", office.name)
            office.expect_soon()

    @staticmethod
    def _take_in(office: Office, strand: Strand, *, is_last: bool) -> tuple[bool, Exception | None]:
        """Have what has come told and given out, if anybody wants it.

        Args:
            is_last: The peer has hung up. What nobody waits for just now is read too: there is no later.

        Returns:
            Whether it was the end, and why, if it was not the peer's doing.
        """
        try:
            for _ in range(MOST_READS):
                if office.settings.confirm is not None or not office.mailbox.wants_input(is_last=is_last):
                    return is_last, None
                data = strand.line.pull()
                if data is None:
                    return True, None
                if not data:
                    return is_last, None
                if messages := strand.decoder.feed(data):
                    office.mailbox.deliver(strand.endpoint, messages, strand)
                    strand.decoder.feed(b"")  # an offence behind them is told by the next call
        except FramingError as offence:
            return True, offence
        except Exception as error:  # a framing of the user's
            logger.exception("broadcaster %r: what %s sends cannot be read", office.name, strand.endpoint)
            return True, error
        return False, None  # there may be more to read before the end

    def _may_leave(self, office: Office) -> bool:
        """Whether the thread can end: said first, and looked after that. A later look starts another."""
        with self._lock:
            if any(link.strand is not None for link in office.roster.links.values()):
                return False
            self._poller = None  # the thread stays known: the end waits for one that is leaving, too
            return True

    def _end(self, poller: Poller, watched: dict[int, tuple[Link, Strand]]) -> None:
        office = self._office()
        for link, strand in watched.values():
            to_close = link.leave(strand)
            if office is not None:
                office.close_strand(to_close)
            else:
                strand.conn.terminate()  # forgotten, with nobody else left to do it
        with self._lock:
            if self._poller is poller:
                self._poller = None
        poller.close()
