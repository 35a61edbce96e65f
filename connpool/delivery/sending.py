"""One message on its way: to each member of the first group that can take it, and to the spool."""

from __future__ import annotations

import itertools
import os
from typing import Final

from connpool.delivery.link import Link, Outcome, Strand
from connpool.delivery.office import Office
from connpool.delivery.tending import NotConfirmedError, confirm
from connpool.errors import NoEndpointError, PoolClosedError, SpoolError
from connpool.model.delivery import GLOBAL, Delivery, LinkState

__all__ = ["Sending"]

FIRST_PATIENCE: Final = 0.25  # seconds

_numbers: Final = itertools.count(1)


class Sending:
    """Decides what becomes of each message. From any thread."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._origin = os.urandom(8)  # the first half of the ids of this broadcaster's messages

    def start_clean(self) -> None:
        """In a forked child: other ids than the parent's."""
        self._origin = os.urandom(8)

    def deliver(self, message: bytes) -> Delivery:
        """Send *message*, or spool it; see ``Broadcaster.broadcast``."""
        office = self._office
        data = office.encode(message)  # before anything is done: a message that cannot be framed is not taken
        plan, spool = office.plan, office.spool
        if plan is not None and (spool is None or not spool.count(GLOBAL)):
            return self._straight_on(plan.links, plan.delivery, data, message)
        if office.is_closed:
            raise PoolClosedError(f"broadcaster {office.name!r} is closed", pool=office.name)
        if spool is not None and spool.count(GLOBAL):
            return self._put_aside(message)
        return self._ahead(data, message) if office.settings.write_ahead else self._in_turn(data, message)

    def _straight_on(
        self, links: tuple[Link, ...], delivery: Delivery, data: bytes, message: bytes
    ) -> Delivery:
        """Send to *links*, all of which were alive and clear a moment ago."""
        outcomes: dict[Link, Outcome] = {}
        for link in links:
            outcome = link.try_send(data, message)
            if outcome is not Outcome.SENT:
                outcomes[link] = outcome
        if not outcomes:
            return delivery
        number = delivery.group
        assert number is not None
        outcomes = {link: outcomes.get(link, Outcome.SENT) for link in links}
        return self._complete(number, outcomes, data, message) or self._in_turn(data, message, without=number)

    # -- groups, one after the other

    def _in_turn(self, data: bytes, message: bytes, without: int | None = None) -> Delivery:
        office = self._office
        with office._lock:
            groups = office.roster.in_turn()
        for number, links in groups:
            if number == without:
                continue
            self._await(links)
            outcomes = {link: self._try(link, data, message) for link in links}
            delivery = self._complete(number, outcomes, data, message)
            if delivery is not None:
                return delivery
        return self._put_aside(message)

    def _try(self, link: Link, data: bytes, message: bytes, position: int = 0) -> Outcome:
        """Send to one link, and have the peer confirm it where that is asked."""
        how = self._office.settings.confirm
        if how is None:
            return link.try_send(data, message, position)
        strand = link.try_hold(position)
        if isinstance(strand, Outcome):
            return strand
        return self._hold_and_send(link, strand, data, message, position)

    def _hold_and_send(
        self, link: Link, strand: Strand, data: bytes, message: bytes, position: int = 0
    ) -> Outcome:
        """Send as the holder of *link*, waiting for the peer."""
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
                    link.done.add(position)
            to_close = link.free(strand)
            if not is_sent:
                office.lower(link, error, strand)
            office.close_strand(to_close, error)
        office.kick(link)  # for what others have queued meanwhile
        return Outcome.SENT if is_sent else Outcome.DEAD

    def send_once(self, link: Link, data: bytes, message: bytes) -> None:
        """Send what is worth nothing later, unless something must be sent before."""
        outcome = self._try(link, data, message)
        if outcome is Outcome.DEAD:
            self._bury(link)
        elif outcome is Outcome.BEGUN and self._office.spool is None:
            self._wait_and_send(link, outcome, data, message)
        elif outcome is Outcome.BEGUN:
            link.settle(0)
            self._office.kick(link)

    def _complete(
        self, number: int, outcomes: dict[Link, Outcome], data: bytes, message: bytes
    ) -> Delivery | None:
        """See to the links that have not got it. None: the whole group is dead, so another must take it."""
        office = self._office
        spool = office.spool
        for link, outcome in outcomes.items():
            if outcome is Outcome.DEAD:
                self._bury(link)
            elif spool is None and outcome is not Outcome.SENT:
                outcomes[link] = self._wait_and_send(link, outcome, data, message)
        late = [link for link, outcome in outcomes.items() if outcome is not Outcome.SENT]
        if all(outcomes[link] is Outcome.DEAD for link in outcomes):
            return None
        sent = tuple(link.endpoint for link in outcomes if outcomes[link] is Outcome.SENT)
        if not late:
            return Delivery(sent=sent, group=number)
        queues = tuple(link.queue for link in late)
        if spool is None:
            return Delivery(sent=sent, group=number, refused=queues)
        id = self._new_id()
        begun = [link for link in late if outcomes[link] is Outcome.BEGUN]
        try:
            positions = spool.put(queues, message, id)
        except BaseException as error:
            for link in begun:
                office.lower(link, error)  # the peer has a part of a message that has no rest
            if isinstance(error, SpoolError) and sent:
                return Delivery(sent=sent, group=number, refused=queues)
            raise
        for link, position in zip(late, positions, strict=True):
            if outcomes[link] is Outcome.BEGUN:
                link.settle(position)
            office.kick(link)
        return Delivery(sent=sent, spooled=queues, group=number, id=id)

    def _wait_and_send(self, link: Link, outcome: Outcome, data: bytes, message: bytes) -> Outcome:
        """Without a spool there is nowhere to put it: wait until the peer takes it."""
        office = self._office
        if outcome is Outcome.BEGUN:
            begun = link.unfinished
            assert begun is not None
            return self._hold_and_send(link, begun.strand, begun.rest, message)
        strand = link.hold("sender", office.settings.send_timeout)
        if strand is None:
            return Outcome.DEAD
        return self._hold_and_send(link, strand, data, message)

    def _bury(self, link: Link) -> None:
        """A link was found dead: say so, if it is news."""
        strand = link.strand
        if strand is not None and not strand.line.is_alive():
            self._office.lower(link, strand.line.error, strand)

    # -- the spool first

    def _ahead(self, data: bytes, message: bytes) -> Delivery:
        """As ``_in_turn``, but what is sent is in the spool before."""
        office = self._office
        spool = office.spool
        assert spool is not None
        id = self._new_id()
        with office._lock:
            groups = office.roster.in_turn()
        stale: list[int] = []  # copies for groups that turned out to be dead
        for number, links in groups:
            self._await(links)
            if not any(link.state is LinkState.ALIVE for link in links):
                continue
            positions = spool.put([link.queue for link in links], message, id)
            delivery = self._send_ahead(number, dict(zip(links, positions, strict=True)), data, message, id)
            if delivery is not None:
                spool.remove(stale)
                return delivery
            stale.extend(positions)
        delivery = self._put_aside(message, id)
        spool.remove(stale)
        return delivery

    def _send_ahead(
        self, number: int, positions: dict[Link, int], data: bytes, message: bytes, id: bytes
    ) -> Delivery | None:
        office = self._office
        spool = office.spool
        assert spool is not None
        outcomes: dict[Link, Outcome] = {}
        for link, position in positions.items():
            with link.writing:
                link.own.add(position)
            try:
                outcomes[link] = self._try(link, data, message, position)
            finally:
                with link.writing:
                    link.own.discard(position)
        arrived = [positions[link] for link, outcome in outcomes.items() if outcome is Outcome.SENT]
        if arrived:
            spool.remove(arrived)
        for link, outcome in outcomes.items():
            with link.writing:
                link.done.discard(positions[link])
            if outcome is Outcome.DEAD:
                self._bury(link)
            elif outcome is not Outcome.SENT:
                office.kick(link)
        if all(outcome is Outcome.DEAD for outcome in outcomes.values()):
            return None
        return Delivery(
            sent=tuple(link.endpoint for link in outcomes if outcomes[link] is Outcome.SENT),
            spooled=tuple(link.queue for link in outcomes if outcomes[link] is not Outcome.SENT),
            group=number,
            id=id,
        )

    # -- nobody can take it

    def _put_aside(self, message: bytes, id: bytes | None = None) -> Delivery:
        """Let it wait for whichever group is the first to come back, behind what waits for that already."""
        office = self._office
        spool = office.spool
        if spool is None:
            raise self._nobody()
        id = self._new_id() if id is None else id
        spool.put([GLOBAL], message, id)
        office.kick_all()
        return Delivery(spooled=(GLOBAL,), id=id)

    def _nobody(self) -> NoEndpointError:
        office = self._office
        with office._lock:
            infos = [link.describe() for link in office.roster.links.values()]
        causes = [(info.endpoint, info.last_error) for info in infos if info.last_error is not None]
        times = [info.retry_at for info in infos if info.retry_at is not None]
        told = "; ".join(f"{endpoint}: {error}" for endpoint, error in causes) or "the route has no members"
        return NoEndpointError(
            f"broadcaster {office.name!r}: no member takes the message, and there is no spool ({told})",
            pool=office.name,
            causes=tuple(causes),
            retry_at=min(times, default=None),
        )

    def _await(self, links: tuple[Link, ...]) -> None:
        """Give links that are being opened for the first time the time they need for that.

        With a spool nobody waits for stragglers for long.
        """
        if all(link.state is not LinkState.NEW for link in links):
            return
        office = self._office
        for link in links:
            if link.state is LinkState.NEW:
                office.want(link)
        patience = office.pool.config.connect_timeout + 1.0

        def are_settled() -> bool:
            return office.is_closed or all(link.state is not LinkState.NEW for link in links)

        def is_enough() -> bool:
            return are_settled() or any(link.state is LinkState.ALIVE for link in links)

        with office.settled:
            if office.spool is None:
                office.settled.wait_for(are_settled, patience)
            elif not office.settled.wait_for(are_settled, FIRST_PATIENCE):
                office.settled.wait_for(is_enough, patience)

    def _new_id(self) -> bytes:
        return self._origin + next(_numbers).to_bytes(8, "big")
