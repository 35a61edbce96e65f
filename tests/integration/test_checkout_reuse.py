"""Which connection a checkout lends: an idle one where it may, a new one where it must."""

from __future__ import annotations

import pytest

from connpool import (
    CloseReason,
    Connection,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    EndpointState,
    PoolExhaustedError,
    Request,
    SocketConnector,
    UsageError,
)
from connpool.testing import Ending, FakeClock, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.clients import ask
from tests.helpers.switchboard import Switchboard, until
from tests.helpers.together import together
from tests.helpers.wire import answer_names_with, taking


def port(conn: Connection) -> int:
    return int(conn.socket.getsockname()[1])


def lend(pool: ConnectionPool, n: int) -> list[Connection]:
    return [pool.try_connect(timeout=5) for _ in range(n)]


def release_all(conns: list[Connection]) -> None:
    for conn in conns:
        conn.release()


def accepted(server: ScriptedServer, n: int) -> None:
    """Check that *server* accepted *n* connections; it may come to see a dial after its dialler."""
    if n:
        server.until_accepts(n)
    assert server.accepts == n


# -- reuse


def test_eight_released_connections_are_the_eight_lent_next() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=8) as pool:
        conns = lend(pool, 8)
        first = {port(conn) for conn in conns}
        assert len(first) == 8
        release_all(conns)
        conns = lend(pool, 8)
        assert {port(conn) for conn in conns} == first
        accepted(server, 8)
        release_all(conns)


def test_nothing_is_dialled_before_it_is_needed() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        assert pool.stats().size == 0
        assert pool.take() is None
        pool.try_connect(timeout=5).release()
        accepted(server, 1)


def test_the_most_recently_released_is_lent_first() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conns = lend(pool, 3)
        ids = [conn.info.id for conn in conns]
        release_all(conns)
        conns = lend(pool, 3)
        assert [conn.info.id for conn in conns] == ids[::-1]
        release_all(conns)


def test_the_most_recently_released_is_lent_first_to_who_chooses_too() -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board) as pool:
        release_all(lend(pool, 3))
        released = [info.id for info in sorted(pool.connections(), key=lambda info: info.since)]
        seen: list[int] = []
        where = Request(where=lambda info: seen.append(info.id) or info.id == released[0])
        with pool.try_connect(where, timeout=5) as conn:
            assert conn.info.id == released[0]
        assert seen == released[::-1]


def test_uses_counts_the_loans_before_the_present_one_of_each_connection() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        for expected in range(3):
            with pool.try_connect(timeout=5) as conn:
                assert conn.uses == conn.info.uses == expected
        one, other = lend(pool, 2)
        assert (one.uses, other.uses) == (3, 0)
        release_all([one, other])


def test_counters_do_not_wrap_at_16_bits() -> None:
    pool = ConnectionPool.of(object)
    for _ in range(65_540):
        pool.try_connect().release()
    with pool.try_connect() as conn:
        assert conn.uses == 65_540
    with pytest.raises(UsageError):
        conn.release()
    assert pool.stats().checkouts == 65_541
    pool.close()


def test_max_uses_is_exact(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_uses=3, clock=clock) as pool:
        ports = []
        for _ in range(7):
            with pool.try_connect(timeout=5) as conn:
                ports.append(port(conn))
        assert ports[0] == ports[1] == ports[2] != ports[3] == ports[4] == ports[5] != ports[6]
        assert pool.stats().closed[CloseReason.USED_UP] == 2
        server.until_open(1)


def test_a_limit_of_uses_counts_those_from_before_it_was_set() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        for _ in range(2):
            pool.try_connect(timeout=5).release()
        pool.configure(max_uses=2)
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0


# -- giving back


def test_a_block_that_ends_gives_back_and_one_that_raises_closes() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            first = port(conn)
        with pytest.raises(ZeroDivisionError), pool.try_connect(timeout=5) as conn:
            _ = 1 / (port(conn) - first)
        server.until_accepts(1).until_ended()
        assert server.closes == [Ending.EOF]
        with pool.try_connect(timeout=5) as conn:
            assert port(conn) != first
        accepted(server, 2)
        assert pool.stats().closed == {CloseReason.TERMINATED: 1}


def test_a_block_may_give_back_by_itself() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            conn.release()
        with pool.try_connect(timeout=5) as conn:
            conn.terminate()
        assert (pool.stats().in_use, pool.stats().size) == (0, 0)
        with pytest.raises(KeyError), pool.try_connect(timeout=5) as conn:
            {}[conn.release()]


def test_a_terminated_connection_leaves_its_error_but_blames_nobody() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        error = ValueError("a strange answer")
        pool.try_connect(timeout=5).terminate(error)
        (told,) = pool.endpoints()
        assert told.last_error is error
        assert (told.state, told.failures) == (EndpointState.UP, 0)


# -- what makes two connections interchangeable


def test_two_tls_names_on_one_address_never_share(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificates.server("a.test", "b.test")
    with ScriptedServer(tls=context) as server:
        answer_names_with(monkeypatch, ("127.0.0.1", server.port))
        a, b = (Endpoint(name, server.port, tls=True) for name in ("a.test", "b.test"))
        connector = SocketConnector(tls=certificates.client())
        with ConnectionPool([a, b], connector=connector) as pool:
            pool.try_connect(a, timeout=5).release()
            with pool.try_connect(b, timeout=5) as conn:
                assert ask(conn) == b"ping"
            with pool.try_connect(a, timeout=5) as conn:
                assert ask(conn) == b"ping"
            assert [served.sni for served in server.connections] == ["a.test", "b.test"]


def test_plain_and_tls_to_one_port_never_mix(certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.server()) as server:
        secure = server.endpoint
        plain = Endpoint(secure.host, secure.port)
        with ConnectionPool([secure, plain], connector=SocketConnector(tls=certificates.client())) as pool:
            pool.try_connect(secure, timeout=5).release()
            with pool.try_connect(plain, timeout=5) as conn:
                assert conn.ssl_socket is None
            with pool.try_connect(secure, timeout=5) as conn:
                assert conn.ssl_socket is conn.socket
            accepted(server, 2)


def test_an_endpoint_and_its_text_are_one_and_need_not_be_on_the_route() -> None:
    with ScriptedServer() as server, ScriptedServer() as other, ConnectionPool(server.endpoint) as pool:
        pool.try_connect(other.endpoint, timeout=5).release()
        with pool.try_connect(str(other.endpoint), timeout=5) as conn:
            assert (conn.endpoint, conn.uses) == (other.endpoint, 1)
        accepted(other, 1)
        accepted(server, 0)


def test_checkouts_without_a_pin_never_get_a_connection_off_the_route() -> None:
    with ScriptedServer() as server, ScriptedServer() as other, ConnectionPool(server.endpoint) as pool:
        pool.try_connect(other.endpoint, timeout=5).release()
        with pool.try_connect(timeout=5) as conn:
            assert conn.endpoint == server.endpoint


# -- limits


def test_in_a_full_pool_requests_take_turns_too() -> None:
    with ConnectionPool("a:1, b:1", connector=Switchboard(), max_size=4) as pool:
        for _ in range(2):
            loans = [pool.try_connect(Request(timeout=5)) for _ in range(4)]
            assert {str(loan.endpoint) for loan in loans[:2]} == {"a:1", "b:1"}
            for loan in loans:
                loan.release()


def test_the_ninth_of_eight_is_refused_at_once_and_nobody_is_blamed() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=8) as pool:
        conns = lend(pool, 8)
        with taking(0, 0.5), pytest.raises(PoolExhaustedError, match="8 of 8"):
            pool.try_connect(timeout=0)
        (told,) = pool.endpoints()
        assert (told.state, told.failures, told.last_error) == (EndpointState.UP, 0, None)
        stats = pool.stats()
        assert (stats.size, stats.idle, stats.in_use, stats.opening) == (8, 0, 8, 0)
        for conn in conns:
            conn.terminate()
        server.until_open(0)
        stats = pool.stats()
        assert (stats.size, stats.idle, stats.in_use, stats.closing) == (0, 0, 0, 0)
        accepted(server, 8)


def test_one_endpoint_cannot_take_the_places_of_another() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint], max_size=4, max_per_endpoint=2) as pool,
    ):
        conns = [pool.try_connect(a.endpoint, timeout=5) for _ in range(2)]
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(a.endpoint, timeout=0)
        conns += [pool.try_connect(b.endpoint, timeout=0) for _ in range(2)]
        accepted(a, 2)
        accepted(b, 2)
        assert all(told.failures == 0 for told in pool.endpoints())
        release_all(conns)


def test_one_that_goes_over_to_tls_leaves_its_place_to_who_waits_for_a_plain_one(
    certificates: Certificates,
) -> None:
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(f"localhost:{server.port}", max_per_endpoint=1, connect_timeout=60) as pool,
    ):
        upgraded = pool.try_connect(timeout=5)

        def wait() -> None:
            with taking(0, 8):
                pool.try_connect(timeout=20).release()

        def upgrade() -> None:
            until(lambda: pool.stats().waiting == 1)
            upgraded.start_tls(certificates.client(), timeout=5)

        together(wait, upgrade, limit=30)
        upgraded.release()


def test_a_full_endpoint_is_passed_over_for_one_with_room() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint], max_size=4, max_per_endpoint=2) as pool,
    ):
        conns = [pool.try_connect(a.endpoint, timeout=5) for _ in range(2)]
        conns += [pool.try_connect(timeout=5) for _ in range(2)]
        assert [conn.endpoint for conn in conns[2:]] == [b.endpoint, b.endpoint]
        release_all(conns)


@pytest.mark.parametrize("timeout", [0, 5])
def test_an_idle_connection_elsewhere_makes_room(timeout: float) -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint], max_size=1) as pool,
    ):
        pool.try_connect(a.endpoint, timeout=5).release()
        with pool.try_connect(b.endpoint, timeout=timeout) as conn:
            assert ask(conn) == b"ping"
            a.until_accepts(1).until_ended()
            assert a.closes == [Ending.EOF]
        assert pool.stats().closed == {CloseReason.EVICTED: 1}


def test_it_is_the_longest_idle_one_that_makes_room() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint], max_size=2) as pool,
    ):
        conns = [pool.try_connect(a.endpoint, timeout=5) for _ in range(2)]
        a.until_accepts(2)
        release_all(conns)
        with pool.try_connect(b.endpoint, timeout=5):
            a.until_accepts(1).until_ended()
            assert a.closes == [Ending.EOF, None]


def test_a_dial_that_may_start_at_once_has_its_time_even_with_timeout_zero() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connect_timeout=0.3) as pool,
        pool.try_connect(timeout=0) as conn,
    ):
        assert ask(conn) == b"ping"
        server.black_hole()
        with taking(0.29, 3), pytest.raises(ConnectTimeoutError):
            pool.try_connect(timeout=0)
