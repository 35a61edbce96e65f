"""One address: what it is, how it is written, and how a written one is read."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any, Final
from urllib.parse import quote, unquote

from attrs import Attribute, field, frozen

from connpool.errors import ConfigError, RouteSyntaxError
from connpool.model.checks import flag

# What joins endpoints in a route, what belongs to other kinds of address, and
# ":", which is looked at apart since an IPv6 address is made of it.
_NOT_IN_A_HOST: Final = re.compile(r"[ ,;&|()\[\]/@]")
_ENDS_A_TEXT: Final = re.compile(r"[\s,;&|()]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT: Final = re.compile(r"[0-9]{1,5}")  # no sign, no "_", no digits of other scripts
_SPECIAL: Final = re.compile(r"(unix|callable):", re.IGNORECASE)
_SCHEME: Final = re.compile(r"([^:/]*)://")
_PLAIN_IN_A_TEXT: Final = "/:@+=~<>"  # beside letters, digits and "_.-"


def _lower_host(host: Any) -> Any:
    """Lower-case the name; the zone of an IPv6 address is an interface's exact name."""
    if not isinstance(host, str):
        return host  # the validator says so in a sentence
    name, percent, zone = host.partition("%")
    return name.lower() + percent + zone


def _plain_text(value: Any) -> Any:
    """Give bytes that a file system could not decode the one spelling it would give them."""
    if not isinstance(value, str):
        return value
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value  # refused below


def _host_flaw(host: str) -> tuple[int, str] | None:
    """Say what makes *host* no host, and at which character; None: it is one."""
    if bad := _NOT_IN_A_HOST.search(host):
        return bad.start(), f"{bad[0]!r} cannot be part of a host"
    for index, char in enumerate(host):
        if not char.isprintable():
            return index, f"{char!r} cannot be part of a host"
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as exc:
            return 0, f"not an IPv6 address: {exc}"
    elif "%" in host:
        return host.index("%"), "'%' (a zone) can only follow an IPv6 address"
    return None


def _check_host(_: object, attribute: Attribute[Any], host: Any) -> None:
    if not isinstance(host, str):
        raise ConfigError(f"endpoint: {attribute.name} must be a text, got {host!r}")
    if flaw := _host_flaw(host):
        raise ConfigError(f"endpoint: {attribute.name} {host!r}: {flaw[1]}")


def _check_text(_: object, attribute: Attribute[Any], text: Any) -> None:
    if text is None:
        return
    if not isinstance(text, str) or not text:
        raise ConfigError(f"endpoint: {attribute.name} must be a text that is not empty, got {text!r}")
    if "\0" in text:
        raise ConfigError(f"endpoint: {attribute.name} {text!r} contains a NUL character")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(f"endpoint: {attribute.name} {text!r} cannot be encoded") from None


def _check_port(port: object) -> None:
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise ConfigError(f"endpoint: port must be a whole number from 1 to 65535, got {port!r}")


@frozen(cache_hash=True, repr=False)
class Endpoint:
    """One address that a pool can open: of TCP, TLS, a Unix socket, or a callable.

    Two endpoints are equal if they are written alike: host name (its case apart),
    port and ``tls``. Names are never resolved to compare them, so two TLS names on
    one machine stay two endpoints.

    ``str()`` gives a text that ``parse`` reads back to an equal endpoint, alone and
    as part of a route.

    Args:
        host: A name or an address, IPv6 without brackets (a zone, ``fe80::1%eth0``,
            may follow). Empty exactly if *path* or *opener* is given.
        port: 1 to 65535; 0 exactly if *path* or *opener* is given.
        tls: Whether the connection speaks TLS from its first byte.
        path: Of a Unix socket; see ``unix``.
        opener: Name of the callable that opens; see ``callable``.

    Raises:
        ConfigError: A value is out of range; the sentence names it.
    """

    host: str = field(converter=_lower_host, validator=_check_host)
    port: int
    tls: bool = field(default=False, validator=flag)
    path: str | None = field(default=None, kw_only=True, converter=_plain_text, validator=_check_text)
    opener: str | None = field(default=None, kw_only=True, converter=_plain_text, validator=_check_text)

    def __attrs_post_init__(self) -> None:
        if self.path is None and self.opener is None:
            if not self.host:
                raise ConfigError("endpoint: the host is empty")
            _check_port(self.port)
        elif self.path is not None and self.opener is not None:
            raise ConfigError(f"endpoint: path {self.path!r} and opener {self.opener!r} exclude each other")
        elif (self.host, self.port, self.tls) != ("", 0, False):
            raise ConfigError(f"endpoint: a {self.scheme} endpoint has no host, no port and no tls")

    @classmethod
    def unix(cls, path: str | os.PathLike[str]) -> Endpoint:
        """Give the endpoint of the Unix socket at *path*, written ``unix:/path``.

        In the text, whatever could be taken for part of a route (spaces, ``,``
        ``;`` ``&`` ``|`` parentheses), ``%`` and everything beyond ASCII stands
        percent-encoded: ``unix:/tmp/a%20b``.

        Raises:
            ConfigError: *path* is empty, no text, or contains a NUL.
        """
        return cls("", 0, path=os.fspath(path) if isinstance(path, os.PathLike) else path)

    @classmethod
    def callable(cls, name: str) -> Endpoint:
        """Give the endpoint that stands for what a pool's own callable opens.

        Written ``callable:name``, percent-encoded as the path of ``unix`` is.

        Raises:
            ConfigError: *name* is empty, no text, or contains a NUL.
        """
        return cls("", 0, opener=name)

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """Read one endpoint from *text*.

        ``host:port``, ``[::1]:port``, ``tcp://host:port``, ``tls://host:port``,
        ``unix:/path``, ``callable:name``; with *default_port* ``host`` and
        ``[::1]`` alone as well. Space around it is ignored. What begins with
        ``unix:`` or ``callable:`` is never a host of that name: such a one is
        written ``tcp://unix:80``.

        Raises:
            RouteSyntaxError: *text* is not one endpoint; ``column`` says where.
            ConfigError: *default_port* is no port, or *text* no text.
        """
        check_parse_arguments(text, default_port)
        body = text.strip()
        if not body:
            raise syntax_error(text, 0, "an endpoint is missing: the text is empty")
        start = len(text) - len(text.lstrip())
        if bad := _ENDS_A_TEXT.search(text, start, start + len(body)):
            why = f"{bad[0]!r} cannot be part of one endpoint (in a path it is percent-encoded)"
            raise syntax_error(text, bad.start(), why)
        return read_endpoint(text, start, start + len(body), default_port)

    @classmethod
    def of(cls, value: Endpoint | str) -> Endpoint:
        """Give *value* itself if it is an endpoint, else what its text says (see ``parse``).

        Raises:
            RouteSyntaxError: The text is not one endpoint.
            ConfigError: *value* is neither an endpoint nor a text.
        """
        return value if isinstance(value, Endpoint) else cls.parse(value)

    @property
    def scheme(self) -> str:
        """``"tcp"``, ``"tls"``, ``"unix"`` or ``"callable"``."""
        if self.path is not None:
            return "unix"
        if self.opener is not None:
            return "callable"
        return "tls" if self.tls else "tcp"

    def __str__(self) -> str:
        special = self.path if self.path is not None else self.opener
        if special is not None:
            return f"{self.scheme}:{quote(special, safe=_PLAIN_IN_A_TEXT, errors='surrogateescape')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        plain = f"{host}:{self.port}"
        if self.tls:
            return f"tls://{plain}"
        return f"tcp://{plain}" if _SPECIAL.match(plain) else plain

    def __repr__(self) -> str:
        return f"Endpoint.parse({str(self)!r})"


def check_parse_arguments(text: object, default_port: object) -> None:
    """Refuse, before any reading, what no text could mend."""
    if not isinstance(text, str):
        raise ConfigError(f"an address must be a text or an Endpoint, got {text!r}")
    if default_port is not None:
        _check_port(default_port)


def syntax_error(text: str, index: int, why: str) -> RouteSyntaxError:
    """Make the error for the flaw at *index* of *text*, with the place marked by ``-->``."""
    before, after = text[:index][-30:], text[index:][:30]
    return RouteSyntaxError(f"{why}, at column {index + 1}: {before + '-->' + after!r}", column=index + 1)


def read_endpoint(text: str, start: int, end: int, default_port: int | None) -> Endpoint:
    """Read the endpoint that ``text[start:end]`` spells; columns count in the whole *text*."""
    if special := _SPECIAL.match(text, start, end):
        return _read_special(text, special.end(), end, special[1].lower())
    tls = False
    if scheme := _SCHEME.match(text, start, end):
        if scheme[1].lower() not in ("tcp", "tls"):
            raise syntax_error(text, start, f"unknown scheme {scheme[1]!r} (known: tcp://, tls://, unix:)")
        tls = scheme[1].lower() == "tls"
        start = scheme.end()
    host, host_at, port_at = _split_host(text, start, end)
    if not host:
        raise syntax_error(text, host_at, "the host is empty")
    if flaw := _host_flaw(host):
        raise syntax_error(text, host_at + flaw[0], flaw[1])
    if port_at is not None:
        port = _read_port(text, port_at, end)
    elif default_port is not None:
        port = default_port
    else:
        raise syntax_error(text, end, f"{text[start:end]!r} has no port (write host:port)")
    return Endpoint(host, port, tls)


def _split_host(text: str, start: int, end: int) -> tuple[str, int, int | None]:
    """Return the host, its index, and the index of the port's text if there is one."""
    if text.startswith("[", start, end):
        close = text.find("]", start, end)
        if close < 0:
            raise syntax_error(text, start, "'[' is never closed")
        host = text[start + 1 : close]
        if ":" not in host:
            raise syntax_error(text, start, f"brackets are for IPv6 addresses, and {host!r} is none")
        if close + 1 == end:
            return host, start + 1, None
        if text[close + 1] != ":":
            raise syntax_error(text, close + 1, "only ':port' may follow ']'")
        return host, start + 1, close + 2
    host, colon, port = text[start:end].partition(":")
    if ":" in port:
        raise syntax_error(
            text, start, "more than one ':' (an IPv6 address is written in brackets: [::1]:80)"
        )
    return host, start, start + len(host) + 1 if colon else None


def _read_port(text: str, start: int, end: int) -> int:
    if _PORT.fullmatch(text, start, end) and 1 <= (port := int(text[start:end])) <= 65535:
        return port
    raise syntax_error(text, start, f"{text[start:end]!r} is not a port from 1 to 65535")


def _read_special(text: str, start: int, end: int, scheme: str) -> Endpoint:
    """Read what follows ``unix:`` or ``callable:``."""
    for index in range(start, end):
        if not text[index].isprintable():
            raise syntax_error(text, index, f"{text[index]!r} must be percent-encoded")
    if bad := _BAD_PERCENT.search(text, start, end):
        raise syntax_error(text, bad.start(), "'%' needs two hexadecimal digits (it is itself written %25)")
    value = unquote(text[start:end], errors="surrogateescape")
    try:
        return Endpoint.unix(value) if scheme == "unix" else Endpoint.callable(value)
    except ConfigError as exc:
        raise syntax_error(text, start, str(exc)) from exc
