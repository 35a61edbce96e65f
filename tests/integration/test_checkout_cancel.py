"""Request.cancel, shutdown and close end a checkout early, whatever phase it is in, and nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from connpool import (
    CancelledError,
    Connection,
    ConnectionPool,
    Endpoint,
    EndpointState,
    PoolClosedError,
    Request,
    SocketConnector,
)
from connpool.testing import NoHandshake, ScriptedServer, Silence
from connpool.wire.io import Stream
from tests.helpers.certificates import Certificates
from tests.helpers.clients import ask
from tests.helpers.together import together
from tests.helpers.wire import later, stuck_resolver, taking

PHASES = ["queue", "dns", "connect", "tls", "login"]


class Stage:
    """A pool whose next checkout hangs in one phase."""

    def __init__(self, pool: ConnectionPool, endpoint: Endpoint, server: ScriptedServer) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.server = server

    def ask(self, cancel: threading.Event | None = None) -> None:
        self.pool.try_connect(Request(self.endpoint, timeout=20, cancel=cancel)).release()


@contextmanager
def stuck_in(phase: str, certificates: Certificates, patch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with ExitStack() as stack:
        tls = certificates.server() if phase == "tls" else None
        script = NoHandshake() if phase == "tls" else Silence()
        server = stack.enter_context(ScriptedServer(tls=tls, script=script))
        endpoint = server.endpoint
        if phase == "dns":
            stack.enter_context(stuck_resolver(patch))
            endpoint = Endpoint("stuck.test", server.port)
        elif phase == "connect":
            server.black_hole()
        handshake = read_one if phase == "login" else None
        connector = SocketConnector(tls=certificates.client(), handshake=handshake)
        pool = stack.enter_context(
            ConnectionPool(endpoint, connector=connector, max_size=1, connect_timeout=20)
        )
        if phase == "queue":
            held = pool.try_connect(timeout=5)
            stack.callback(held.release)
        yield Stage(pool, endpoint, server)


def read_one(conn: object) -> None:
    conn.recv(1)  # type: ignore[attr-defined]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces: another thread's way through the pool."""
    over = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < over
        threading.Event().wait(0.002)


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_checkout_ends_in_every_phase_and_frees_its_place(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stuck_in(phase, certificates, monkeypatch) as stage:
        cancel = threading.Event()
        with later(cancel.set, 0.1), taking(0, 1), pytest.raises(CancelledError) as told:
            stage.ask(cancel)
        assert told.value.pool == stage.pool.stats().name
        lent = 1 if phase == "queue" else 0
        until(lambda: stage.pool.stats().size == lent)
        stats = stage.pool.stats()
        assert (stats.opening, stats.waiting, stats.in_use, stats.connect_failures) == (0, 0, lent, 0)
        assert stage.pool.endpoints()[0].state is EndpointState.UP, "nobody is to blame"
        if phase in ("tls", "login"):
            stage.server.until_open(0)


def test_a_request_cancelled_beforehand_ends_at_once_and_dials_nobody() -> None:
    cancel = threading.Event()
    cancel.set()
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with taking(0, 1), pytest.raises(CancelledError):
            pool.try_connect(Request(cancel=cancel, timeout=20))
        pool.try_connect(timeout=5).release()
        server.until_accepts(1)
        assert (server.accepts, pool.stats().opened) == (1, 1)


def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        held = pool.try_connect(timeout=5)
        cancel = threading.Event()

        def give_up() -> None:
            with pytest.raises(CancelledError):
                pool.try_connect(Request(timeout=20, cancel=cancel))

        def wait() -> None:
            until(lambda: pool.stats().waiting == 1)
            with pool.try_connect(timeout=20) as conn:
                assert conn.uses == 1

        def drive() -> None:
            until(lambda: pool.stats().waiting == 2)
            cancel.set()
            until(lambda: pool.stats().waiting == 1)
            held.release()

        together(give_up, wait, drive)
        assert pool.stats().idle == 1


def test_a_cancellation_of_one_does_not_end_the_dial_that_another_waits_for() -> None:
    gate, opened = threading.Event(), []

    def slow() -> object:
        assert gate.wait(10)
        opened.append(object())
        return opened[-1]

    with ConnectionPool.of(slow, max_size=1) as pool:
        cancel = threading.Event()

        def give_up() -> None:
            with pytest.raises(CancelledError):
                pool.try_connect(Request(timeout=20, cancel=cancel))

        def wait() -> None:
            until(lambda: pool.stats().waiting == 1)
            pool.try_connect(timeout=20).release()

        def drive() -> None:
            until(lambda: pool.stats().waiting == 2)
            cancel.set()
            until(lambda: pool.stats().waiting == 1)
            gate.set()

        together(give_up, wait, drive)
        assert pool.stats().connect_failures == 0
        assert len(opened) == 1


def test_a_cancellation_that_comes_as_the_dial_ends_cuts_off_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_greeted, may_end, is_lent, is_cutting = (threading.Event() for _ in range(4))
    cancel = threading.Event()
    cut_off = Stream.interrupt

    def greet(conn: Connection) -> None:
        is_greeted.set()
        assert may_end.wait(10)

    def interrupt(stream: Stream, how: int, why: str) -> None:
        is_cutting.set()  # from here on the dial may end, and what it brought be lent
        assert is_lent.wait(10)
        cut_off(stream, how, why)

    def ask_and_cancel() -> None:
        with pytest.raises(CancelledError):
            pool.try_connect(Request(timeout=10, cancel=cancel))

    def use() -> None:
        assert is_greeted.wait(10)
        cancel.set()
        assert is_cutting.wait(10)
        may_end.set()
        with pool.try_connect(timeout=10) as conn:
            is_lent.set()
            done.wait(10)
            assert ask(conn) == b"ping"

    done = threading.Barrier(2)
    monkeypatch.setattr(Stream, "interrupt", interrupt)
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(handshake=greet), max_size=1) as pool,
    ):
        together(lambda: (ask_and_cancel(), done.wait(10)), use, limit=20)


def test_a_cancellation_amid_a_look_leaves_the_connection_to_the_next() -> None:
    cancel, is_looking, may_end = (threading.Event() for _ in range(3))

    def look(raw: object) -> bool:
        is_looking.set()
        return may_end.wait(10)

    def ask_and_cancel() -> None:
        with pytest.raises(CancelledError):
            pool.try_connect(Request(timeout=10, cancel=cancel))

    with ConnectionPool.of(object, is_usable=look, look_after_idle=0, max_size=1) as pool:
        pool.try_connect().release()
        together(ask_and_cancel, lambda: is_looking.wait(10) and cancel.set())
        may_end.set()
        with pool.try_connect(timeout=10) as conn:
            assert conn.uses == 1


def test_a_cancellation_that_never_comes_changes_nothing() -> None:
    cancel = threading.Event()
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        with pool.try_connect(Request(cancel=cancel, timeout=5)) as conn:
            cancel.set()
            assert conn.uses == 0
            conn.sendall(b"x", timeout=5)
            assert conn.recv_exactly(1, timeout=5) == b"x", "it ends waiting and dialling, not the loan"
        assert pool.stats().idle == 1


@pytest.mark.parametrize("how", ["shutdown", "close"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_pools_end_is_the_end_of_checkouts_in_every_phase(
    how: str, phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stuck_in(phase, certificates, monkeypatch) as stage:
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                stage.ask()
            except PoolClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        until(lambda: stage.pool.stats().waiting == 1)
        if phase in ("tls", "login"):
            stage.server.until_accepts(1)
        with taking(0, 2):
            counted = stage.pool.shutdown() if how == "shutdown" else stage.pool.close(timeout=0.2)
            thread.join(10)
            assert not thread.is_alive()
        assert len(errors) == 1
        lent = 1 if phase == "queue" else 0
        if how == "shutdown":
            assert counted == 1, "a loan or a dial counts"
            until(lambda: stage.pool.shutdown() == lent)
        else:
            assert counted == lent
        if phase in ("tls", "login"):
            stage.server.until_open(0)
        with pytest.raises(PoolClosedError):
            stage.pool.try_connect(timeout=5)


def test_a_dial_that_succeeds_after_shutdown_is_lent_to_nobody() -> None:
    gate, dialling, closed = threading.Event(), threading.Event(), threading.Event()

    def slow() -> object:
        dialling.set()
        assert gate.wait(10)
        return object()

    with ConnectionPool.of(slow, close=lambda raw: closed.set()) as pool:

        def ask() -> None:
            with pytest.raises(PoolClosedError):
                pool.try_connect(timeout=20)

        def drive() -> None:
            assert dialling.wait(5)
            assert pool.shutdown() == 1
            gate.set()
            assert closed.wait(5)

        together(ask, drive)
        until(lambda: pool.shutdown() == 0)
        pool.reopen()
        pool.try_connect(timeout=5).release()


def test_a_close_at_the_moment_a_dial_starts_is_no_error() -> None:
    for _ in range(150):
        pool = ConnectionPool.of(object, max_size=2)

        def ask(pool: ConnectionPool = pool) -> None:
            with suppress(PoolClosedError):
                pool.try_connect(timeout=5).release()

        together(ask, ask, pool.close)
        until(lambda pool=pool: pool.stats().size == 0)


@pytest.mark.parametrize("is_tls", [False, True])
def test_shutdown_ends_what_other_threads_are_blocked_in(is_tls: bool, certificates: Certificates) -> None:
    tls = certificates.server() if is_tls else None
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=tls, script=Silence()) as server,
        ConnectionPool(server.endpoint, connector=connector, max_size=2) as pool,
    ):
        reading = threading.Event()

        def read() -> None:
            conn = pool.try_connect(timeout=5)
            reading.set()
            with pytest.raises(OSError, match="shut"):
                conn.recv(1)
            conn.release()

        def cut() -> None:
            assert reading.wait(5)
            assert pool.shutdown() == 1

        with taking(0, 3):
            together(read, cut)
        assert pool.shutdown() == 0
        assert pool.stats().in_use == 0
