"""Whose fault it is: our own limits and the caller's haste blacklist nobody; names are looked up anew."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    ConnPoolError,
    EndpointState,
    HandshakeError,
    PoolClosedError,
    PoolExhaustedError,
    Request,
    SocketConnector,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard, check_books, down, info_of, until
from tests.helpers.together import together
from tests.helpers.wire import answer_names_with, fail_names_with, info, later
from tests.stress.works import Caller


def check_nobody_blamed(pool: ConnectionPool) -> None:
    until(lambda: pool.stats().opening + pool.stats().closing == 0)
    assert down(pool) == []
    assert [info.failures for info in pool.endpoints()] == [0] * len(pool.endpoints())
    assert [info.last_error for info in pool.endpoints()] == [None] * len(pool.endpoints())
    check_books(pool)


def test_the_ninth_of_eight_blames_no_host_however_often_it_asks() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}", max_size=8) as pool,
    ):
        loans = [pool.try_connect() for _ in range(8)]
        for _ in range(10):
            with pytest.raises(PoolExhaustedError):
                pool.try_connect(timeout=0)
        check_nobody_blamed(pool)
        for loan in loans:
            loan.release()
        assert pool.stats().idle == 8


def test_a_deadline_in_the_queue_blames_no_host(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_size=1) as pool, pool.try_connect():

        def wait() -> None:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=1)

        def move() -> None:
            clock.until_waiting(1)
            clock.advance(1.1)

        together(wait, move)
        check_nobody_blamed(pool)


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_a_deadline_shorter_than_the_connect_timeout_blames_no_host(dial_in_caller: bool) -> None:
    with ScriptedServer() as hole:
        hole.black_hole()
        settings = {"connect_timeout": 0.4, "dial_in_caller": dial_in_caller}
        with ConnectionPool(hole.endpoint, **settings) as pool:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.1)
            assert down(pool) == []
            assert info_of(pool, hole.endpoint).failures == 0


def test_a_dial_that_had_its_full_connect_timeout_is_the_hosts_failure() -> None:
    """Though the caller who asked for it has left long ago."""
    with ScriptedServer() as hole:
        hole.black_hole()
        with ConnectionPool(hole.endpoint, connect_timeout=0.3) as pool:
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.05)
            until(lambda: info_of(pool, hole.endpoint).failures == 1)
            assert info_of(pool, hole.endpoint).state is EndpointState.BLACKLISTED


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_a_cancelled_dial_blames_no_host(dial_in_caller: bool) -> None:
    cancel = threading.Event()
    with ScriptedServer() as hole:
        hole.black_hole()
        with ConnectionPool(hole.endpoint, connect_timeout=1.0, dial_in_caller=dial_in_caller) as pool:
            with later(cancel.set), pytest.raises(CancelledError):
                pool.try_connect(Request(cancel=cancel))
            assert down(pool) == []
            pool.shutdown()
            check_nobody_blamed(pool)


@pytest.mark.parametrize("end", [ConnectionPool.close, ConnectionPool.shutdown])
@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_closing_the_pool_during_a_dial_blames_no_host(
    end: Callable[[ConnectionPool], int], dial_in_caller: bool
) -> None:
    with ScriptedServer() as hole:
        hole.black_hole()
        with ConnectionPool(hole.endpoint, dial_in_caller=dial_in_caller) as pool:

            def ask() -> None:
                with pytest.raises(PoolClosedError):
                    pool.try_connect()

            def finish() -> None:
                until(lambda: pool.stats().opening == 1)
                end(pool)

            together(ask, finish, limit=4)
            check_nobody_blamed(pool)


LOCAL = [
    socket.gaierror(socket.EAI_AGAIN, "no resolver answers"),
    OSError(errno.EMFILE, "no descriptor left"),
    OSError(errno.ENFILE, "no descriptor left in the system"),
    OSError(errno.EBUSY, "the resolver's files are in use"),  # so CPython says EAI_SYSTEM
]


@pytest.mark.parametrize("error", LOCAL, ids=str)
def test_what_fails_on_this_machine_blames_no_host(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectionPool("somewhere:1 && elsewhere:1") as pool:
        fail_names_with(monkeypatch, error)
        with pytest.raises(ConnPoolError) as caught:
            pool.try_connect(timeout=5)
        assert isinstance(caught.value, ConnectionError)
        check_nobody_blamed(pool)


def test_a_name_that_no_descriptor_is_left_to_look_up_blames_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver says that there is no such name, since it can read none of its files."""

    class NoSocket(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EMFILE, "no descriptor left")

    with ConnectionPool("somewhere:1 && elsewhere:1") as pool:
        fail_names_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "no such name"))
        monkeypatch.setattr(socket, "socket", NoSocket)
        with pytest.raises(ConnPoolError, match="no descriptor left"):
            pool.try_connect(timeout=5)
        check_nobody_blamed(pool)


def test_what_this_machine_lacks_for_an_open_or_a_hook_of_the_users_blames_no_host() -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor left")

    class Connector(Switchboard):
        handshake = fail

    for pool in (ConnectionPool.of(fail), ConnectionPool("a:1", connector=Connector())):
        with pool:
            with pytest.raises(ConnectError, match="no descriptor left") as caught:
                pool.try_connect(timeout=5)
            assert caught.value.local
            check_nobody_blamed(pool)


def test_our_certificate_refused_as_late_as_at_the_login_blames_no_host(
    certificates: Certificates,
) -> None:
    """With TLS 1.3 the handshake is over by then."""
    connector = SocketConnector(certificates.client(), handshake=lambda conn: conn.recv_exactly(2))
    with (
        ScriptedServer(tls=certificates.demanding_server()) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
    ):
        with pytest.raises(HandshakeError, match=r"(?i)alert certificate required") as caught:
            pool.try_connect(timeout=5)
        assert caught.value.local
        check_nobody_blamed(pool)


def test_a_local_error_of_any_connector_blames_no_host(clock: FakeClock) -> None:
    board = Switchboard()
    board.fail("a:1", ConnectError("our certificate has expired", local=True))
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        for n in (1, 2):
            with pytest.raises(ConnectError, match="our certificate has expired"):
                pool.try_connect()
            assert len(board.dialled) == n
        check_nobody_blamed(pool)


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_the_failing_dial_of_a_pinned_checkout_blames_the_host_if_somebody_else_waits_for_it(
    clock: FakeClock, is_waited_for: bool
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, max_connecting=1) as pool:
        board.hold("a:1")
        pinned = Caller(pool, "a:1")
        board.until_dialling("a:1")
        plain = Caller(pool) if is_waited_for else None
        until(lambda: pool.stats().waiting == 1 + is_waited_for)
        board.fail("a:1")
        board.let_go("a:1")
        pinned.failure(ConnectError)
        assert info_of(pool, "a:1").failures == is_waited_for
        with plain.loan() if plain else pool.try_connect("b:1") as conn:
            assert str(conn.endpoint) == "b:1"
        assert board.dialled == ["a:1", "b:1"]


def test_a_broken_or_terminated_loan_blames_no_host(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.try_connect().terminate(OSError("the peer sent nonsense"))
        assert down(pool) == []
        assert info_of(pool, "a:1").failures == 0
        assert "nonsense" in str(info_of(pool, "a:1").last_error)


def test_a_callers_report_blacklists_and_turns_traffic_elsewhere(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock) as pool:
        with pool.try_connect() as conn:
            pool.blacklist(conn.endpoint, 30)
        with pool.try_connect() as conn:
            assert str(conn.endpoint) == "b:1"


# -- names -----------------------------------------------------------------------------


def test_a_name_is_looked_up_anew_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as old, ScriptedServer() as new, ConnectionPool("service.test:1") as pool:
        answer_names_with(monkeypatch, ("127.0.0.1", old.port))
        with pool.try_connect() as conn:
            assert conn.socket.getpeername()[1] == old.port
        answer_names_with(monkeypatch, ("127.0.0.1", new.port))
        with pool.try_connect() as conn:
            assert conn.socket.getpeername()[1] == old.port, "an open connection needs no name"
            with pool.try_connect() as second:
                assert second.socket.getpeername()[1] == new.port


def test_a_name_that_does_not_exist_is_that_host_down_and_no_failure_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer() as server, ConnectionPool("nowhere.test:1 && service.test:1") as pool:

        def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
            if host == "nowhere.test":
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [info("127.0.0.1", server.port)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        for _ in range(4):
            with pool.try_connect() as conn:
                assert str(conn.endpoint) == "service.test:1"
        assert down(pool) == ["nowhere.test:1"]
        assert "no such name" in str(info_of(pool, "nowhere.test:1").last_error)


def test_a_pool_starts_though_everything_is_down_and_lends_once_a_listener_appears() -> None:
    settings: dict[str, Any] = {"fail_fast": False, "blacklist_initial": 0.05, "blacklist_max": 0.1}
    with ScriptedServer() as a:
        a.refuse()
        with ConnectionPool(a.endpoint, **settings) as pool:

            def ask() -> None:
                with pool.try_connect(timeout=8) as conn:
                    conn.sendall(b"x")
                    assert conn.recv_exactly(1) == b"x"

            def appear() -> None:
                until(lambda: info_of(pool, a.endpoint).failures >= 1)
                assert down(pool) == [str(a.endpoint)]
                a.start()

            together(ask, appear)
            assert down(pool) == []
            assert info_of(pool, a.endpoint).last_error is None
