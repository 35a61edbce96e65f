"""A connector with what it leaves out filled in."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable, Set
from typing import Any

from attrs import frozen

from connpool.errors import ConfigError
from connpool.model.endpoint import Endpoint
from connpool.wire import look
from connpool.wire.connector import Connector, SocketConnector
from connpool.wire.waiting import Cancel

__all__ = ["FullConnector", "adapt"]


@frozen
class FullConnector:
    """A connector, and for what it leaves out the default, or None where the pool need do nothing.

    Attributes:
        reset: None: there is nothing to reset.
        is_fatal: None: every exception is.
        prompt: Whether ``is_usable`` and ``close`` may run on a user's own thread.
        looks_promptly: Whether ``is_usable`` may, at least.
        keeps_nothing: Whether nobody but the pool has what it opens.
        handshake: None: there is none.
        permissions: None: the connector cannot tell.
        would_trust: Whether an upgrade to TLS has verified as much as this connector would.
    """

    open: Callable[[Endpoint, float | None, Cancel | None], Any]
    close: Callable[[Any], object]
    is_usable: Callable[[Any], bool]
    reset: Callable[[Any], object] | None
    is_fatal: Callable[[Exception], object] | None
    prompt: bool
    looks_promptly: bool
    keeps_nothing: bool
    handshake: Callable[[Any], object] | None
    permissions: Callable[[Any], Set[str]] | None
    would_trust: Callable[[Endpoint, ssl.SSLContext, str | None], bool]


def adapt(connector: Connector) -> FullConnector:
    """Fill in what *connector* leaves out.

    Raises:
        ConfigError: It has no ``open``, or is a class whose ``open`` needs an object.
    """
    if not callable(getattr(connector, "open", None)):
        raise ConfigError(f"a connector needs open(endpoint, timeout, cancel); {connector!r} has none")
    if isinstance(connector, type) and inspect.isfunction(inspect.getattr_static(connector, "open")):
        raise ConfigError(f"the connector {connector!r} is a class; give one that is made of it")
    is_usable = getattr(connector, "is_usable", None) or look.is_usable
    prompt = bool(getattr(connector, "prompt", False))
    return FullConnector(
        open=connector.open,
        close=getattr(connector, "close", None) or look.close,
        is_usable=is_usable,
        reset=getattr(connector, "reset", None),
        is_fatal=getattr(connector, "is_fatal", None),
        prompt=prompt,
        looks_promptly=prompt or is_usable is look.is_usable,
        keeps_nothing=type(connector) is SocketConnector,
        handshake=getattr(connector, "handshake", None),
        permissions=getattr(connector, "permissions", None),
        would_trust=getattr(connector, "would_trust", None) or SocketConnector().would_trust,
    )
