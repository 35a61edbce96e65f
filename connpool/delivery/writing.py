"""One message to one link: at once if that can be, or waiting for the peer."""

from __future__ import annotations

from typing import Final

from connpool.delivery.link import Link, Outcome, Strand
from connpool.delivery.office import Office
from connpool.delivery.spool import ID_SIZE
from connpool.delivery.tending import NotConfirmedError, confirm

__all__ = ["Parcel", "Writing"]

NO_ID: Final = bytes(ID_SIZE)  # of what is sent once or never


class Parcel:
    """One message on its way.

    Attributes:
        id: The same wherever it goes.
        data: The message as it goes over the wire.
    """

    __slots__ = ("data", "id", "message")

    def __init__(self, message: bytes, id: bytes, data: bytes) -> None:
        self.message = message
        self.id = id
        self.data = data


class Writing:
    """Writes to links. From any thread."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def write(self, link: Link, parcel: Parcel, position: int = 0) -> Outcome:
        """Send to one link, and have the peer confirm it where that is asked."""
        if self._office.settings.confirm is None:
            return link.try_send(parcel.data, parcel.message, position)
        strand = link.try_hold(position)
        if isinstance(strand, Outcome):
            return strand
        return self._hold_and_write(link, strand, parcel.data, parcel.message, position)

    def _hold_and_write(
        self, link: Link, strand: Strand, data: bytes, message: bytes, position: int = 0
    ) -> Outcome:
        """Send *data* as the holder of *link*, waiting for the peer."""
        office = self._office
        error: BaseException | None = None
        is_sent = False
        try:
            is_sent = strand.line.push_all(data, office.settings.send_timeout) == len(data)
            error = strand.line.error
            if is_sent:
                confirm(office.settings.confirm, strand, message)
        except NotConfirmedError as failure:
            is_sent, error = False, failure.__cause__
        except BaseException as exc:
            is_sent, error = False, exc  # half of it may be on its way
            raise
        finally:
            if is_sent and position:
                with link.writing:
                    link.note_sent(position)
            to_close = link.free(strand)
            if not is_sent:
                office.lower(link, error, strand)
            office.close_strand(to_close, error)
        office.kick(link)  # for what others have queued meanwhile
        return Outcome.SENT if is_sent else Outcome.DEAD

    def write_once(self, link: Link, message: bytes) -> None:
        """Send what is worth nothing later, unless something must be sent before."""
        parcel = Parcel(message, NO_ID, self._office.encode(message, NO_ID))
        outcome = self.write(link, parcel)
        if outcome is Outcome.DEAD:
            self.bury(link)
        elif outcome is Outcome.BEGUN and self._office.spool is None:
            self.wait_and_write(link, outcome, parcel)
        elif self._office.spool is not None:
            link.settle(0)
            self._office.kick(link)

    def wait_and_write(self, link: Link, outcome: Outcome, parcel: Parcel) -> Outcome:
        """Without a spool there is nowhere to put it: wait until the peer takes it."""
        office = self._office
        if outcome is Outcome.BEGUN:
            begun = link.begun
            assert begun is not None
            return self._hold_and_write(link, begun.strand, begun.rest, parcel.message)
        strand = link.hold("sender", office.settings.send_timeout)
        if strand is None:
            return Outcome.DEAD
        return self._hold_and_write(link, strand, parcel.data, parcel.message)

    def bury(self, link: Link) -> None:
        """A link was found dead: say so, if it is news."""
        strand = link.strand
        if strand is not None and not strand.line.is_alive():
            self._office.lower(link, strand.line.error, strand)
