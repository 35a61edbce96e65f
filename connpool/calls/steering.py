"""The operator's half of a call pool's public methods: looking at it, changing it, ending it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from connpool.clock import SystemClock
from connpool.model.channel import ChannelInfo
from connpool.model.events import Event
from connpool.model.uncopied import Uncopied

if TYPE_CHECKING:
    from connpool.calls.office import Office
    from connpool.calls.queueing import Where
    from connpool.calls.switch import Switch

__all__ = ["Steering"]

T = TypeVar("T")


class Steering(Uncopied):
    """What a program's operator calls; ``CallPool`` adds what its threads call."""

    _switch: Switch
    _office: Office
    _reap_interval: float | None

    def info(self, id: int) -> ChannelInfo:
        """A snapshot of one channel.

        Raises:
            UnknownChannelError: there is none of that id.
        """
        return self._office.describe(id)

    def extra(self, id: int, value: Any) -> Any:
        """Attach *value* to a channel. Returns what was attached before, in one step.

        Raises:
            UnknownChannelError: there is none of that id.
        """
        return self._office.swap_extra(id, value)

    def map(self, resource: Hashable, fn: Callable[[ChannelInfo], T]) -> list[T]:
        """What *fn* makes of each channel of *resource*, in the order in which they were added."""
        return [fn(info) for info in self._office.describe_all(resource)]

    def update(
        self,
        resource: Hashable,
        fn: Callable[[ChannelInfo], ChannelInfo],
        where: Where | None = None,
    ) -> None:
        """Change the channels of *resource* to what *fn* makes of them with ``attrs.evolve``.

        Each change is one step: if another came first, *fn* is called once more.

        Args:
            fn: May change ``ttl``, ``revive``, ``extra``, ``methods`` and ``rest_left`` (from now on).
            where: Only those that pass.

        Raises:
            UsageError: *fn* changed something else. What it did before stands.
        """
        self._office.update(resource, fn, where)

    def resources(self) -> list[Hashable]:
        """The resources that calls can be made to now."""
        return self._office.resources()

    def is_empty(self, resource: Hashable) -> bool:
        """Whether no channel offers *resource* now; one that expired does not."""
        return resource not in self._office.resources()

    def listen(self, handler: Callable[[Any], object], *kinds: type[Event]) -> Callable[[], None]:
        """Have *handler* called with every event of *kinds*; none, or ``Event``: with all.

        It runs in the thread where the thing happens, with no lock held; what it raises is logged.

        Returns:
            A function that ends it.

        Raises:
            ConfigError: *handler* cannot be called, or one of *kinds* is no event of a call pool.
        """
        return self._office.listen(handler, kinds)

    # -- upkeep and the end

    def sweep(self) -> int:
        """Do by hand what is due: close what has expired, open again. Returns how many are closed for it."""
        return self._switch.turn()

    def close(self, timeout: float | None = None) -> int:
        """Take no more calls, and close every channel.

        Args:
            timeout: Seconds in which calls that run or wait may still end. After that those that wait
                fail with PoolClosedError, and the channels of those that run are closed under them. None:
                those that wait fail at once; those that run may end, and their channels are closed then.

        Returns:
            How many calls still run.
        """
        return self._office.close(timeout)

    # -- what upkeep calls

    def _pace(self) -> float | None:
        return self._reap_interval if isinstance(self._switch.clock, SystemClock) else None

    def _take_turn(self, *, is_leap: bool) -> None:
        self._switch.turn(apart=True)

    def _close_at_exit(self, until: float) -> None:
        """Nothing: the channels' own goodbyes might take long, and the system closes them."""
