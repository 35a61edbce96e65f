"""The receiving half of a broadcaster's public methods: what comes, and what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connpool.delivery.mailbox import Handler, SetHandler
from connpool.errors import ConfigError, UsageError
from connpool.model.checks import is_number, require_function, require_seconds
from connpool.model.delivery import LinkEvent
from connpool.model.endpoint import Endpoint

if TYPE_CHECKING:
    from connpool.delivery.office import Office
    from connpool.delivery.settings import Settings
    from connpool.delivery.telling import Telling

__all__ = ["Receiving"]


class Receiving:
    """What a program calls to hear from the members."""

    name: str
    _office: Office
    _settings: Settings
    _telling: Telling

    def recv(self, timeout: float | None = None) -> tuple[Endpoint, bytes] | None:
        """The next message of whichever member.

        Args:
            timeout: Seconds; None or less than 0: no limit.

        Returns:
            Who sent it, and what; None: nothing has come in time, or the broadcaster is closed.

        Raises:
            UsageError: input belongs to ``confirm``.

        Source: prelude_connection_pool_recv (libprelude).
        """
        if self._settings.confirm is not None:
            raise UsageError(f"broadcaster {self.name!r}: what comes belongs to confirm", pool=self.name)
        seconds = _seconds(timeout)
        self._see_to_links()
        return self._office.mailbox.recv(seconds)

    def check_event(self, timeout: float | None = None, handler: Handler | None = None) -> int:
        """Wait for events and call their handlers, in this thread. From the first call on no other does.

        Args:
            timeout: Seconds to wait for the first of them; 0: no wait; None or less than 0: no limit.
            handler: Called as ``handler(broadcaster, event, endpoint)`` for each, instead of those installed.

        Returns:
            How many events were handled. Where there is no handler at all: how many messages have come,
            which ``recv`` gives.

        Source: prelude_connection_pool_check_event (libprelude).
        """
        require_function("handler", handler, or_none=True)
        seconds = _seconds(timeout)
        self._see_to_links()
        return self._telling.check(seconds, handler)

    def _see_to_links(self) -> None:
        """If there are none, it may be for want of threads, of which upkeep is one: have it begin again."""
        self._office.rouse()
        if self._office.roster.active is None:
            self._office.expect_soon()

    def on(self, events: LinkEvent, handler: Handler) -> None:
        """Call ``handler(broadcaster, event, endpoint)`` for each of *events*, in their order.

        It runs on a thread of its own, or in ``check_event`` if somebody calls that, with no lock held.
        Each INPUT is one whole message, to be taken by ``recv``. If the handler raises at INPUT, or returns
        less than 0, that link is broken; elsewhere the error is logged. Events that nobody was told yet are
        told to the first handler that wants them.

        Source: prelude_connection_pool_set_event_handler (libprelude).
        """
        wanted = _wanted(events, handler)
        self._office.rouse()
        self._office.mailbox.install(wanted, handler)
        self._telling.want_thread()

    def on_any(self, events: LinkEvent, handler: SetHandler) -> None:
        """Call ``handler(broadcaster, events)`` once for all that has happened at a time.

        Source: prelude_connection_pool_set_global_event_handler (libprelude).
        """
        wanted = _wanted(events, handler)
        self._office.rouse()
        self._office.mailbox.install_for_sets(wanted, handler)
        self._telling.want_thread()


def _seconds(timeout: float | None) -> float | None:
    if timeout is None or (is_number(timeout) and timeout < 0):
        return None
    require_seconds("timeout", timeout, or_zero=True)
    return timeout


def _wanted(events: Any, handler: object) -> LinkEvent:
    if not (isinstance(events, LinkEvent) and events):
        raise ConfigError(f"events must be one or more of LinkEvent, got {events!r}")
    if not callable(handler):
        raise ConfigError(f"a handler must be callable, got {handler!r}")
    return events
