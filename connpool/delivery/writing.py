"""One message to one link: at once if that can be, or waiting for the peer."""

from __future__ import annotations

import threading

from connpool.delivery.flushing import NotConfirmedError, confirm
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.strand import Outcome, Parcel, Strand
from connpool.errors import UsageError

__all__ = ["Writing"]


class Writing:
    """Writes to links. From any thread."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._queueing: dict[int, Parcel] = {}  # by thread: those that wait to become the holder of a strand

    def write(self, link: Link, parcel: Parcel, position: int = 0) -> Outcome:
        """Send to one link, and have the peer confirm it where that is asked."""
        if self._office.settings.confirm is None:
            return link.try_send(parcel, position)
        parcel.thread = threading.get_ident()
        strand = link.try_hold(parcel, position)
        if isinstance(strand, Outcome):
            return strand
        return self._hold_and_write(link, strand, parcel, parcel.data, position)

    def _hold_and_write(
        self, link: Link, strand: Strand, parcel: Parcel, data: bytes, position: int = 0
    ) -> Outcome:
        """Send *data*, which is left of *parcel*, as the holder of *strand*, waiting for the peer."""
        office = self._office
        error: BaseException | None = None
        is_sent = False
        try:
            strand.is_midway = True
            is_sent = strand.line.push_all(data, office.settings.send_timeout) == len(data)
            error = strand.line.error
            if is_sent:
                strand.is_midway = False
                confirm(office.settings.confirm, strand, parcel.message)
        except NotConfirmedError as failure:
            is_sent, error = False, failure.__cause__
        except BaseException as exc:
            is_sent, error = False, exc  # half of it may be on its way
            raise
        finally:
            if is_sent and position:
                with link.writing:
                    link.note_sent(position, parcel)
            if is_sent:
                parcel.has_reached(link.queue, strand.endpoint)  # the link may lead elsewhere by now
            to_close = link.free(strand)
            if not is_sent:
                office.lower(link, error, strand)
            office.close_strand(to_close, error)
        office.kick(link)  # for what others have queued meanwhile
        return Outcome.SENT if is_sent else Outcome.DEAD

    def write_once(self, link: Link, message: bytes) -> None:
        """Send what is worth nothing later, unless something must be sent before."""
        parcel = Parcel(message)
        try:
            parcel.data = self._office.encoder.encode_as(message, parcel.id)
            outcome = self.write(link, parcel)
            if outcome is Outcome.DEAD:
                self._office.bury(link)
            elif outcome is Outcome.BEGUN and self._office.spool is None:
                self.wait_and_write(link, outcome, parcel)
            elif self._office.spool is not None:
                link.settle(parcel, 0)
                self._office.kick(link)
        except BaseException:
            parcel.is_given_up = True
            raise

    def wait_and_write(self, link: Link, outcome: Outcome, parcel: Parcel) -> Outcome:
        """Without a spool there is nowhere to put it: wait until the peer takes it."""
        if outcome is Outcome.BEGUN:
            begun = parcel.begun[link.queue]
            return self._hold_and_write(link, begun.strand, parcel, begun.rest)
        strand = self._queue_up(link, parcel)
        if strand is None:
            self._office.bury(link)
            return Outcome.DEAD
        return self._hold_and_write(link, strand, parcel, parcel.data)

    def _queue_up(self, link: Link, parcel: Parcel) -> Strand | None:
        """Become the holder, for *parcel*, when it is one's turn. None: there is no connection any more.

        Raises:
            UsageError: it comes from within a broadcast of this very thread, by a signal handler, a
                finaliser or a ``confirm``, and would wait for that.
        """
        me = threading.get_ident()
        outer, strand = self._queueing.get(me), link.strand
        is_queueing = outer is not None and not outer.is_given_up
        if link.is_inside() or is_queueing or (strand is not None and strand.is_held_by(me)):
            parcel.is_given_up = True  # as far as it has come with other members
            raise UsageError(
                f"broadcaster {self._office.name!r}: a broadcast would wait at {link.queue} for the one "
                "from within which it comes; with a spool it need not",
                pool=self._office.name,
            )
        try:
            self._queueing[me] = parcel
            parcel.thread = me
            return link.hold(parcel, self._office.settings.send_timeout)
        finally:
            self._queueing.pop(me, None)
