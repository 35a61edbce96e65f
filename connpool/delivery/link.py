"""One member of a route and its connection: who may write on it, and what must be written first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from connpool import clock as real
from connpool.clock import open_gate, shut_gate, wait
from connpool.delivery.spool import Spool
from connpool.delivery.strand import BEHIND, SENT, Claim, Outcome, Parcel, Strand, Unfinished
from connpool.model.delivery import LinkInfo, LinkState, queue_of
from connpool.model.route import Member
from connpool.pool.turns import Turns
from connpool.wire.line import BROKEN

__all__ = ["Link"]


class Link:
    """The way to one member of a route, alive or not.

    ``writing`` is held for what never waits: one look at the socket and one
    write of what the system takes at once. Whoever has to wait for the peer
    becomes the strand's ``holder`` first, so that ``writing`` is free meanwhile. Whoever re-enters it
    sends nothing. It guards all attributes below the first line; the office's lock guards those above it.
    """

    def __init__(self, member: Member, now: float, spool: Spool | None, queue: str | None = None) -> None:
        self.spool = spool
        self.queue = queue_of(member) if queue is None else queue  # it keeps it, whoever joins the member
        self.heirlooms: tuple[str, ...] = ()  # queues whose members have left, and whose messages it gets
        self.groups: tuple[int, ...] = ()
        self.state = LinkState.NEW
        self.endpoint = member.endpoints[0]
        self.lead_to(member)
        self.since = now
        self.failures = 0
        self.retry_at: float | None = None
        self.last_error: BaseException | None = None
        self.is_tended = False  # a worker is at it, or about to be
        self.tended_since = now
        self.worker: threading.Thread | None = None
        self.is_asking = False  # it has the peer confirm a message, and is in the user's function
        self.is_stuck = False  # what waits for it cannot be read or framed, for reasons of our own
        self.is_wanted = False  # to be dialled as soon as may be, whatever ``retry_at`` says
        self.was_awaited = False  # a message has waited for its first dial: no other does
        self.n_tries = 0  # dials so far: whose turn it is in a list of endpoints
        self.newest: Strand | None = None  # its connection, or if that was dropped, the one before
        # ------------------------------------------------------------------
        self.writing = threading.RLock()  # re-entrant so that ``is_inside`` can tell
        self.is_inside: Callable[[], bool] = self.writing._is_owned  # type: ignore[attr-defined]
        self.strand: Strand | None = None
        self.is_flushing = False  # a worker sends what is queued: all others queue up behind
        self.unfinished: Unfinished | None = None
        self.own: dict[int, Claim] = {}  # in the spool, but their senders are about to send them
        self.done: dict[int, Claim] = {}  # sent, and about to leave the spool, or just gone
        self.taken = 0  # the last position that a worker has taken from the queue
        self.behind = 0  # the last position that its sender has left to a worker
        self._turns = Turns()  # of those who wait to become the holder
        self._freed = shut_gate()  # opened when there is no holder any more

    def lead_to(self, member: Member) -> None:
        """Be the way to *member* from now on. With the office's lock held."""
        self.member, self.name, self.is_list = member, queue_of(member), len(member.endpoints) > 1
        self.endpoint = self.endpoint if self.endpoint in member else member.endpoints[0]

    # -- sending at once

    def try_send(self, parcel: Parcel, position: int = 0) -> Outcome:
        """Send *parcel* if nothing has to be sent before it, and as far as that needs no wait.

        Where it was begun the caller has to ``settle`` it if there is a spool; if there is none the caller
        is the holder from now on, and has to send the rest, which is in ``parcel.begun``.

        Args:
            position: Where it lies in the spool already; 0: nowhere.
        """
        if self.is_inside():  # a signal handler's or finaliser's: what it has interrupted comes first
            return self._fall_behind(position)
        with self.writing:
            strand = self.strand
            if strand is None:
                return Outcome.DEAD
            spool = self.spool  # asked for its count here: as a rule it is 0, and that is two calls less
            if (
                self.is_flushing
                or (strand.holder is not None and strand.is_held)
                or (spool is not None and (position or spool.count(self.queue)) and self._has_older(position))
            ):
                return self._fall_behind(position)
            if strand.is_midway:  # and nobody is at it
                return self._give_up(strand)
            strand.is_midway = True
            n_sent = strand.line.look_and_push(parcel.data)
            if n_sent == len(parcel.data):
                strand.is_midway = False
                if position:
                    self.note_sent(position, parcel)
                if self.is_list:
                    parcel.has_reached(self.queue, strand.endpoint)
                return SENT
            if n_sent == BROKEN:
                return Outcome.DEAD
            if n_sent == 0 and not strand.line.is_midway:
                strand.is_midway = False
                return self._fall_behind(position)
            begun = Unfinished(strand, parcel.data[n_sent:], parcel, position)
            if self.spool is not None:
                self.is_flushing = True
                self.unfinished = begun
                strand.is_midway = False
            else:
                parcel.begun = {**parcel.begun, self.queue: begun}
                parcel.thread = threading.get_ident()
                strand.holder = parcel
            return Outcome.BEGUN

    def settle(self, parcel: Parcel, position: int) -> None:
        """If *parcel* is what was begun: it lies in the spool now, at *position*."""
        with self.writing:
            begun = self.unfinished
            if begun is not None and begun.parcel is parcel:
                begun.position = position
                begun.is_placed = True

    def has_begun(self, parcel: Parcel) -> bool:
        """Whether the peer has a part of *parcel*, whose rest a worker is to send."""
        begun = self.unfinished
        return begun is not None and begun.parcel is parcel

    def try_hold(self, claim: Claim, position: int = 0) -> Strand | Outcome:
        """Become the holder if nothing has to be sent before the message at *position*."""
        if self.is_inside():
            return self._fall_behind(position)
        with self.writing:
            strand = self.strand
            if strand is None:
                return Outcome.DEAD
            is_behind = self.spool is not None and self._has_older(position)
            if self.is_flushing or strand.is_held or is_behind:
                return self._fall_behind(position)
            if strand.is_midway:
                return self._give_up(strand)
            if not strand.line.is_alive():
                return Outcome.DEAD
            strand.holder = claim
            return strand

    @staticmethod
    def _give_up(strand: Strand) -> Outcome:
        """Its sender was torn away in the midst of a message."""
        strand.line.spoil(ConnectionAbortedError("a sender was interrupted in the midst of a message"))
        return Outcome.DEAD

    def _fall_behind(self, position: int) -> Outcome:
        """The spool has it, or will: a worker sends it, and what comes after it until nothing is left."""
        if self.spool is not None:
            self.is_flushing = True
            if position:
                self.behind = max(self.behind, position)
                self.own.pop(position, None)
        return BEHIND

    def note_sent(self, position: int, claim: Claim) -> None:
        """With ``writing`` held: the peer has what lies in the spool at *position*."""
        self.done[position] = claim
        self.own.pop(position, None)

    def forget(self, positions: Iterable[int]) -> None:
        """What lay in the spool at *positions* has left it."""
        with self.writing:
            for position in positions:
                self.done.pop(position, None)

    def withdraw(self, position: int, claim: Claim) -> bool:
        """See to it that what lies in the spool at *position* is not sent. False: a worker has it in hand."""
        with self.writing:
            if position <= self.taken:
                return False
            self.note_sent(position, claim)
            return True

    def _has_older(self, position: int) -> bool:
        """Whether anything waits in the spool that must be sent before, or that somebody sends just now."""
        if position and position <= self.taken:
            return True  # a worker has it in hand
        return self.has_waiting()

    def has_waiting(self) -> bool:
        """Whether anything waits in the spool that is not seen to by its sender. Needs no lock."""
        assert self.spool is not None
        waiting = self.spool.count(self.queue)
        if not waiting:
            return False
        if not self.own and not self.done:
            return True
        own = [claim for position, claim in list(self.own.items()) if position > self.taken]
        claims = [*own, *self.done.values()]
        return waiting > len(claims) or any(claim.is_given_up for claim in claims)

    # -- waiting for the peer

    def stop_flushing(self) -> bool:
        """Let senders send at once again, if a worker has sent all that they have left to it."""
        with self.writing:
            if self.behind <= self.taken and not self.has_waiting():
                self.is_flushing = False
            return not self.is_flushing

    def hold(self, claim: Claim, timeout: float | None = None) -> Strand | None:
        """Become the holder, when it is one's turn. None: there is no connection any more, or time is up."""
        until = None if timeout is None else real.now() + timeout
        turn = self._turns.try_take(timeout)
        if turn is None:
            return None
        try:
            while True:
                with self.writing:
                    strand = self.strand
                    if strand is None:
                        return None
                    if strand.is_torn:
                        self._give_up(strand)
                        return None
                    if not strand.is_held:
                        strand.holder = claim
                        return strand
                left = None if until is None else until - real.now()
                if (left is not None and left <= 0) or not wait(self._freed, left):
                    return None
        finally:
            turn.end()

    def free(self, strand: Strand) -> Strand | None:
        """Be the holder no more. Returns *strand* if the caller has to close it."""
        with self.writing:
            strand.holder = None
            open_gate(self._freed)
            return strand if strand.is_over else None

    def heal(self) -> Strand | None:
        """See to what senders have left that were torn away. Returns a connection that has to be lowered."""
        if self.is_inside():  # that sender only pauses
            return None
        with self.writing:
            own = list(self.own.items())
            for position in tuple(position for position, claim in own if claim.is_given_up):
                del self.own[position]
            if any(claim.is_given_up for claim in self.done.values()):
                self.is_flushing = True  # a worker clears it up
            strand = self.strand
            if strand is None or strand.is_held:
                return None
            if strand.holder is not None:
                strand.holder = None
                open_gate(self._freed)
            if not strand.is_torn:
                return None
            self._give_up(strand)
            return strand

    # -- a connection's beginning and end

    def adopt(self, strand: Strand, *, is_behind: bool) -> None:
        """Have *strand* from now on. Only the worker does this, while there is none: it needs no ``writing``.

        Args:
            is_behind: Something waits in the spool, to be sent first.
        """
        self.unfinished = None
        self.is_flushing = is_behind or bool(self.heirlooms)
        self.newest = self.strand = strand

    def drop(self, strand: Strand, why: BaseException | None) -> Strand | None:
        """Let nobody use *strand* any more, and have everybody who waits at it stop.

        Returns:
            *strand*, if the caller has to close it.
        """
        with self.writing:
            if self.strand is not strand:
                return None
            strand.why = why
            strand.is_dropped = True
            strand.line.end()
            self.unfinished = None  # if it is in the spool, it begins anew from there
            self.strand = None  # last: who is interrupted before leaves it to be dropped again
            open_gate(self._freed)
            return strand if strand.is_over else None

    def enter(self, strand: Strand) -> bool:
        """Use *strand* for reading. False: it is at its end."""
        with self.writing:
            if strand.is_dropped:
                return False
            strand.n_readers += 1
            return True

    def leave(self, strand: Strand) -> Strand | None:
        """Use it no more. Returns it if the caller has to close it."""
        with self.writing:
            strand.n_readers -= 1
            return strand if strand.is_over else None

    def describe(self, unsent: int) -> LinkInfo:
        """With the office's lock held."""
        return LinkInfo(
            endpoint=self.endpoint,
            member=self.name,
            groups=self.groups,
            state=self.state,
            since=self.since,
            failures=self.failures,
            retry_at=self.retry_at,
            last_error=self.last_error,
            unsent=unsent,
        )
