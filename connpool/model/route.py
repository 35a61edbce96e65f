"""Routes: which endpoints serve, together and instead of one another, and how that is written.

Three operators, tightest first: ``,`` *any one of*, ``&&`` *and*, ``||`` *else*.
So a route is groups joined by ``||``, a group is members joined by ``&&``, and a
member is endpoints joined by ``,``. There are no parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from attrs import Factory, field, frozen

from connpool.errors import ConfigError
from connpool.model.endpoint import Endpoint, check_parse_arguments, read_endpoint, syntax_error

_TOKEN: Final = re.compile(r"(?P<operator>,|&&|\|\|)|(?P<address>[^\s,;&|()]+)|(?P<other>[;&|()])|\s+")
_HINTS: Final = {
    "&": "'&' stands alone (and is '&&')",
    "|": "'|' stands alone (else is '||')",
    ";": "';' joins nothing (any one of is ',')",
    "(": "a route has no parentheses (',' binds tighter than '&&', that tighter than '||')",
    ")": "a route has no parentheses (',' binds tighter than '&&', that tighter than '||')",
}


@frozen
class Member:
    """Endpoints joined by ``,``: any one of them will do. It is iterated over, and has a length."""

    endpoints: tuple[Endpoint, ...]

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.endpoints)

    def __len__(self) -> int:
        return len(self.endpoints)

    def __str__(self) -> str:
        return ", ".join(map(str, self.endpoints))


def _each_endpoint_once(members: Iterable[Member]) -> tuple[Member, ...]:
    """Drop every mention of an endpoint but the first, and members left without any."""
    seen: set[Endpoint] = set()
    kept = []
    for member in members:
        fresh = [e for e in dict.fromkeys(member.endpoints) if e not in seen]
        seen.update(fresh)
        if fresh:
            kept.append(Member(tuple(fresh)))
    return tuple(kept)


@frozen
class Group:
    """Members joined by ``&&``: they serve together.

    An endpoint mentioned twice counts once, where it stands first: it has one
    connection, and gets one copy of a message. It is iterated over, and has a length.
    """

    members: tuple[Member, ...] = field(converter=_each_endpoint_once)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All of them, in order, each once."""
        return tuple(endpoint for member in self.members for endpoint in member.endpoints)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __str__(self) -> str:
        return " && ".join(map(str, self.members))


def _as_tuple(groups: Iterable[Group]) -> tuple[Group, ...]:
    return tuple(groups)


def _not_empty(_: object, __: object, groups: tuple[Group, ...]) -> None:
    if not groups or not all(group.members for group in groups):
        raise ConfigError("a route, and each group of it, needs at least one endpoint")


@frozen(repr=False)
class Route:
    """Groups joined by ``||``: the first that can serve is the active one.

    A checkout goes round robin over all endpoints of the active group; a
    broadcast sends one copy to each of its members. ``str()`` gives a text that
    ``parse`` reads back to an equal route.

    Attributes:
        groups: In order of preference.
        text: Exactly what was parsed; no part of equality.
        endpoints: Those of all groups, in order, each once.

    Raises:
        ConfigError: There is no group, or one without an endpoint.
    """

    groups: tuple[Group, ...] = field(converter=_as_tuple, validator=_not_empty)
    text: str = field(eq=False, default=Factory(str, takes_self=True))
    endpoints: tuple[Endpoint, ...] = field(
        init=False, eq=False, default=Factory(lambda self: _endpoints_of(self.groups), takes_self=True)
    )

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Route:
        """Read a route such as ``"a:1, b:1 && c:2 || d:3"``; spaces are optional.

        Args:
            text: Endpoints as ``Endpoint.parse`` reads them, joined by operators.
            default_port: For endpoints that name no port; None: each must.

        Raises:
            RouteSyntaxError: *text* is no route; ``column`` says where.
            ConfigError: *default_port* is no port, or *text* no text.
        """
        check_parse_arguments(text, default_port)
        groups: list[list[list[Endpoint]]] = [[[]]]
        operator: str | None = ""  # the one that waits for its right side; None: an endpoint came last
        for token in _tokens(text):
            if not token.is_operator:
                if operator is None:
                    raise syntax_error(text, token.start, "an operator (',' '&&' '||') is missing")
                groups[-1][-1].append(read_endpoint(text, token.start, token.end, default_port))
                operator = None
                continue
            if operator is not None:
                raise syntax_error(text, token.start, f"an endpoint is missing before {token.text!r}")
            operator = token.text
            if operator == "||":
                groups.append([[]])
            elif operator == "&&":
                groups[-1].append([])
        if operator is not None:
            where = f"after {operator!r}" if operator else "in an empty route"
            raise syntax_error(text, len(text), f"an endpoint is missing {where}")
        return cls(tuple(Group(tuple(Member(tuple(ends)) for ends in members)) for members in groups), text)

    @classmethod
    def of(cls, *endpoints: Endpoint | str) -> Route:
        """Give the route that is one list, any one of *endpoints*.

        Raises:
            RouteSyntaxError: A text among them is not one endpoint.
            ConfigError: There is none, or one is neither an endpoint nor a text.
        """
        return cls((Group((Member(tuple(map(Endpoint.of, endpoints))),)),))

    @classmethod
    def coerce(cls, value: Route | str | Endpoint | Iterable[Endpoint | str]) -> Route:
        """Give *value* as a route: a text is parsed, several endpoints are any one of them.

        Raises:
            RouteSyntaxError: A text cannot be read.
            ConfigError: *value* is none of these, or empty.
        """
        if isinstance(value, Route):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Endpoint):
            return cls.of(value)
        several: object = value  # bytes are an Iterable, too
        if isinstance(several, Iterable) and not isinstance(several, bytes | bytearray):
            return cls.of(*several)
        raise ConfigError(f"a route must be a text, a Route, an Endpoint or several, got {value!r}")

    def __str__(self) -> str:
        return " || ".join(map(str, self.groups))

    def __repr__(self) -> str:
        return f"Route.parse({str(self)!r})"


def _endpoints_of(groups: Iterable[Group]) -> tuple[Endpoint, ...]:
    return tuple(dict.fromkeys(endpoint for group in groups for endpoint in group.endpoints))


class _Token(NamedTuple):
    text: str
    start: int
    end: int
    is_operator: bool


def _tokens(text: str) -> Iterator[_Token]:
    """Cut *text* into addresses and operators; what is neither is an error."""
    for match in _TOKEN.finditer(text):  # every character matches one of the four ways
        kind = match.lastgroup  # None: white space
        if kind == "other":
            raise syntax_error(text, match.start(), _HINTS[match[0]])
        if kind:
            yield _Token(match[0], match.start(), match.end(), kind == "operator")
