"""Dialling real listeners: every address of a name, one budget, and errors that tell."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from connpool.errors import ConnectError, ConnectTimeoutError
from connpool.model.endpoint import Endpoint
from connpool.testing import ScriptedServer
from connpool.wire import dial, resolve
from connpool.wire.connector import SocketConnector
from connpool.wire.look import describe
from tests.helpers.together import together
from tests.helpers.wire import (
    LOCALHOSTS,
    answer_names_with,
    fail_names_with,
    refused_port,
    taking,
)

NAME = Endpoint("service.example", 80)


def talk(sock: socket.socket) -> bytes:
    sock.sendall(b"hello")
    return sock.recv(10)


# -- what works


@pytest.mark.parametrize("host", LOCALHOSTS)
def test_an_address_in_digits_is_dialled_without_a_look_up(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_names_with(monkeypatch, AssertionError("looked up"))
    with ScriptedServer(host=host) as server, SocketConnector().open(server.endpoint, 5.0) as sock:
        assert talk(sock) == b"hello"
        assert sock.gettimeout() is None
        assert describe(sock)[1] == str(server.endpoint)


def test_a_real_name_is_looked_up_and_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run = resolve._Lookup.run
    monkeypatch.setattr(resolve._Lookup, "run", lambda self: (run(self), time.sleep(0.1)))  # ends reluctantly
    with (
        ScriptedServer() as server,
        SocketConnector().open(Endpoint("localhost", server.port), None) as sock,
    ):
        assert not [t.name for t in threading.enumerate() if "resolve" in t.name]
        assert talk(sock) == b"hello"


def test_a_unix_socket_is_dialled(tmp_path: Path) -> None:
    with (
        ScriptedServer(unix=tmp_path / "s") as server,
        SocketConnector().open(server.endpoint, 5.0) as sock,
    ):
        assert talk(sock) == b"hello"
        assert sock.gettimeout() is None


def test_the_options_are_set_on_the_socket() -> None:
    connector = SocketConnector(keepalive=(61, 17, 5), source_address=("127.0.0.1", 0))
    with ScriptedServer() as server, connector.open(server.endpoint, 5.0) as sock:
        option = sock.getsockopt
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [option(socket.IPPROTO_TCP, name) for name in tcp] == [61, 17, 5]
    with (
        ScriptedServer() as server,
        SocketConnector(nodelay=False).open(server.endpoint, 5.0) as sock,
    ):
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_source_address_is_where_the_connection_comes_from() -> None:
    with (
        ScriptedServer() as server,
        SocketConnector(source_address=("127.0.0.9", 0)).open(server.endpoint, 5.0) as sock,
    ):
        assert sock.getsockname()[0] == "127.0.0.9"


def test_a_source_address_that_is_not_ours_is_said_at_once() -> None:
    connector = SocketConnector(source_address=("192.0.2.1", 0))
    with ScriptedServer() as server, taking(0, 3), pytest.raises(ConnectError) as caught:
        connector.open(server.endpoint, 10.0)
    assert not isinstance(caught.value, ConnectTimeoutError)
    assert caught.value.local


def test_a_source_port_that_is_taken_is_our_own_fault() -> None:
    with ScriptedServer() as server, refused_port() as taken:
        connector = SocketConnector(source_address=taken.getsockname())
        with pytest.raises(ConnectError, match="already in use") as caught:
            connector.open(server.endpoint, 5.0)
        assert caught.value.local


def test_a_source_port_that_we_may_not_use_is_our_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    class Unprivileged(socket.socket):
        bind = refuse  # as the system does; the administrator, who may run this, may use any

    connector = SocketConnector(source_address=("127.0.0.1", 80))
    with ScriptedServer() as server:
        monkeypatch.setattr(socket, "socket", Unprivileged)
        said = f"cannot connect .{server.endpoint} from 127.0.0.1:80: Permission denied"
        with pytest.raises(ConnectError, match=said) as caught:
            connector.open(server.endpoint, 5.0)
        monkeypatch.undo()
        assert caught.value.local
        assert isinstance(caught.value.__cause__, PermissionError)
        assert server.accepts == 0


def test_the_longest_keep_alive_is_taken_by_the_system() -> None:
    connector = SocketConnector(keepalive=(32_767, 32_767, 127))
    with ScriptedServer() as server, connector.open(server.endpoint, 5.0) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 127


def test_a_source_address_of_the_other_family_is_our_own_fault() -> None:
    connector = SocketConnector(source_address=("::1", 0))
    with pytest.raises(ConnectError, match="family of source address ::1") as caught:
        connector.open(Endpoint("127.0.0.1", 1), 5.0)
    assert caught.value.local


def test_a_child_process_does_not_inherit_the_socket() -> None:
    with ScriptedServer() as server, SocketConnector().open(server.endpoint, 5.0) as sock:
        probe = f"import os; os.fstat({sock.fileno()})"
        ran = subprocess.run(
            [sys.executable, "-c", probe], close_fds=False, capture_output=True, timeout=30, check=False
        )
        assert b"Bad file descriptor" in ran.stderr


# -- several addresses


def test_a_refusing_address_is_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server, refused_port() as refused:
        answer_names_with(monkeypatch, refused.getsockname(), ("127.0.0.1", server.port))
        monkeypatch.setattr(dial, "ATTEMPT_DELAY", 5.0)
        with taking(0, 2.0), SocketConnector().open(NAME, 8.0) as sock:
            assert sock.getpeername()[1] == server.port


def test_a_silent_address_gets_its_delay_and_then_company(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as silent, ScriptedServer() as server:
        silent.black_hole()
        answer_names_with(monkeypatch, ("127.0.0.1", silent.port), ("127.0.0.1", server.port))
        with taking(0.2, 3.0), SocketConnector().open(NAME, 8.0) as sock:
            assert sock.getpeername()[1] == server.port


def test_a_failure_brings_the_next_address_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while another attempt is still under way."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 1.0)
    with ScriptedServer() as silent, refused_port() as refused, ScriptedServer() as server:
        silent.black_hole()
        ports = [silent.port, refused.getsockname()[1], server.port]
        answer_names_with(monkeypatch, *[("127.0.0.1", port) for port in ports])
        with taking(0.9, 1.9), SocketConnector().open(NAME, 8.0) as sock:
            assert sock.getpeername()[1] == server.port


def test_the_losers_of_a_race_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    apply = dial.DialOptions.apply
    monkeypatch.setattr(dial.DialOptions, "apply", lambda self, sock: (made.append(sock), apply(self, sock)))
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.01)
    with ScriptedServer() as one, ScriptedServer() as two, ScriptedServer() as server:
        one.black_hole()
        two.black_hole()
        answer_names_with(monkeypatch, *[("127.0.0.1", s.port) for s in (one, two, server)])
        with SocketConnector().open(NAME, 8.0) as sock:
            assert len(made) == 3
            assert [s for s in made if s.fileno() >= 0] == [sock]


def test_every_error_of_a_name_is_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as one, refused_port() as two:
        answer_names_with(monkeypatch, one.getsockname(), two.getsockname())
        with pytest.raises(ConnectError, match=r"service.example:80: cannot connect") as caught:
            SocketConnector().open(NAME, 5.0)
        error = caught.value
        for port in (one.getsockname()[1], two.getsockname()[1]):
            assert f"127.0.0.1:{port}: Connection refused" in str(error)
    assert isinstance(error.__cause__, ExceptionGroup)
    assert [type(exc) for exc in error.__cause__.exceptions] == [ConnectionRefusedError] * 2
    assert (error.endpoint, error.errno, error.local) == (NAME, errno.ECONNREFUSED, False)


def test_time_that_runs_out_after_failures_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as silent, refused_port() as refused:
        silent.black_hole()
        answer_names_with(monkeypatch, refused.getsockname(), ("127.0.0.1", silent.port))
        with taking(0.25, 2.0), pytest.raises(ConnectTimeoutError, match=r"connecting to 127\.") as caught:
            SocketConnector().open(NAME, 0.3)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


# -- what fails, and how


def test_a_refused_connect_is_an_error_although_poll_calls_it_writable() -> None:
    with refused_port() as refused:
        endpoint = Endpoint(*refused.getsockname())
        with pytest.raises(ConnectError, match=rf"{endpoint}: cannot connect .*refused") as caught:
            SocketConnector().open(endpoint, 5.0)
    assert type(caught.value) is ConnectError
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_refusal_that_comes_late_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset while the attempt is under way: writable, and SO_ERROR says why."""
    real = socket.socket

    class Slow(real):  # type: ignore[valid-type, misc]
        def connect_ex(self, address: Any) -> int:
            super().connect_ex(address)
            return errno.EINPROGRESS

    with refused_port() as refused:
        endpoint = Endpoint(*refused.getsockname())
        monkeypatch.setattr(socket, "socket", Slow)
        monkeypatch.setattr(Slow, "getsockopt", lambda *_: errno.EHOSTUNREACH)
        with pytest.raises(ConnectError, match="No route to host"):
            SocketConnector().open(endpoint, 5.0)


def test_a_connection_to_itself_counts_as_refused() -> None:
    with refused_port() as probe:
        address = probe.getsockname()
    connector = SocketConnector(source_address=address)  # what the kernel does now and then by chance
    with pytest.raises(ConnectError, match="refused"):
        connector.open(Endpoint(*address), 5.0)


def test_a_name_without_an_answer_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    fail_names_with(monkeypatch, gone)
    with pytest.raises(ConnectError, match=r"cannot resolve 'service\.example': Name or service") as caught:
        SocketConnector().open(NAME, 5.0)
    assert caught.value.__cause__ is gone
    assert caught.value.errno == socket.EAI_NONAME
    assert not caught.value.local
    answer_names_with(monkeypatch)
    with pytest.raises(ConnectError, match=r"'service\.example' has no address"):
        SocketConnector().open(NAME, 5.0)


def test_an_own_resolver_out_of_reach_blames_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_names_with(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    with pytest.raises(ConnectError, match="Temporary failure") as caught:
        SocketConnector().open(NAME, 5.0)
    assert caught.value.local


def test_a_name_that_cannot_exist_is_an_error_like_any_other() -> None:
    with pytest.raises(ConnectError, match="cannot resolve"):
        SocketConnector().open(Endpoint("x" * 70 + ".example", 80), 5.0)


def test_a_bug_in_a_resolver_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_names_with(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError, match="bug"):
        SocketConnector().open(NAME, 5.0)


def test_no_descriptor_left_is_our_own_fault() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(ConnectError, match="Too many open files") as caught:
            SocketConnector().open(Endpoint("127.0.0.1", 1), 5.0)
        with pytest.raises(ConnectError, match="Too many open files") as caught_unix:
            SocketConnector().open(Endpoint.unix("/nowhere"), 5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.local
    assert caught_unix.value.local


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ENOBUFS])
def test_what_connect_lacks_on_this_machine_is_our_own_fault(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: code)
    with pytest.raises(ConnectError) as caught:
        SocketConnector().open(Endpoint("127.0.0.1", 1), 5.0)
    assert caught.value.errno == code
    assert caught.value.local


def test_no_thread_left_is_our_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    errors = []  # kept: a traceback must not keep a place
    for _ in range(resolve.MAX_LOOKUPS + 1):
        with pytest.raises(ConnectError, match="no thread to resolve") as caught:
            SocketConnector().open(NAME, 0.5)
        errors.append(caught.value)
    assert all(error.local for error in errors)


@pytest.mark.parametrize("runs", [False, True])
def test_an_interrupt_while_a_look_up_starts_is_that_interrupt(
    runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if not runs:
            raise KeyboardInterrupt
        start(thread)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("release unlocked lock")  # noqa: B904 - as a Condition does

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    kept = []  # a traceback must not keep a place
    for _ in range(resolve.MAX_OF_NAME + 1):
        with pytest.raises(KeyboardInterrupt) as caught:
            SocketConnector().open(NAME, 0.5)
        kept.append(caught)


def test_a_peer_that_resets_at_once_is_no_success_for_long() -> None:
    """Connected and reset before anybody looked: an error, or a socket that is found dead."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept_and_reset() -> None:
            sock, _ = listener.accept()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

        def dial_it() -> None:
            with SocketConnector().open(Endpoint(*listener.getsockname()), 5.0) as sock:
                sock.settimeout(5)
                sock.recv(1)

        def dial_in_vain() -> None:
            with pytest.raises((ConnectError, ConnectionResetError)):
                dial_it()

        together(dial_in_vain, accept_and_reset)


def test_one_answer_twice_is_dialled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as refused:
        answer_names_with(monkeypatch, refused.getsockname(), refused.getsockname())
        with pytest.raises(ConnectError) as caught:
            SocketConnector().open(NAME, 5.0)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_errors_of_a_unix_socket_name_its_path(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), ("/" + "x" * 200, "too long")):
        with pytest.raises(ConnectError, match=reason) as caught:
            SocketConnector().open(Endpoint.unix(path), 5.0)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert not caught.value.local
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "deaf"))
        with pytest.raises(ConnectError, match="refused"):
            SocketConnector().open(Endpoint.unix(tmp_path / "deaf"), 5.0)
