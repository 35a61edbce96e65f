"""How a broadcaster works, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from connpool.delivery.spool import Spool
from connpool.errors import ConfigError
from connpool.model import checks
from connpool.pool.connection import Connection
from connpool.wire.framing import Framing, Raw, require_framing

__all__ = ["Confirm", "Heartbeat", "Settings", "require_spool"]

Confirm = Callable[[Connection, bytes], object]
Heartbeat = tuple[float, bytes | Callable[[], bytes]]


def _framing(_: object, __: object, value: Any) -> None:
    require_framing(value)


def _function_or_none(_: object, attribute: Any, value: Any) -> None:
    checks.require_function(attribute.name, value, or_none=True)


def _rate(_: object, attribute: Any, value: Any) -> None:
    if value is not None and not (checks.is_number(value) and 0 < value < math.inf):
        raise ConfigError(f"{attribute.name} must be a number of messages a second or None, got {value!r}")


def _heartbeat(_: object, attribute: Any, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2:
        raise ConfigError(f"{attribute.name} must be (seconds, message) or None, got {value!r}")
    checks.require_seconds("the interval of heartbeat", value[0])
    if not (callable(value[1]) or isinstance(value[1], bytes)):
        raise ConfigError(f"the message of heartbeat must be bytes or a function, got {value[1]!r}")


def require_spool(spool: Spool | None) -> None:
    """Refuse what messages cannot be put into.

    Raises:
        ConfigError: it is no spool: a path, perhaps, or a class.
    """
    has_all = all(callable(getattr(spool, name, None)) for name in ("put", "peek", "remove", "move", "adopt"))
    if spool is not None and (isinstance(spool, type) or not has_all):
        raise ConfigError(f"spool must have the methods of Spool, got {spool!r}")


@frozen(kw_only=True)
class Settings:
    """See ``Broadcaster`` for what each means."""

    framing: Framing = field(factory=Raw, validator=_framing)
    confirm: Confirm | None = field(default=None, validator=_function_or_none)
    write_ahead: bool = field(default=False, validator=checks.flag)
    failover: bool = field(default=True, validator=checks.flag)
    reconnect: bool = field(default=True, validator=checks.flag)
    standby: str = field(default="hot", validator=checks.one_of("hot", "cold"))
    fail_back_after: float = field(default=0.0, validator=checks.seconds(or_zero=True))
    send_timeout: float | None = field(default=30.0, validator=checks.seconds(or_none=True))
    flush_rate: float | None = field(default=None, validator=_rate)
    heartbeat: Heartbeat | None = field(default=None, validator=_heartbeat)
    max_async: int = field(default=10_000, validator=checks.count(1))
    on_full: str = field(default="wait", validator=checks.one_of("wait", "raise"))

    @classmethod
    def of(cls, **settings: Any) -> Settings:
        """Check *settings*.

        Raises:
            ConfigError: one is unknown or out of range.
        """
        known = [each.name for each in cls.__attrs_attrs__]
        for name in settings:
            if name not in known:
                raise checks.unknown_name("setting", name, known)
        return cls(**{name: value for name, value in settings.items() if (name, value) != ("framing", None)})
