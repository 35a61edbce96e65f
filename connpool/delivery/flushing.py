"""Emptying the queue of one link: in batches, in order, each message confirmed where that is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from connpool import clock as real
from connpool.delivery.batch import BATCH, BATCH_BYTES, Batch
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.settings import Confirm
from connpool.delivery.spool import Spooled
from connpool.delivery.strand import Claim, Strand
from connpool.errors import SpoolError
from connpool.model.delivery import GLOBAL, LinkState

__all__ = ["Flushing", "NotConfirmedError", "confirm", "leave_to", "take_out"]

SLICE: Final = 0.1  # seconds whose messages are sent in one go where there is a limit to their rate
STALE: Final = 0.1  # seconds for which the spool may hold what is confirmed already
SENT_BY_WORKER: Final = Claim()  # is never given up

logger = logging.getLogger("connpool.delivery")


class NotConfirmedError(Exception):
    """Unwinds from a ``confirm`` that raised, which is the cause."""


def confirm(how: Confirm | None, strand: Strand, message: bytes) -> None:
    """Let *how* make sure that the peer has *message*.

    Raises:
        NotConfirmedError: it does not, or nobody can tell: the connection is of no more use.
    """
    if how is None:
        return
    try:
        how(strand.conn, message)
    except Exception as error:
        raise NotConfirmedError from error


def take_out(office: Office, positions: Sequence[int]) -> bool:
    """What lies in the spool at *positions* has arrived. False: it cannot be taken out just now."""
    assert office.spool is not None
    try:
        if positions:
            office.spool.remove(positions)
    except SpoolError:
        logger.exception("broadcaster %r: what was sent cannot be taken out of the spool", office.name)
        return False
    return True


def leave_to(office: Office, links: Iterable[Link]) -> None:
    """Copies lie in the queues of *links*: have them sent."""
    for link in links:
        if link.strand is not None:  # else its worker looks for what waits, when it has opened it
            office.kick(link)
        elif not office.roster.has(link):  # it has just left, and others may be its heirs
            office.follow()


class Flushing:
    """Sends what waits in the spool for a link, on the thread that tends it.

    Args:
        stopped: Is set at the end: no pause lasts longer.
    """

    def __init__(self, office: Office, stopped: threading.Event) -> None:
        self._office = office
        self._stopped = stopped

    def flush(self, link: Link) -> None:
        """Send what waits for *link* until nothing does, or it breaks."""
        with link.writing:
            link.is_flushing = True
        strand = link.hold(Claim())
        if strand is None:
            self._office.bury(link)
            return
        error: BaseException | None = None
        is_whole = True
        try:
            is_whole = self._finish(link, strand) and self._send_batches(link, strand)
            error = strand.line.error
        except NotConfirmedError as failure:
            is_whole, error = False, failure.__cause__
        finally:
            to_close = link.free(strand)
            if not is_whole:
                self._office.lower(link, error, strand)
            self._office.close_strand(to_close, error)

    def _finish(self, link: Link, strand: Strand) -> bool:
        """Send the rest of what was begun. False: the connection broke."""
        begun = link.unfinished
        if begun is None or begun.strand is not strand:
            return True
        if strand.line.push_all(begun.rest, self._office.settings.send_timeout) < len(begun.rest):
            return False
        self._ask(link, strand, begun.parcel.message)
        with link.writing:
            link.unfinished = None
            if begun.position:
                link.note_sent(begun.position, SENT_BY_WORKER)
        self._remove(link, [begun.position] if begun.position else [])
        return True

    def _send_batches(self, link: Link, strand: Strand) -> bool:
        """Send the queue, and what waits for everybody. False: the connection broke."""
        office = self._office
        spool = office.spool
        if spool is None:
            with link.writing:
                link.is_flushing = False
            return True
        while not strand.is_dropped:
            batch = self._take(link)
            if batch:
                if not self._send_batch(link, strand, batch):
                    return False
                continue
            if self._share_out(link):
                continue
            if link.stop_flushing():
                return True
        return False

    def _take(self, link: Link) -> Sequence[Spooled]:
        """The next messages of the queue that nobody else has sent."""
        spool = self._office.spool
        assert spool is not None
        rate = self._office.settings.flush_rate
        most = BATCH if rate is None else max(1, min(BATCH, int(rate * SLICE)))
        with link.writing:
            before = frozenset(link.done)  # during the look they may leave the spool, and ``done``
            behind = link.behind  # where the queue is empty, limits have dropped what was left to us
        batch = spool.peek(link.queue, most, BATCH_BYTES)
        positions = _positions_of(batch)
        with link.writing:
            link.taken = max(link.taken, positions[-1] if batch else behind)
            gone = before | link.done.keys()  # what was withdrawn meanwhile, too; from now on nothing is
        if gone:
            spool.remove([position for position in positions if position in gone])
            link.forget([each for each in gone if each <= positions[-1]] if batch else before)
            batch = [each for each in batch if each.position not in gone]
        return batch

    def _send_batch(self, link: Link, strand: Strand, batch: Sequence[Spooled]) -> bool:
        office = self._office
        spool = office.spool
        assert spool is not None
        positions = _positions_of(batch)
        began = removed_at = real.now()
        n_arrived = n_removed = 0
        try:
            data, sizes, n_framed = office.encoder.encode_all(batch)
            strand.is_midway = True
            if office.settings.confirm is not None:
                for _ in self._confirmed(link, strand, batch, data, sizes):
                    n_arrived += 1
                    if real.now() - removed_at >= STALE:
                        self._remove(link, positions[n_removed:n_arrived])
                        n_removed, removed_at = n_arrived, real.now()
            elif (n_sent := strand.line.push_all(data, office.settings.send_timeout)) == len(data):
                n_arrived = n_framed
            else:
                n_arrived = sum(end <= n_sent for end in accumulate(sizes))
            strand.is_midway = n_arrived < n_framed
            return not strand.is_midway
        finally:
            self._remove(link, positions[n_removed:n_arrived])
            if n_arrived < len(batch):
                spool.release(positions[n_arrived:])
            rate = office.settings.flush_rate
            if rate is not None:
                self._stopped.wait(max(0.0, n_arrived / rate - (real.now() - began)))

    def _confirmed(
        self,
        link: Link,
        strand: Strand,
        batch: Sequence[Spooled],
        data: bytes | bytearray,
        sizes: Iterable[int],
    ) -> Iterator[Spooled]:
        """Send *data*, and give each message of *batch* once it is confirmed. Fewer: it broke.

        As much is sent ahead as the peer takes. It may take no more because nobody reads its answers: so the
        oldest message is asked for by then, or both sides would wait for each other.
        """
        line, timeout = strand.line, self._office.settings.send_timeout
        n_sent = 0
        with memoryview(data) as view:
            for end, each in zip(accumulate(sizes), batch, strict=False):  # it ends where none can be framed
                if n_sent < len(view) and line.error is None:
                    with view[n_sent:] as rest:
                        n_sent += line.push_all(rest, timeout, heeds_input_after=end - n_sent)
                if end > n_sent or (strand.is_dropped and strand.why is None):  # by hand
                    break
                self._ask(link, strand, each.message)
                yield each

    def _ask(self, link: Link, strand: Strand, message: bytes) -> None:
        """Have the peer confirm *message*."""
        link.is_asking = True
        try:
            confirm(self._office.settings.confirm, strand, message)
        finally:
            link.is_asking = False

    def _remove(self, link: Link, positions: Sequence[int]) -> None:
        if self._office.spool is None or not positions:
            return
        if not take_out(self._office, positions):
            with link.writing:
                link.done.update(dict.fromkeys(positions, SENT_BY_WORKER))  # tried again, but not sent again
        elif link.done:
            link.forget(positions)

    def _share_out(self, link: Link) -> bool:
        """Put what waits for everybody into the queues of the active group. False: there is nothing.

        First what waits for members that have left, and whose heir *link* is.
        """
        office = self._office
        spool = office.spool
        assert spool is not None
        heirlooms = link.heirlooms
        for queue in heirlooms:
            if spool.move(queue, [link.queue], BATCH):
                return True
        with office._lock:
            if link.heirlooms is heirlooms:  # else the route has changed meanwhile
                link.heirlooms = ()
        if not spool.count(GLOBAL):
            return False
        with office._lock:
            active = office.roster.active
            if active is None or active not in link.groups or link.state is not LinkState.ALIVE:
                return False
            links = office.roster.groups[active]
        for other in links:
            with other.writing:
                other.is_flushing = True  # by now: what comes next comes after what is moved
        n_moved = spool.move(GLOBAL, [each.queue for each in links], BATCH)
        leave_to(office, (other for other in links if other is not link))
        return n_moved > 0


def _positions_of(batch: Sequence[Spooled]) -> Sequence[int]:
    return batch.positions if isinstance(batch, Batch) else [each.position for each in batch]
