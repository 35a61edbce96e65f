"""The fault proxy passes everything on, and misbehaves exactly as it is told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from connpool import ConfigError, Endpoint
from connpool.testing import Answer, Close, Echo, Ending, FaultProxy, ScriptedServer, Send, Silence, Way
from tests.helpers.certificates import Certificates
from tests.helpers.clients import LIMIT, read_all, reset
from tests.helpers.together import together
from tests.helpers.wire import needs_ipv6, taking

MUCH = 100_000_000  # bytes; more than all that lies between two ends


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


@contextmanager
def through() -> Iterator[tuple[FaultProxy, socket.socket, socket.socket]]:
    """A proxy, and the bare sockets on both sides of one connection through it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy(Endpoint(*listener.getsockname())) as proxy,
    ):
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT)
        server, _ = listener.accept()
        server.settimeout(LIMIT)
        yield proxy, client, server


def read_available(sock: socket.socket) -> bytes:
    """What has come, until nothing more does."""
    came = b""
    while select.select([sock], [], [], 0.05)[0]:
        came += sock.recv(1_000_000)
    return came


def count_turns(proxy: FaultProxy) -> list[None]:
    """One for each time that its thread wakes for its one connection, from now on."""
    (relay,) = proxy._relays
    turns: list[None] = []
    turn = relay.turn

    def counted(ready: Mapping[int, int], now: float) -> None:
        turns.append(None)
        turn(ready, now)

    relay.turn = counted  # type: ignore[method-assign]
    return turns


# -- left alone ------------------------------------------------------------------


def test_left_alone_it_passes_every_byte_and_counts_them(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        data = bytes(range(256)) * 8_000
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


@pytest.mark.parametrize("way", Way)
def test_the_other_way_goes_on_after_the_end_of_one_and_the_thread_sleeps(way: Way) -> None:
    with through() as (proxy, client, server), client, server:
        first, second = (client, server) if way is Way.UP else (server, client)
        first.shutdown(socket.SHUT_WR)
        assert second.recv(1) == b""
        turns = count_turns(proxy)
        second.sendall(b"late")
        assert first.recv(4) == b"late"
        assert hears_nothing(first)
        assert len(turns) < 10
        second.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""
        proxy.until(lambda: not proxy._relays)


@pytest.mark.parametrize("way", Way)
def test_who_does_not_read_holds_the_sender_up_and_gets_it_all_in_the_end(way: Way) -> None:
    with through() as (proxy, client, server), client, server:
        sender, reader = (client, server) if way is Way.UP else (server, client)
        sender.settimeout(0.2)
        data = random.Random(1).randbytes(65_536)
        sent, told = 0, hashlib.blake2b()
        with contextlib.suppress(TimeoutError):
            while sent < MUCH:
                n = sender.send(data)
                sent += n
                told.update(data[:n])
        assert sent < MUCH
        turns = count_turns(proxy)
        assert hears_nothing(sender)
        proxy.drop(way)
        came = read_available(reader)
        assert hears_nothing(reader)
        assert len(turns) < 10
        proxy.heal()
        sender.shutdown(socket.SHUT_WR)
        came += read_all(reader)
        assert hashlib.blake2b(came).digest() == told.digest()
        turns.clear()
        assert hears_nothing(sender)
        assert len(turns) < 10
        proxy.until(lambda: (proxy.bytes_up if way is Way.UP else proxy.bytes_down) == sent)


@pytest.mark.parametrize("way", Way)
def test_a_reset_is_passed_on_though_it_is_met_by_who_writes(way: Way) -> None:
    """What leaves is not read from, since its own way lets nothing pass."""
    with through() as (proxy, client, server), client, server:
        leaver, stayer = (client, server) if way is Way.UP else (server, client)
        proxy.drop(way)
        stayer.sendall(b"unread")
        assert leaver.recv(6) == b"unread"
        reset(leaver)
        counts = count_turns(proxy)
        for _ in range(3):
            stayer.sendall(b"x")
            assert hears_nothing(stayer, 0.05)
        assert len(counts) < 20
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            stayer.recv(1)


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
        proxy.until_accepts(1)
        proxy.until(lambda: bool(proxy._relays[0].pipes[Way.UP]._held))
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
        data = bytes(range(250)) * 12
        with taking(0.25, 3):
            assert ask(client, data) == data


def test_a_rate_of_less_than_a_byte_at_a_time_lets_them_pass_one_by_one_and_healed_the_rest_at_once(
    proxy: FaultProxy,
) -> None:
    with dialled(proxy) as client:
        proxy.limit(0.1, Way.UP)
        client.sendall(b"12345")
        assert client.recv(5) == b"1"
        assert hears_nothing(client)
        proxy.heal()
        with taking(0, 5):
            assert b"".join(iter_bytes(client, 4)) == b"2345"


def test_a_rate_leaves_a_delay_in_force(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        proxy.delay(0.1)
        proxy.limit(1e6)
        with taking(0.19, 2):
            assert ask(client) == b"ping"


def test_it_cuts_after_so_many_bytes_at_a_limited_rate(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        proxy.limit(1_000, Way.DOWN)
        proxy.cut(110, Way.DOWN, ending=Ending.OURS)
        data = bytes(range(200))
        client.sendall(data)
        with taking(0.07, 3):
            assert read_all(client) == data[:110]


def test_it_cuts_after_the_last_byte_and_not_before_the_next(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        proxy.cut(4, Way.DOWN, ending=Ending.OURS)
        client.sendall(b"1234")
        assert read_all(client) == b"1234"


def test_a_delay_holds_an_end_back_as_well(proxy: FaultProxy, server: ScriptedServer) -> None:
    with dialled(proxy) as client:
        assert ask(client) == b"ping"
        proxy.delay(0.1)
        with taking(0.09, 2):
            server.until_accepts(1).close()
            assert client.recv(1) == b""


def test_what_is_on_its_way_when_it_begins_to_drop_is_kept_back(proxy: FaultProxy) -> None:
    with dialled(proxy) as client:
        assert ask(client) == b"ping"
        proxy.delay(0.05)
        client.sendall(b"x")
        proxy.until(lambda: bool(proxy._relays[0].pipes[Way.UP]._held))
        proxy.drop()
        assert hears_nothing(client, 0.2)
        proxy.heal()
        assert client.recv(1) == b"x"


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
