"""TLS whose beginning goes wrong: reset before it starts, cut in the middle, too slow to end."""

from __future__ import annotations

import select
import socket

import pytest

from connpool import ConnectError, ConnectionPool, ConnectTimeoutError, HandshakeError, SocketConnector
from connpool.testing import Ending, FakeClock, FaultProxy, ScriptedServer, Way
from connpool.wire.tls import begin_tls
from tests.helpers.certificates import Certificates
from tests.helpers.clients import reset
from tests.helpers.faults import turn
from tests.helpers.switchboard import until
from tests.helpers.wire import taking


def test_a_connection_that_is_reset_before_tls_begins_leaves_no_descriptor(
    certificates: Certificates,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        reset(listener.accept()[0])
        poll = select.poll()
        poll.register(client, select.POLLIN)
        assert poll.poll(5_000)  # the reset is here
        client.setblocking(False)
        with pytest.raises(OSError, match="reset"):
            begin_tls(client, certificates.client(), "localhost")
        assert client.fileno() == -1


def test_a_server_that_resets_whoever_dials_costs_no_descriptor(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with ScriptedServer(tls=certificates.server()) as server, FaultProxy(server.endpoint) as proxy:
        proxy.reject()
        for _ in range(100):
            with pytest.raises(ConnectError):
                connector.open(proxy.endpoint, 5)
        proxy.heal()
        connector.close(connector.open(proxy.endpoint, 5))


def test_a_server_survives_clients_that_reset_before_or_in_the_handshake(certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.server()) as server:
        for n in range(100):
            client = socket.create_connection(("127.0.0.1", server.port))
            if n % 2:
                client.sendall(b"\x16\x03\x01")
            reset(client)
        server.until_accepts(100)
        until(lambda: None not in server.closes, "the end of all")
        assert set(server.closes) == {Ending.HANDSHAKE}
        connector = SocketConnector(tls=certificates.client())
        connector.close(connector.open(server.endpoint, 5))


@pytest.mark.parametrize("after", [0, 1, 5, 200, 400])
@pytest.mark.parametrize("way", list(Way))
def test_a_handshake_that_is_cut_is_a_failure_of_the_endpoint_and_passes(
    way: Way, after: int, certificates: Certificates, clock: FakeClock
) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, clock=clock) as pool,
    ):
        proxy.cut(min(after, 100) if way is Way.UP else after, way)
        with pytest.raises(HandshakeError):
            pool.try_connect()
        assert pool.endpoints()[0].failures == 1
        proxy.heal()
        clock.advance(5)
        turn(pool)
        assert pool.endpoints()[0].failures == 0


@pytest.mark.parametrize("fault", ["silence", "a slow line", "a trickle"])
def test_a_handshake_that_is_too_slow_ends_with_the_dials_timeout(
    fault: str, certificates: Certificates, clock: FakeClock
) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, clock=clock, connect_timeout=0.3) as pool,
    ):
        if fault == "silence":
            proxy.drop()
        elif fault == "a slow line":
            proxy.delay(2)
        else:
            proxy.limit(200)  # each byte comes in time, and the whole does not
        with taking(0.29, 3), pytest.raises(ConnectTimeoutError):
            pool.try_connect()
        proxy.heal()
        pool.configure(connect_timeout=5)
        clock.advance(5)
        turn(pool)


def test_a_handshake_that_is_slow_and_ends_in_time_is_no_failure(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, connect_timeout=20) as pool,
    ):
        proxy.delay(0.05)
        turn(pool)
        assert pool.endpoints()[0].failures == 0
