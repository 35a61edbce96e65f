"""Messages that are sent by a thread of their own, one after the other."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from connpool import clock as real
from connpool.delivery.sending import Sending
from connpool.delivery.words import closed
from connpool.errors import PoolClosedError, SpoolFullError
from connpool.model.delivery import Delivery
from connpool.wire import threads

__all__ = ["Deferred"]

logger = logging.getLogger("connpool.delivery")


class Deferred:
    """One queue, and a thread while something is in it.

    Args:
        most: Messages that may wait.
        waits: Whether a caller that finds it full waits for room; else it is an error.
    """

    def __init__(self, sending: Sending, name: str, *, most: int, waits: bool) -> None:
        self._sending = sending
        self._name = name
        self._most = most
        self._waits = waits
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)  # each message that leaves wakes one who waits for it
        self._idle = threading.Condition(self._lock)
        self._queue: deque[tuple[bytes, Future[Delivery]]] = deque()
        self._n_open = 0  # of its first ones: being sent, or their callbacks called
        self._n_refused = 0  # which the end has overtaken
        self._at_it = threading.Lock()  # held by the thread that sends
        self._thread: threading.Thread | None = None  # started for what is in the queue
        self._sender: threading.Thread | None = None  # who sends, or was the last; mostly it
        self._is_closed = False
        self.has_spooled = False  # of some that were sent copies waited, and may do so still

    def add(self, message: bytes) -> Future[Delivery]:
        """Queue *message*.

        Raises:
            SpoolFullError: the queue is full, and nobody may wait for room.
            PoolClosedError: nothing more is taken.
        """
        future: Future[Delivery] = Future()
        with self._lock:
            if len(self._queue) >= self._most and not self._waits and not self._is_closed:
                raise SpoolFullError(
                    f"broadcaster {self._name!r}: {self._most} messages wait to be sent already",
                    pool=self._name,
                )
            try:
                if not self._is_own():
                    self._room.wait_for(lambda: len(self._queue) < self._most or self._is_closed)
                if self._is_closed:
                    raise closed(self._name)
                self._queue.append((message, future))
            except BaseException:
                self._room.notify()  # what has woken this one is for the next
                raise
            is_running = self._is_own() or (self._thread is not None and self._thread.is_alive())
        if not is_running:
            self._begin()
        return future

    def _begin(self) -> None:
        name = f"connpool-async-{self._name}"
        thread = self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        if not threads.start(thread):  # then this one does it
            self._run()

    def _run(self) -> None:
        """Send all that waits. Of two threads that were started for it the second finds nothing left."""
        with self._at_it:
            self._sender = threading.current_thread()
            while True:
                with self._lock:
                    if not self._queue:
                        self._thread = None  # said with the lock: a message that comes later starts another
                        self._room.notify_all()
                        self._idle.notify_all()
                        return
                self._send_next()

    def _send_next(self) -> bool:
        """Send the first that waits, behind those whose callbacks have called us. False: there is none."""
        with self._lock:
            place = self._n_open
            if place >= len(self._queue):
                return False
            message, future = self._queue[place]
            self._n_open += 1
        try:
            if future.set_running_or_notify_cancel():
                _settle(future, self._deliver, message)
        finally:
            with self._lock:
                self._n_open -= 1
        is_refused = not future.cancelled() and isinstance(future.exception(), PoolClosedError)
        with self._lock:
            del self._queue[place]
            self._n_refused += is_refused
            self._room.notify()
        return True

    def _deliver(self, message: bytes) -> Delivery:
        delivery = self._sending.deliver(message)
        self.has_spooled = self.has_spooled or bool(delivery.spooled)
        return delivery

    def _is_own(self) -> bool:
        """Whether the caller is a callback of a future: nobody but itself makes room and sends the rest."""
        return threading.current_thread() is self._sender and self._n_open > 0

    def drain(self, timeout: float | None) -> None:
        """Wait until all is sent, or *timeout* seconds are over."""
        until = None if timeout is None else real.now() + timeout
        if self._is_own():
            while (until is None or real.now() < until) and self._send_next():
                pass
            return
        with self._lock:
            left = None if until is None else max(0.0, until - real.now())
            self._idle.wait_for(lambda: not self._queue, left)

    def lost(self) -> int:
        """How many messages still wait, or came to their turn after the end."""
        with self._lock:
            return self._n_refused + len(self._queue) - (self._n_open if self._is_own() else 0)

    def close(self) -> None:
        """Take nothing more. What waits is still sent."""
        with self._lock:
            self._is_closed = True
            self._room.notify_all()


def _settle(future: Future[Delivery], deliver: Callable[[bytes], Delivery], message: bytes) -> None:
    try:
        delivery = deliver(message)
    except BaseException as error:  # noqa: BLE001 - it is the caller's who asks for the result
        logger.warning("a message could not be sent: %s", error)
        future.set_exception(error)
    else:
        future.set_result(delivery)
