"""One message on its way: to each member of the first group that can take it, and to the spool."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from typing import Final, TypeAlias

from connpool.delivery.flushing import leave_to, take_out
from connpool.delivery.link import Link
from connpool.delivery.office import Office
from connpool.delivery.plan import Plan, Shares, shares_of, who_have
from connpool.delivery.strand import BEHIND, SENT, Outcome, Parcel
from connpool.delivery.words import describe, links_of, require_open
from connpool.delivery.writing import Writing
from connpool.errors import ConnPoolError, NoEndpointError, SpoolError
from connpool.model.delivery import GLOBAL, Delivery, LinkState
from connpool.pool.census import wink

__all__ = ["Sending"]

FIRST_PATIENCE: Final = 0.25  # seconds

logger = logging.getLogger("connpool.delivery")

_numbers: Final = itertools.count(1)

Stale: TypeAlias = list[tuple[Link, int]]  # copies and where they lie in the spool


class Sending:
    """Decides what becomes of each message. From any thread."""

    def __init__(self, office: Office, writing: Writing) -> None:
        self._office = office
        self._writing = writing
        self._encode = office.encoder.encode
        self._is_identified = office.encoder.is_identified
        self._origin = os.urandom(8)  # the first half of the ids of this broadcaster's messages

    def deliver(self, message: bytes) -> Delivery:
        """Send *message*, or spool it; see ``Broadcaster.broadcast``."""
        parcel = Parcel(message)
        try:
            return self._deliver(parcel)
        except SpoolError as error:
            require_open(self._office, error)  # if it is closed, so is the spool
            raise
        except ConnPoolError:
            raise
        except BaseException:
            parcel.is_given_up = True  # an interrupt may strike between any two steps below
            kept = self._office.kept
            if kept is not None:
                wink(kept)  # the next turn heals what it has left undone
            raise

    def _deliver(self, parcel: Parcel) -> Delivery:
        office = self._office
        plan, spool = office.plan, office.spool
        if plan is None or self._is_identified or (spool is not None and spool.count(GLOBAL)):
            return self._look_for_a_way(parcel)
        parcel.data = self._encode(parcel.message)
        late = plan.absent
        for link in plan.links:
            outcome = link.try_send(parcel)
            if outcome is SENT:
                continue
            if outcome is not BEHIND or spool is None:
                return self._go_on(plan, link, outcome, late, parcel)
            late = (*late, link)
        if not late:
            if not parcel.reached:  # no list is among them
                return plan.delivery
            return Delivery(who_have(parcel, plan.links), (), plan.number)
        parcel.id = self._new_id()
        return self._keep_copies(plan.number, plan.shares(late, parcel), late, parcel)

    def _look_for_a_way(self, parcel: Parcel) -> Delivery:
        office = self._office
        spool = office.spool
        parcel.id = self._new_id()
        # What cannot be framed is not taken.
        parcel.data = office.encoder.encode_as(parcel.message, parcel.id)
        require_open(office)
        if spool is not None and spool.count(GLOBAL):
            return self._put_aside(parcel)
        return self._ahead(parcel) if office.settings.write_ahead else self._in_turn(parcel)

    def _go_on(
        self, plan: Plan, failed: Link, outcome: Outcome, late: tuple[Link, ...], parcel: Parcel
    ) -> Delivery:
        """One of the links of a plan was not in order; those before it have the message, or are *late*."""
        parcel.id = self._new_id()
        outcomes = dict.fromkeys(plan.absent, Outcome.DEAD)
        for link in plan.links:
            if link is failed:
                outcomes[link] = outcome
            elif failed in outcomes:
                outcomes[link] = self._writing.write(link, parcel)
            else:
                outcomes[link] = Outcome.BEHIND if link in late else SENT
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
        for link, outcome in outcomes.items():
            if outcome is Outcome.DEAD:
                self._office.bury(link)
            elif self._office.spool is None and outcome is not SENT:
                outcomes[link] = self._writing.wait_and_write(link, outcome, parcel)
        if all(outcome is Outcome.DEAD for outcome in outcomes.values()):
            return None
        sent = who_have(parcel, (link for link, outcome in outcomes.items() if outcome is SENT))
        late = [link for link, outcome in outcomes.items() if outcome is not SENT]
        return self._keep_copies(number, shares_of(sent, late), late, parcel)

    def _keep_copies(self, number: int, shares: Shares, late: Sequence[Link], parcel: Parcel) -> Delivery:
        """Spool what links are too *late* to get now; see ``Plan.shares``."""
        office = self._office
        sent, members, queues = shares
        if not late or office.spool is None:
            return Delivery(sent, (), number, members, parcel.id)
        try:
            positions = office.spool.put(queues, parcel.message, parcel.id)
        except BaseException as error:
            for link in late:
                if link.has_begun(parcel):
                    office.lower(link, error)  # the peer has a part of a message that has no rest
                office.kick(link)
            if isinstance(error, SpoolError) and sent:
                logger.warning("broadcaster %r: no copy for %s: %s", office.name, ", ".join(members), error)
                return Delivery(sent, (), number, members, parcel.id)
            raise
        for link, position in zip(late, positions, strict=True):
            if link.unfinished is not None:
                link.settle(parcel, position)
        leave_to(office, late)
        return Delivery(sent, members, number, (), parcel.id)

    # -- the spool first

    def _ahead(self, parcel: Parcel) -> Delivery:
        """As ``_in_turn``, but what is sent is in the spool before."""
        office = self._office
        with office._lock:
            groups = office.roster.in_turn()
        stale: Stale = []  # copies for groups that turned out to be dead
        delivery: Delivery | None = None
        for number, links in groups:
            self._await(links)
            if not any(link.state is LinkState.ALIVE for link in links):
                continue
            positions = self._put([link.queue for link in links], parcel, stale)
            copies = dict(zip(links, positions, strict=True))
            delivery = self._send_ahead(number, copies, parcel) or self._withdraw(number, copies, parcel)
            if delivery is not None:
                break
            stale.extend(copies.items())
        delivery = delivery or self._put_aside(parcel, stale)
        self._clear_away(stale)
        return delivery

    def _put(self, queues: Sequence[str], parcel: Parcel, stale: Stale | None) -> Sequence[int]:
        """Spool a copy for each of *queues*; what is *stale* goes before, if there is no room else."""
        spool = self._office.spool
        assert spool is not None
        try:
            return spool.put(queues, parcel.message, parcel.id)
        except SpoolError:
            if not stale:
                raise
        self._clear_away(stale)
        stale.clear()
        return spool.put(queues, parcel.message, parcel.id)

    def _send_ahead(self, number: int, positions: dict[Link, int], parcel: Parcel) -> Delivery | None:
        office = self._office
        spool = office.spool
        assert spool is not None
        outcomes: dict[Link, Outcome] = {}
        for link, position in positions.items():
            with link.writing:
                link.own[position] = parcel
            try:
                outcomes[link] = self._writing.write(link, parcel, position)
            finally:
                with link.writing:
                    link.own.pop(position, None)
        arrived = [positions[link] for link in outcomes if outcomes[link] is SENT]
        is_out = self._take_out(arrived)
        for link, outcome in outcomes.items():
            if outcome is SENT and is_out:
                link.forget([positions[link]])
            elif outcome is SENT:
                with link.writing:
                    link.is_flushing = True  # a worker tries to take it out again
            if outcome is Outcome.DEAD:
                office.bury(link)
        if all(outcome is Outcome.DEAD for outcome in outcomes.values()):
            return None
        leave_to(office, (link for link, outcome in outcomes.items() if outcome is not SENT or not is_out))
        return Delivery(
            sent=who_have(parcel, (link for link in outcomes if outcomes[link] is SENT)),
            spooled=tuple(link.name for link in outcomes if outcomes[link] is not SENT),
            group=number,
            id=parcel.id,
        )

    def _withdraw(self, number: int, copies: dict[Link, int], parcel: Parcel) -> Delivery | None:
        """Take back what lies ready for a group that is dead, unless one of its links has just come back."""
        office = self._office
        taken = [link for link, position in copies.items() if not link.withdraw(position, parcel)]
        if not taken:
            return None
        others = {link: position for link, position in copies.items() if link not in taken}
        if others:
            assert office.spool is not None
            office.spool.put([link.queue for link in others], parcel.message, parcel.id)
            self._clear_away(list(others.items()))
            leave_to(office, others)
        return Delivery(spooled=tuple(link.name for link in copies), group=number, id=parcel.id)

    def _clear_away(self, copies: Stale) -> None:
        """Nobody needs these *copies*, which are withdrawn. If they cannot be taken out, a worker does it."""
        if self._take_out([position for _, position in copies]):
            for link, position in copies:
                link.forget([position])

    def _take_out(self, positions: list[int]) -> bool:
        """Take them out of the spool, and let who waits for an empty one look. False: not just now."""
        is_out = take_out(self._office, positions)
        with self._office.settled:
            self._office.settled.notify_all()
        return is_out

    # -- nobody can take it

    def _put_aside(self, parcel: Parcel, stale: Stale | None = None) -> Delivery:
        """Let it wait for whichever group is the first to come back, behind what waits for that already."""
        office = self._office
        if office.spool is None:
            require_open(office)  # else who closes it has cut off the last link
            raise self._nobody()
        self._put([GLOBAL], parcel, stale)
        office.kick_all()
        return Delivery(spooled=(GLOBAL,), id=parcel.id)

    def _nobody(self) -> NoEndpointError:
        office = self._office
        takes_any = office.settings.failover
        infos = [info for info in links_of(office) if takes_any or 0 in info.groups]
        causes = [(info.endpoint, info.last_error) for info in infos if info.last_error is not None]
        times = [info.retry_at for info in infos if info.retry_at is not None]
        told = "; ".join(map(describe, infos)) or "the route has no members"
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
            has = office.roster.has  # one that has been removed meanwhile is not opened any more
            return office.is_closed or not any(link.state is LinkState.NEW and has(link) for link in links)

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
