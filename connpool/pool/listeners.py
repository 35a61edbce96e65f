"""Who listens to a pool, and how they are told."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from connpool.errors import ConfigError
from connpool.model.events import (
    EVENTS,
    CheckedIn,
    CheckedOut,
    CheckoutStarted,
    EndpointDown,
    EndpointUp,
    Event,
    GroupSwitched,
    PoolClosed,
)
from connpool.pool.failures import in_words

__all__ = ["FAILED", "Handler", "Listeners", "Teller"]

News: TypeAlias = tuple[type[Event], tuple[Any, ...], int]  # what happened, its fields, a number for the log
Handler: TypeAlias = Callable[[Any], object]
NOBODY: Final[Mapping[type[Event], tuple[Handler, ...]]] = dict.fromkeys(EVENTS, ())

FAILED: Final = "pool %r: a listener failed at %r"

logger = logging.getLogger("connpool.events")
logging.getLogger("connpool").addHandler(logging.NullHandler())  # silent unless the program wants to read
endpoint_logger = logging.getLogger("connpool.endpoint")
pool_logger = logging.getLogger("connpool.pool")


class Teller:
    """A thread that tells what is pending. Dropped by an interrupt, it leaves the rest to the next."""

    __slots__ = ("__weakref__",)


class Listeners:
    """Tells handlers what happens, with no lock held.

    There are two ways. What happens to a connection is told by the thread that
    has its key in hand, before it passes the key on, so that the order is right
    by itself (``tell``). What happens to the pool and its endpoints is written
    down under the pool's lock (``post``), and told after it by whichever thread
    comes first (``flush``).
    """

    def __init__(self, pool: str, by_kind: Mapping[type[Event], tuple[Handler, ...]] = NOBODY) -> None:
        self._pool = pool
        self.by_kind = by_kind
        self.pending: list[News] = []  # a deque would take ten times the memory, in each of many pools
        self._teller: weakref.ref[Teller] | None = None
        self._is_at_end = False

    @property
    def by_kind(self) -> Mapping[type[Event], tuple[Handler, ...]]:
        """Who hears of what. Replaced as a whole, never changed."""
        return self._by_kind

    @by_kind.setter
    def by_kind(self, by_kind: Mapping[type[Event], tuple[Handler, ...]]) -> None:
        self._by_kind = by_kind
        # For what every loan tells of, which it does by itself and with one call for each event.
        self.of_start = self._all_of(CheckoutStarted)
        self.of_loan = self._all_of(CheckedOut)
        self.of_return = self._all_of(CheckedIn)

    def _all_of(self, kind: type[Event]) -> Handler | None:
        """All handlers of *kind* as one; None: there are none, or calls are lent here, not connections."""
        handlers = self._by_kind.get(kind, ())
        if len(handlers) > 1:
            return partial(self.tell, handlers=handlers)
        return handlers[0] if handlers else None

    def meant_by(self, kinds: tuple[type[Event], ...]) -> tuple[type[Event], ...]:
        """The kinds that who names *kinds* is to hear of: all, if that is none, or ``Event`` itself."""
        return kinds if kinds and Event not in kinds else tuple(self.by_kind)

    def add(self, handler: Handler, kinds: tuple[type[Event], ...]) -> None:
        """Let *handler* hear events of *kinds*. With the pool's lock held.

        Raises:
            ConfigError: *handler* cannot be called, or one of *kinds* is no event.
        """
        if not callable(handler):
            raise ConfigError(
                f"pool {self._pool!r}: a listener must be callable, got {handler!r}", pool=self._pool
            )
        for kind in kinds:
            if kind not in tuple(self.by_kind):  # it may be anything, be it unhashable
                raise ConfigError(f"pool {self._pool!r}: {kind!r} is not a kind of event", pool=self._pool)
        more = dict(self.by_kind)
        for kind in dict.fromkeys(kinds):
            more[kind] = (*more[kind], handler)
        self.by_kind = more

    def remove(self, handler: Handler, kinds: tuple[type[Event], ...]) -> None:
        """Undo one ``add``. With the pool's lock held."""
        left = dict(self.by_kind)
        for kind in dict.fromkeys(kinds):
            handlers = left[kind]
            at = next(i for i, known in enumerate(handlers) if known is handler)  # others may be equal to it
            left[kind] = (*handlers[:at], *handlers[at + 1 :])
        self.by_kind = left

    def hear_of(self, *kinds: type[Event]) -> bool:
        """Whether anybody wants to know of one of *kinds*."""
        return any(self.by_kind[kind] for kind in kinds)

    def tell(self, event: Event, handlers: tuple[Handler, ...] | None = None) -> None:
        """Let every handler of its kind have *event*; what they raise is logged.

        Args:
            handlers: Those of its kind, if the caller knows them already.

        Raises:
            BaseException: only what is no Exception (Ctrl-C).
        """
        if handlers is None:
            handlers = self.by_kind[type(event)]
        for handler in handlers:
            try:
                handler(event)
            except Exception:
                logger.exception(FAILED, self._pool, event)

    def post(self, kind: type[Event], *fields: Any, number: int = 0) -> None:
        """Write down what has just happened; nothing does after ``PoolClosed``. With the pool's lock held.

        *number*: for the log: dials that failed while an endpoint was down; groups that a route has.
        """
        if not self._is_at_end:
            self.pending.append((kind, fields, number))
            self._is_at_end = kind is PoolClosed

    def take_turn(self, teller: Teller) -> News | None:
        """The next event for *teller* to tell; None: another is at it, or all is told. Under the lock."""
        at_it = None if self._teller is None else self._teller()
        if at_it is not None and at_it is not teller:
            return None
        if not self.pending:
            self._teller = None
            return None
        self._teller = weakref.ref(teller)
        return self.pending.pop(0)

    def announce(self, news: News) -> None:
        """Tell those who listen, and log what an operator should read."""
        kind, fields, number = news
        if kind is EndpointDown:
            _, at, endpoint, error, until = fields
            again = "for good" if until is None else f"next try in {max(0.0, until - at):.1f} s"
            why = "taken out by hand" if error is None else in_words(error)
            endpoint_logger.warning("pool %r: %s is down (%s): %s", self._pool, endpoint, again, why)
        elif kind is EndpointUp:
            endpoint_logger.info(
                "pool %r: %s is up again after %.1f s and %d failed dial(s)",
                self._pool, fields[2], fields[3], number,
            )  # fmt: skip
        elif kind is GroupSwitched and number > 1:
            _, _, before, after = fields
            if after is None:
                pool_logger.info(
                    "pool %r: no group of its route can serve, before %d did", self._pool, before
                )
            else:
                earlier = "none" if before is None else before
                pool_logger.info("pool %r: lends from group %d, before from %s", self._pool, after, earlier)
        if handlers := self.by_kind[kind]:
            self.tell(kind(*fields), handlers)
