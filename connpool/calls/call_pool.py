"""The call pool as its users see it, and the fast path of a call."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Hashable, Iterable
from threading import TIMEOUT_MAX, get_ident
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from connpool.calls.channel import Channel, Reply
from connpool.calls.office import Office
from connpool.calls.queueing import Where, answered, failed, obtain
from connpool.calls.steering import Steering
from connpool.calls.switch import Switch
from connpool.calls.tally import Tally
from connpool.clock import Clock, SystemClock
from connpool.errors import UsageError
from connpool.model.channel import ChannelInfo, Revive
from connpool.model.checks import (
    PLAIN_NUMBERS,
    require_listeners,
    require_methods,
    require_seconds,
    require_text,
)
from connpool.pool.census import keep
from connpool.pool.unwinding import drop_keys

__all__ = ["CallPool"]

T = TypeVar("T")
_numbers: Final = itertools.count(1)  # for pools without a name


class CallPool(Steering):
    """Calls channels, each of which does one thing at a time, for any number of threads.

    A call goes to the channel that is the first to be free; while none is, it waits its turn. It runs on
    its caller's own thread. As a context manager the pool is closed at the end of the block.

    Args:
        name: For messages and events; None: ``calls-1``, ``calls-2``, ...
        listeners: Called with every event; see ``listen``.
        clock: What tells the time; None: the machine. For tests; such a pool is swept by hand.
        reap_interval: Seconds between two turns of upkeep at least; None: ``sweep`` by hand.
        revive_initial: Seconds before a second attempt to open a channel again, if it does not say itself;
            doubled with each that fails.
        revive_max: Most seconds between two attempts.

    Raises:
        ConfigError: a duration is out of range.

    Source: ConnPool (Elixir).
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        listeners: Iterable[Callable[[Any], object]] = (),
        clock: Clock | None = None,
        reap_interval: float | None = 0.05,
        revive_initial: float = 1.0,
        revive_max: float = 60.0,
    ) -> None:
        require_seconds("reap_interval", reap_interval, or_none=True)
        require_seconds("revive_initial", revive_initial)
        require_seconds("revive_max", revive_max)
        self.name: str = f"calls-{next(_numbers)}" if name is None else require_text("name", name)
        self._reap_interval = reap_interval
        clock = SystemClock() if clock is None else require_methods("clock", clock, "now", "wait")
        self._now = clock.now
        self._settle(Switch(self, clock, revive_initial, revive_max))
        for handler in require_listeners(listeners):
            self._office.listen(handler, ())
        keep(self)

    def _settle(self, switch: Switch) -> None:
        self._switch = switch
        self._office = Office(switch)
        self._idle = switch.ledger.idle

    def _start_clean(self) -> None:
        old = self._switch
        self._settle(Switch(self, old.clock, *old.ledger.back_off))
        self._switch.ledger.state = old.ledger.state
        self._switch.listeners.by_kind = old.listeners.by_kind
        self._switch.ledger.is_heard = old.ledger.is_heard
        old.disown()

    # -- channels

    def init(
        self,
        channel: Channel,
        *args: Any,
        ttl: float | None = None,
        revive: Revive = False,
        extra: Any = None,
    ) -> int:
        """Open *channel* with ``open(*args)``, on this thread, and add it.

        Args:
            ttl: Seconds that it is used for after each time it is opened; None: for ever.
            revive: True: it is opened again, in the background, after its ttl, or when a call found it
                broken. ``"force"``: also when it closed by agreement. False: neither.
            extra: Anything, for filters.

        Returns:
            Its id.

        Raises:
            Exception: what ``open`` raised. Nothing was added.
            PoolClosedError: the pool is closed. The channel is, too.
            UsageError: it is in the pool already.
        """
        return self._office.init(channel, args, ttl, revive, extra)

    def put(self, info: ChannelInfo) -> int:
        """Add the channel of *info*, which is open: one that ``pop`` returned, or one of your own.

        Its ttl counts from ``info.opened_at``, if that is set. Its statistics begin anew.

        Returns:
            Its id, a new one.

        Raises:
            PoolClosedError: the pool is closed. The channel is left as it is.
            UsageError: it is in the pool already.
        """
        return self._office.put(info)

    def pop(
        self,
        id: int | None = None,
        *,
        resource: Hashable = None,
        where: Where | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Take channels out of the pool, open.

        Args:
            id: The one; calls that are waiting already may still go to it first.
            resource: Instead of an id: all of this resource, or those that pass *where*. Waiting
                calls go to the others, or are refused; only those that run are waited for.
            timeout: Seconds to wait for calls that use them; None: no limit.

        Returns:
            Its ``ChannelInfo``; for a resource, a list of them. A channel whose state is DOWN is not open:
            it was closed in the meantime.

        Raises:
            UnknownChannelError: there is none of that id.
            CallTimeoutError: a call took too long. Everything stays in the pool.
            UsageError: neither an id nor a resource is given, or both; or it comes from within a call, an
                opening or a close of such a channel, or a listener that is told of it.
        """
        if id is not None and resource is where is None:
            return self._office.pop_one(id, timeout)
        if id is not None or resource is None:
            raise UsageError(f"call pool {self.name!r}: pop needs an id or a resource", pool=self.name)
        return self._office.pop_all(resource, where, timeout)

    # -- calls

    def call(
        self,
        resource: Hashable,
        method: Hashable,
        payload: Any = None,
        *,
        where: Where | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Have a channel of *resource* do *method*, and return its answer.

        The call goes to a channel that is idle, the least recently called one, or else to whichever
        is free first, after the calls that came before it. If all that could serve it close, it is refused.

        Args:
            payload: What the channel makes of it is its own affair.
            where: Which channels will do, by their ``ChannelInfo``. Asked once for each, with no lock held.
            timeout: Seconds for waiting and for the call itself; what is left of them is passed on to
                channels whose ``call`` takes a ``timeout``. 0: never wait. None: no limit.

        Raises:
            NoResourceError: no channel offers *resource*.
            MethodNotSupportedError: some do, but none of them *method*.
            FilteredOutError: some offer both; *where* refused them all.
            CallTimeoutError: no channel was free in time, and nothing was called; or the channel raised it.
            PoolClosedError: the pool is closed, or was while the call waited.
            ConfigError: *resource* or *method* has no hash, or *timeout* is out of range.
            UsageError: it could only wait for the call that made it.
            Exception: what the channel raised, as it is.

        Locking: none if a channel is idle; else the pool's lock, never while anything blocks.
        Source: ConnPool.call (Elixir).
        """
        key: Any = None  # a Key
        tally = None
        try:
            left = timeout
            if where is None:
                try:
                    key = self._idle[resource].popleft()
                except (LookupError, TypeError):  # none is idle, or there is none; or it has no hash
                    pass
                else:
                    line = key.line
                    began = self._now()
                    is_timely = timeout is None or (
                        timeout.__class__ in PLAIN_NUMBERS and 0 < timeout <= TIMEOUT_MAX
                    )
                    if began < line.open_until and not line.waiting and is_timely:
                        try:
                            tally = line.took.get(method)
                        except TypeError:  # it has no hash, as ``obtain`` says
                            pass
            if tally is None:
                if key is not None:
                    self._switch.put_down(key)
                    key = None  # others have it now; if they drop it, its finaliser must not wait for us
                key, left = obtain(self._switch, resource, method, where, timeout)
                line = key.line
                tally = line.took.get(method) or Tally()  # it may just have been taken away
                began = self._now()
            line.run = get_ident(), method, began
            try:
                if line.takes_timeout:
                    answer = line.invoke(method, payload, timeout=left)
                else:
                    answer = line.invoke(method, payload)
            except BaseException as error:
                seconds = self._now() - began
                tally.new.append(seconds)
                failed(line.switch, key, error, seconds)
                raise
            ended = self._now()
            tally.new.append(ended - began)
            if ended < line.brisk_until and not isinstance(answer, Reply):
                line.called_at = began
                line.run = None
                if line.waiting:
                    line.switch.pass_on(key)
                    return answer
                line.idle.append(key)
                # Looked at last: a waiter looks once it has queued up, ``condemn`` once the fate is stored.
                if line.waiting or line.fate is not None:
                    line.switch.serve(line)
                return answer
            return answered(line.switch, key, answer, ended - began)
        except BaseException as error:
            if key is not None:
                self._switch.give_up(key)
            key = None  # a traceback must not keep a key from its finaliser
            drop_keys(error)
            if not isinstance(error, Exception):
                self._switch.wink()  # an interrupt may have kept us from serving the queue
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._switch.ledger.state.value
        return f"<CallPool {self.name!r}: {state}, {len(self._switch.ledger.lines)} channels>"

    _is_over = staticmethod(sys.is_finalizing)  # a class outlives what its module has imported

    def __del__(self) -> None:
        switch = getattr(self, "_switch", None)
        if switch is not None and not self._is_over():
            switch.forget()
