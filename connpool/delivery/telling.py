"""Who is told of events: a thread of ours calls handlers, or the user's own threads do."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Final

from connpool.delivery.mailbox import ALL, Handler, Mailbox
from connpool.delivery.office import Office
from connpool.delivery.starting import BREATH, Starter, join
from connpool.wire.waiting import pause

if TYPE_CHECKING:
    from connpool.delivery.broadcaster import Broadcaster

__all__ = ["Telling"]

GATHERING: Final = 0.005  # seconds for which events are gathered into one set

logger = logging.getLogger("connpool.delivery")


class Telling:
    """Has events told, each in one place only.

    The thread is started by the first handler. It leaves everything to ``check_event`` from the moment
    somebody calls that.
    """

    def __init__(self, broadcaster: Broadcaster, office: Office) -> None:
        mailbox = office.mailbox
        # A broadcaster that is forgotten ends the thread.
        self._broadcaster = weakref.ref(broadcaster, lambda _: mailbox.close())
        self._office = office
        self._starter: Starter | None = None

    def resume(self) -> None:
        """In a forked child: those who were told in the parent are told here as well."""
        if self._office.mailbox.has_handlers():
            self.want_thread()

    def check(self, timeout: float | None, handler: Handler | None) -> int:
        """As ``Broadcaster.check_event``."""
        mailbox = self._office.mailbox
        if not mailbox.is_polled:
            mailbox.is_polled = True
            mailbox.wake()  # the thread ends
        broadcaster = self._broadcaster()
        assert broadcaster is not None
        news = mailbox.take_news(timeout, None if handler is None else ALL)
        if handler is None and not mailbox.has_handlers():
            return len(news)
        return mailbox.tell(broadcaster, news, handler)

    def want_thread(self) -> None:
        """There are handlers to be called, more than before perhaps."""
        mailbox = self._office.mailbox
        with self._office._lock:
            if self._starter is None and not (mailbox.is_polled or mailbox.is_closed):
                name = f"connpool-events-{self._office.name}"
                arguments = (self._broadcaster, mailbox)
                self._starter = Starter(threading.Thread(target=_run, args=arguments, name=name, daemon=True))
        self.start()
        mailbox.wake()  # for what they want, too

    def start(self) -> None:
        """See that the thread runs, if there is to be one."""
        if self._starter is not None:
            self._starter.start(self._office)

    def stop(self, timeout: float | None, *, waits: bool = True) -> None:
        """Tell nothing more. *waits*: for a handler that is at work, unless called by it.

        Args:
            timeout: Seconds for that; None: a while.
        """
        self._office.mailbox.close()
        if waits and self._starter is not None:
            join(self._starter.thread, timeout)
        self._office.mailbox.is_over = True


def _run(ref: weakref.ref[Broadcaster], mailbox: Mailbox) -> None:
    """The thread: tell what happens, as long as nobody polls."""
    while not (mailbox.is_closed or mailbox.is_polled):
        try:
            news = mailbox.take_news(None, None, gives_way=True)
            if news and mailbox.has_set_handlers():
                pause(GATHERING)
                news += mailbox.take_news(0, None, gives_way=True)
        except Exception:  # short of memory, perhaps
            logger.exception("looking for events failed, and goes on")
            pause(BREATH)
            continue
        broadcaster = ref()
        if broadcaster is None:
            return
        try:
            mailbox.tell(broadcaster, news, ours=True)
        except BaseException:  # SystemExit in a handler: the others still want to hear
            logger.exception("broadcaster %r: a handler failed", broadcaster.name)
        del broadcaster
