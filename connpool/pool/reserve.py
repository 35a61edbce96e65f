"""The idle connections that are kept ready, and who notices that they have become too few."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from connpool.model.states import POOL_OPEN, CloseReason
from connpool.pool.census import wink
from connpool.pool.fleet import Take
from connpool.pool.hosts import Host
from connpool.pool.lifetimes import verdict
from connpool.pool.piles import look_through
from connpool.pool.record import Key

if TYPE_CHECKING:
    from connpool.pool.core import Books

__all__ = ["Reserve"]


class Reserve:
    """Sees to it that upkeep comes when fewer than ``min_idle`` are left, and not before.

    Upkeep is told once of what is taken; it looks again from its next turn on. What it could not
    open then, because no endpoint was up or had a place, it is told of when that changes.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._is_told = False
        self._plain: Take | None = None  # what ``_watchful`` takes from
        self._watchful: Take | None = None

    def hosts(self) -> Collection[Host]:
        """Whose idle ones are of use: those that checkouts go to, or will after a pause; if none, all."""
        fleet = self._books.fleet
        return fleet.lending or fleet.next_lending() or fleet.hosts.values()

    def n_ready(self) -> int:
        """Idle ones that count. May be asked without the lock."""
        return sum(len(host.idle) for host in list(self.hosts()))

    def worn_out(self, now: float) -> Iterator[tuple[Key, CloseReason, bool]]:
        """The idle ones whose time is up and which are not kept ready, why, and whether one is missed then.

        They are as good as closed: no checkout gets them, though upkeep may not have come yet.
        """
        books, ready = self._books, self.hosts()
        spare = self.n_ready() - books.config.min_idle
        for host in list(books.fleet.hosts.values()):
            counts = host in ready
            for key in look_through(host.idle):
                reason = verdict(books.config, key.record, now)
                if reason is None and (spare > 0 or not counts) and books.was_idle_long(key.record, now):
                    reason = CloseReason.IDLE
                if reason is not None:
                    spare -= counts
                    yield key, reason, counts and spare < 0

    def can_spare(self, host: Host) -> bool:
        """Whether one that was idle at *host*, and has been taken from there, is not needed."""
        return host not in self.hosts() or self.n_ready() >= self._books.config.min_idle

    def n_missing(self) -> int:
        """How many are to be opened, beside those that are being opened."""
        # What is only being looked at will be idle again.
        n_coming = sum(len(host.opening) + len(host.looks) for host in self.hosts())
        return max(0, self._books.config.min_idle - self.n_ready() - n_coming)

    def look_again(self) -> None:
        """Upkeep has come. With the pool's lock held."""
        self._is_told = False

    def mind(self, now: float) -> None:
        """Have upkeep come if too few are left and more may be opened. With the pool's lock held."""
        if self._is_short():
            self._is_told = True
            if self._may_open(now):
                self._books.expect(-math.inf)

    def can_grow(self, now: float) -> bool:
        """Whether too few are left, and one more may be opened at once."""
        return self._is_short() and self._may_open(now)

    def may_open_at(self, host: Host, now: float) -> bool:
        """Whether upkeep may open one more connection to *host*."""
        books = self._books
        may_dial = books.state is POOL_OPEN and not books.fleet.is_full and not books.config.dial_in_caller
        return may_dial and host.on_route and host.is_up() and books.has_place(host, now)

    def _is_short(self) -> bool:
        books = self._books
        return books.config.min_idle > 0 and not books.fleet.is_full and self.n_missing() > 0

    def _may_open(self, now: float) -> bool:
        return any(self.may_open_at(host, now) for host in self.hosts())

    def guard(self, take: Take) -> Take:
        """*take*, which has the fast path notice as well; *take* itself where nothing is to be noticed."""
        books = self._books
        if not books.config.min_idle or books.fleet.is_full:
            return take
        if take is not self._plain:
            self._plain, self._watchful = take, self._made_watchful(take)
        assert self._watchful is not None
        return self._watchful

    def _made_watchful(self, take: Take) -> Take:
        def take_and_look() -> Key:
            key = take()
            if not self._is_told:
                self._notice()
            return key

        return take_and_look

    def take_from(self, host: Host) -> Key:
        """An idle key of *host*, without the lock. IndexError: there is none."""
        key = host.idle.pop()
        if self._books.config.min_idle and not (self._is_told or self._books.fleet.is_full):
            self._notice()
        return key

    def _notice(self) -> None:
        """One was taken: have upkeep come if too few are left."""
        if self.n_ready() < self._books.config.min_idle:
            self._is_told = True
            wink(self._books.pool)
