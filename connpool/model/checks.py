"""Validators and complaints that the values of this floor share.

attrs' own ``instance_of(int)`` accepts ``True`` and its ``gt(0)`` accepts
``inf``, which ``Condition.wait`` refuses much later, in another place. These
here say ``ConfigError`` with the name and the value, at once.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from attrs import Attribute

from connpool.errors import ConfigError

T = TypeVar("T")
Check = Callable[[object, "Attribute[Any]", Any], None]

# What a fast path lets pass unseen: numbers of any other kind go the long way, which looks closer.
PLAIN_NUMBERS: Final = frozenset((float, int))


def is_number(value: object) -> bool:
    """Tell whether *value* is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Tell whether *value* is an int; a bool is none here."""
    return isinstance(value, int) and not isinstance(value, bool)


def flag(_: object, attribute: Attribute[Any], value: Any) -> None:
    """Accept True and False only."""
    require_flag(attribute.name, value)


def require_flag(name: str, value: Any) -> bool:
    """Give *value*, an argument *name*, if it is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return value


def one_of(*known: str) -> Check:
    """Accept one of the *known* texts."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value not in known:
            names = " or ".join(map(repr, known))
            raise ConfigError(f"{attribute.name} must be {names}, got {value!r}")

    return check


def count(least: int, *, or_none: bool = False) -> Check:
    """Accept a whole number of at least *least*."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value is None and or_none:
            return
        if not is_whole(value) or value < least:
            expected = f"a whole number of at least {least}" + (" or None" if or_none else "")
            raise ConfigError(f"{attribute.name} must be {expected}, got {value!r}")

    return check


def seconds(*, or_zero: bool = False, or_none: bool = False) -> Check:
    """Accept a number of seconds that a thread can really wait for."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        require_seconds(attribute.name, value, or_zero=or_zero, or_none=or_none)

    return check


def require_seconds(name: str, value: Any, *, or_zero: bool = False, or_none: bool = False) -> None:
    """The same for an argument *name* that is no field."""
    if value is None and or_none:
        return
    if is_number(value) and (value > 0 or (or_zero and value == 0)) and value <= threading.TIMEOUT_MAX:
        return  # nan compares false and inf is too much
    expected = ("at least 0 seconds" if or_zero else "more than 0 seconds") + " and finite"
    raise ConfigError(f"{name} must be {expected}{', or None' if or_none else ''}, got {value!r}")


def no_seconds(name: str, value: Any) -> ConfigError:
    """Make the error for *value*, an argument *name* with which one cannot reckon."""
    return ConfigError(f"{name} must be a number of seconds or None, got {value!r}")


def require_text(name: str, value: Any) -> str:
    """Give *value*, an argument *name*, if it is a text."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, got {value!r}")
    return value


def require_path(name: str, value: Any) -> str:
    """Give *value*, an argument *name*, as a text, if it can be the path of a file."""
    path = value.__fspath__() if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{name} must be the path of a file, as a text, got {value!r}")
    return path


def require_kind(name: str, value: Any, kind: type[T]) -> T:
    """Give *value*, an argument *name*, if it is of that *kind*."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value


def require_methods(name: str, value: T, *methods: str) -> T:
    """Give *value*, an argument *name*, if it has these *methods*."""
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        raise ConfigError(f"{name} must have the methods {' and '.join(methods)}, got {value!r}")
    return value


def require_function(name: str, value: Any, *, or_none: bool = False) -> None:
    """Accept what can be called."""
    if not (callable(value) or (or_none and value is None)):
        raise ConfigError(f"{name} must be a function{' or None' if or_none else ''}, got {value!r}")


def require_hashable(name: str, value: Any) -> None:
    """Accept what can be the key of a dict."""
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(f"{name} must be hashable, got {value!r}") from error


def require_listeners(value: Any) -> Iterable[Callable[[Any], object]]:
    """Give *value* if there can be listeners in it."""
    if not isinstance(value, Iterable):
        raise ConfigError(f"listeners must be several functions, got {value!r}")
    return value


def fraction(_: object, attribute: Attribute[Any], value: Any) -> None:
    """Accept a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} must be a number from 0 to 1, got {value!r}")


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """Make the error for *name*, no known *what*, naming the nearest of the *known* ones."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return ConfigError(f"unknown {what} {name!r} (the nearest known one is {nearest[0]!r})")
