"""What a broadcaster does by the clock, and how it comes to its end."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from connpool import clock as real
from connpool.delivery.errand import Errand
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.reporting import Reporter
from connpool.delivery.watching import Watch
from connpool.delivery.writing import Writing
from connpool.errors import SpoolError, UnknownEndpointError, UsageError
from connpool.model.delivery import LinkState
from connpool.model.endpoint import Endpoint
from connpool.pool.census import watch
from connpool.pool.turns import Turn
from connpool.wire.framing import bytes_of

__all__ = ["GRACE", "PATIENCE", "Keeping"]

ADOPT_INTERVAL: Final = 1.0  # seconds between looks for what killed processes have left
GRACE: Final = 5.0  # seconds that the end waits for workers, which stop at once but in the user's functions
PATIENCE: Final = 0.25  # seconds that it waits for those at least, if it may not last

logger = logging.getLogger("connpool.delivery")


class Keeping:
    """Turns of upkeep: attempts to connect, heartbeats, adoptions; and flushing and closing."""

    def __init__(self, office: Office, writing: Writing, watch: Watch) -> None:
        self._office = office
        self._writing = writing
        self._watch = watch
        self._adopts = getattr(office.spool, "adopts", True)
        self._adopting = Errand()
        self._beating = Errand()  # its thread is in the user's function, perhaps, or waits for a peer
        self._left: Mapping[str, int] = {}  # what was unsent at the end

    def begin(self) -> None:
        """Let the spool report to the pool, and set the clock going."""
        report_to = getattr(self._office.spool, "report_to", None)
        if report_to is not None:
            report_to(Reporter(self._office.pool))
        self.start()

    def start(self) -> None:
        """Set the clock going; the first thing due is to take over what others have left."""
        now = self._office.clock.now()
        heartbeat = self._office.settings.heartbeat
        if heartbeat is not None:
            self._beating.at = now + heartbeat[0]
        if self._office.spool is not None:
            self._adopting.at = now
        self.turn()

    # -- turns

    def turn(self) -> None:
        """Do what is due. Waits for nothing."""
        office = self._office
        if office.is_closed:
            return
        now = office.clock.now()
        if not self._adopts and now >= self._adopting.at:
            self._adopting.at = now + ADOPT_INTERVAL  # nobody leaves it anything: only the rest below is due
        errands = (self._adopting, self._adopt_in_turn), (self._beating, self._beat_in_turn)
        for errand, run in errands:
            if now >= errand.at:
                errand.do_apart(run, f"connpool-keeping-{office.name}")
        office.heal()
        office.miss_workers()
        office.refresh()
        office.kick_all()
        with office._lock:
            retries = tuple(link.retry_at for link in office.roster.links.values() if not link.is_tended)
            due = tuple(at for at in retries if at is not None)
            due += tuple(errand.at for errand, _ in errands if errand.turns.are_free())  # who is at it tells
            at = min([*due, office.roster.switch_at])
            office.settled.notify_all()  # a thread that was torn away may have told nobody that all is sent
        kept = office.kept
        if at < math.inf and kept is not None:
            watch(kept, at)

    def _adopt_in_turn(self, turn: Turn) -> None:
        with self._telling_of_failure(self._adopting, turn) as now:
            self._adopting.at = now + ADOPT_INTERVAL
            self._adopt()

    def _beat_in_turn(self, turn: Turn) -> None:
        heartbeat = self._office.settings.heartbeat
        assert heartbeat is not None
        with self._telling_of_failure(self._beating, turn) as now:
            self._beating.at = max(self._beating.at + heartbeat[0], now)
            self.beat()

    @contextmanager
    def _telling_of_failure(self, errand: Errand, turn: Turn) -> Iterator[float]:
        office = self._office
        try:
            yield office.clock.now()
        except Exception:
            logger.exception("broadcaster %r: upkeep failed", office.name)
        finally:
            turn.end()
            with office._lock:
                office.expect_locked(errand.at)
                office.settled.notify_all()
            office.speak_up()

    def _adopt(self) -> None:
        office = self._office
        assert office.spool is not None
        try:
            adopted = office.spool.adopt()
        except SpoolError:
            if not office.is_closed:
                raise
            return
        if adopted:
            office.follow()  # they may be of a program with another route
            total = sum(adopted.values())
            logger.info("broadcaster %r: sends %d messages that another has left", office.name, total)

    def beat(self) -> None:
        """Send a heartbeat to every member that lives and is not behind."""
        office = self._office
        heartbeat = office.settings.heartbeat
        if heartbeat is None:
            return
        message = bytes_of(heartbeat[1]() if callable(heartbeat[1]) else heartbeat[1])
        with office._lock:
            links = tuple(link for link in office.roster.links.values() if link.state is LinkState.ALIVE)
        for link in links:
            self._writing.write_once(link, message)

    # -- flushing and the end

    def flush(self, timeout: float | None) -> int:
        """As ``Broadcaster.flush``."""
        office = self._office
        if self.is_inside():
            raise UsageError(
                f"broadcaster {office.name!r}: a flush would wait for the call from within which it comes",
                pool=office.name,
            )
        with office._lock:
            dead = tuple(link for link in office.roster.links.values() if link.state is not LinkState.ALIVE)
        for link in dead:
            office.want(link)
        office.kick_all()

        def is_over() -> bool:
            is_at_rest = not any(map(_is_tended, office.roster.links.values()))
            return self.unsent() == 0 or (is_at_rest and timeout is None) or office.is_closed

        with office.settled:
            office.settled.wait_for(is_over, timeout)
        return self.unsent()

    def waiting(self) -> Mapping[str, int]:
        """How many messages wait in each queue; after the end: did then."""
        return self._left if self._office.is_closed else self._counted()

    def _counted(self) -> Mapping[str, int]:
        spool = self._office.spool
        if spool is None:
            return {}
        counts = {queue: count.messages for queue, count in spool.counts().items() if count.messages}
        return self._office.roster.by_member(counts)

    def unsent(self) -> int:
        return sum(self.waiting().values())

    def close(self, timeout: float | None, *, waits: bool, patience: float) -> int:
        """As ``Broadcaster.close``, once nothing more is taken.

        Args:
            waits: For others; none waits for us.
            patience: Seconds for what is in a function of the user's, though *timeout* is over.
        """
        office = self._office
        if office.is_closed:
            return self.unsent()
        until = None if timeout is None else real.now() + timeout

        def left() -> float | None:
            return None if until is None else max(until - real.now(), patience)

        try:
            if waits:
                self._send_the_rest(until)
            if waits and until is not None and self._may_a_heartbeat_last():
                self._watch.have_done(self._say_goodbye, left())
            else:
                self._say_goodbye()
            self._left = self._counted()
        except SpoolError:  # somebody has closed it, perhaps
            logger.exception("broadcaster %r: what is unsent stays so", office.name)
        with office._lock:
            office.is_closed = True
            office.plan = None
            links = list(office.roster.links.values())
            for link in links:
                link.retry_at = None
            office.settled.notify_all()
        office.stop_worker()
        for link in links:
            office.lower(link, None)
        if waits:
            with office.settled:
                office.settled.wait_for(lambda: not self._are_busy(links), min(left() or GRACE, GRACE))
                office.settled.wait_for(lambda: not self._are_busy(links, with_ours=True), GRACE)
        with suppress(SpoolError):
            self._left = self._counted()  # they have sent some meanwhile, perhaps
        if office.kept is not None:
            watch(office.kept, math.inf)
        return self.unsent()

    def _may_a_heartbeat_last(self) -> bool:
        """Whether it asks the user's functions, or has to wait for peers, for want of a spool."""
        settings = self._office.settings
        if settings.heartbeat is None:
            return False
        return callable(settings.heartbeat[1]) or settings.confirm is not None or self._office.spool is None

    def _say_goodbye(self) -> None:
        try:
            self.beat()
        except Exception:  # the user's function, or what it returns
            logger.exception("broadcaster %r: the last heartbeat failed", self._office.name)

    def is_inside(self) -> bool:
        """Whether this thread was interrupted, by a signal handler say, in what others wait for.

        Raises:
            UsageError: in a call to the spool, which can be asked for nothing meanwhile.
        """
        office = self._office
        require_outside = getattr(office.spool, "_require_outside", self.unsent)  # a user's may say so itself
        with suppress(SpoolError):
            require_outside()
        is_owned: Callable[[], bool] = office._lock._is_owned  # type: ignore[attr-defined]
        return is_owned() or any(link.is_inside() for link in list(office.roster.links.values()))

    def awaits(self, thread: threading.Thread) -> bool:
        """Whether the end waits for *thread*, which must not wait for the end then."""
        with self._office._lock:
            workers = [link.worker for link in self._office.roster.links.values()]
        ours = (self._adopting.thread, self._beating.thread, *workers)
        return thread in ours or self._watch.is_at_it(thread)

    def _are_busy(self, links: Iterable[Link], *, with_ours: bool = False) -> bool:
        """Whether threads, other than the caller's, adopt, send heartbeats or are at *links*.

        Args:
            with_ours: Those alone count that are not in a function of the user's.
        """
        if self._adopting.is_under_way() or (self._beating.is_under_way() and not with_ours):
            return True
        return any(_is_tended(link) and not (with_ours and link.is_asking) for link in links)

    def _send_the_rest(self, until: float | None) -> None:
        """Wait until members that live have all that waits for them."""
        office = self._office
        office.kick_all()

        def is_done() -> bool:
            living = [link for link in office.roster.links.values() if link.state is LinkState.ALIVE]
            return not any(_is_tended(link) and not link.is_stuck for link in living)

        with office.settled:
            office.settled.wait_for(is_done, None if until is None else max(0.0, until - real.now()))

    def links_to(self, endpoint: Endpoint | str) -> list[Link]:
        """The links that lead to *endpoint*.

        Raises:
            UnknownEndpointError: there is none.
        """
        office, wanted = self._office, Endpoint.of(endpoint)
        with office._lock:
            links = office.roster.find(wanted)
            known = ", ".join(office.roster.links) or "none"
        if not links:
            raise UnknownEndpointError(
                f"broadcaster {office.name!r} has no link to {wanted} (it has {known})", pool=office.name
            )
        return links


def _is_tended(link: Link) -> bool:
    """Whether a worker is at *link* that is not the caller's thread, nor waits for its ``confirm``."""
    strand = link.strand
    waits_for_us = strand is not None and strand.is_held_by(threading.get_ident())
    return link.is_tended and link.worker is not threading.current_thread() and not waits_for_us
