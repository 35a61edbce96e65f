"""Snapshots: what a pool says of itself, its connections and its endpoints.

Counts are since the pool was made; durations are seconds; instants are
monotonic seconds of the pool's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from connpool.model.endpoint import Endpoint
from connpool.model.states import CloseReason, ConnState, EndpointState, PoolState


def _counted(counts: Mapping[CloseReason, int]) -> Mapping[CloseReason, int]:
    """A copy, for the pool goes on counting; what is not in it counts 0."""
    return Counter(counts)


@frozen
class Percentiles:
    """How a duration was distributed, in seconds; all 0 if nothing was measured.

    Attributes:
        p50: Half of the samples took no longer; likewise *p95* and *p99*.
        max: The longest one, exactly.
    """

    p50: float
    p95: float
    p99: float
    max: float


@frozen(kw_only=True)
class PoolStats:
    """One pool at one instant, where ``size == idle + in_use + shared + opening + closing``.

    Attributes:
        idle: Connections that are ready to be lent.
        closing: Those that are being closed, or are about to be, since their time is up.
        waiting: Threads queued in ``try_connect``.
        checkouts: Loans made.
        opened: Connections opened, adopted ones included.
        closed: Connections parted with, by reason; a reason that never occurred
            is missing, and ``closed[reason]`` is 0 for it.
        timeouts: Checkouts that ended in CheckoutTimeoutError.
        connect_failures: Dials that failed.
        lost: Loans that were never given back and had to be found.
        wait: From asking for a connection to having it.
        dial: Opening one that could be opened.
        hold: From having a connection to giving it back; measured while somebody
            listens to checkouts or returns. These three cover the last minute or two.
    """

    name: str
    state: PoolState
    size: int
    idle: int
    in_use: int
    shared: int
    opening: int
    closing: int
    waiting: int
    max_size: int
    min_idle: int
    checkouts: int
    opened: int
    closed: Mapping[CloseReason, int] = field(converter=_counted)
    timeouts: int
    connect_failures: int
    lost: int
    wait: Percentiles
    dial: Percentiles
    hold: Percentiles


@frozen(kw_only=True)
class ConnectionInfo:
    """One connection at one instant.

    Attributes:
        id: Unique in its pool, never used again.
        uses: Loans before the present one, or so far if there is none.
        idle_since: None unless it is idle.
        expires_at: When its lifetime ends; None: never.
        local: Own address of the transport as text, None if it has none;
            likewise *peer*.
        tls: Version as text, such as ``"TLSv1.3"``; None: not encrypted, or broken.
        extra: What its holders attached to it.
        holder: Name of the thread that holds it, of several the one that has for longest; None: nobody.
        since: When its present state began; of a lent one, when the loan did.
        origin: The calls that led to the loan, as a traceback lists them; None
            unless ``track_origin`` is set.
    """

    id: int
    endpoint: Endpoint
    state: ConnState
    uses: int
    opened_at: float
    idle_since: float | None
    expires_at: float | None
    local: str | None
    peer: str | None
    tls: str | None
    extra: Any
    holder: str | None
    since: float
    origin: str | None = None


@frozen(kw_only=True)
class EndpointInfo:
    """One endpoint of a pool at one instant.

    Attributes:
        group: Index of the first group of the route that has it; None: the
            route does not mention it.
        since: When its present state began.
        failures: Dials that failed since the last success, and count against it: not those of who
            pins it, nor those whose fault lies on this machine.
        retry_at: When it may be dialled again; None: now, or not by itself.
        last_error: Why the last of these failed, or what a loan was terminated for since;
            None: neither.
        size: Connections to it, opening and closing ones included.
        idle: Those among them that are ready to be lent; likewise *in_use*,
            *opening* and *closing*.
        checkouts: Loans of connections to it; likewise *opened*, *closed* by
            reason, and *connect_failures*, all since the pool knows it.
    """

    endpoint: Endpoint
    group: int | None
    state: EndpointState
    since: float
    failures: int
    retry_at: float | None
    last_error: BaseException | None
    size: int
    idle: int
    in_use: int = 0
    opening: int = 0
    closing: int = 0
    checkouts: int = 0
    opened: int = 0
    closed: Mapping[CloseReason, int] = field(factory=dict, converter=_counted)
    connect_failures: int = 0
