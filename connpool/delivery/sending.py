"""One message on its way: to each member of the first group that can take it, and to the spool."""

from __future__ import annotations

import itertools
import logging
import os
from typing import Final

from connpool.delivery.link import Link, Outcome
from connpool.delivery.office import Office, Plan
from connpool.delivery.tending import take_out
from connpool.delivery.writing import Parcel, Writing
from connpool.errors import NoEndpointError, PoolClosedError, SpoolError
from connpool.model.delivery import GLOBAL, Delivery, LinkState

__all__ = ["Sending"]

FIRST_PATIENCE: Final = 0.25  # seconds

logger = logging.getLogger("connpool.delivery")

_numbers: Final = itertools.count(1)


class Sending:
    """Decides what becomes of each message. From any thread."""

    def __init__(self, office: Office, writing: Writing) -> None:
        self._office = office
        self._writing = writing
        self._encode = office.settings.framing.encode
        self._is_identified = office.is_identified
        self._origin = os.urandom(8)  # the first half of the ids of this broadcaster's messages

    def start_clean(self) -> None:
        """In a forked child: other ids than the parent's."""
        self._origin = os.urandom(8)

    def deliver(self, message: bytes) -> Delivery:
        """Send *message*, or spool it; see ``Broadcaster.broadcast``."""
        office = self._office
        plan, spool = office.plan, office.spool
        if plan is not None and not self._is_identified and (spool is None or not spool.count(GLOBAL)):
            data = self._encode(message)
            for link in plan.links:
                outcome = link.try_send(data, message)
                if outcome is not Outcome.SENT:
                    return self._go_on(plan, link, outcome, Parcel(message, self._new_id(), data))
            return plan.delivery
        id = self._new_id()
        parcel = Parcel(message, id, office.encode(message, id))  # what cannot be framed is not taken
        if office.is_closed:
            raise PoolClosedError(f"broadcaster {office.name!r} is closed", pool=office.name)
        if spool is not None and spool.count(GLOBAL):
            return self._put_aside(parcel)
        return self._ahead(parcel) if office.settings.write_ahead else self._in_turn(parcel)

    def _go_on(self, plan: Plan, failed: Link, outcome: Outcome, parcel: Parcel) -> Delivery:
        """One of the links that were all in order was not; those before it have the message."""
        outcomes: dict[Link, Outcome] = {}
        for link in plan.links:
            if link is failed:
                outcomes[link] = outcome
            else:
                outcomes[link] = Outcome.SENT if failed not in outcomes else self._writing.write(link, parcel)
        return self._complete(plan.number, outcomes, parcel) or self._in_turn(parcel, without=plan.number)

    # -- groups, one after the other

    def _in_turn(self, parcel: Parcel, without: int | None = None) -> Delivery:
        office = self._office
        with office._lock:
            groups = office.roster.in_turn()
        for number, links in groups:
            if number == without:
                continue
            self._await(links)
            outcomes = {link: self._writing.write(link, parcel) for link in links}
            delivery = self._complete(number, outcomes, parcel)
            if delivery is not None:
                return delivery
        return self._put_aside(parcel)

    def _complete(self, number: int, outcomes: dict[Link, Outcome], parcel: Parcel) -> Delivery | None:
        """See to the links that have not got it. None: the whole group is dead, so another must take it."""
        office = self._office
        spool = office.spool
        for link, outcome in outcomes.items():
            if outcome is Outcome.DEAD:
                self._writing.bury(link)
            elif spool is None and outcome is not Outcome.SENT:
                outcomes[link] = self._writing.wait_and_write(link, outcome, parcel)
        if all(outcome is Outcome.DEAD for outcome in outcomes.values()):
            return None
        sent = tuple(link.endpoint for link in outcomes if outcomes[link] is Outcome.SENT)
        late = [link for link in outcomes if outcomes[link] is not Outcome.SENT]
        if not late:
            return Delivery(sent=sent, group=number, id=parcel.id)
        queues = tuple(link.queue for link in late)
        if spool is None:
            return Delivery(sent=sent, group=number, refused=queues, id=parcel.id)
        try:
            positions = spool.put(queues, parcel.message, parcel.id)
        except BaseException as error:
            for link in late:
                if outcomes[link] is Outcome.BEGUN:
                    office.lower(link, error)  # the peer has a part of a message that has no rest
                office.kick(link)
            if isinstance(error, SpoolError) and sent:
                logger.warning("broadcaster %r: no copy for %s: %s", office.name, ", ".join(queues), error)
                return Delivery(sent=sent, group=number, refused=queues, id=parcel.id)
            raise
        for link, position in zip(late, positions, strict=True):
            if outcomes[link] is Outcome.BEGUN:
                link.settle(position)
            office.kick(link)
        return Delivery(sent=sent, spooled=queues, group=number, id=parcel.id)

    # -- the spool first

    def _ahead(self, parcel: Parcel) -> Delivery:
        """As ``_in_turn``, but what is sent is in the spool before."""
        office = self._office
        spool = office.spool
        assert spool is not None
        with office._lock:
            groups = office.roster.in_turn()
        stale: list[int] = []  # copies for groups that turned out to be dead
        for number, links in groups:
            self._await(links)
            if not any(link.state is LinkState.ALIVE for link in links):
                continue
            positions = spool.put([link.queue for link in links], parcel.message, parcel.id)
            delivery = self._send_ahead(number, dict(zip(links, positions, strict=True)), parcel)
            if delivery is not None:
                take_out(office, stale)
                return delivery
            stale.extend(positions)
        delivery = self._put_aside(parcel)
        take_out(office, stale)
        return delivery

    def _send_ahead(self, number: int, positions: dict[Link, int], parcel: Parcel) -> Delivery | None:
        office = self._office
        spool = office.spool
        assert spool is not None
        outcomes: dict[Link, Outcome] = {}
        for link, position in positions.items():
            with link.writing:
                link.own.add(position)
            try:
                outcomes[link] = self._writing.write(link, parcel, position)
            finally:
                with link.writing:
                    link.own.discard(position)
        arrived = [positions[link] for link in outcomes if outcomes[link] is Outcome.SENT]
        is_out = take_out(office, arrived)
        for link, outcome in outcomes.items():
            with link.writing:
                if is_out and not link.is_flushing:  # a worker may have looked before it was out
                    link.done.discard(positions[link])
                elif outcome is Outcome.SENT and not is_out:
                    link.is_flushing = True  # a worker tries to take it out again
            if outcome is Outcome.DEAD:
                self._writing.bury(link)
            elif outcome is not Outcome.SENT or not is_out:
                office.kick(link)
        if all(outcome is Outcome.DEAD for outcome in outcomes.values()):
            return None
        return Delivery(
            sent=tuple(link.endpoint for link in outcomes if outcomes[link] is Outcome.SENT),
            spooled=tuple(link.queue for link in outcomes if outcomes[link] is not Outcome.SENT),
            group=number,
            id=parcel.id,
        )

    # -- nobody can take it

    def _put_aside(self, parcel: Parcel) -> Delivery:
        """Let it wait for whichever group is the first to come back, behind what waits for that already."""
        office = self._office
        spool = office.spool
        if spool is None:
            raise self._nobody()
        spool.put([GLOBAL], parcel.message, parcel.id)
        office.kick_all()
        return Delivery(spooled=(GLOBAL,), id=parcel.id)

    def _nobody(self) -> NoEndpointError:
        office = self._office
        infos = office.describe_links()
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
        """Give links that are being opened for the first time the time they need for that, once.

        With a spool that is not long; without one it is as long as nobody else can take the message.
        """
        fresh = [link for link in links if link.state is LinkState.NEW]
        if not fresh:
            return
        office = self._office
        for link in fresh:
            office.want(link)

        def are_settled() -> bool:
            return office.is_closed or all(link.state is not LinkState.NEW for link in links)

        def is_enough() -> bool:
            return are_settled() or any(link.state is LinkState.ALIVE for link in links)

        with office.settled:
            is_first = not all(link.was_awaited for link in fresh)
            for link in fresh:
                link.was_awaited = True
            if office.spool is None:
                patience = office.pool.config.connect_timeout + 1.0
                office.settled.wait_for(are_settled if is_first else is_enough, patience)
            elif is_first:
                office.settled.wait_for(are_settled, FIRST_PATIENCE)

    def _new_id(self) -> bytes:
        return self._origin + next(_numbers).to_bytes(8, "big")
