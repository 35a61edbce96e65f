"""What somebody asks a pool to be, so that two who ask can be compared."""

from __future__ import annotations

import attrs

from connpool.model.config import PoolConfig
from connpool.model.route import Route
from connpool.wire.connector import Connector

__all__ = ["PoolSpec"]


@attrs.frozen
class PoolSpec:
    """The route (None: none), the settings and the connector (None: the default one) of a pool."""

    route: Route | None
    config: PoolConfig
    connector: Connector | None

    def differences(self, other: PoolSpec) -> str:
        """What *other* asks for instead, in words; empty: the same."""
        found = []
        if self.route != other.route:
            found.append(f"route {_shown(self.route)}, asked for {_shown(other.route)}")
        for field in attrs.fields(PoolConfig):
            mine, theirs = getattr(self.config, field.name), getattr(other.config, field.name)
            if mine != theirs:
                found.append(f"{field.name} {mine!r}, asked for {theirs!r}")
        if self.connector is not other.connector:
            found.append("another connector")
        return "; ".join(found)


def _shown(route: Route | None) -> str:
    return "none" if route is None else repr(str(route))
