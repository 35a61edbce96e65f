"""Frozen pictures of a pool, for people and programs that watch it."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import TYPE_CHECKING

from connpool.model.states import ConnState
from connpool.model.stats import ConnectionInfo, EndpointInfo, PoolStats
from connpool.pool.piles import look_through
from connpool.pool.record import Phase, Record, Tenure
from connpool.pool.sharing import loans_of
from connpool.wire.look import describe

if TYPE_CHECKING:
    from connpool.pool.core import Books
    from connpool.pool.hosts import Host

__all__ = [
    "Names",
    "connection_info",
    "describe_loans",
    "describe_tenure",
    "endpoint_infos",
    "idle_ones",
    "is_held",
    "pool_stats",
    "thread_name",
]

Names = dict[int | None, str]  # of threads, by their numbers


def thread_name(ident: int | str, known: Names | None = None) -> str:
    """The name of a running thread; one that has ended is named by its number, if its name is not known.

    *known*: names to look among first. All are found on the way to one, and are kept there for the next.
    """
    if isinstance(ident, str):
        return ident
    known = Names() if known is None else known
    if ident not in known:
        known |= {thread.ident: thread.name for thread in threading.enumerate()}
    return known.setdefault(ident, f"ended thread {ident}")


def describe_tenure(tenure: Tenure, known: Names | None = None) -> str:
    """Which thread took it, and from where, if that is tracked. *known*: as for ``thread_name``."""
    _, thread, origin = tenure
    taken = "" if origin is None else f", taken at {origin}"
    return f"thread {thread_name(thread, known)!r}{taken}"


def worn_out_ones(books: Books) -> set[Record]:
    """The idle records whose time is up, and for which upkeep comes any moment; by hand it may never."""
    if books.pool._pace() is None:
        return set()
    return {key.record for key, _, _ in books.warm_reserve.worn_out(books.pool._now())}


def idle_ones(books: Books) -> set[Record]:
    """The records whose key lies in a stack at this moment."""
    hosts = list(books.fleet.hosts.values())  # asked without the lock, too
    return {key.record for host in hosts for key in look_through(host.idle)}


def is_held(record: Record, idle: set[Record]) -> bool:
    """Whether it is lent: neither idle, nor on its way to its first holder, nor being looked at."""
    is_out = record.phase is Phase.OPEN and record not in idle
    return is_out and record.uses > 0 and record not in record.host.looks


def state_of(record: Record, *, is_idle: bool, is_worn_out: bool = False) -> ConnState:
    phase = record.phase  # read once: it may change meanwhile
    if phase is Phase.OPEN:
        if is_worn_out:
            return ConnState.CLOSING
        held = ConnState.SHARED if record.is_shared else ConnState.IN_USE
        return ConnState.IDLE if is_idle else held
    return ConnState[phase.name]


def connection_info(
    record: Record, *, is_idle: bool, is_worn_out: bool = False, names: Names | None = None
) -> ConnectionInfo:
    """What there is to say of *record*. Asks the socket for its addresses: not under the lock.

    *names*: of threads, as for ``thread_name``.
    """
    state = state_of(record, is_idle=is_idle, is_worn_out=is_worn_out)
    is_out = state in (ConnState.IN_USE, ConnState.SHARED)
    # One on its way to its first holder has none, and one that is looked at has none any more.
    is_lent = is_out and record.uses > 0 and record not in record.host.looks
    loans = loans_of(record) if is_lent else {}
    _, thread, origin = next(iter(loans.values()), (0.0, None, None))  # of several the one that lasts longest
    local, peer, tls = describe(record.raw)
    return ConnectionInfo(
        id=record.id,
        endpoint=record.host.endpoint,
        state=state,
        uses=max(0, record.uses) - is_lent,
        opened_at=record.opened_at,
        idle_since=record.since if state is ConnState.IDLE else None,
        expires_at=record.expires_at if math.isfinite(record.expires_at) else None,
        local=local,
        peer=peer,
        tls=tls,
        extra=None if record.notes is None else record.notes.extra,
        origin=None if origin is None else origin.stack(),
        holder=None if thread is None else thread_name(thread, names),
        since=record.since,
    )


def endpoint_infos(books: Books) -> tuple[EndpointInfo, ...]:
    """Every endpoint of the route in its order, then the others. Called with the lock held."""
    listed: list[tuple[Host, int | None]] = []
    for number, group in enumerate(books.fleet.groups):
        listed += [(host, number) for host in group]
    listed += [(host, None) for host in books.fleet.hosts.values()]
    first_groups: dict[Host, int | None] = {}
    for host, group_number in listed:
        first_groups.setdefault(host, group_number)
    worn_out = Counter(record.host for record in worn_out_ones(books))
    return tuple(_endpoint_info(host, number, worn_out[host]) for host, number in first_groups.items())


def _endpoint_info(host: Host, group: int | None, n_worn_out: int) -> EndpointInfo:
    records = host.records.copy()
    n_idle = len(host.idle)
    return EndpointInfo(
        endpoint=host.endpoint,
        group=group,
        state=host.state,
        since=host.since,
        failures=host.failures,
        retry_at=host.next_try_at,
        last_error=host.last_error,
        size=len(records),
        idle=max(0, n_idle - n_worn_out),
        in_use=max(0, sum(record.phase is Phase.OPEN for record in records) - n_idle),
        opening=sum(record.phase is Phase.OPENING for record in records),
        closing=sum(record.phase is Phase.CLOSING for record in records) + n_worn_out,
        checkouts=host.past_uses + sum(max(0, record.uses) for record in records),
        opened=host.opened,
        closed=host.closed,
        connect_failures=host.n_failed,
    )


def pool_stats(books: Books) -> PoolStats:
    """Counters that add up. Called with the lock held.

    Connections pass between idle and lent without the lock, so the idle ones
    are counted once and the lent ones are the rest.
    """
    records = list(books.records())
    opening = sum(record.phase is Phase.OPENING for record in records)
    worn_out = worn_out_ones(books)
    closing = sum(record.phase is Phase.CLOSING for record in records) + len(worn_out)
    idle = len(idle_ones(books) - worn_out)
    checkouts = books.n_checkouts()
    was_open = sum(record.was_open for record in records)
    timings = books.timings
    timings.catch_up(books.pool._now(), checkouts)
    return PoolStats(
        name=books.pool.name,
        state=books.state,
        size=len(records),
        idle=idle,
        in_use=len(records) - opening - closing - idle - len(books.holds),
        shared=len(books.holds),
        opening=opening,
        closing=closing,
        waiting=len(books.queue),
        max_size=books.config.max_size,
        min_idle=books.config.min_idle,
        checkouts=checkouts,
        opened=was_open + books.tally.closed.total() + books.tally.departed,
        closed=books.tally.closed,
        timeouts=books.tally.timeouts,
        connect_failures=books.tally.connect_failures,
        lost=books.tally.lost,
        wait=timings.waits.percentiles(checkouts),
        dial=timings.dials.percentiles(),
        hold=timings.holds.percentiles(),
    )


def describe_loans(books: Books, now: float) -> str:
    """Who holds what since when, longest first: for an error or a person. Called without the lock."""
    idle = idle_ones(books)
    lent = [
        (tenure, record)
        for record in list(books.records())
        if is_held(record, idle)
        for tenure in loans_of(record).values()
    ]
    lent.sort(key=lambda loan: loan[0][0])
    names = Names()
    return "; ".join(
        f"connection {record.id} to {record.host.endpoint} for {now - tenure[0]:.1f} s"
        f" by {describe_tenure(tenure, names)}"
        for tenure, record in lent
    )
