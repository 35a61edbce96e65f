"""What a call pool calls: the protocol of a channel, and what one may say besides its answer."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol, runtime_checkable

from attrs import field, frozen

from connpool.errors import ConfigError, UsageError
from connpool.model.checks import is_number

__all__ = ["Channel", "Reply", "method_set", "methods_of", "rest_of", "takes_timeout"]


@runtime_checkable
class Channel(Protocol):
    """One connection that does one thing at a time. Any object with these members is one.

    A call pool never makes two calls on a channel at once. It opens, calls and
    closes it on whichever thread has to.

    A channel may have two members more. ``is_fatal(error)`` tells whether *error*, which a call has just
    raised, means that the channel is of no more use; without it only ``ChannelClosedError`` does.
    ``parse(data)`` is for the other end, where the same class reads requests: it takes in bytes and gives the
    calls that they complete.

    Source: the Conn protocol of conn_pool (Elixir).
    """

    @property
    def resource(self) -> Hashable:
        """What it offers; calls ask for it."""

    @property
    def methods(self) -> Iterable[Hashable] | Callable[[], Iterable[Hashable]]:
        """What can be done with it; or a callable that asks the peer for that.

        It is looked at once, when the channel is open.
        """

    def open(self, *args: Any, **never: Any) -> object:
        """Open it, for the first time or again.

        Returns:
            Seconds for which it must not be called yet; what is no number means none.

        Raises:
            Exception: it cannot be opened, and nothing is left open. An attribute ``retry_after`` tells in
                how many seconds it may be tried again, ``math.inf``: never.
        """

    def call(self, method: Any, payload: Any) -> Any:
        """Do *method* and give the answer, or a ``Reply`` with it.

        One that also takes ``timeout`` is given the seconds that its caller has left, or None.

        Raises:
            ChannelClosedError: the channel is of no more use.
            Exception: whatever went wrong; the caller gets it as it is. An attribute ``retry_after`` rests
                the channel, as in ``Reply``.
        """

    def close(self) -> object:
        """Close it. Called once for each time that it was opened.

        It may come during a call, from another thread, when ``CallPool.close`` waits for that call no
        longer: the call should then fail soon.
        """


def _check_rest(_: object, __: object, value: Any) -> None:
    if value is not None and not (is_number(value) and value >= 0):
        raise ConfigError(f"retry_after must be a number from 0 on or None, got {value!r}")


@frozen
class Reply:
    """An answer, and how the channel goes on.

    Attributes:
        value: What the caller gets.
        retry_after: Seconds after the end of this call for which the channel must not be called;
            ``math.inf``: never again, it closes by agreement.

    Raises:
        ConfigError: *retry_after* is no such number.
    """

    value: Any = None
    retry_after: float | None = field(default=None, validator=_check_rest)


def rest_of(opened: object) -> float:
    """The seconds before first use that ``open`` asked for."""
    seconds: Any = opened
    return float(seconds) if is_number(seconds) and 0 < seconds <= threading.TIMEOUT_MAX else 0.0


def methods_of(channel: Channel) -> frozenset[Hashable]:
    """What can be done with *channel*, which is open.

    Raises:
        UsageError: it does not say so in a way that can be understood.
    """
    return method_set(channel.methods() if callable(channel.methods) else channel.methods)


def method_set(methods: Any) -> frozenset[Hashable]:
    """*methods*, if they can be understood.

    Raises:
        UsageError: they cannot.
    """
    if isinstance(methods, str | bytes):
        raise UsageError(f"methods of a channel are a collection, not {methods!r}")
    try:
        return frozenset(methods)
    except TypeError:
        raise UsageError(f"methods of a channel are hashable things, not {methods!r}") from None


def takes_timeout(call: Callable[..., Any]) -> bool:
    """Whether *call* can be told how much time it has."""
    try:
        parameter = inspect.signature(call).parameters.get("timeout")
    except (TypeError, ValueError):  # written in C, and silent about it
        return False
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
