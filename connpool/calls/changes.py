"""Changing channels while others call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from connpool.calls.line import Line, Phase
from connpool.calls.queueing import Where
from connpool.calls.snapshots import describe
from connpool.calls.switch import Switch
from connpool.errors import ConfigError, UsageError
from connpool.model.channel import ChannelInfo
from connpool.model.checks import require_seconds

__all__ = ["Change", "check"]

MUTABLE: Final = {"ttl", "revive", "extra", "methods", "rest_left"}


class Change:
    """What one ``update`` does to each channel: see, let the user decide, and record if it is still so."""

    def __init__(self, switch: Switch, fn: Callable[[ChannelInfo], ChannelInfo], where: Where | None) -> None:
        self._switch = switch
        self._lock = switch._lock
        self._ledger = switch.ledger
        self._clock = switch.clock
        self._name = switch.name
        self._fn = fn
        self._where = where

    def make(self, line: Line) -> None:
        """Change *line*; begin again as often as somebody else is quicker."""
        while not self._try(line):
            pass

    def _try(self, line: Line) -> bool:
        """Change *line*. False: somebody else did at the same time; nothing was changed."""
        with self._lock:
            now = self._clock.now()
            if line.phase is Phase.GONE or (line.phase is Phase.OPEN and not line.is_live(now)):
                return True
            version, before = line.version, describe(line, now)
        if self._where is not None and not self._where(before):
            return True
        after = self._fn(before)
        changed = self._changes(before, after)
        with self._lock:
            if line.version != version:
                return False
            line.version += 1
            self._apply_locked(line, after, changed)
        self._switch.carry_out()
        self._switch.remind(line.expires_at)
        return True

    def _changes(self, before: ChannelInfo, after: ChannelInfo) -> set[str]:
        """Names of the fields in which *after* is new."""
        if not isinstance(after, ChannelInfo):
            raise UsageError(f"update needs a ChannelInfo, got {after!r}", pool=self._name)
        names = [field.name for field in attrs.fields(ChannelInfo)]
        changed = {name for name in names if getattr(before, name) is not getattr(after, name)}
        if changed - MUTABLE:
            listed = ", ".join(sorted(changed - MUTABLE))
            raise UsageError(
                f"update cannot change {listed}; it can change {', '.join(sorted(MUTABLE))}", pool=self._name
            )
        if after.methods is None:
            raise UsageError("update needs the methods that a channel is to have, got None", pool=self._name)
        check(after.ttl, after.revive)
        require_seconds("rest_left", after.rest_left, or_zero=True)
        return changed

    def _apply_locked(self, line: Line, after: ChannelInfo, changed: set[str]) -> None:
        now = self._clock.now()
        line.ttl, line.revive, line.extra = after.ttl, after.revive, after.extra
        if "methods" in changed:
            line.offer(after.methods or frozenset())
            line.home().is_shrunk = True
            line.home().ask_filters()
        if "rest_left" in changed:
            line.rest_until = now + after.rest_left
        if line.phase is not Phase.OPEN:
            return
        self._ledger.time(line)
        self._ledger.refresh(line, now)
        if "rest_left" in changed or now >= line.expires_at:  # else its turn stays what it was
            key = line.home().withdraw(line)
            if key is not None:
                self._ledger.lay_down(key, now, was_used=False)
        self._ledger.serve(line.home(), now)


def check(ttl: float | None, revive: Any) -> None:
    """Refuse a lifetime or a policy that is none.

    Raises:
        ConfigError: one of them is.
    """
    require_seconds("ttl", ttl, or_none=True)
    if not (isinstance(revive, bool) or revive == "force"):
        raise ConfigError(f"revive must be True, False or 'force', got {revive!r}")
