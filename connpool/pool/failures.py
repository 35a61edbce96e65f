"""The errors of a checkout: which class, and one sentence with the numbers."""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from connpool.errors import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    ConnPoolError,
    HandshakeError,
    NoEndpointError,
    NotSharableError,
    PermissionDeniedError,
    PoolClosedError,
    PoolExhaustedError,
    PoolPausedError,
)
from connpool.model.endpoint import Endpoint
from connpool.model.states import FailReason, PoolState
from connpool.pool.snapshots import describe_loans
from connpool.wire.tls import arose_here

if TYPE_CHECKING:
    from connpool.pool.core import Books
    from connpool.pool.hosts import Host

__all__ = [
    "again",
    "as_connect_error",
    "blacklisted",
    "drop_frames",
    "exhausted",
    "in_words",
    "is_fatal_by",
    "no_endpoint",
    "no_login",
    "not_sharable",
    "reason_of",
    "timed_out",
]


class SoleConnectError(NoEndpointError, ConnectError):
    """The only endpoint that could have served could not be dialled."""


class SoleConnectTimeoutError(NoEndpointError, ConnectTimeoutError):
    """The only endpoint that could have served did not answer in time."""


class SoleHandshakeError(NoEndpointError, HandshakeError):
    """TLS or the login failed at the only endpoint that could have served."""


class SolePermissionDeniedError(NoEndpointError, PermissionDeniedError):
    """The only endpoint that could have served does not grant what the pool requires."""


SOLE: Final[dict[type[BaseException], type[NoEndpointError]]] = {
    ConnectError: SoleConnectError,
    ConnectTimeoutError: SoleConnectTimeoutError,
    HandshakeError: SoleHandshakeError,
    PermissionDeniedError: SolePermissionDeniedError,
}


def no_endpoint(
    pool: str,
    causes: Sequence[tuple[Endpoint, BaseException]],
    retry_at: float | None,
    *,
    now: float,
    is_pinned: bool,
    is_old: bool,
) -> Exception:
    """The error of a checkout that no endpoint can serve.

    Where there is but one endpoint its failure is the checkout's, so the error
    is of that class as well, and has the same ``__cause__``.
    """
    if not causes:
        return NoEndpointError(f"pool {pool!r}: nothing is idle, and it has no route to dial", pool=pool)
    listed = "; ".join(in_words(error) for _, error in causes)
    if is_pinned:
        where = "the endpoint asked for"
    else:
        where = "its only endpoint" if len(causes) == 1 else f"any of its {len(causes)} endpoints"
    soon = "" if retry_at is None else f"; next try in {max(0.0, retry_at - now):.1f} s"
    how = ", blacklisted for an earlier failure" if is_old else ""
    message = f"pool {pool!r}: cannot reach {where}{how}: {listed}{soon}"
    endpoint, last = causes[-1]
    kind = SOLE.get(type(last)) if len(causes) == 1 else None
    failure: NoEndpointError = (kind or NoEndpointError)(
        message, pool=pool, causes=tuple(causes), retry_at=retry_at
    )
    failure.__cause__ = last
    if isinstance(failure, ConnectError) and isinstance(last, ConnectError):
        failure.endpoint, failure.local, failure.errno = endpoint, last.local, last.errno
        failure.__cause__ = last.__cause__ or last
    return failure


def blacklisted(host: Host, pool: str) -> ConnectError:
    """Why *host*, which is not down for a failure, is not dialled."""
    last = host.last_error  # what a loan was terminated for, perhaps
    how = " by hand" if host.by_hand else ""
    before = "" if last is None else f" (its last error: {in_words(last)})"
    failure = ConnectError(f"{host.endpoint} is blacklisted{how}{before}", pool=pool, endpoint=host.endpoint)
    failure.__cause__ = last
    return failure


def as_connect_error(error: BaseException, pool: str, endpoint: Endpoint) -> ConnectError:
    """What ``open`` or a hook raised, as the error that callers are promised."""
    if isinstance(error, ConnectError):
        error.pool = pool
        return error
    kind = ConnectTimeoutError if isinstance(error, TimeoutError) else ConnectError
    failure = kind(
        f"cannot open a connection to {endpoint}: {in_words(error, repr)}",
        pool=pool,
        endpoint=endpoint,
        local=arose_here(error),
    )
    failure.__cause__ = error
    return failure


def no_login(error: Exception, endpoint: Endpoint) -> ConnectError:
    """Why what was opened to *endpoint* is not lent: a hook of the connector has raised *error*."""
    if isinstance(error, TimeoutError):
        return ConnectTimeoutError(f"the login at {endpoint} took too long", endpoint=endpoint)
    return HandshakeError(
        f"the login at {endpoint} failed: {error!r}", endpoint=endpoint, local=arose_here(error)
    )


def in_words(error: BaseException, tell: Callable[[BaseException], str] = str) -> str:
    """What *error* says of itself, even if it cannot: it is foreign, and its words are but for the reader."""
    try:
        return tell(error) or repr(error)
    except Exception as failure:  # noqa: BLE001 - foreign code
        return f"{type(error).__name__}, of which nothing can be said ({type(failure).__name__})"


def drop_frames(error: BaseException) -> None:
    """Take the traceback off *error* and off what caused it.

    An error that is remembered would keep the stack that led to it alive, and every loan in its
    variables. Of what no network does, the traceback stays as text.
    """
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if not isinstance(chain, (OSError, ConnPoolError)) and chain.__traceback__ is not None:
            note = "".join(traceback.format_tb(chain.__traceback__))
            if note not in getattr(chain, "__notes__", ()):  # a client may raise the same error each time
                chain.add_note(note)
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__


def exhausted(books: Books, why: str) -> PoolExhaustedError:
    """The error of a checkout that may not wait, and still stands in the queue."""
    name = books.pool.name
    return PoolExhaustedError(f"pool {name!r}: {why} ({books.summary(n_leaving=1)})", pool=name)


def not_sharable(pool: str) -> NotSharableError:
    """The error of asking for a share of a pool that lends none."""
    return NotSharableError(f"pool {pool!r} is not sharable; make it with sharable=True", pool=pool)


def timed_out(books: Books, limit: float, now: float, n_refused: int = 0) -> CheckoutTimeoutError:
    """The error of a checkout that has left the queue, for its time is up: who has what, what went wrong.

    *n_refused*: how many connections its request's `where` did not like.
    """
    name, loans, last = books.pool.name, describe_loans(books, now), books.last_error
    details = [books.summary()]
    if books.state is PoolState.PAUSED:
        details.insert(0, "it is paused")
    if n_refused:
        details.append(f"{n_refused} did not pass `where`")
    if loans:
        details.append(f"longest held: {loans}")
    if last is not None:
        details.append(f"last connect error: {in_words(last)}")
    error = CheckoutTimeoutError(
        f"pool {name!r}: no connection within {limit:g} s ({'; '.join(details)})", pool=name
    )
    error.__cause__ = last
    return error


def again(error: Exception) -> Exception:
    """A copy to be raised in one more thread: a traceback belongs to one of them."""
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - a foreign class may not know how
        return error
    twin.__cause__ = error.__cause__
    return twin


REASONS: Final[tuple[tuple[type[ConnPoolError], FailReason], ...]] = (
    (CheckoutTimeoutError, FailReason.TIMEOUT),
    (PoolExhaustedError, FailReason.EXHAUSTED),
    (PoolPausedError, FailReason.PAUSED),
    (PoolClosedError, FailReason.CLOSED),
    (CancelledError, FailReason.CANCELLED),
)


def reason_of(error: BaseException) -> FailReason:
    """What to call *error*; an interrupt has cancelled the checkout."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    return FailReason.CONNECT if isinstance(error, Exception) else FailReason.CANCELLED


def is_fatal_by(
    ask: Callable[[Exception], object], error: Exception, logger: logging.Logger, what: str
) -> bool:
    """What the user's *ask* says of *error*; if it fails itself, the worst, and *what* failed is logged."""
    try:
        return bool(ask(error))
    except Exception as second:  # noqa: BLE001 - foreign code; the caller is to see the first error
        logger.warning("%s failed: %r", what, second)
        return True
