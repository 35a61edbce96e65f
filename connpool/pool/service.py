"""Serving the queue: which waiter gets what, which host must be dialled, which waiter cannot be served.

``serve`` is called after every change of the books: one place decides, so that nothing freed is forgotten.
"""

from __future__ import annotations

import enum

from connpool.errors import PoolClosedError
from connpool.model.endpoint import Endpoint
from connpool.model.states import POOL_CLOSED, POOL_OPEN, CloseReason, PoolState
from connpool.pool.attempts import Attempts
from connpool.pool.choice import candidates, pop_idle
from connpool.pool.failures import again, blacklisted, no_endpoint
from connpool.pool.hosts import Host
from connpool.pool.jobs import Todo
from connpool.pool.record import Key
from connpool.pool.recovery import recover
from connpool.pool.room import evict_for, evict_from
from connpool.pool.sharing import Hold, add_share, pick
from connpool.pool.timings import MANY
from connpool.pool.waiters import SERVED, WAITING, Outcome, Waiter

__all__ = ["Service"]


class Answer(enum.Enum):
    """What one look brought a waiter."""

    SETTLED = "settled"  # served, or failed for good
    PENDING = "pending"  # something is under way for it
    NOTHING = "nothing"  # no connection and no place: whoever asks the same after it gets nothing either


class Service(Attempts):
    """The rules of lending. Every method is called with the pool's lock held."""

    def serve(self, now: float, todo: Todo, *, is_brisk: bool = False) -> None:
        """Give what there is to the waiters, oldest first; *todo* gets what is to be done for that."""
        books = self._books
        try:
            if books.lost:
                recover(books, todo)
            if books.timings.is_behind():
                books.timings.catch_up(now, books.n_checkouts())
            self.give_up_hung(now)
            books.publish(now)
            if books.state is not POOL_OPEN:
                self._lend_nothing(now, todo)
                return
            oldest = None
            while oldest is not self._queue.oldest:  # whoever comes first must be announced before we look
                oldest = self._queue.oldest
                self._announce(now, is_brisk=is_brisk)
                self._serve_queue(now, todo)
            books.warm_reserve.mind(now)
            books.publish_queue()
        except BaseException:  # cut short: the oldest that waits looks for itself
            for waiter in self._queue.waiters:
                try:
                    waiter.gate.release()  # which needs no frame
                except RuntimeError:  # it is open already
                    pass
                if waiter.outcome is WAITING:
                    break
            raise

    def _lend_nothing(self, now: float, todo: Todo) -> None:
        """The pool is not open: waiters wait for the end of a pause, or go."""
        state, name = self._books.state, self._books.pool.name
        if state is POOL_CLOSED:
            self._books.drain_all(CloseReason.POOL_CLOSED, todo)
        if state is not PoolState.PAUSED and self._queue:
            self.fail_all(PoolClosedError(f"pool {name!r} was {state.value}", pool=name))
        self._announce(now, is_brisk=False)  # whoever waits for the end of a pause sleeps till then

    def _serve_queue(self, now: float, todo: Todo) -> None:
        is_dry = False  # nobody plain gets anything any more
        in_vain: set[Endpoint] = set()  # nor does a waiter that wants one of these
        for waiter in self._queue:
            if not waiter.is_waiting() or waiter.key is not None:
                self._finish(waiter, now)  # an interrupt cut this short the last time
            elif (
                waiter.is_busy or (is_dry and waiter.is_plain) or (in_vain and waiter.sole_wish() in in_vain)
            ):
                continue
            elif self._attend(waiter, now, todo) is Answer.NOTHING:
                if waiter.is_plain:
                    is_dry = True
                    if not self._queue.has_special():
                        return
                elif (wish := waiter.sole_wish()) is not None:
                    in_vain.add(wish)

    def stands_behind(self, waiter: Waiter) -> bool:
        """Whether *waiter*, just queued up, need not look: the first takes all that it would find."""
        front = self._queue.waiters[0]
        return (
            front is not waiter
            and front.is_plain
            and waiter.is_plain
            and front.outcome is WAITING
            and not front.is_busy
            and front.attempt is None
            and front.eviction is None
            and bool(self._books.fleet.lending)
        )

    def welcome(self, waiter: Waiter, now: float, todo: Todo) -> None:
        """*waiter* has just queued up; now it looks."""
        if self._books.pace.grace and self._queue.oldest is waiter:
            waiter.front_at = now  # it sets its alarm itself
        self.look(waiter, now, todo)

    def look(self, waiter: Waiter, now: float, todo: Todo) -> None:
        """*waiter* looks, unless there is plainly nothing to be seen."""
        if self._queue.oldest is waiter:
            self._announce(now, is_brisk=False)  # announced first, looked for after that
        if waiter.request.shared or not (waiter.is_plain and self._is_dry(now)):
            self.serve(now, todo)

    def _is_dry(self, now: float) -> bool:
        """Whether nothing at all can be done for a plain waiter: no idle connection, no place, no news."""
        books, fleet = self._books, self._books.fleet
        return (
            fleet.is_full
            and not fleet.has_idle()
            and not books.lost
            and now < books.next_change
            and bool(fleet.lending)
        )

    def hand_over(self, key: Key, now: float, *, is_brisk: bool) -> bool:
        """Give what comes back to the oldest waiter, past the stack. False: it cannot take it."""
        books, waiters = self._books, self._queue.waiters
        waiter = waiters[0] if waiters else None
        if waiter is None or waiter.key is not None or waiter.outcome is not WAITING:
            return False
        if waiter.is_busy or not waiter.is_plain or key.record.host not in books.fleet.lending:
            return False
        waiter.handed_at = now
        self.give(waiter, key.renewed(), now)
        if waiters and books.pool._is_awaited and not is_brisk:
            waiters[0].is_asleep = True  # somebody sleeps, as the board says already: now it is this one
        else:
            self._announce(now, is_brisk=is_brisk)
        return True

    def is_content(self, now: float) -> bool:
        """After a hand-over: whether there is no more to give, so that nobody need be served."""
        books = self._books
        is_quiet = now < books.next_change and not books.holds
        return is_quiet and len(books.timings.new_waits) < MANY and not books.fleet.has_idle()

    def _announce(self, now: float, *, is_brisk: bool) -> None:
        """See to it that the oldest waiter is heard of.

        As a rule it gets the very next connection that comes back. Only while
        loans are brief, for a hand-off (see ``Pace``), may others overtake it for a
        moment. Until that is over it is not told of returns, so it is woken to set
        an alarm of its own.
        """
        oldest = self._queue.oldest
        if oldest is not None and not oldest.is_asleep:
            delay = self._books.pace.grace
            if oldest.front_at is None and is_brisk and delay:
                oldest.front_at = now
                oldest.wake()
            elif oldest.front_at is None or now >= oldest.front_at + delay:
                oldest.is_asleep = True
        self._books.publish_queue()

    def leave(self, waiter: Waiter) -> Key | None:
        """*waiter* goes. Returns what it was given meanwhile, which must go to the next."""
        if waiter.outcome is WAITING:
            waiter.outcome = Outcome.LEFT
        self._queue.leave(waiter)
        self._drop_errands(waiter)
        key, waiter.key = waiter.key, None
        return key

    # -- one waiter

    def _attend(self, waiter: Waiter, now: float, todo: Todo) -> Answer:
        books = self._books
        hosts = candidates(books, waiter, now)
        if waiter.request.shared and self._join(waiter, hosts, now, todo):
            return Answer.SETTLED
        while waiter.pinned is None and self.blame_hung(hosts, now):
            hosts = candidates(books, waiter, now)
        is_patient = waiter.attempt is not None and now < waiter.patience_at
        for host in hosts:
            answer = self._try_idle(waiter, host, now, todo, only_new=is_patient)
            if answer is not None:
                return answer
            if not is_patient and self.begin_dial(waiter, host, now, todo):
                return Answer.PENDING
            is_poor = host is hosts[0] and host in books.fleet.poor and books.has_place(host, now)
            if is_poor and not waiter.is_evicting():
                evict_from(books, books.fleet.rich, waiter, now, todo)  # the next in its turn can dial it
        if waiter.attempt is not None and hosts:
            return Answer.PENDING
        if not any(host.is_for_dialling(waiter.pinned) for host in hosts):
            return self._last_resort(waiter, now, todo)
        if evict_for(books, waiter, hosts, now, todo):
            return Answer.PENDING
        return Answer.NOTHING

    def _join(self, waiter: Waiter, hosts: tuple[Host, ...], now: float, todo: Todo) -> bool:
        """Give *waiter* what nobody has, else a share of what the fewest have. False: there is neither."""
        if self._queue.has_loner(waiter):
            return False
        for host in hosts:
            if self._try_idle(waiter, host, now, todo, only_new=False) is Answer.SETTLED:
                return True
        hold = pick(self._books, now, waiter)
        if hold is not None:
            self._give_share(waiter, hold, now)
        return hold is not None

    def _try_idle(
        self, waiter: Waiter, host: Host, now: float, todo: Todo, *, only_new: bool
    ) -> Answer | None:
        """Give *waiter* an idle connection of *host*. None: there is none for it."""
        books = self._books
        while (key := pop_idle(waiter, host, only_new=only_new)) is not None:
            record = key.record
            if (reason := books.idle_verdict(record, now)) is not None:
                books.doom(key, reason, todo)
            elif books.needs_look(record, now, waiter) and not self.looks_itself():
                self.begin_look(waiter, key, now, todo)
                return Answer.PENDING
            else:
                self.give(waiter, key.renewed(), now)
                return Answer.SETTLED
        return None

    def _last_resort(self, waiter: Waiter, now: float, todo: Todo) -> Answer:
        """No endpoint may be dialled: what is idle at a blacklisted one, a probe, or an error."""
        books = self._books
        if waiter.pinned is not None:
            hosts = [books.fleet.host(waiter.pinned, now)]
        else:
            hosts = [host for group in books.fleet.groups for host in group]
        beside = books.fleet.beside() if waiter.pinned is None else ()
        # Without a route, what was added by hand is lent and will come back; but it comes back used.
        will_come = bool(beside) and not hosts and not waiter.is_fresh_only
        if will_come and any(host.is_up() for host in beside):
            return Answer.NOTHING
        for host in (*hosts, *beside):
            waiter.must_look = True
            answer = self._try_idle(waiter, host, now, todo, only_new=False)
            if answer is not None:
                return answer
        if waiter.request.shared and (hold := pick(books, now, waiter, (*hosts, *beside))) is not None:
            self._give_share(waiter, hold, now)
            return Answer.SETTLED
        is_probing = any(host.opening and host.endpoint not in waiter.tried for host in hosts)
        if is_probing or waiter.attempt is not None:
            return Answer.PENDING
        if will_come:
            return Answer.NOTHING
        is_off = now < waiter.again_at or any(h.retry_at is not None for h in hosts)
        if waiter.may_wait and not books.config.fail_fast and is_off:
            return Answer.PENDING  # until the first blacklisting ends
        self.fail(waiter, self._no_endpoint(waiter, hosts, now))
        return Answer.SETTLED

    def _no_endpoint(self, waiter: Waiter, hosts: list[Host], now: float) -> Exception:
        pool = self._books.pool.name
        if waiter.pinned is not None and waiter.pinned in waiter.tried:
            return again(waiter.tried[waiter.pinned])
        causes: list[tuple[Endpoint, BaseException]] = []
        for host in hosts:
            error = waiter.tried.get(host.endpoint) or host.reason_down
            if error is None:
                error = blacklisted(host, pool)
            causes.append((host.endpoint, error))
        return no_endpoint(
            pool,
            causes,
            min((h.next_try_at for h in hosts if h.next_try_at is not None), default=None),
            now=now,
            is_pinned=waiter.pinned is not None,
            is_old=not waiter.tried and not any(host.by_hand for host in hosts),
        )

    # -- how a wait ends

    def give(self, waiter: Waiter, key: Key, now: float) -> None:
        waiter.key = key  # from here on the key is the waiter's, whatever interrupts us
        waiter.outcome = SERVED
        try:
            waiter.gate.release()  # not by ``wake``: the stack may be full, and nobody else would do it
        except RuntimeError:  # it is open already
            pass
        self._books.timings.new_waits.append((now, now - waiter.since))
        self._queue.leave(waiter)
        if waiter.errands:
            self._drop_errands(waiter)
        if waiter.attempt is not None:
            self._bequeath(waiter)

    def _give_share(self, waiter: Waiter, hold: Hold, now: float) -> None:
        hold.spare = None  # it may be in the collector's hands: a new one takes the time of a tenth
        self.give(waiter, add_share(self._books, hold, now), now)

    def _finish(self, waiter: Waiter, now: float) -> None:
        """*waiter* has what it waits for, but an interrupt left it standing in the queue."""
        if waiter.outcome is WAITING:
            waiter.outcome = SERVED
            self._books.timings.new_waits.append((now, now - waiter.since))
        waiter.wake()
        self._queue.leave(waiter)
