"""The settings of one pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs
from attrs import Attribute, field, frozen

from connpool.errors import ConfigError
from connpool.model.checks import count, flag, fraction, seconds, unknown_name


def _check_revive(_: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool) and value != "force":
        raise ConfigError(f"{attribute.name} must be False, True or 'force', got {value!r}")


def _as_set(value: Any) -> Any:
    """Make a frozenset of several texts; a single text is not several letters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value  # refused below
    names = tuple(value)
    return frozenset(names) if all(isinstance(name, str) for name in names) else names


def _check_permissions(_: object, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, frozenset):
        raise ConfigError(f"{attribute.name} must be several texts, got {value!r}")


@frozen(kw_only=True)
class PoolConfig:
    """How a pool behaves. Durations are seconds; None means no limit, never, or not at all.

    Attributes:
        max_size: Most connections at any time, opening and closing ones included:
            what the servers together will ever see of this pool.
        max_per_endpoint: The same for each endpoint alone, so that one that hangs
            cannot take every place.
        min_idle: Kept ready in the background, so that a burst finds them open.
        checkout_timeout: For one checkout as a whole, where the caller names none.
        connect_timeout: For one dial, name look-up, TLS and login included.
        max_waiters: How many may queue; a checkout that comes then is refused at once,
            since an answer that comes too late helps nobody.
        max_connecting: Dials at a time to one endpoint, so that a server that
            comes back is not met by a storm.
        idle_timeout: Unused that long, a connection is closed.
        max_lifetime: That old, a connection is closed as soon as nobody holds it,
            so that traffic follows changes of names and load balancers.
        lifetime_jitter: Largest part of the lifetime taken off by chance, so that
            connections opened together do not expire together.
        max_uses: Loans after which a connection is closed.
        revive: Whether a connection that expired or broke is replaced in the
            background; ``"force"``: also one that was closed on purpose.
        look_after_idle: Idle that long, a connection is looked at before it is
            lent; 0: always.
        keepalive_interval: How often idle connections are validated.
        blacklist_initial: How long an endpoint is left alone after its first
            failure; each further one doubles it.
        blacklist_max: Where the doubling ends.
        reconnect: Whether blacklisted endpoints are probed in the background.
        fail_fast: When every endpoint is blacklisted: raise at once, or else wait
            for one.
        sharable: Whether connections may have several holders.
        max_sharers: Holders of one connection at a time.
        reap_interval: Pause between two turns of the reaper; a third of ``idle_timeout`` or
            ``max_lifetime`` if that is less. None: there is no thread; call ``sweep``.
        warn_after: A loan held longer is logged, with the name of its thread.
        track_origin: Whether each loan remembers the calls that took it, for
            errors, warnings and ``ConnectionInfo.origin``. Costs each checkout
            some microseconds.
        dial_in_caller: Dial on the thread that asks, for drivers that must. Others may
            be lent what it has opened.
        required_permissions: What the connector's ``permissions`` hook must grant;
            where there is no hook nobody is asked.

    Raises:
        ConfigError: A value is out of range, or a name unknown; the sentence
            tells which, and for a name the nearest known one.
    """

    max_size: int = field(default=10, validator=count(1))
    max_per_endpoint: int | None = field(default=None, validator=count(1, or_none=True))
    min_idle: int = field(default=0, validator=count(0))
    checkout_timeout: float | None = field(default=30.0, validator=seconds(or_zero=True, or_none=True))
    connect_timeout: float = field(default=5.0, validator=seconds())
    max_waiters: int | None = field(default=None, validator=count(0, or_none=True))
    max_connecting: int = field(default=2, validator=count(1))
    idle_timeout: float | None = field(default=600.0, validator=seconds(or_none=True))
    max_lifetime: float | None = field(default=3600.0, validator=seconds(or_none=True))
    lifetime_jitter: float = field(default=0.1, validator=fraction)
    max_uses: int | None = field(default=None, validator=count(1, or_none=True))
    revive: bool | Literal["force"] = field(default=False, validator=_check_revive)
    look_after_idle: float | None = field(default=0.5, validator=seconds(or_zero=True, or_none=True))
    keepalive_interval: float | None = field(default=None, validator=seconds(or_none=True))
    blacklist_initial: float = field(default=1.0, validator=seconds(or_zero=True))
    blacklist_max: float = field(default=60.0, validator=seconds(or_zero=True))
    reconnect: bool = field(default=True, validator=flag)
    fail_fast: bool = field(default=True, validator=flag)
    sharable: bool = field(default=False, validator=flag)
    max_sharers: int | None = field(default=None, validator=count(1, or_none=True))
    reap_interval: float | None = field(default=1.0, validator=seconds(or_none=True))
    warn_after: float | None = field(default=None, validator=seconds(or_none=True))
    track_origin: bool = field(default=False, validator=flag)
    dial_in_caller: bool = field(default=False, validator=flag)
    required_permissions: frozenset[str] = field(
        default=frozenset(), converter=_as_set, validator=_check_permissions
    )

    def __new__(cls, **settings: Any) -> PoolConfig:
        # Before __init__, whose TypeError for an unknown name would not say the nearest one.
        for name in settings:
            if name not in _NAMES:
                raise unknown_name("setting", name, _NAMES)
        return object.__new__(cls)

    def __attrs_post_init__(self) -> None:
        if self.min_idle > self.max_size:
            raise ConfigError(f"min_idle ({self.min_idle}) is more than max_size ({self.max_size})")
        if self.blacklist_max < self.blacklist_initial:
            raise ConfigError(
                f"blacklist_max ({self.blacklist_max:g} s) is less than"
                f" blacklist_initial ({self.blacklist_initial:g} s)"
            )

    @classmethod
    def from_settings(cls, **settings: Any) -> PoolConfig:
        """Give the configuration with these settings, the others at their defaults.

        Raises:
            ConfigError: A name is unknown or a value out of range.
        """
        return cls(**settings)

    def evolve(self, **settings: Any) -> PoolConfig:
        """Give a copy that has these settings instead.

        Raises:
            ConfigError: A name is unknown or a value out of range. Nothing was changed.
        """
        return attrs.evolve(self, **settings)

    def changed(self) -> dict[str, Any]:
        """Give the settings that differ from the defaults, in the order of the fields."""
        default = PoolConfig()
        return {name: getattr(self, name) for name in _NAMES if getattr(self, name) != getattr(default, name)}


_NAMES = tuple(attribute.name for attribute in attrs.fields(PoolConfig))
