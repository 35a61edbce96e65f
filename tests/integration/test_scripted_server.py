"""The scripted server does what its script says, and sees what its clients do."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from connpool.model.endpoint import Endpoint
from connpool.testing import (
    Answer,
    Close,
    Deaf,
    Echo,
    Ending,
    Pause,
    ReadSlowly,
    Reset,
    ScriptedServer,
    Send,
    ServedConnection,
    Silence,
)
from tests.helpers.clients import LIMIT, dialled, read_all, reset
from tests.helpers.wire import needs_ipv6

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
        assert server.until_accepts(1).until_ended() is Ending.OURS
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # no reset came after it


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


@pytest.mark.parametrize("rate", [1, 4, 39, 2_000])
def test_a_slow_reader_rests_for_as_long_as_its_rate_says(rate: int):
    class Readings:
        """Notes how much is read, and rests for no time at all."""

        n_read, rested = 0, 0.0

        def limit_buffer(self, n: int) -> None:
            pass

        def receive(self, n: int) -> bytes:
            self.n_read += n
            return bytes(n)

        def pause(self, seconds: float) -> None:
            self.rested += seconds
            if self.rested >= 10:
                raise EOFError

    readings: Any = Readings()
    with pytest.raises(EOFError):
        ReadSlowly(rate)(readings)
    assert readings.n_read == pytest.approx(10 * rate, rel=0.11)


def test_a_pause_delays_the_next_step_and_an_order_breaks_it_off():
    with ScriptedServer(script=[Pause(0.1), Send(b"1"), Pause(1e9)]) as server, dialled(server) as client:
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
        assert one.ending is Ending.OURS
        two.reset()
        assert two.ending is Ending.OUR_RESET
        assert first.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            second.recv(1)
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


def test_somebody_who_comes_in_the_moment_of_its_making_fills_a_black_hole_as_well(monkeypatch):
    early: list[socket.socket] = []
    listen = socket.socket.listen

    def listen_and_be_found(listener: socket.socket, backlog: int) -> None:
        listen(listener, backlog)
        early.append(socket.create_connection(listener.getsockname(), timeout=LIMIT))

    with ScriptedServer() as server:
        monkeypatch.setattr(socket.socket, "listen", listen_and_be_found)
        server.black_hole()
        monkeypatch.undo()
        with early.pop(), pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", server.port), timeout=0.1)
    assert server.accepts == 0


@needs_ipv6
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


def test_a_server_whose_path_is_removed_ends_as_any_other(tmp_path: Path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as client, ScriptedServer(unix=path) as server:
        client.connect(str(path))
        served = server.until_accepts(1)
        path.unlink()
    assert served.ending is Ending.OURS


def test_a_path_that_is_taken_is_an_error_and_stays_untouched(tmp_path: Path):
    path = tmp_path / "taken"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        ScriptedServer(unix=path).start()
    assert path.read_text() == "precious"
