"""The scripted server does what its script says, and sees what its clients do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connpool.model.endpoint import Endpoint
from connpool.testing import (
    Answer,
    Close,
    Deaf,
    Echo,
    Ending,
    NoHandshake,
    Pause,
    ReadSlowly,
    Reset,
    ScriptedServer,
    Send,
    ServedConnection,
    Silence,
    StartTls,
)
from tests.helpers.certificates import Certificates

LIMIT = 10.0


@contextlib.contextmanager
def dialled(server: ScriptedServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as client:
        yield client


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


def read_all(client: socket.socket) -> bytes:
    data = b""
    while more := client.recv(1000):
        data += more
    return data


# -- steps ---------------------------------------------------------------------


def test_without_a_script_it_echoes_until_the_client_leaves():
    with ScriptedServer() as server:
        with dialled(server) as client:
            for word in (b"one", b"two"):
                client.sendall(word)
                assert client.recv(100) == word
        served = server.until_accepts(1)
        served.until_eof()
    assert server.received == [b"onetwo"]
    assert server.closes == [Ending.EOF]


def test_answers_are_counted_by_request_even_if_requests_arrive_together_or_in_pieces():
    script = [Answer(b"+", times=2, delimiter=b"\r\n"), Answer(bytes.upper, delimiter=b"\n")]
    with ScriptedServer(script=script) as server, dialled(server) as client:
        client.sendall(b"a\r\nb\r")
        client.sendall(b"\nfoo\nbar\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"++FOO\nBAR\n"


def test_it_closes_after_as_many_requests_as_the_script_says():
    with ScriptedServer(script=[Echo(times=2), Close()]) as server, dialled(server) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        client.sendall(b"2")
        assert read_all(client) == b"2"
        assert server.until_accepts(1).until_ended() is Ending.OURS


def test_a_close_is_orderly_even_if_bytes_were_left_unread():
    with ScriptedServer(script=[unread_then_close]) as server, dialled(server) as client:
        client.sendall(b"never read by the script")
        assert read_all(client) == b"bye"


def unread_then_close(connection: ServedConnection) -> None:
    assert connection.receive(1) == b"n"
    connection.send(b"bye")
    connection.close()


def test_a_reset_is_a_reset():
    script = [Answer(b"", times=1), Reset()]
    with ScriptedServer(script=script) as server, dialled(server) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert server.until_accepts(1).until_ended() is Ending.OUR_RESET


def test_a_stray_byte_comes_unasked():
    with ScriptedServer(script=[Echo(times=1), Send(b"!")]) as server, dialled(server) as client:
        client.sendall(b"x")
        assert client.recv(1) + client.recv(1) == b"x!"


def test_a_silent_server_takes_everything_and_says_nothing():
    with ScriptedServer(script=Silence()) as server, dialled(server) as client:
        client.sendall(b"hello?")
        server.until_accepts(1).until_received(b"hello?")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_script_that_has_ended_leaves_the_connection_open_and_silent():
    with ScriptedServer(script=[Echo(times=1)]) as server, dialled(server) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        client.sendall(b"2")
        server.until_accepts(1).until_received(b"12")
        assert server.closes == [None]


def test_a_deaf_server_lets_the_clients_sends_block():
    with ScriptedServer(script=Deaf()) as server:
        with dialled(server) as client:
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.sendall(bytes(50_000_000))
            reset(client)
        assert server.until_accepts(1).until_ended() is Ending.RESET
        assert server.received == [b""]


def test_a_slow_reader_reads_at_its_rate():
    with ScriptedServer(script=ReadSlowly(2_000)) as server, dialled(server) as client:
        served = server.until_accepts(1)
        began = time.monotonic()
        client.sendall(bytes(700))
        served.until(lambda: len(served.received) == 700)
        assert time.monotonic() - began > 0.2  # seven readings of 100 bytes, 0.05 s apart


def test_a_pause_delays_the_next_step_and_an_order_breaks_it_off():
    with ScriptedServer(script=[Pause(0.1), Send(b"1"), Pause(3600)]) as server, dialled(server) as client:
        began = time.monotonic()
        assert client.recv(1) == b"1"
        assert time.monotonic() - began > 0.05
        server.until_accepts(1).close()
        assert client.recv(1) == b""


def test_a_step_of_the_tests_own_that_fails_fails_the_test():
    def broken(connection: ServedConnection) -> None:
        raise LookupError("not in the script")

    with (
        pytest.raises(ExceptionGroup, match="steps of a script failed") as caught,
        ScriptedServer(script=broken) as server,
        dialled(server) as client,
    ):
        assert client.recv(1) == b""
    assert caught.group_contains(LookupError, match="not in the script")


def test_the_tests_own_failure_is_not_hidden_by_that_of_a_step():
    def broken(connection: ServedConnection) -> None:
        raise LookupError

    def fail_in_the_block() -> None:
        with ScriptedServer(script=broken) as server, dialled(server) as client:
            assert client.recv(1) == b""
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_block()


def test_a_new_script_serves_later_connections_only():
    with ScriptedServer() as server, dialled(server) as first:
        server.until_accepts(1)
        server.script = Answer(b"new")
        with dialled(server) as second:
            for client in (first, second):
                client.sendall(b"old")
            assert (first.recv(3), second.recv(3)) == (b"old", b"new")


# -- what the test orders and sees -----------------------------------------------


def test_the_test_may_send_close_and_reset_while_the_script_waits_for_the_client():
    with ScriptedServer() as server, dialled(server) as first, dialled(server) as second:
        server.until_accepts(2)
        one, two = server.connections
        if one_is_of(second, first, one):
            one, two = two, one
        one.send(b"hello")
        assert first.recv(5) == b"hello"
        one.close()
        two.reset()
        assert first.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            second.recv(1)
        assert (one.ending, two.ending) == (Ending.OURS, Ending.OUR_RESET)
        with pytest.raises(AssertionError, match="cannot send"):
            one.send(b"too late")


def one_is_of(candidate: socket.socket, other: socket.socket, served: ServedConnection) -> bool:
    """Whether *served* is the other end of *candidate*, not of *other*."""
    candidate.sendall(b"?")
    other.sendall(b"!")
    assert (candidate.recv(1), other.recv(1)) == (b"?", b"!")
    return served.received == b"?"


def test_how_a_client_left_is_told_apart():
    with ScriptedServer() as server:
        with dialled(server):
            server.until_accepts(1).until(lambda: server.open == 1)
        server.until_open(0)
        with dialled(server) as client:
            served = server.until_accepts(2)
            reset(client)
            assert served.until_ended() is Ending.RESET
            with pytest.raises(AssertionError, match="not the end of file"):
                served.until_eof()
        assert server.closes == [Ending.EOF, Ending.RESET]


def test_waiting_for_what_never_comes_fails_and_says_where_things_stand():
    with ScriptedServer() as server, dialled(server):
        with pytest.raises(AssertionError, match=r"1 open, 1 accepted"):
            server.until_accepts(2, timeout=0.05)
        with pytest.raises(AssertionError, match=r"<ServedConnection 1: open"):
            server.until_accepts(1).until_eof(timeout=0.05)


def test_open_and_peak_count_connections_and_not_the_scripts_that_have_yet_to_notice():
    def dawdle(connection: ServedConnection) -> None:  # notices an end only when told to look
        connection.pause(3600)

    with ScriptedServer(script=dawdle) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        server.until_open(3)
        for client in held:
            client.close()
        for n in range(4, 10):
            with dialled(server):
                server.until_accepts(n)
        assert server.peak == 3
        assert server.open == 9  # what the scripts know
        server.kill()
        assert server.open == 0


def test_kill_resets_everybody_and_goes_on_serving():
    with ScriptedServer() as server, dialled(server) as first, dialled(server) as second:
        server.until_open(2)
        server.kill()
        for client in (first, second):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with dialled(server) as third:
            third.sendall(b"still there?")
            assert third.recv(100) == b"still there?"


# -- the server as a whole -------------------------------------------------------


def test_it_stops_refuses_and_comes_back_on_the_same_port():
    server = ScriptedServer()
    with server:
        port = server.port
        for close in (server.stop, server.refuse):
            with dialled(server) as client:
                close()
                if close == server.stop:
                    assert client.recv(1) == b""
                else:
                    client.sendall(b"still served")
                    assert client.recv(100) == b"still served"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
            server.start()
            assert server.port == port
        with dialled(server) as client:
            client.sendall(b"back")
            assert client.recv(4) == b"back"
    assert server.accepts == 3
    server.stop()  # once more does no harm


def test_a_black_hole_neither_accepts_nor_refuses_until_it_is_lifted():
    with ScriptedServer() as server:
        server.black_hole()
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", server.port), timeout=0.1)
        server.start()
        with dialled(server) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_it_gives_its_endpoint_and_speaks_ipv6_too():
    with ScriptedServer() as server:
        assert server.endpoint == Endpoint("127.0.0.1", server.port)
    with ScriptedServer(host="::1") as server:
        assert server.endpoint == Endpoint("::1", server.port)
        with socket.create_connection(("::1", server.port), timeout=LIMIT) as client:
            client.sendall(b"six")
            assert client.recv(3) == b"six"


def test_a_unix_socket_is_served_refused_and_removed_in_the_end(tmp_path: Path):
    path = tmp_path / "socket"

    def dial() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(LIMIT)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            raise
        return client

    with ScriptedServer(unix=path) as server:
        assert server.endpoint == Endpoint.unix(path)
        with dial() as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        server.until_accepts(1).until_eof()
        server.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial()
        server.start()
        dial().close()
        server.until_accepts(2)
    assert not path.exists()


def test_a_path_that_is_taken_is_an_error_and_stays_untouched(tmp_path: Path):
    path = tmp_path / "taken"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        ScriptedServer(unix=path).start()
    assert path.read_text() == "precious"


# -- TLS -------------------------------------------------------------------------


def test_tls_is_spoken_and_the_name_asked_for_is_noted(certificates: Certificates):
    context = certificates.server("a.example", "b.example")
    with ScriptedServer(tls=context) as server, ScriptedServer(tls=context) as other:
        assert server.endpoint == Endpoint("127.0.0.1", server.port, tls=True)
        for name, serving in (("a.example", server), ("b.example", other), ("b.example", server)):
            with (
                dialled(serving) as plain,
                certificates.client().wrap_socket(plain, server_hostname=name) as client,
            ):
                client.sendall(b"secret")
                assert client.recv(6) == b"secret"
        assert [served.sni for served in server.connections] == ["a.example", "b.example"]
        assert [served.sni for served in other.connections] == ["b.example"]


def test_the_callback_that_a_context_had_is_still_called(certificates: Certificates):
    asked = []
    context = certificates.server("a.example")
    context.sni_callback = lambda sock, name, context: asked.append(name)
    with (
        ScriptedServer(tls=context) as server,
        dialled(server) as plain,
        certificates.client().wrap_socket(plain, server_hostname="a.example") as client,
    ):
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert asked == ["a.example"]


def test_the_clients_certificate_is_noted_and_one_without_is_turned_away(certificates: Certificates):
    with ScriptedServer(tls=certificates.demanding_server()) as server:
        for name in ("worker-1", None):
            with (
                dialled(server) as plain,
                certificates.client(name).wrap_socket(plain, server_hostname="localhost") as client,
                contextlib.suppress(OSError) if name is None else contextlib.nullcontext(),
            ):
                client.sendall(b"x")
                client.recv(1)
        known, unknown = server.until_accepts(1), server.until_accepts(2)
        assert known.client_subject["commonName"] == "worker-1"
        assert unknown.until_ended() is Ending.HANDSHAKE
        assert isinstance(unknown.error, ssl.SSLError)


def test_a_client_that_trusts_us_not_is_seen_as_a_failed_handshake(certificates: Certificates):
    with ScriptedServer(tls=certificates.server()) as server, dialled(server) as plain:
        with pytest.raises(ssl.SSLCertVerificationError):
            certificates.stranger().wrap_socket(plain, server_hostname="localhost")
        assert server.until_accepts(1).until_ended() is Ending.HANDSHAKE


def test_a_server_that_does_not_shake_hands_lets_the_client_wait(certificates: Certificates):
    with ScriptedServer(tls=certificates.server(), script=NoHandshake()) as server, dialled(server) as plain:
        plain.settimeout(0.1)
        with pytest.raises(TimeoutError):
            certificates.client().wrap_socket(plain, server_hostname="localhost")
        assert server.until_accepts(1).received == b""


def test_a_handshake_that_the_client_never_begins_ends_with_the_server(certificates: Certificates):
    with ScriptedServer(tls=certificates.server()) as server, dialled(server) as silent:
        served = server.until_accepts(1)
        server.stop()
        assert served.ending is Ending.OURS
        assert silent.recv(1) == b""


def test_a_connection_goes_over_to_tls_in_the_middle(certificates: Certificates):
    script = [Answer(b"go ahead", times=1), StartTls(certificates.server()), Echo()]
    with ScriptedServer(script=script) as server, dialled(server) as plain:
        plain.sendall(b"STARTTLS")
        assert plain.recv(8) == b"go ahead"
        with certificates.client().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"secret")
            assert client.recv(6) == b"secret"
        assert server.until_accepts(1).sni == "localhost"


def test_over_tls_too_a_close_says_goodbye_and_a_reset_does_not(certificates: Certificates):
    trusting = certificates.client()
    with ScriptedServer(tls=certificates.server()) as server:
        for n, ending in ((1, Ending.OURS), (2, Ending.OUR_RESET)):
            with (
                dialled(server) as plain,
                trusting.wrap_socket(
                    plain, server_hostname="localhost", suppress_ragged_eofs=False
                ) as client,
            ):
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                served = server.until_accepts(n)
                if ending is Ending.OURS:
                    served.close()
                    assert client.recv(1) == b""
                else:
                    served.reset()
                    with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                        client.recv(1)
        assert server.closes == [Ending.OURS, Ending.OUR_RESET]


def test_large_messages_cross_tls_whole_in_both_directions(certificates: Certificates):
    blob = bytes(range(256)) * 8_000
    script = [big_echo(len(blob))]
    with (
        ScriptedServer(tls=certificates.server(), script=script) as server,
        dialled(server) as plain,
        certificates.client().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(blob)
        back = bytearray()
        while len(back) < len(blob):
            back += client.recv(65536)
        assert back == blob


def big_echo(n: int):
    def step(connection: ServedConnection) -> None:
        data = bytearray()
        while len(data) < n:
            data += connection.receive()
        connection.send(bytes(data))

    return step
