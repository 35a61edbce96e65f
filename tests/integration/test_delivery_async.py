"""Messages that are sent by a thread of their own: in order, bounded, and not forgotten at the end."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from connpool import (
    Delivery,
    FramingError,
    LinkState,
    NoEndpointError,
    PoolClosedError,
    SpoolFullError,
    SQLiteSpool,
)
from connpool.delivery.deferred import Deferred
from connpool.delivery.words import closed
from connpool.wire import threads
from tests.helpers.scripts import run_program, running_program
from tests.helpers.sinks import GUARD, broadcasting, numbered, refused
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.wire import later, taking


class Gate:
    """A ``confirm`` that waits until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()

    def __call__(self, conn: object, message: bytes) -> None:
        self.reached.set()
        assert self.opened.wait(GUARD)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_messages_are_sent_in_order_and_each_future_has_its_delivery(a):
    with broadcasting(a) as sender:
        futures = [sender.broadcast_async(message) for message in numbered(1_000)]
        assert {future.result(GUARD).sent for future in futures} == {(a.endpoint,)}
        assert a.until_lines(1_000) == numbered(1_000)


def test_who_hands_a_message_over_does_not_wait_for_a_peer(a, gate):
    with broadcasting(a, confirm=gate, spool=None) as sender:
        with taking(0, 1.0):
            futures = [sender.broadcast_async(message) for message in numbered(100)]
        assert not futures[0].done()
        gate.opened.set()
        assert futures[-1].result(GUARD).sent == (a.endpoint,)


def test_many_threads_hand_over_and_each_ones_messages_stay_in_order(a):
    with broadcasting(a) as sender:
        together(*(lambda w=w: list(map(sender.broadcast_async, numbered(100, who=w))) for w in "stuv"))
        lines = a.until_lines(400)
        for who in "stuv":
            assert [line for line in lines if line.startswith(who.encode())] == numbered(100, who=who)


def test_who_finds_the_queue_full_waits_for_room(a, gate):
    with broadcasting(a, confirm=gate, max_async=10) as sender:
        for message in numbered(10):
            sender.broadcast_async(message)
        late: list[Future[Delivery]] = []
        thread = threading.Thread(target=lambda: late.append(sender.broadcast_async(b"m-10")))
        thread.start()
        assert gate.reached.wait(GUARD)
        thread.join(0.1)
        assert not late
        gate.opened.set()
        thread.join(GUARD)
        assert late[0].result(GUARD).sent == (a.endpoint,)
        assert a.until_lines(11) == numbered(11)


class Watched(deque[Any]):
    """A queue that counts for each thread how often it has looked how long it is."""

    def __init__(self, content: deque[Any], strikes_at: tuple[str, int] | None = None) -> None:
        super().__init__(content)
        self.looks: Counter[str] = Counter()
        self._strikes_at = strikes_at

    def __len__(self) -> int:
        who = threading.current_thread().name
        self.looks[who] += 1
        if (who, self.looks[who]) == self._strikes_at:
            raise KeyboardInterrupt
        return super().__len__()


def test_room_for_one_wakes_one_of_those_who_wait_for_it_and_the_first_first(a):
    confirmed = threading.Semaphore(0)
    who = [f"sender-{number}" for number in range(8)]
    with broadcasting(a, confirm=lambda *_: confirmed.acquire(timeout=GUARD), max_async=2) as sender:
        for message in numbered(2):
            sender.broadcast_async(message)
        queue = sender._deferred._queue = Watched(sender._deferred._queue)
        threads = [threading.Thread(target=sender.broadcast_async, args=[w.encode()], name=w) for w in who]
        for thread in threads:
            thread.start()
            until(lambda w=thread.name: queue.looks[w] == 2)  # as it comes, and before it sleeps
        for thread in threads:
            confirmed.release()
            thread.join(GUARD)
        confirmed.release(2)
        assert a.until_lines(10) == [*numbered(2), *(w.encode() for w in who)]
        assert [queue.looks[w] for w in who] == [3] * 8


def test_who_is_interrupted_as_there_is_room_leaves_it_to_the_next(a):
    confirmed = threading.Semaphore(0)

    def struck() -> None:
        with pytest.raises(KeyboardInterrupt):
            sender.broadcast_async(b"struck")

    with broadcasting(a, confirm=lambda *_: confirmed.acquire(timeout=GUARD), max_async=2) as sender:
        for message in numbered(2):
            sender.broadcast_async(message)
        queue = sender._deferred._queue = Watched(sender._deferred._queue, strikes_at=("struck", 3))
        first = threading.Thread(target=struck, name="struck")
        second = threading.Thread(target=sender.broadcast_async, args=[b"next"], name="next")
        for thread in (first, second):
            thread.start()
            until(lambda w=thread.name: queue.looks[w] == 2)
        confirmed.release()
        first.join(GUARD)
        second.join(GUARD / 2)
        assert not second.is_alive()  # though nothing more has left
        confirmed.release(2)
        assert a.until_lines(3) == [*numbered(2), b"next"]


def test_who_finds_the_queue_full_gets_an_error_where_that_is_wanted(a, gate):
    with broadcasting(a, confirm=gate, max_async=10, on_full="raise") as sender:
        for message in numbered(10):
            sender.broadcast_async(message)
        with pytest.raises(SpoolFullError, match="10 messages wait"):
            sender.broadcast_async(b"m-10")
        gate.opened.set()
        until(lambda: sender.broadcast_async is not None and len(sender._deferred._queue) == 0)
        sender.broadcast_async(b"m-10")
        assert a.until_lines(11) == numbered(11)


def test_a_message_that_cannot_be_sent_fails_its_future_and_no_other(a):
    with refused() as nobody, broadcasting(nobody, spool=None) as sender, pytest.raises(NoEndpointError):
        sender.broadcast_async(b"x").result(GUARD)
    with broadcasting(a) as sender:
        bad, good = sender.broadcast_async(b"two\nlines"), sender.broadcast_async(b"good")
        with pytest.raises(FramingError):
            bad.result(GUARD)
        assert good.result(GUARD).sent == (a.endpoint,)
        with pytest.raises(FramingError):
            sender.broadcast_async("text")  # type: ignore[arg-type]


def test_a_message_that_is_cancelled_in_time_is_not_sent(a, gate):
    with broadcasting(a, confirm=gate) as sender:
        sender.broadcast_async(b"m-0")
        assert gate.reached.wait(GUARD)
        doomed = sender.broadcast_async(b"doomed")
        last = sender.broadcast_async(b"m-1")
        assert doomed.cancel()
        gate.opened.set()
        last.result(GUARD)
        with pytest.raises(CancelledError):
            doomed.result(0)
        assert a.until_lines(2) == numbered(2)


def test_the_end_sends_all_that_was_handed_over(a):
    with broadcasting(a) as sender:
        futures = [sender.broadcast_async(message) for message in numbered(500)]
        assert sender.close() == 0
        assert all(future.done() for future in futures)
        assert a.until_lines(500) == numbered(500)
        with pytest.raises(PoolClosedError):
            sender.broadcast_async(b"late")


def test_an_end_that_may_not_wait_tells_how_many_are_lost(a, gate):
    with broadcasting(a, confirm=gate, spool=None) as sender:
        for message in numbered(10):
            sender.broadcast_async(message)
        assert gate.reached.wait(GUARD)
        with taking(0, 3.0), later(gate.opened.set, 0.3):
            assert sender.close(0.1) == 10
            assert gate.opened.wait(GUARD)


def test_what_is_spooled_while_an_end_that_may_not_wait_goes_on_is_counted_once(a, gate):
    futures = []

    def goodbye() -> bytes:
        gate.opened.set()
        for future in futures:
            future.result(GUARD)
        return b"bye"

    with refused() as nobody, broadcasting(a, nobody, confirm=gate, heartbeat=(1_000.0, goodbye)) as sender:
        until(lambda: LinkState.NEW not in {link.state for link in sender.links()})
        futures += [sender.broadcast_async(message) for message in numbered(5)]
        assert gate.reached.wait(GUARD)
        assert sender.close(0.0) == 5  # copies for nobody


def test_who_waits_for_room_is_let_go_by_the_end(a, gate):
    with broadcasting(a, confirm=gate, max_async=1, spool=None) as sender:
        sender.broadcast_async(b"m-0")

        def wait() -> None:
            with pytest.raises(PoolClosedError):
                sender.broadcast_async(b"m-1")

        def close() -> None:
            assert gate.reached.wait(GUARD)
            until(lambda: sender._deferred._room._waiters, "who waits for room")  # type: ignore[attr-defined]
            sender.close(0.1)
            gate.opened.set()

        together(wait, close)


# -- callbacks run on the thread that sends


def test_a_callback_may_hand_over_the_next_message_even_if_the_queue_is_full(a):
    left = iter(numbered(50))

    def go_on(_: object) -> None:
        message = next(left, None)
        if message is not None:
            sender.broadcast_async(message).add_done_callback(go_on)

    with broadcasting(a, max_async=1) as sender:
        go_on(None)
        assert a.until_lines(50) == numbered(50)


@pytest.mark.parametrize("n_behind", [0, 20])
def test_a_callback_may_close(a, gate, n_behind):
    closed: list[int] = []
    with broadcasting(a, confirm=gate) as sender:
        first = sender.broadcast_async(b"m-0")
        first.add_done_callback(lambda _: closed.append(sender.close()))
        behind = [sender.broadcast_async(message) for message in numbered(n_behind, 1)]
        gate.opened.set()
        until(lambda: closed, "the end of close")
        assert closed == [0]
        assert all(future.result(GUARD) for future in behind)
        assert a.until_lines(n_behind + 1) == numbered(n_behind + 1)


def test_a_callback_that_fails_does_not_hold_up_the_messages_behind(a, gate, caplog):
    with broadcasting(a, confirm=gate) as sender:
        sender.broadcast_async(b"m-0").add_done_callback(lambda _: 1 / 0)
        last = sender.broadcast_async(b"m-1")
        gate.opened.set()
        assert last.result(GUARD).sent == (a.endpoint,)
    assert "ZeroDivisionError" in caplog.text


# -- the end of the program


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise ValueError"])
def test_a_program_that_ends_sends_first_what_it_handed_over(a, ending):
    program = f"""
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        pool = ConnectionPool(sys.argv[1])
        sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines())
        for n in range(1000):
            sender.broadcast_async(b"m-%d" % n)
        {ending}
    """
    ran = run_program(program, a.endpoint)
    assert ran.status == {"": 0, "sys.exit(3)": 3}.get(ending, 1), ran.err
    assert a.until_lines(1_000) == numbered(1_000)
    if not ending:
        assert ran.err == ""


def test_a_program_whose_receiver_hangs_ends_all_the_same(a):
    a.is_deaf = True
    program = """
        import sys
        import connpool.upkeep.exit
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        connpool.upkeep.exit.EXIT_GRACE = 0.5
        pool = ConnectionPool(sys.argv[1])
        sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines())
        sender.wait_ready(10)
        for n in range(200):
            sender.broadcast_async(b"x" * 100_000)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.seconds < 8


def test_a_program_does_not_wait_for_what_was_not_handed_over(a):
    program = """
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        spool = MemorySpool()
        for n in range(100):
            spool.put([sys.argv[1]], b"waits", b"%016d" % n)
        sender = Broadcaster(ConnectionPool(sys.argv[1]), spool=spool, framing=Lines(), flush_rate=1)
        sender.wait_ready(10)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.seconds < 8


def test_a_program_that_ends_waits_for_what_its_last_heartbeat_says(a):
    program = """
        import sys, time
        from connpool import Broadcaster, ConnectionPool, Lines
        def say_goodbye():
            time.sleep(0.1)
            return b"bye"
        sender = Broadcaster(ConnectionPool(sys.argv[1]), framing=Lines(), heartbeat=(1000, say_goodbye))
        sender.wait_ready(10)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    a.until_has(b"bye")


def test_a_program_that_ends_sends_also_what_it_handed_over_and_waits_in_memory(a):
    a.is_deaf = True
    program = f"""
        import atexit
        from connpool import Broadcaster, ConnectionPool, Lines, MemorySpool
        pool = ConnectionPool({str(a.endpoint)!r})
        sender = Broadcaster(pool, spool=MemorySpool(), framing=Lines())
        sender.wait_ready(10)
        futures = [sender.broadcast_async(b"%d " % n + b"x" * 100_000) for n in range(200)]
        assert futures[-1].result(10).spooled
        atexit.register(print, "it ends", flush=True)
    """
    with running_program(program) as ran:
        assert ran.stdout.readline() == "it ends\n"
        a.is_deaf = False
        lines = a.until_lines(200)
    assert [line.split()[0] for line in lines] == [b"%d" % n for n in range(200)]


def test_a_program_waits_for_all_its_receivers_that_hang_no_longer_than_for_one(a):
    a.is_deaf = True
    program = """
        import sys
        import connpool.upkeep.exit
        from connpool import Broadcaster, ConnectionPool, Lines
        connpool.upkeep.exit.EXIT_GRACE = 0.5
        senders = [Broadcaster(ConnectionPool(sys.argv[1]), framing=Lines()) for _ in range(20)]
        for sender in senders:
            for n in range(200):
                sender.broadcast_async(b"x" * 100_000)
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.seconds < 8


def test_a_program_ends_although_each_message_that_is_sent_has_another_handed_over(a):
    program = """
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines, PoolClosedError
        sender = Broadcaster(ConnectionPool(sys.argv[1]), framing=Lines())
        def hand_over(*_):
            try:
                sender.broadcast_async(b"one more").add_done_callback(hand_over)
            except PoolClosedError:
                pass
        hand_over()
    """
    ran = run_program(program, a.endpoint)
    assert (ran.status, ran.err) == (0, "")
    assert ran.seconds < 8


def test_a_program_that_ends_spools_first_what_it_handed_over_and_cannot_send(tmp_path):
    """The file is closed after the broadcaster."""
    file = tmp_path / "spool.db"
    program = """
        import sys
        from connpool import Broadcaster, ConnectionPool, Lines, SQLiteSpool
        pool = ConnectionPool("127.0.0.1:1")
        sender = Broadcaster(pool, spool=SQLiteSpool(sys.argv[1]), framing=Lines())
        for n in range(200):
            sender.broadcast_async(b"m-%d" % n)
    """
    ran = run_program(program, file)
    assert (ran.status, ran.err) == (0, "")
    with contextlib.closing(SQLiteSpool(file)) as spool:
        spool.adopt()
        [queue] = spool.counts()
        assert [item.message for item in spool.peek(queue, 1_000, 1_000_000)] == numbered(200)


class Failing:
    """Stands for what sends."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def deliver(self, message: bytes) -> Delivery:
        raise self._errors.pop(0)


def test_what_comes_to_its_turn_after_the_end_counts_as_lost_and_what_failed_before_does_not():
    sending: Any = Failing(NoEndpointError("nobody lives"), closed("sensors"), closed("sensors"))
    deferred = Deferred(sending, "sensors", most=10, waits=True)
    futures = [deferred.add(message) for message in numbered(3)]
    deferred.drain(GUARD)
    assert [type(future.exception(GUARD)) for future in futures] == [NoEndpointError, *[PoolClosedError] * 2]
    assert deferred.lost() == 2


class Held:
    """Delivers nothing before it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def deliver(self, message: bytes) -> Delivery:
        assert self.opened.wait(GUARD)
        return Delivery()


def test_a_callback_may_wait_for_the_rest_although_a_second_thread_was_started_for_it(monkeypatch):
    # Who comes while the thread for another's message is about to start has one started, too. Here that
    # second one, which is known as the thread from then on, comes late: the first sends.
    sending: Any = Held()
    deferred = Deferred(sending, "sensors", most=10, waits=True)
    started: list[threading.Thread] = []
    start_now = threads.start

    def start(thread: threading.Thread) -> bool:
        started.append(thread)
        if thread is not started[0]:
            return True
        deferred.add(b"m-1")  # as another thread would just now
        return start_now(thread)

    monkeypatch.setattr(threads, "start", start)
    first = deferred.add(b"m-0")
    left: list[int] = []

    def wait_for_the_rest(_: object) -> None:
        deferred.drain(0.5)
        left.append(deferred.lost())

    first.add_done_callback(wait_for_the_rest)
    sending.opened.set()
    until(lambda: left, "the end of the callback")
    assert left == [0]
