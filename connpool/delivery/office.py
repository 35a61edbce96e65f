"""What all parts of a broadcaster share: its links, who tends them, what changes when one lives or dies."""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from connpool.clock import Clock
from connpool.delivery.encoding import Encoder
from connpool.delivery.link import Link
from connpool.delivery.mailbox import Mailbox
from connpool.delivery.plan import Plan, plan_for
from connpool.delivery.roster import Roster
from connpool.delivery.settings import Settings
from connpool.delivery.spool import Spool
from connpool.delivery.strand import Strand
from connpool.model.delivery import GLOBAL, LinkEvent, LinkState
from connpool.model.endpoint import Endpoint
from connpool.pool.backoff import pause_after
from connpool.pool.census import Kept, watch
from connpool.pool.failures import in_words
from connpool.pool.pool import ConnectionPool

__all__ = ["Office"]

START_GRACE: Final = 1.0  # seconds after which a worker that does not run is missed

logger = logging.getLogger("connpool.delivery")


class Office:
    """The state of one broadcaster.

    The lock guards who is alive, who tends whom and what has come; it is held for bookkeeping only, and
    never together with a link's ``writing``.
    """

    def __init__(self, pool: ConnectionPool, spool: Spool | None, settings: Settings) -> None:
        self.pool = pool
        self.name = pool.name
        self.spool = spool
        self.settings = settings
        self.encoder = Encoder(settings.framing)
        self.clock: Clock = pool._lender.clock
        self._lock = threading.RLock()
        self.roster = Roster(spool, fail_back_after=settings.fail_back_after, failover=settings.failover)
        self.plan: Plan | None = None
        self.is_closed = False
        self._due_at = math.inf  # when the next turn is needed, as far as that is not passed on yet
        self._switches: deque[tuple[int, int | None]] = deque()  # of the active group, to be logged
        self.settled = threading.Condition(self._lock)  # told when a link was opened, was not, or is gone
        me = weakref.ref(self)  # a thread that waits at the mailbox must not keep a forgotten broadcaster
        self.mailbox = Mailbox(self._lock, pool.name, lambda: (office := me()) and office.on_strands())
        self.kept: Kept | None = None  # what is given turns: the broadcaster
        self.start_worker: Callable[[Link], bool] = lambda link: False
        self.stop_worker: Callable[[], object] = lambda: None
        self.hear_out: Callable[[Strand], object] = lambda strand: None  # take in a peer's last words
        self.on_strands: Callable[[], object] = lambda: None  # connections have come or gone; input is wanted
        self.rouse: Callable[[], object] = lambda: None  # somebody uses it: in a forked child, begin now

    # -- the route

    def follow(self) -> None:
        """Take the pool's route, which may be another; members of both keep their connections.

        It is read with the lock held: of two threads that set one, whoever comes last has the latest.
        """
        waiting = self.roster.waiting()
        with self._lock:
            new, gone = self.roster.follow(self.pool.route, self.clock.now(), waiting)
            self._tell_parted_locked(gone)
            self._publish_locked()
        self.speak_up()
        for link in gone:
            self.lower(link, None)
        self.open(new)
        self.kick_all()
        if gone and self.spool is not None:
            self.follow()  # again: until they were gone, copies may have come for them

    def open(self, links: Iterable[Link]) -> None:
        """Let those of *links* be opened that are to stand ready."""
        for link in links:
            if self.settings.standby == "hot" or 0 in link.groups:
                self._want(link)

    # -- life and death

    def raise_up(self, link: Link, strand: Strand) -> None:
        """*link* has a connection."""
        with self._lock:
            self.settled.notify_all()
            if is_stray := self.is_closed or not self.roster.has(link) or strand.endpoint not in link.member:
                self._mark_dead_locked(link, None, strand.endpoint)
            else:
                is_behind = self.spool is not None and self.spool.count(link.queue) > 0
                link.adopt(strand, is_behind=is_behind)  # a thread that finds it broken waits for our lock
                link.state, link.since, link.endpoint = LinkState.ALIVE, self.clock.now(), strand.endpoint
                link.retry_at = link.last_error = None
                link.failures, link.is_wanted = 0, False
                self.mailbox.post_locked(LinkEvent.ALIVE, strand.endpoint)
                self._publish_locked()
        if is_stray:
            self.close_strand(strand)
            return
        self.on_strands()  # first: at the end of the program there are no new threads
        logger.info("broadcaster %r: %s is connected", self.name, strand.endpoint)
        self.speak_up()

    def lower(self, link: Link, error: BaseException | None, strand: Strand | None = None) -> bool:
        """*link*'s connection is broken, or not wanted any more. Returns whether it had one.

        Args:
            error: Why; None: it was taken down by hand.
            strand: The one that is meant; None: whichever it has.
        """
        strand = link.strand if strand is None else strand
        if strand is None:
            return False
        to_close = link.drop(strand, error)
        error = error or strand.why  # who dropped it may come here after us
        with self._lock:
            was_up = link.state is LinkState.ALIVE and link.newest is strand
            if was_up:
                self.plan_attempt_locked(link, error)
                self._mark_dead_locked(link, error, strand.endpoint)
                self._publish_locked()
        if was_up:
            if not self.is_closed:
                why = "taken down" if error is None else in_words(error)
                logger.warning("broadcaster %r: %s is lost: %s", self.name, strand.endpoint, why)
            self.speak_up()
            self.on_strands()
        self.close_strand(to_close, error)
        return was_up

    def bury(self, link: Link) -> None:
        """*link* was found dead: say so, if it is news."""
        strand = link.strand
        if strand is not None and not strand.line.is_alive():
            self.lower(link, strand.line.error, strand)

    def heal(self) -> None:
        """See to what threads have left undone that an interrupt has torn away."""
        for link in list(self.roster.links.values()):  # exchanged as a whole
            torn = link.heal()
            newest = link.newest
            if torn is not None:
                self.lower(link, torn.line.error, torn)
            elif newest is not None and newest.is_dropped:
                self.lower(link, newest.line.error, newest)

    def fail_endpoint(self, endpoint: Endpoint, error: BaseException | None) -> None:
        """Whatever link leads to *endpoint* just now is broken."""
        with self._lock:
            links = self.roster.find(endpoint)
        for link in links:
            if (strand := link.strand) is not None and strand.endpoint == endpoint:
                self.lower(link, error, strand)

    def record_failure(self, link: Link, endpoint: Endpoint, error: BaseException) -> None:
        """An attempt to open *link* has failed."""
        with self._lock:
            is_news = link.state is LinkState.NEW
            if is_news:
                self._mark_dead_locked(link, error, endpoint)
            link.endpoint, link.last_error = endpoint, error
            link.is_wanted = False
            self.plan_attempt_locked(link, error)
            self._publish_locked()
        if is_news and not self.is_closed:
            logger.warning("broadcaster %r: %s cannot be reached: %s", self.name, endpoint, error)
        self.speak_up()

    def _mark_dead_locked(self, link: Link, error: BaseException | None, endpoint: Endpoint) -> None:
        link.since = self.clock.now()
        link.last_error = None if error is None else error.with_traceback(None)
        # Of one that has left it was told as it left; of one that is dead, too.
        if link.state is not LinkState.DEAD and self.roster.has(link) and not self.is_closed:
            self.mailbox.post_locked(LinkEvent.DEAD, endpoint, link.newest)
        link.state = LinkState.DEAD  # last: whoever is interrupted before leaves the rest to another

    def _tell_parted_locked(self, links: Iterable[Link]) -> None:
        """Tell the ends of those of *links* that have left: from now on another may lead there."""
        for link in links:
            if link.state is LinkState.ALIVE and not self.roster.has(link) and not self.is_closed:
                assert link.endpoint is not None
                self.mailbox.post_locked(LinkEvent.DEAD, link.endpoint, link.newest)

    def plan_attempt_locked(self, link: Link, error: BaseException | None) -> None:
        """Decide when the next attempt to open *link* is made."""
        link.failures += 1
        delay = pause_after(link.failures, error, self.pool.config, self.pool._lender.books.rng)
        is_tried = self.settings.reconnect and not self.is_closed and self.roster.has(link)
        link.retry_at = self.clock.now() + delay if is_tried and delay < math.inf else None
        if link.retry_at is not None:
            self.expect_locked(link.retry_at)

    def close_strand(self, strand: Strand | None, error: BaseException | None = None) -> None:
        """Give the connection back to the pool, to be closed; nobody uses it any more."""
        if strand is None:
            return
        self.hear_out(strand)
        strand.line.drain()
        try:
            strand.conn.terminate(error)
        except Exception:
            logger.debug("broadcaster %r: a connection could not be given back", self.name, exc_info=True)

    def _publish_locked(self) -> None:
        """Find the active group anew, and say whether messages may go the short way."""
        before = self.roster.active
        self.roster.refresh(self.clock.now())
        if self.roster.active != before and before is not None and not self.is_closed:
            self._switches.append((before, self.roster.active))
        if self.roster.switch_at < math.inf:
            self.expect_locked(self.roster.switch_at)
        self.plan = None
        self.settled.notify_all()
        active, groups = self.roster.active, self.roster.groups
        if active is None or active >= len(groups) or self.settings.write_ahead or self.settings.confirm:
            return
        if not self.is_closed:
            self.plan = plan_for(active, groups[active], may_spool=self.spool is not None)

    def refresh(self) -> None:
        """Look again which group is active."""
        with self._lock:
            self._publish_locked()
        self.speak_up()

    # -- who tends whom

    def want(self, link: Link) -> None:
        """Let *link* be opened as soon as may be."""
        self.rouse()
        self._want(link)

    def _want(self, link: Link) -> None:
        with self._lock:
            link.is_wanted = link.state is not LinkState.ALIVE
        self.kick(link)

    def kick(self, link: Link) -> None:
        """See to it that a worker tends *link*, if there is anything to do for it."""
        with self._lock:
            if link.is_tended or self.job_locked(link) is None:
                return
            link.is_tended = True
            link.tended_since = self.clock.now()
            link.worker = None
        if not self.start_worker(link):
            with self._lock:
                link.is_tended = False
            self.expect_soon()

    def miss_workers(self) -> None:
        """Find links whose worker never started, because an interrupt struck: they may have another."""
        with self._lock:
            for link in self.roster.links.values():
                if not link.is_tended or (link.worker is not None and link.worker.is_alive()):
                    continue
                missed_at = link.tended_since + START_GRACE
                if self.clock.now() >= missed_at:
                    link.is_tended = False
                else:
                    self.expect_locked(missed_at)

    def kick_all(self) -> None:
        for link in list(self.roster.links.values()):  # exchanged as a whole
            self.kick(link)

    def job_locked(self, link: Link) -> str | None:
        """What there is to do for *link*: ``"open"`` it, ``"flush"`` what waits for it, or nothing."""
        if link.state is LinkState.ALIVE and link.strand is None:
            return None  # whoever drops its connection is about to say so
        if link.state is not LinkState.ALIVE:
            if self.is_closed or not self.roster.has(link):
                return None
            is_due = link.retry_at is not None and self.clock.now() >= link.retry_at
            return "open" if link.is_wanted or is_due else None
        unfinished = link.unfinished
        if unfinished is not None:
            return "flush" if unfinished.is_settled else None  # its sender says when
        if self.spool is None:
            return None
        if link.is_flushing or link.heirlooms or link.has_waiting():
            return "flush"
        return "flush" if self.spool.count(GLOBAL) and self.roster.active in link.groups else None

    def expect_locked(self, at: float) -> None:
        """Something is due at *at*; ``speak_up`` passes it on."""
        self._due_at = min(self._due_at, at)

    def expect_soon(self) -> None:
        """No thread can be had: perhaps a second later."""
        with self._lock:
            self.expect_locked(self.clock.now() + 1.0)
        self.speak_up()

    def speak_up(self) -> None:
        """Let others know what has changed. No lock is held."""
        at = self._due_at
        if at < math.inf and self.kept is not None:
            watch(self.kept, at)
        with self._lock:
            if self._due_at == at:
                self._due_at = math.inf
        while self._switches:
            try:
                before, after = self._switches.popleft()
            except IndexError:  # another thread was quicker
                break
            logger.info("broadcaster %r: sends to group %s, before to %s", self.name, after, before)
        self.mailbox.wake()
