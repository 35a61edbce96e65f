"""The long way of a call: filters, waiting, refusals, and what became of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable
from typing import Any, Final

from connpool.calls.channel import Reply
from connpool.calls.line import Key, Line
from connpool.calls.recovery import recover, withdraw
from connpool.calls.refusals import objection, refusal
from connpool.calls.snapshots import describe_all
from connpool.calls.switch import Switch
from connpool.calls.tickets import Stub, Ticket
from connpool.errors import CallTimeoutError, ChannelClosedError
from connpool.model.call_events import CallEnded, CallRefused, CallStarted
from connpool.model.channel import ChannelInfo
from connpool.model.checks import require_hashable, require_seconds
from connpool.model.states import CloseReason
from connpool.pool.backoff import retry_after
from connpool.pool.failures import is_fatal_by

__all__ = ["Where", "answered", "failed", "obtain", "wait"]

logger = logging.getLogger("connpool.calls")

Where = Callable[[ChannelInfo], object]

NEVER: Final = math.inf


def obtain(
    switch: Switch, name: Hashable, method: Hashable, where: Where | None, timeout: float | None
) -> tuple[Key, float | None]:
    """The key of a channel for one call, and the seconds that are left to it."""
    switch.check_outside()
    key = None
    if timeout is not None:
        require_seconds("timeout", timeout, or_zero=True)
    began = switch.clock.now()
    deadline = None if timeout is None else began + timeout
    try:
        key = _queue_up(switch, name, method, where, deadline)
        now = switch.clock.now()
        if switch.ledger.is_heard:
            switch.tell(CallStarted, key.line.id, name, method, now - began)
    except BaseException as error:
        if key is not None:
            switch.give_up(key)
        key = None
        switch.tell(CallRefused, name, method, switch.clock.now() - began, error)
        raise
    return key, None if deadline is None else max(0.0, deadline - now)


def _queue_up(
    switch: Switch, name: Hashable, method: Hashable, where: Where | None, deadline: float | None
) -> Key:
    ledger = switch.ledger
    require_hashable("resource", name)
    require_hashable("method", method)  # here, not in whoever looks through the queue
    resource = ledger.resources.get(name)
    if resource is None:
        switch.check_open()
        raise refusal(ledger.name, name, method, has_lines=False, is_offered=False)
    ticket = Ticket(resource, method, next(ledger.numbers))
    if where is not None:
        ticket.verdicts = {}
        _judge(switch, ticket, where)
    return wait(switch, ticket, deadline, where)


def wait(switch: Switch, ticket: Ticket, deadline: float | None, where: Where | None = None) -> Key:
    """Queue up, and wait until *ticket* is served.

    Raises:
        CallError: it waited in vain, or too long.
        PoolClosedError: the pool was closed.
    """
    ledger, clock, resource = switch.ledger, switch.clock, ticket.resource
    stub = Stub(switch, ticket)
    try:
        with switch._lock:
            if ticket.line is None:
                switch.check_open()
            now = clock.now()
            if ledger.lost or ledger.strays:
                recover(ledger, now)
            resource.enqueue(ticket)
            # What came after the filter was asked, and before this could be seen, is to be judged, too.
            if where is not None and ticket.unjudged():
                ticket.wake()
            if resource.idle or resource.resting or ticket.line is not None:
                ledger.serve(resource, now)
            if ticket.is_waiting():
                ticket.error = objection(ledger.name, ticket, now)
        if ledger.todo:
            switch.carry_out()
        while ticket.is_waiting():
            until = ticket.alarm_at if deadline is None else min(deadline, ticket.alarm_at)
            is_woken = clock.wait(ticket.gate, None if until == NEVER else max(0.0, until - now))
            if ticket.is_waiting():
                if where is not None:
                    _judge(switch, ticket, where)
                with switch._lock:
                    now = clock.now()
                    is_late = deadline is not None and (
                        now >= deadline or (not is_woken and until == deadline)
                    )
                    _look_again_locked(switch, ticket, now, is_late=is_late)
                switch.carry_out()
        key, error = ticket.key, ticket.error
        if key is None:
            raise (
                CallTimeoutError(_too_late(ledger.name, ticket), pool=ledger.name) if error is None else error
            )
        stub.ticket = None
        return key
    finally:
        if stub.ticket is not None:
            with switch._lock:
                withdraw(ledger, ticket, clock.now())
            stub.ticket = None
            switch.carry_out()


def _look_again_locked(switch: Switch, ticket: Ticket, now: float, *, is_late: bool) -> None:
    """Woken without being served: a rest is over, a channel is new, or something was dropped."""
    ledger = switch.ledger
    recover(ledger, now)
    if ticket.is_waiting() and is_late:
        ticket.has_left = True
        ticket.resource.dequeue(ticket)  # it does not count itself among those who wait
    if ticket.alarm_at <= now:
        ticket.alarm_at = NEVER
    ledger.serve(ticket.resource, now)
    if ticket.verdicts is not None:  # while its filter was asked, what it liked may have gone
        ledger.review(ticket, now)


def _judge(switch: Switch, ticket: Ticket, where: Where) -> None:
    """Ask the caller's filter about each channel that it has not seen yet. No lock is held."""
    while True:
        with switch._lock:
            now = switch.clock.now()
            lines = ticket.unjudged()
            infos = describe_all(lines, now)
        if not lines:
            return
        assert ticket.verdicts is not None
        for line, info in zip(lines, infos, strict=True):
            ticket.verdicts[line] = bool(where(info))


def _too_late(pool: str, ticket: Ticket) -> str:
    resource = ticket.resource
    lines = list(resource.open_lines())
    what = f"{ticket.method!r} of {resource.name!r}" if ticket.line is None else f"channel {ticket.line.id}"
    return (
        f"pool {pool!r}: {what} did not become free in time ({len(lines)} channels:"
        f" {len(resource.resting)} resting, {len(lines) - len(resource.resting) - len(resource.idle)} busy;"
        f" {len(resource.queue)} others wait)"
    )


# -- what became of it


def answered(switch: Switch, key: Key, value: Any, seconds: float) -> Any:
    """A call has returned *value*, and there is more to do than to lay down its key. Returns the answer."""
    rest = None
    if isinstance(value, Reply):
        rest, value = retry_after(value), value.value
    reason = CloseReason.TERMINATED if rest == NEVER else None
    _end(switch, key, reason, rest or 0.0, seconds, None)
    return value


def failed(switch: Switch, key: Key, error: BaseException, seconds: float) -> None:
    """A call has raised *error*."""
    rest = retry_after(error) or 0.0
    is_over = True  # also if an interrupt keeps us from learning it
    try:
        is_over = rest == NEVER or _is_fatal(switch, key.line, error)
    finally:
        _end(switch, key, CloseReason.BROKEN if is_over else None, rest, seconds, error)


def _end(
    switch: Switch,
    key: Key,
    reason: CloseReason | None,
    rest: float,
    seconds: float,
    error: BaseException | None,
) -> None:
    line = key.line
    try:
        if switch.ledger.is_heard and line.run is not None:
            switch.tell(CallEnded, line.id, line.home().name, line.run[1], seconds, error)
    finally:
        switch.receive(key, reason, rest)


def _is_fatal(switch: Switch, line: Line, error: BaseException) -> bool:
    """Whether the channel is of no more use. After an interrupt it is not: nobody knows its state."""
    if not isinstance(error, Exception) or isinstance(error, ChannelClosedError):
        return True
    is_fatal = getattr(line.channel, "is_fatal", None)
    if is_fatal is None:
        return False
    return is_fatal_by(is_fatal, error, logger, f"call pool {switch.name!r}: is_fatal of channel {line.id}")
