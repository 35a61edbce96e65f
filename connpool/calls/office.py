"""Taking channels in and out, looking at them, changing them, closing the pool."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from connpool.calls.changes import Change, check
from connpool.calls.channel import Channel, methods_of, rest_of
from connpool.calls.farewells import drain, take_out
from connpool.calls.ledger import Ledger
from connpool.calls.line import Key, Line, Phase
from connpool.calls.queueing import Where
from connpool.calls.recovery import recover
from connpool.calls.resource import Resource
from connpool.calls.snapshots import describe, describe_all
from connpool.calls.switch import Switch
from connpool.errors import ConfigError, UnknownChannelError, UsageError
from connpool.model.call_events import CallEnded, CallStarted, ChannelOpened
from connpool.model.channel import ChannelInfo, Revive
from connpool.model.checks import require_hashable, require_seconds
from connpool.model.events import Event
from connpool.model.states import POOL_OPEN, CloseReason, PoolState
from connpool.pool.listeners import Handler
from connpool.pool.unwinding import keeping_no_key

__all__ = ["Office"]


class Office:
    """See ``CallPool`` for what each method promises."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._lock = switch._lock
        self._ledger = switch.ledger
        self._clock = switch.clock
        self._name = switch.name

    # -- in

    @keeping_no_key
    def init(
        self, channel: Channel, args: tuple[Any, ...], ttl: float | None, revive: Revive, extra: Any
    ) -> int:
        self._switch.check_outside()
        check(ttl, revive)
        for name in ("open", "call", "close"):
            if not callable(getattr(channel, name, None)):
                raise ConfigError(f"a channel needs open, call and close; {channel!r} has no {name}")
        line = Line(self._switch, channel, args, ttl=ttl, revive=revive, extra=extra)
        key = Key(line)
        self._claim(line)
        began = self._clock.now()
        try:
            rest = rest_of(channel.open(*args))
        except Exception:
            with self._lock:
                self._ledger.part(line)  # it is the channel's to leave nothing open
            raise
        finally:
            line.unclosed.append(None)  # even an interrupted one is closed: nobody knows its state
        return self._enrol(key, channel.resource, None, rest, self._clock.now() - began)

    @keeping_no_key
    def put(self, info: ChannelInfo) -> int:
        self._switch.check_outside()
        if not isinstance(info, ChannelInfo):
            raise ConfigError(f"info must be a ChannelInfo, got {info!r}", pool=self._name)
        check(info.ttl, info.revive)
        channel = info.channel
        line = Line(self._switch, channel, info.args, ttl=info.ttl, revive=info.revive, extra=info.extra)
        name = channel.resource if info.resource is None else info.resource
        methods = methods_of(channel) if info.methods is None else info.methods
        key = Key(line)
        self._claim(line)
        return self._enrol(key, name, methods, info.rest_left, 0.0, info.opened_at)

    def _claim(self, line: Line) -> None:
        """Make sure that its channel is in the pool once; from here on it is the line's."""
        with self._lock:
            is_open = self._ledger.state is POOL_OPEN
            if is_open and self._ledger.owned.setdefault(id(line.channel), line) is line:
                return
            line.phase = Phase.GONE
            self._switch.check_open()
        raise UsageError(f"call pool {self._name!r} has that channel already", pool=self._name)

    def _enrol(
        self,
        key: Key,
        name: Hashable,
        methods: frozenset[Hashable] | None,
        rest: float,
        seconds: float,
        opened_at: float | None = None,
    ) -> int:
        """Take in an open channel. On an error it is closed again, if it is the pool's to close."""
        line, switch = key.line, self._switch
        line.take_in_hand()
        try:
            require_hashable("resource", name)
            line.offer(methods_of(line.channel) if methods is None else methods)
            with self._lock:
                switch.check_open()
                self._ledger.add(line, name)
            switch.tell(ChannelOpened, line.id, name, seconds)
            with self._lock:
                switch.check_open()  # again: a listener may have closed it
                if not line.unclosed:
                    line.unclosed.append(None)  # until here it was its owner's
                self._ledger.admit(key, rest, self._clock.now(), opened_at)
                self._ledger.serve(line.home(), self._clock.now())
        except BaseException:
            with self._lock:
                if line.phase is Phase.OPENING:
                    self._ledger.doom(key, CloseReason.POOL_CLOSED)
            switch.wink()  # an interrupt may have kept us from serving the queue
            switch.carry_out()
            raise
        switch.carry_out()
        switch.remind(line.expires_at)
        return line.id

    # -- looking

    def describe(self, id: int) -> ChannelInfo:
        self._switch.check_outside()
        with self._lock:
            return describe(self._known_locked(id), self._clock.now())

    def describe_all(self, name: Hashable) -> list[ChannelInfo]:
        self._switch.check_outside()
        with self._lock:
            now = self._clock.now()
            lines = tuple(x for x in self.known(name) if x.phase is not Phase.OPEN or x.is_live(now))
            infos = describe_all(lines, now)
        return infos  # noqa: RET504 - no signal is looked for between a store and the end of a locked section

    def resources(self) -> list[Hashable]:
        self._switch.check_outside()
        with self._lock:
            now = self._clock.now()
            found = self._ledger.resources.values()
            return list(_names_of_live(found, now))

    def known(self, name: Hashable) -> list[Line]:
        require_hashable("resource", name)
        resource = self._ledger.resources.get(name)
        return [] if resource is None else list(resource.members.values())

    def _known_locked(self, id: int) -> Line:
        line = self._ledger.lines.get(id)
        if line is None or (line.phase is Phase.OPEN and not line.is_live(self._clock.now())):
            raise self._unknown(id)
        return line

    def _unknown(self, id: int) -> UnknownChannelError:
        return UnknownChannelError(f"call pool {self._name!r} has no channel {id!r}", pool=self._name)

    # -- out

    @keeping_no_key
    def pop_one(self, id: int, timeout: float | None) -> ChannelInfo:
        deadline = self._deadline(timeout)
        with self._lock:
            line = self._known_locked(id)
        infos = take_out(self._switch, [line], deadline, is_polite=True)
        if not infos:
            raise self._unknown(id)
        return infos[0]

    @keeping_no_key
    def pop_all(self, name: Hashable, where: Where | None, timeout: float | None) -> list[ChannelInfo]:
        deadline = self._deadline(timeout)
        wanted = {info.id for info in self.describe_all(name) if where is None or where(info)}
        with self._lock:
            lines = tuple(line for line in self.known(name) if line.id in wanted)
        return take_out(self._switch, lines, deadline, is_polite=False)

    # -- changing

    def swap_extra(self, id: int, value: Any) -> Any:
        self._switch.check_outside()
        with self._lock:
            line = self._known_locked(id)
            old, line.extra = line.extra, value
            line.version += 1
            return old

    @keeping_no_key
    def update(self, name: Hashable, fn: Callable[[ChannelInfo], ChannelInfo], where: Where | None) -> None:
        self._switch.check_outside()
        with self._lock:
            lines = self.known(name)
        change = Change(self._switch, fn, where)
        try:
            for line in lines:
                change.make(line)
        except BaseException:
            self._switch.wink()  # an interrupt may have kept us from serving the queue
            raise

    # -- listening

    def listen(self, handler: Handler, kinds: tuple[type[Event], ...]) -> Callable[[], None]:
        kinds = self._switch.listeners.meant_by(kinds)
        with self._lock:
            self._switch.listeners.add(handler, kinds)
            self._attend_locked()
        calls = [handler]

        def stop() -> None:
            with self._lock:
                if calls:  # called again it finds none
                    self._switch.listeners.remove(calls.pop(), kinds)
                    self._attend_locked()

        return stop

    def _attend_locked(self) -> None:
        """Have calls go the way on which they are heard, if there is somebody to hear of them."""
        self._ledger.is_heard = self._switch.listeners.hear_of(CallStarted, CallEnded)
        now = self._clock.now()
        for line in self._ledger.lines.values():
            self._ledger.refresh(line, now)

    # -- the end

    @keeping_no_key
    def close(self, timeout: float | None) -> int:
        deadline = self._deadline(timeout)
        ledger = self._ledger
        try:
            with self._lock:
                ledger.state = PoolState.CLOSED
                lines = tuple(line for line in ledger.lines.values() if line.phase is Phase.OPEN)
            if deadline is not None:
                drain(self._switch, lines, deadline)
        finally:  # Ctrl-C or not: nobody waits any longer
            with self._lock:
                ledger.state = PoolState.CLOSED
                ledger.fail_all()
                now = self._clock.now()
                recover(ledger, now)
                for line in list(ledger.down):
                    ledger.part(line)
                running = _condemn_all(ledger, now)
            self._switch.carry_out()
        if deadline is not None:
            self._switch.workers.cut_off(running)
        self._switch.sleep_on()
        return len(running)

    def _deadline(self, timeout: float | None) -> float | None:
        self._switch.check_outside()
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        return None if timeout is None else self._clock.now() + timeout


def _names_of_live(resources: Iterable[Resource], now: float) -> Iterator[Hashable]:
    for each in resources:
        if any(line.is_live(now) for line in each.members.values()):
            yield each.name


def _condemn_all(ledger: Ledger, now: float) -> list[Line]:
    """Let all that is open be closed. Returns what a call is still running on."""
    running = []
    for line in list(ledger.lines.values()):
        if line.phase is Phase.OPEN:
            ledger.condemn(line, CloseReason.POOL_CLOSED, now)
            if line.phase is Phase.OPEN:
                running.append(line)
    return running
