"""The fault proxy passes everything on, and misbehaves exactly as it is told."""

from __future__ import annotations

import errno
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from connpool import ConfigError, Endpoint
from connpool.testing import Answer, Close, Echo, Ending, FaultProxy, ScriptedServer, Send, Silence, Way
from tests.helpers.certificates import Certificates
from tests.helpers.clients import LIMIT, read_all, reset
from tests.helpers.together import together
from tests.helpers.wire import needs_ipv6, taking


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def proxy(server: ScriptedServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


@contextmanager
def dialled(proxy: FaultProxy) -> Iterator[socket.socket]:
    """Connect to *proxy*, and close in the end."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT) as client:
        yield client


def ask(client: socket.socket, text: bytes = b"ping") -> bytes:
    """Send *text* and receive as many bytes."""
    client.sendall(text)
    answer = b""
    while len(answer) < len(text) and (more := client.recv(65_536)):
        answer += more
    return answer


def hears_nothing(client: socket.socket, seconds: float = 0.1) -> bool:
    """Whether *client* learns of no byte, no end and no reset for *seconds*."""
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        client.settimeout(LIMIT)


# -- left alone ------------------------------------------------------------------


def test_left_alone_it_passes_every_byte_and_counts_them(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        data = bytes(range(256)) * 2_000
        assert ask_and_read_meanwhile(client, data) == data
        assert (proxy.accepts, proxy.open, server.accepts) == (1, 1, 1)
        assert (proxy.bytes_up, proxy.bytes_down) == (len(data), len(data))
    proxy.until_open(0)
    server.until_accepts(1).until_eof()


def ask_and_read_meanwhile(client: socket.socket, data: bytes) -> bytes:
    """Send *data* on a thread of its own while the answer is read."""
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    answer = b""
    while len(answer) < len(data):
        answer += client.recv(65_536)
    sender.join()
    return answer


def test_a_half_closed_connection_still_hears_the_answer() -> None:
    with (
        ScriptedServer(script=[Answer(b"bye", times=1), Close()]) as server,
        FaultProxy(server.endpoint) as proxy,
        dialled(proxy) as client,
    ):
        proxy.delay(0.05, Way.DOWN)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"bye"
        proxy.until_open(0)


def test_ends_are_passed_on_as_what_they_are(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as first, dialled(proxy) as second, dialled(proxy) as third:
        for client in (first, second, third):
            assert ask(client, b"?") == b"?"
        server.until_accepts(1).close()
        assert first.recv(1) == b""
        server.until_accepts(2).reset()
        with pytest.raises(ConnectionResetError):
            second.recv(1)
        reset(third)
        assert server.until_accepts(3).until_ended() is Ending.RESET
    proxy.until_open(0)


def test_tls_passes_unseen(certificates: Certificates) -> None:
    with (
        ScriptedServer(tls=certificates.server()) as server,
        FaultProxy(server.endpoint) as proxy,
        dialled(proxy) as plain,
    ):
        assert proxy.endpoint == Endpoint("127.0.0.1", proxy.port, tls=True)
        with certificates.client().wrap_socket(plain, server_hostname="localhost") as client:
            assert isinstance(client, ssl.SSLSocket)
            assert ask(client) == b"ping"


@needs_ipv6
def test_it_serves_ipv6_too() -> None:
    with ScriptedServer(host="::1") as server, FaultProxy(server.endpoint, host="::1") as proxy:
        assert str(proxy.endpoint) == f"[::1]:{proxy.port}"
        with socket.create_connection(("::1", proxy.port), timeout=LIMIT) as client:
            assert ask(client) == b"ping"


def test_its_target_can_change_for_later_connections(proxy: FaultProxy, server: ScriptedServer) -> None:
    with ScriptedServer(script=Send(b"other")) as other, dialled(proxy) as first:
        assert ask(first) == b"ping"
        proxy.target = other.endpoint
        with dialled(proxy) as second:
            assert second.recv(5) == b"other"
        assert ask(first) == b"ping"


def test_a_target_that_is_down_shows_as_a_reset(proxy: FaultProxy, server: ScriptedServer) -> None:
    server.refuse()
    with pytest.raises(ConnectionResetError), dialled(proxy) as client:  # during the connect, or after it
        client.recv(1)
    proxy.until(lambda: (proxy.accepts, proxy.open) == (1, 0))


def test_only_tcp_has_a_proxy() -> None:
    with pytest.raises(ConfigError, match="unix:/tmp/x"):
        FaultProxy(Endpoint.unix("/tmp/x"))
    proxy = FaultProxy("127.0.0.1:1")
    with pytest.raises(ConfigError, match="unix:/tmp/x"):
        proxy.target = Endpoint.unix("/tmp/x")


def test_a_target_may_be_set_as_a_text(proxy: FaultProxy, server: ScriptedServer) -> None:
    proxy.target = str(server.endpoint)
    with dialled(proxy) as client:
        assert ask(client) == b"ping"


@pytest.mark.parametrize(
    ("tell", "wrong"),
    [
        (FaultProxy.limit, 0),
        (FaultProxy.limit, -1),
        (FaultProxy.limit, math.inf),
        (FaultProxy.delay, -1),
        (FaultProxy.delay, math.nan),
        (FaultProxy.cut, -1),
        (FaultProxy.cut, 1.5),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_and_it_goes_on(
    tell: Callable[..., None], wrong: float, proxy: FaultProxy
) -> None:
    with pytest.raises(ConfigError, match=f"got {wrong}"):
        tell(proxy, wrong)
    with dialled(proxy) as client:
        assert ask(client) == b"ping"


def test_a_delay_of_years_is_one(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        proxy.delay(1e9)
        client.sendall(b"x")
        proxy.until_open(1)
        proxy.heal()
        assert client.recv(1) == b"x"


# -- the door --------------------------------------------------------------------


def test_it_refuses_the_new_and_keeps_the_old(proxy: FaultProxy) -> None:
    with dialled(proxy) as old:
        assert ask(old) == b"ping"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError), dialled(proxy):
            pass
        assert ask(old) == b"ping"
        proxy.heal()
        with dialled(proxy) as new:
            assert ask(new) == b"ping"
    assert proxy.accepts == 2


def test_who_has_left_before_it_is_let_in_leaves_nothing_open(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems refuse to set anything of such a socket."""
    real = socket.socket.setsockopt

    def refuse_once(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY):
            monkeypatch.setattr(socket.socket, "setsockopt", real)
            raise OSError(errno.EINVAL, "Invalid argument")
        real(sock, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", refuse_once)
    with pytest.raises(ConnectionResetError), dialled(proxy) as client:
        client.recv(1)
    with dialled(proxy) as client:
        assert ask(client) == b"ping"


def test_it_rejects_the_new_with_a_reset(proxy: FaultProxy, server: ScriptedServer) -> None:
    proxy.reject()
    with pytest.raises(ConnectionResetError), dialled(proxy) as client:  # during the connect, or after it
        client.recv(1)
    proxy.until_accepts(1)
    assert (proxy.open, server.accepts) == (0, 0)


def test_a_black_hole_lets_connects_hang_until_it_is_healed(proxy: FaultProxy) -> None:
    proxy.black_hole()
    with socket.socket() as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.connect(("127.0.0.1", proxy.port))
    assert proxy.accepts == 0
    proxy.heal()
    with dialled(proxy) as client:
        assert ask(client) == b"ping"


def test_it_goes_away_and_comes_back_on_the_same_port(server: ScriptedServer) -> None:
    with FaultProxy(server.endpoint) as proxy:
        before = proxy.endpoint
        with dialled(proxy) as client:
            assert ask(client) == b"ping"
            proxy.stop()
            assert client.recv(1) == b""
            with pytest.raises(ConnectionRefusedError), dialled(proxy):
                pass
        server.until_open(0)
        proxy.start()
        assert proxy.endpoint == before
        with dialled(proxy) as client:
            assert ask(client) == b"ping"
        assert proxy.accepts == 2
    proxy.stop()
    with pytest.raises(AssertionError, match="does not run"):
        proxy.refuse()


# -- the line --------------------------------------------------------------------


def test_what_is_dropped_arrives_when_it_is_healed(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.drop()
        client.sendall(b"2")
        assert hears_nothing(client)
        assert server.received == [b"1"]
        proxy.heal()
        assert client.recv(1) == b"2"


def test_requests_can_be_dropped_and_answers_pass(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.drop(Way.UP)
        client.sendall(b"2")
        server.until_accepts(1).send(b"unasked")
        assert client.recv(7) == b"unasked"
        assert server.received == [b"1"]


def test_answers_can_be_dropped_and_requests_pass(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        proxy.drop(Way.DOWN)
        client.sendall(b"1")
        server.until_accepts(1).until_received(b"1")
        assert hears_nothing(client)


def test_while_it_drops_no_end_is_told_to_either_side(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as first, dialled(proxy) as second:
        for client in (first, second):
            assert ask(client, b"?") == b"?"
        proxy.drop()
        server.until_accepts(1).reset()
        assert hears_nothing(first)
        second.close()
        proxy.until_open(1)
        assert server.closes[1] is None
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        server.until_accepts(2).until_eof()


def test_who_dials_while_it_drops_is_accepted_into_silence(proxy: FaultProxy, server: ScriptedServer) -> None:
    proxy.drop()
    with dialled(proxy) as client:
        client.sendall(b"anybody?")
        assert hears_nothing(client)
        assert (proxy.accepts, server.accepts) == (1, 0)
        proxy.heal()
        assert client.recv(8) == b"anybody?"


def test_a_delay_holds_everything_back_that_long(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        assert ask(client) == b"ping"
        proxy.delay(0.1)
        with taking(0.19, 2):
            assert ask(client) == b"ping"
        proxy.delay(0.1, Way.UP)
        proxy.delay(0.0, Way.DOWN)
        with taking(0.09, 2):
            assert ask(client) == b"ping"
        proxy.heal()
        with taking(0, 0.09):
            assert ask(client) == b"ping"


def test_a_rate_limits_bytes_a_second(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        proxy.limit(10_000, Way.DOWN)
        with taking(0.25, 3):
            assert ask(client, bytes(3_000)) == bytes(3_000)


@pytest.mark.parametrize("ending", [Ending.OUR_RESET, Ending.OURS])
def test_it_cuts_after_so_many_bytes(ending: Ending, proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as old:
        assert ask(old) == b"ping"
        proxy.cut(3, Way.DOWN, ending=ending)
        with dialled(proxy) as new:
            for client in (old, new):
                client.sendall(b"12345")
                assert b"".join(iter_bytes(client, 3)) == b"123"
                if ending is Ending.OURS:
                    assert client.recv(1) == b""
                else:
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
    ends = [connection.until_ended() for connection in server.connections]
    assert ends == [Ending.EOF if ending is Ending.OURS else Ending.RESET] * 2
    assert proxy.bytes_down == 4 + 3 + 3
    proxy.heal()
    with dialled(proxy) as client:
        assert ask(client, b"12345") == b"12345"


def iter_bytes(client: socket.socket, n: int) -> Iterator[bytes]:
    """Receive *n* bytes, one by one."""
    for _ in range(n):
        yield client.recv(1)


def test_a_cut_after_nothing_lets_not_one_byte_pass(proxy: FaultProxy, server: ScriptedServer) -> None:
    proxy.cut(0, Way.UP)
    with dialled(proxy) as client:
        server.until_accepts(1)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        server.until_accepts(1).until_ended()
    assert server.received == [b""]


# -- the connections that are open ------------------------------------------------


def test_what_it_forgets_is_half_open_for_good_and_the_new_pass(
    proxy: FaultProxy, server: ScriptedServer
) -> None:
    with dialled(proxy) as old:
        assert ask(old, b"1") == b"1"
        proxy.forget()
        old.sendall(b"2")
        proxy.heal()
        assert hears_nothing(old)
        assert (server.received, server.closes, proxy.open) == ([b"1"], [None], 1)
        with dialled(proxy) as new:
            assert ask(new, b"3") == b"3"
    proxy.until_open(0)
    server.until_accepts(2).until_eof()
    assert server.closes[0] is None  # the server does not know to this day


def test_it_resets_or_closes_what_is_open_and_serves_on(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as first:
        assert ask(first) == b"ping"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            first.recv(1)
    with dialled(proxy) as second:
        assert ask(second) == b"ping"
        proxy.close()
        assert second.recv(1) == b""
        assert proxy.open == 0
    with dialled(proxy) as third:
        assert ask(third) == b"ping"
    ends = [connection.until_ended() for connection in server.connections]
    assert ends == [Ending.RESET, Ending.EOF, Ending.EOF]
    assert proxy.peak == 1


def test_a_deaf_receiver_holds_the_sender_up_and_nobody_else(server: ScriptedServer) -> None:
    with FaultProxy(server.endpoint) as proxy, dialled(proxy) as deaf, dialled(proxy) as other:
        deaf.settimeout(0.3)
        with pytest.raises(TimeoutError):
            deaf.sendall(bytes(50_000_000))  # and reads none of the echo
        assert ask(other) == b"ping"


# -- nothing is left, and nothing turns in circles -----------------------------------


def test_an_idle_proxy_sleeps_whatever_its_connections_went_through(
    proxy: FaultProxy, server: ScriptedServer
) -> None:
    clients = [socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT) for _ in range(4)]
    try:
        for client in clients:
            assert ask(client) == b"ping"
        proxy.forget()
        reset(clients[0])
        clients[1].close()
        server.until_accepts(3).reset()
        server.until_accepts(4).close()
        proxy.until_open(2)
        began = time.process_time()
        threading.Event().wait(0.3)
        assert time.process_time() - began < 0.15
    finally:
        for client in clients:
            client.close()


def test_many_at_once_are_passed_on_and_counted(proxy: FaultProxy) -> None:
    def turn() -> None:
        for _ in range(5):
            with dialled(proxy) as client:
                assert ask(client, b"12345678") == b"12345678"

    together(*[turn] * 20)
    assert proxy.accepts == 100
    assert (proxy.bytes_up, proxy.bytes_down) == (800, 800)
    assert 1 <= proxy.peak <= 100
    proxy.until_open(0)


def test_waiting_for_what_never_comes_fails_and_says_where_things_stand(proxy: FaultProxy) -> None:
    with dialled(proxy), pytest.raises(AssertionError, match=r"accepting, 1 open, 1 accepted"):
        proxy.until_accepts(2, timeout=0.1)


def test_scripts_of_the_server_work_through_it() -> None:
    with (
        ScriptedServer(script=[Echo(times=1), Close()]) as server,
        FaultProxy(server.endpoint) as proxy,
        dialled(proxy) as client,
    ):
        client.sendall(b"last words")
        assert read_all(client) == b"last words"
        server.script = Silence()
        with dialled(proxy) as silent:
            silent.sendall(b"?")
            assert hears_nothing(silent)
