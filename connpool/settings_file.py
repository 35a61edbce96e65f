"""A file that describes pools: what it may say, and all that is wrong with it at once."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any, Final

import attrs

from connpool.errors import ConfigError
from connpool.model.checks import unknown_name
from connpool.model.config import PoolConfig
from connpool.model.route import Route
from connpool.wire.connector import Connector, SocketConnector
from connpool.wire.contexts import make_context

__all__ = ["INSECURE", "WantedPool", "read_pools"]

INSECURE: Final = "insecure-accept-any-certificate"  # the only word that switches verification off
NOTHING: Final = "none"  # stands for None, which TOML has no word for

SETTINGS: Final = frozenset(field.name for field in attrs.fields(PoolConfig))
SOCKET_OPTIONS: Final = frozenset({"nodelay", "keepalive", "source_address"})
TLS_OPTIONS: Final = frozenset({"ca", "certificate", "key", "key_password", "server_hostname", "verify"})
ROOMY: Final = {"max_size": sys.maxsize, "blacklist_initial": 0, "blacklist_max": TIMEOUT_MAX}
CLIENT: Final = frozenset({"certificate", "key", "key_password"})  # each is judged with the others
UNSET: Final = object()  # stands for what the environment does not tell
REFERENCE: Final = re.compile(r"\$(?:\$|\{([^}]*)\})")


@attrs.frozen
class WantedPool:
    """One pool, as the file describes it."""

    name: str
    route: Route
    connector: Connector | None
    settings: dict[str, Any]


def read_pools(path: Path) -> list[WantedPool]:
    """Read ``[defaults]`` and all ``[pools.NAME]`` of *path*.

    Raises:
        ConfigError: one for all problems, a line each.
        OSError: the file cannot be read.
    """
    return _Reader(path).read()


def _roomy(**one: Any) -> PoolConfig:
    """A configuration where *one* setting contradicts no other: what goes with it may be in another table."""
    return PoolConfig(**{**ROOMY, **one})


class _Reader:
    """Reads one file and remembers what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[str] = []
        self._secrets: dict[str, str] = {}  # what came from the environment, and how the file wrote it

    def read(self) -> list[WantedPool]:
        try:
            document = tomllib.loads(self._path.read_bytes().decode())
        except ValueError as error:  # of the TOML, of its UTF-8, or of a number with thousands of digits
            raise ConfigError(f"{self._path}: it is no TOML: {error}") from None
        self._check_names("table", document, {"defaults", "pools"}, "the file")
        defaults = self._table(document, "defaults", "the file")
        pools = self._table(document, "pools", "the file")
        shared = self._settings("[defaults]", defaults)
        wanted = [self._pool(name, self._table(pools, name, "[pools]"), shared) for name in pools]
        if not pools:
            self._complain("the file", "it has no [pools.NAME]")
        if self._problems:
            raise ConfigError("\n".join(f"{self._path}: {problem}" for problem in self._problems))
        return [pool for pool in wanted if pool is not None]

    # -- tables

    def _table(self, parent: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
        value = parent.get(name, {})
        if isinstance(value, dict):
            return value
        self._complain(where, f"{name} must be a table, got {value!r}")
        return {}

    def _check_names(self, what: str, table: Iterable[str], known: Iterable[str], where: str) -> None:
        for name in table:
            if name not in known:
                self._complain(where, str(unknown_name(what, name, known)))

    def _settings(self, where: str, table: dict[str, Any]) -> dict[str, Any]:
        """The usable part of *table*; the rest is complained about."""
        known = SETTINGS | SOCKET_OPTIONS | {"tls"} | ({"route"} if where != "[defaults]" else set())
        self._check_names("key", table, known, where)
        good: dict[str, Any] = {}
        for name, raw in table.items():
            if name in SETTINGS | SOCKET_OPTIONS:
                value = self._known(where, name, raw)
                if value is UNSET:
                    continue
                value = None if value == NOTHING else value
                if name in SOCKET_OPTIONS and isinstance(value, list):
                    value = tuple(value)
                kind: Callable[..., object] = SocketConnector if name in SOCKET_OPTIONS else _roomy
                if self._try(f"{where} {name}", partial(kind, **{name: value})):
                    good[name] = value
        tls_where = f"{where[:-1]}.tls]"
        tls = self._table(table, "tls", where)
        self._check_names("key", tls, TLS_OPTIONS, tls_where)
        good["tls"] = {
            name: self._known(tls_where, name, raw) for name, raw in tls.items() if name in TLS_OPTIONS
        }
        return good

    def _pool(self, name: str, table: dict[str, Any], shared: dict[str, Any]) -> WantedPool | None:
        where = f"[pools.{name}]"
        own = self._settings(where, table)
        route = self._route(where, table)
        tls = {**shared["tls"], **own["tls"]}
        both = {**shared, **own}
        settings = {key: value for key, value in both.items() if key in SETTINGS}
        options = {key: value for key, value in both.items() if key in SOCKET_OPTIONS}
        self._try(where, lambda: PoolConfig(**settings))
        if own["tls"] and route is not None and not any(endpoint.tls for endpoint in route.endpoints):
            self._complain(where, "it has TLS settings, but none of its endpoints speaks TLS")
        connector = self._connector(f"{where[:-1]}.tls]", tls, options)
        return None if route is None else WantedPool(name, route, connector, settings)

    def _route(self, where: str, table: dict[str, Any]) -> Route | None:
        if "route" not in table:
            self._complain(where, "route is missing")
            return None
        written = table["route"]
        value = self._known(where, "route", written)
        if value is UNSET:
            return None
        try:
            return Route.coerce(value)
        except ConfigError as error:  # it quotes a route in pieces, which no veil would cover
            is_foreign = value != written
            why = f"it is no route with what the environment says: {written!r}" if is_foreign else str(error)
            self._complain(f"{where} route", why)
            return None

    def _connector(self, where: str, tls: dict[str, Any], options: dict[str, Any]) -> Connector | None:
        if not tls and not options:
            return None
        context = self._context(where, tls) if tls else None
        hostname = tls.get("server_hostname")
        try:
            return SocketConnector(
                tls=context, server_hostname=hostname if isinstance(hostname, str) else None, **options
            )
        except ConfigError as error:
            self._complain(where, str(error))
            return None

    def _context(self, where: str, tls: dict[str, Any]) -> Any:
        """What TLS clients need to know, by what of *tls* is usable; the rest is complained about."""
        verify = tls.get("verify", True)
        if verify is not True and verify not in (INSECURE, UNSET):
            self._complain(
                f"{where} verify", f"it must be true, or {INSECURE!r} to let anyone pose as the server"
            )
        texts = {name: value for name, value in tls.items() if isinstance(value, str)}
        for name in sorted(tls.keys() - texts.keys() - {"verify"}):
            if tls[name] is not UNSET:
                self._complain(f"{where} {name}", f"it must be a text, got {self._veiled(repr(tls[name]))}")
        files = {"ca", "certificate", "key"} & texts.keys()
        if not CLIENT & tls.keys() <= texts.keys():
            files -= CLIENT
        try:
            return make_context(
                **{name: self._path.parent / texts[name] for name in files},
                password=texts.get("key_password"),
                verifies=verify is True,
            )
        except ConfigError as error:
            for problem in str(error).splitlines():
                self._complain(where, problem)
            return None

    # -- values

    def _known(self, where: str, name: str, raw: Any) -> Any:
        """As ``_expanded``; UNSET if the environment lacks a part of it, which is complained about."""
        n_problems = len(self._problems)
        value = self._expanded(where, name, raw)
        return value if len(self._problems) == n_problems else UNSET

    def _expanded(self, where: str, name: str, raw: Any) -> Any:
        """*raw* with every ``${NAME}`` replaced by what the environment says; ``$$`` is a dollar sign."""
        if isinstance(raw, list):
            return [self._expanded(where, name, each) for each in raw]
        if not isinstance(raw, str):
            return raw

        def look_up(found: re.Match[str]) -> str:
            variable = found[1]
            if variable is None:
                return "$"
            if variable not in os.environ:
                self._complain(f"{where} {name}", f"the environment variable {variable!r} is not set")
                return found[0]
            self._secrets[os.environ[variable]] = found[0]
            return os.environ[variable]

        return REFERENCE.sub(look_up, raw)

    def _try(self, where: str, deed: Callable[[], object]) -> bool:
        try:
            deed()
        except ConfigError as error:
            self._complain(where, str(error).replace("or None, got", f"or {NOTHING!r}, got"))
            return False
        return True

    def _complain(self, where: str, why: str) -> None:
        problem = f"{where}: {self._veiled(why)}"
        if problem not in self._problems:
            self._problems.append(problem)

    def _veiled(self, text: str) -> str:
        """*text* without anything that came from the environment."""
        for secret, written in sorted(self._secrets.items(), key=lambda item: -len(item[0])):
            if secret:
                text = text.replace(repr(secret)[1:-1], written).replace(secret, written)
        return text
