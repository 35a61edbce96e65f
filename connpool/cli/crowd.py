"""Threads that ask line servers through one pool, and check every answer."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from connpool.cli.line_server import fingerprint
from connpool.errors import ConnPoolError, PoolClosedError
from connpool.pool.connection import Connection
from connpool.pool.pool import ConnectionPool

__all__ = ["Asker", "Crowd"]

MOST_ATTEMPTS: Final = 6
FIRST_PAUSE: Final = 0.02  # seconds before the second attempt; each further pause is twice as long
IO_TIMEOUT: Final = 5.0
GRACE: Final = 3.0


class Asker:
    """One thread's work: ask, check, ask again, until told to stop.

    A server that is killed in the middle of a request breaks the connection the
    request was sent on, and nobody can tell whether it was carried out. To repeat
    it is the caller's decision. Both ways of deciding are shown here:

    Args:
        lets_pool_repeat: True: ``pool.run(..., idempotent=True)``, which repeats by
            itself where that is safe. False: ``with pool.try_connect()``, where
            each error arrives here. Either way an error that arrives is answered
            with a new attempt, up to MOST_ATTEMPTS.

    Attributes:
        right, wrong, lost: Requests by what came of them; lost: no answer, for all the attempts.
        repeated_by_pool: Requests the pool sent once more, unseen by the thread.
        errors: What arrived here, by the name of its class.
        slowest_repeated: Longest time (seconds) from asking to the answer, of those repeated.
        waits: Seconds spent in waiting for a connection; whoever reads takes them away.
        served: Answers by the number of the process that gave them.
        first_served_at: When each process first answered (monotonic seconds).
    """

    def __init__(self, pool: ConnectionPool, number: int, *, lets_pool_repeat: bool) -> None:
        self.number = number
        self.lets_pool_repeat = lets_pool_repeat
        self.right = self.wrong = self.lost = 0
        self.repeated_by_pool = 0
        self.errors: Counter[str] = Counter()
        self.slowest_repeated = 0.0
        self.waits: deque[float] = deque(maxlen=100_000)
        self.served: Counter[int] = Counter()
        self.first_served_at: dict[int, float] = {}
        self._pool = pool
        self._asked = 0
        self._asked_at = 0.0
        self._sent = 0  # how often the present request went out

    @property
    def turns(self) -> int:
        """Requests that were answered."""
        return self.right + self.wrong

    def run(self, stop: threading.Event) -> None:
        """Ask until *stop* is set or the pool is closed."""
        try:
            while not stop.is_set():
                self.ask(stop)
        except PoolClosedError:
            self.lost += 1

    def ask(self, stop: threading.Event) -> None:
        """One request, repeated until it is answered or there is no point in going on.

        Raises:
            PoolClosedError: the pool was closed.
        """
        self._asked += 1
        request = b"%d %d\n" % (self.number, self._asked)
        began, self._sent = time.monotonic(), 0
        pause = FIRST_PAUSE
        for attempt in range(MOST_ATTEMPTS):
            if attempt:
                stop.wait(pause)  # a retry without a pause is an attack
                pause *= 2
            try:
                answer = self._ask_once(request)
            except PoolClosedError:
                raise
            except (ConnPoolError, OSError) as error:
                self.errors[type(error).__name__] += 1
                continue
            if self._sent > 1 or attempt:
                self.slowest_repeated = max(self.slowest_repeated, time.monotonic() - began)
            self._check(request, answer)
            return
        self.lost += 1

    def _ask_once(self, request: bytes) -> bytes:
        sent_before, self._asked_at = self._sent, time.monotonic()
        if self.lets_pool_repeat:
            try:
                return self._pool.run(lambda conn: self._talk(conn, request), idempotent=True)
            finally:
                self.repeated_by_pool += max(0, self._sent - sent_before - 1)
        with self._pool.try_connect() as conn:
            return self._talk(conn, request)

    def _talk(self, conn: Connection, request: bytes) -> bytes:
        self._sent += 1
        if self._sent == 1:
            self.waits.append(time.monotonic() - self._asked_at)
        conn.sendall(request, timeout=IO_TIMEOUT)
        return conn.recv_until(b"\n", timeout=IO_TIMEOUT)

    def _check(self, request: bytes, answer: bytes) -> None:
        number, _, proof = answer.strip().partition(b" ")
        if not number.isdigit() or proof != fingerprint(request):
            self.wrong += 1
            return
        self.right += 1
        process = int(number)
        self.served[process] += 1
        self.first_served_at.setdefault(process, time.monotonic())


class Crowd:
    """Askers, each on its thread, inside a ``with`` block; every second one leaves repeating to the pool."""

    def __init__(self, pool: ConnectionPool, n_threads: int) -> None:
        self.askers = [Asker(pool, i, lets_pool_repeat=i % 2 == 0) for i in range(n_threads)]
        self._pool = pool
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=asker.run, args=(self._stop,), name=f"asker-{asker.number}", daemon=True)
            for asker in self.askers
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Let each thread end the request it is at, then close the pool. May be repeated.

        A request that is still unanswered after a while is cut off, and counts as lost.
        """
        self._stop.set()
        until = time.monotonic() + GRACE
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, until - time.monotonic()))
        self._pool.close(timeout=0)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def take_waits(self) -> list[float]:
        """The waits since the last call, in order of length."""
        return sorted(wait for asker in self.askers for wait in _drain(asker.waits))


def _drain(waits: deque[float]) -> Iterator[float]:
    for _ in range(len(waits)):  # what comes meanwhile is for the next call
        yield waits.popleft()
