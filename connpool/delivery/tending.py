"""What may take long for one link: opening it, and sending what has piled up. One worker a link at a time."""

from __future__ import annotations

import logging
import threading

from connpool.delivery.flushing import Flushing
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.starting import BREATH
from connpool.delivery.strand import Strand
from connpool.errors import (
    CheckoutTimeoutError,
    ConnPoolError,
    PoolClosedError,
    PoolPausedError,
    SpoolError,
)
from connpool.model.request import Request
from connpool.model.states import PoolState
from connpool.pool.core import HANG_GRACE
from connpool.wire import threads
from connpool.wire.framing import decoder_of
from connpool.wire.line import Line

__all__ = ["Tending"]

logger = logging.getLogger("connpool.delivery")


class Tending:
    """Opens links and empties their queues, on threads that end when there is nothing to do."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._stopped = threading.Event()
        self._flushing = Flushing(office, self._stopped)

    def start(self, link: Link) -> bool:
        """Have a worker tend *link*. False: no thread can be had."""
        name = f"connpool-link-{self._office.name}-{link.queue}"
        thread = link.worker = threading.Thread(target=self._tend, args=(link,), name=name, daemon=True)
        return threads.start(thread)

    def stop(self) -> None:
        """Open nothing more."""
        self._stopped.set()

    def _tend(self, link: Link) -> None:
        office = self._office
        while True:
            with office._lock:
                try:
                    job = office.job_locked(link)
                except SpoolError:  # it was closed, perhaps: upkeep, which looks again, tells of it
                    job = None
                if job is None:
                    link.is_tended = False
                    office.settled.notify_all()
                    return
            try:
                if job == "open":
                    self._open(link)
                else:
                    self._flushing.flush(link)
                    link.is_stuck = False
            except Exception as error:
                if not link.is_stuck:  # else it has been told
                    logger.exception("broadcaster %r: tending %s failed", office.name, link.queue)
                if job == "open":
                    office.record_failure(link, link.endpoint, error)
                else:
                    with office._lock:
                        link.is_stuck = True
                        office.settled.notify_all()
                    self._stopped.wait(BREATH)

    # -- opening

    def _open(self, link: Link) -> None:
        office = self._office
        endpoints = link.member.endpoints
        endpoint = endpoints[link.n_tries % len(endpoints)]
        link.n_tries += 1
        timeout = office.pool.config.connect_timeout + HANG_GRACE  # for the dial to tell what was wrong
        try:
            conn = office.pool.try_connect(Request(endpoint, timeout=timeout, cancel=self._stopped))
        except (PoolClosedError, PoolPausedError) as error:
            office.record_failure(link, endpoint, error)
            self._wait_for_the_pool(link)
            return
        except ConnPoolError as error:
            if self._has_others(link):
                link.last_error = error
                return  # it is still to be opened: at once, at another endpoint of the list
            office.record_failure(link, endpoint, error)
            if isinstance(error, CheckoutTimeoutError):  # others have all places, or it is paused
                self._wait_for_the_pool(link)
            return
        try:
            line = Line(conn._held().streaming(), link.writing)
            strand = Strand(conn, line, endpoint, decoder_of(office.settings.framing))
            strand.is_heard = office.settings.confirm is not None  # then nobody else reads
        except BaseException as error:
            conn.terminate(error)
            raise
        try:
            office.raise_up(link, strand)
        except BaseException as error:  # short of memory, perhaps: nobody would read of it, or open it again
            office.lower(link, error, strand)
            raise

    def _wait_for_the_pool(self, link: Link) -> None:
        """The pool lends nothing: no fault of the peer's, and soon over perhaps, unless it is closed."""
        office = self._office
        with office._lock:
            link.failures -= 1
            if office.pool._lender.books.state is PoolState.CLOSED:
                link.retry_at = None
            if link.retry_at is not None:
                link.retry_at = office.clock.now() + BREATH
                office.expect_locked(link.retry_at)
        office.speak_up()

    @staticmethod
    def _has_others(link: Link) -> bool:
        """Whether an endpoint of a list is left to be tried in this round."""
        return link.n_tries % len(link.member.endpoints) != 0
