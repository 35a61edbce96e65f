"""Each way in which a checkout can fail is an exception of its own, and leaves nothing behind."""

from __future__ import annotations

import errno
import pickle
import socket
import ssl
import threading
from collections.abc import Callable

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConfigError,
    ConnectError,
    Connection,
    ConnectionPool,
    ConnectTimeoutError,
    ConnPoolError,
    Endpoint,
    EndpointState,
    HandshakeError,
    NoEndpointError,
    NotSharableError,
    PoolClosedError,
    PoolExhaustedError,
    Repository,
    Request,
    Route,
    SocketConnector,
)
from connpool.delivery.admin import require_places
from connpool.testing import Close, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard
from tests.helpers.together import together
from tests.helpers.wire import fail_names_with, refused_port, taking


def failing(pool: ConnectionPool, req: Request | Endpoint | None = None) -> ConnPoolError:
    with pytest.raises(ConnPoolError) as told:
        pool.try_connect(req, timeout=5)
    return told.value


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


@pytest.mark.parametrize("in_caller", [False, True])
def test_an_error_that_cannot_be_shown_costs_no_place_and_is_the_cause_all_the_same(in_caller: bool) -> None:
    errors = [Unspeakable()]

    def open() -> object:
        if errors:
            raise errors.pop()
        return object()

    settings = {"max_size": 1, "blacklist_initial": 0, "reconnect": False, "dial_in_caller": in_caller}
    with ConnectionPool.of(open, **settings) as pool:
        error = failing(pool)
        assert "Unspeakable" in str(error)
        assert isinstance(error.__cause__, Unspeakable)
        assert pool.stats().size == 0
        pool.try_connect(timeout=5).terminate(Unspeakable())
        pool.blacklist(pool.endpoints()[0].endpoint)
        assert "Unspeakable" in str(failing(pool))


def test_an_error_without_words_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Connector:
        def open(self, endpoint: Endpoint, timeout: float, cancel: object) -> object:
            raise ConnectError("")

    with ConnectionPool("a:1, b:1", connector=Connector(), max_size=1) as pool:
        assert str(failing(pool)).count("ConnectError(") == 2
    down = [record.getMessage() for record in caplog.records if "is down" in record.getMessage()]
    assert len(down) == 2
    assert all("ConnectError(" in line for line in down)


class Peculiar(ConnectError):
    """Cannot be copied: it is made of more than it tells its class."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def test_an_error_of_the_users_own_that_cannot_be_copied_reaches_who_pinned_its_endpoint() -> None:
    class Connector:
        def open(self, endpoint: Endpoint, timeout: float, cancel: object) -> object:
            raise Peculiar("so ", "so")

    with ConnectionPool("a:1", connector=Connector(), max_size=1) as pool:
        error = failing(pool, Endpoint("a", 1))
        assert isinstance(error, Peculiar)
        assert pool.stats().size == 0


def test_a_time_out_of_what_the_user_opens_is_one_of_the_dial() -> None:
    def open_late() -> object:
        raise TimeoutError("no answer")

    with ConnectionPool.of(open_late) as pool:
        error = failing(pool)
        assert isinstance(error, NoEndpointError)
        assert isinstance(error, ConnectTimeoutError)
        assert isinstance(error.__cause__, TimeoutError)


def test_a_refusal_keeps_its_number_and_names_its_address() -> None:
    with refused_port() as reserved:
        endpoint = Endpoint("127.0.0.1", reserved.getsockname()[1])
        with ConnectionPool(endpoint, name="orders") as pool:
            with taking(0, 2):
                error = failing(pool)
            assert isinstance(error, NoEndpointError)
            assert isinstance(error, ConnectError)
            assert isinstance(error, ConnectionError)
            assert not isinstance(error, TimeoutError | HandshakeError)
            assert error.endpoint == endpoint
            assert str(endpoint) in str(error)
            assert "'orders'" in str(error)
            ((where, cause),) = error.causes
            assert where == endpoint
            assert isinstance(cause, ConnectError)
            assert cause.endpoint == endpoint
            assert isinstance(cause.__cause__, ConnectionRefusedError)
            assert cause.__cause__.errno == cause.errno == error.errno == errno.ECONNREFUSED
            told = pool.endpoints()[0]
            assert (told.state, told.failures) == (EndpointState.BLACKLISTED, 1)
            assert told.retry_at == error.retry_at


def test_a_pinned_request_that_fails_is_a_connect_error() -> None:
    with refused_port() as reserved:
        endpoint = Endpoint("127.0.0.1", reserved.getsockname()[1])
        with ConnectionPool(endpoint) as pool:
            error = failing(pool, endpoint)
            assert isinstance(error, ConnectError)
            assert error.endpoint == endpoint
            assert error.errno == errno.ECONNREFUSED
            chain = [error.__cause__, error.__cause__ and error.__cause__.__cause__]
            assert any(isinstance(cause, ConnectionRefusedError) for cause in chain)


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_names_with(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with ConnectionPool("nowhere.test:80") as pool:
        error = failing(pool)
        assert isinstance(error, NoEndpointError)
        assert "nowhere.test" in str(error)
        assert isinstance(error.causes[0][1].__cause__, socket.gaierror)


def test_a_dial_that_takes_too_long() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, connect_timeout=0.2) as pool:
        server.black_hole()
        error = failing(pool)
        assert isinstance(error, ConnectTimeoutError)
        assert isinstance(error, NoEndpointError)
        assert isinstance(error, TimeoutError)
        assert not isinstance(error, CheckoutTimeoutError)


@pytest.mark.parametrize("trouble", ["untrusted", "wrong name", "hangs up"])
def test_a_tls_handshake_that_fails_leaves_no_descriptor(trouble: str, certificates: Certificates) -> None:
    tls = {
        "untrusted": certificates.server(),
        "wrong name": certificates.server("other.test"),
        "hangs up": None,
    }[trouble]
    client = certificates.stranger() if trouble == "untrusted" else certificates.client()
    with ScriptedServer(tls=tls, script=Close()) as server:
        endpoint = Endpoint("127.0.0.1", server.port, tls=True)
        with ConnectionPool(endpoint, connector=SocketConnector(tls=client)) as pool:
            error = failing(pool)
            assert isinstance(error, HandshakeError)
            assert isinstance(error, NoEndpointError)
            assert isinstance(error.causes[0][1].__cause__, OSError)
            if tls is not None:
                assert isinstance(error.causes[0][1].__cause__, ssl.SSLCertVerificationError)
            assert str(endpoint) in str(error)
            assert pool.stats().size == 0
            server.until_accepts(1).until_ended()


def test_every_other_end_of_a_checkout_has_its_own_class() -> None:
    kinds: dict[type[ConnPoolError], Callable[[ConnectionPool], object]] = {
        PoolExhaustedError: lambda pool: pool.try_connect(timeout=0),
        CheckoutTimeoutError: lambda pool: pool.try_connect(timeout=0.02),
        CancelledError: lambda pool: pool.try_connect(Request(cancel=is_set(), timeout=5)),
        NotSharableError: lambda pool: pool.try_connect(Request(shared=True, timeout=5)),
        PoolClosedError: lambda pool: (pool.shutdown(), pool.try_connect(timeout=5)),
    }
    for kind, provoke in kinds.items():
        with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, name="orders") as pool:
            held = pool.try_connect(timeout=5)
            with pytest.raises(ConnPoolError, match="orders") as told:
                provoke(pool)
            assert type(told.value) is kind
            assert told.value.pool == "orders"
            assert isinstance(told.value, ConnectionError) is False, "no endpoint is to blame"
            assert pool.endpoints()[0].failures == 0
            held.release()


def is_set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_the_errors_of_a_checkout_survive_pickling() -> None:
    with refused_port() as reserved, ConnectionPool(f"127.0.0.1:{reserved.getsockname()[1]}") as pool:
        for error in (failing(pool), failing(pool)):
            twin = pickle.loads(pickle.dumps(error))
            assert (type(twin), str(twin), twin.pool) == (type(error), str(error), error.pool)
            assert isinstance(twin, NoEndpointError)
            assert [where for where, _ in twin.causes] == [where for where, _ in error.causes]


def test_being_full_is_never_the_endpoints_fault() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        with pool.try_connect(timeout=5):
            for timeout in (0, 0.01) * 5:
                with pytest.raises((PoolExhaustedError, CheckoutTimeoutError)):
                    pool.try_connect(timeout=timeout)
        assert pool.endpoints()[0].state is EndpointState.UP
        with pool.try_connect(timeout=0) as conn:
            assert conn.uses == 1


def test_a_blacklisted_endpoint_is_not_dialled_and_the_error_says_until_when() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, blacklist_initial=30) as pool:
        server.refuse()
        first = failing(pool)
        with taking(0, 1):
            second = failing(pool)
        assert isinstance(first, NoEndpointError)
        assert isinstance(second, NoEndpointError)
        assert first.retry_at is not None
        assert second.retry_at == first.retry_at
        assert pool.stats().connect_failures == 1
        server.start()
        pool.unblacklist(server.endpoint)
        pool.try_connect(timeout=5).release()
        assert pool.endpoints()[0].failures == 0


def test_a_blacklist_of_no_length_is_no_endless_loop() -> None:
    with refused_port() as reserved:
        endpoint = Endpoint("127.0.0.1", reserved.getsockname()[1])
        with ConnectionPool(endpoint, blacklist_initial=0, blacklist_max=0, reap_interval=None) as pool:
            for n in range(1, 4):
                with taking(0, 2):
                    failing(pool)
                assert pool.stats().connect_failures == n, "each endpoint is tried once"


@pytest.mark.parametrize("kind", ["refused", "silent", "tls"])
def test_failures_leave_no_descriptor_no_thread_and_no_place(kind: str, certificates: Certificates) -> None:
    tls = certificates.server() if kind == "tls" else None
    with ScriptedServer(tls=tls) as server:
        if kind == "refused":
            server.refuse()
        elif kind == "silent":
            server.black_hole()
        with ConnectionPool(
            server.endpoint,
            connector=SocketConnector(tls=certificates.stranger()),
            blacklist_initial=0,
            connect_timeout=0.02 if kind == "silent" else 5,
        ) as pool:
            together(*[lambda: [failing(pool) for _ in range(10)]] * 4, limit=30)
            stats = pool.stats()
            assert (stats.size, stats.waiting) == (0, 0)
            assert stats.connect_failures >= 10


MISTAKES: dict[str, Callable[[ConnectionPool, Connection], object]] = {
    "an endpoint nobody knows": lambda pool, conn: pool.blacklist("c:1"),
    "a listener that cannot be called": lambda pool, conn: pool.listen("print"),  # type: ignore[arg-type]
    "a kind that is none": lambda pool, conn: pool.listen(print, int),  # type: ignore[arg-type]
    "a socket of what has none": lambda pool, conn: conn.socket,
    "output of what has none": lambda pool, conn: conn.sendall(b"hello"),
    "a member too many": lambda pool, conn: require_places(pool, Route.parse("a:1 && b:1")),
    "a pool nobody knows": lambda pool, conn: Repository()["orders"],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_an_error_that_names_a_pool_says_which_by_itself_too(mistake) -> None:
    with ConnectionPool.of(object, max_size=1, name="orders") as pool, pool.try_connect() as conn:
        with pytest.raises(ConnPoolError) as told:
            mistake(pool, conn)
        assert told.value.pool == "orders"


@pytest.mark.parametrize("ask", [ConnectionPool.share, lambda pool: pool.try_connect(Request(shared=True))])
def test_whoever_may_not_share_is_told_what_to_do_about_it(ask) -> None:
    words = "pool 'orders' is not sharable; make it with sharable=True"
    with ConnectionPool.of(object, name="orders") as pool, pytest.raises(NotSharableError, match=words):
        ask(pool)


def test_a_checkout_whose_filter_liked_nothing_in_time_is_told_so() -> None:
    with ConnectionPool("a:1", connector=Switchboard(), max_size=2) as pool:
        for conn in [pool.try_connect() for _ in range(2)]:
            conn.release()
        with pytest.raises(CheckoutTimeoutError, match=r"0 in use, 0 waiting; 2 did not pass `where`\)$"):
            pool.try_connect(Request(where=lambda info: False), timeout=0.05)


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_is_no_error_is_none_to_terminate_for(is_shared: bool) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), sharable=True) as pool:
        conn = pool.share() if is_shared else pool.try_connect()
        with pytest.raises(ConfigError, match="error must be a BaseException, got 'it hangs'"):
            conn.terminate("it hangs")  # type: ignore[arg-type]
        assert pool.stats().size == 1
        assert pool.endpoints()[0].last_error is None
        conn.terminate(TimeoutError("it hangs"))
        assert pool.stats().size == 0
        assert str(pool.endpoints()[0].last_error) == "it hangs"
