"""What a caller asks of a checkout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from attrs import Attribute, field, frozen

from connpool.errors import ConfigError
from connpool.model.checks import flag, seconds
from connpool.model.endpoint import Endpoint
from connpool.model.stats import ConnectionInfo


class CancelFlag(Protocol):
    """What ``Request.cancel`` needs of a ``threading.Event``."""

    def is_set(self) -> bool:
        """Tell whether the caller has lost interest."""
        ...


def _endpoint_or_none(value: Any) -> Endpoint | None:
    return None if value is None else Endpoint.of(value)


def _check_where(_: object, attribute: Attribute[Any], where: Any) -> None:
    if where is not None and not callable(where):
        raise ConfigError(f"{attribute.name} must be a function of a ConnectionInfo or None, got {where!r}")


def _check_cancel(_: object, attribute: Attribute[Any], cancel: Any) -> None:
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise ConfigError(f"{attribute.name} must be a threading.Event or None, got {cancel!r}")


@frozen
class Request:
    """What a connection is for; the default asks for any, exclusively.

    Args:
        endpoint: The one address that will do, as an Endpoint or its text; it
            need not be on the route. None: whichever the route offers.
        shared: Whether others may hold the same connection meanwhile.
        timeout: Seconds for waiting, looking and dialling together; 0 never
            waits for a place. None: ``PoolConfig.checkout_timeout``.
        where: Gets a ConnectionInfo, says whether that connection will do.
        cancel: Once it is set, waiting and dialling end with CancelledError.

    Raises:
        RouteSyntaxError: The text of *endpoint* cannot be read.
        ConfigError: Another argument is out of range; the sentence names it.
    """

    endpoint: Endpoint | None = field(default=None, converter=_endpoint_or_none)
    shared: bool = field(default=False, validator=flag)
    timeout: float | None = field(default=None, validator=seconds(or_zero=True, or_none=True))
    where: Callable[[ConnectionInfo], bool] | None = field(default=None, validator=_check_where)
    cancel: CancelFlag | None = field(default=None, validator=_check_cancel)

    @classmethod
    def of(cls, value: Request | Endpoint | str | None) -> Request:
        """Give *value* as a request: an endpoint or its text pins that address.

        Raises:
            RouteSyntaxError: The text cannot be read.
            ConfigError: *value* is none of these.
        """
        if value is None:
            return ANYTHING
        return value if isinstance(value, Request) else cls(value)


ANYTHING: Final = Request()
