"""TLS on real connections: who is trusted, what a deadline covers, and what a look finds."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connpool.errors import CancelledError, ConnectTimeoutError, HandshakeError, UsageError
from connpool.model.endpoint import Endpoint
from connpool.testing import (
    Answer,
    Deaf,
    Echo,
    NoHandshake,
    ReadSlowly,
    ScriptedServer,
    Send,
    StartTls,
)
from connpool.testing.served import ServedConnection
from connpool.wire import connector as connectors
from connpool.wire import dial, look
from connpool.wire.connector import SocketConnector
from connpool.wire.io import Stream, is_tls
from tests.helpers.certificates import Certificates
from tests.helpers.wire import answer_names_with, later, taking


def open_tls(server: ScriptedServer, context: ssl.SSLContext, **settings: Any) -> Stream:
    return Stream(SocketConnector(context, **settings).open(server.endpoint, 10.0))


# -- whom to trust


def test_a_certificate_made_out_to_the_host_is_accepted(certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        assert is_tls(ours.raw)
        assert ours.raw.gettimeout() is None
        assert look.describe(ours.raw)[2] == "TLSv1.3"
        ours.writev_all([b"x", b"", b"y"], timeout=5)
        assert ours.recv_exactly(2, timeout=5) == b"xy"
        look.close(ours.raw)


@pytest.mark.parametrize("who", ["stranger", "wrong name", "expired", "default context"])
def test_a_certificate_that_does_not_convince_is_refused(certificates: Certificates, who: str) -> None:
    names = ("other.example",) if who == "wrong name" else ()
    connector = SocketConnector(
        {"stranger": certificates.stranger(), "default context": None}.get(who, certificates.client())
    )
    with ScriptedServer(tls=certificates.server(*names, expired=who == "expired")) as server:
        with pytest.raises(HandshakeError, match="certificate verify failed") as caught:
            connector.open(server.endpoint, 10.0)
        assert str(server.endpoint) in str(caught.value)
        assert caught.value.endpoint == server.endpoint
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert not caught.value.local
        server.until_accepts(1).until_ended()


def test_the_name_to_verify_is_the_hosts_unless_another_is_given(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(tls=certificates.server("one.example", "two.example")) as server:
        answer_names_with(monkeypatch, ("127.0.0.1", server.port))
        for host, given, asked in (
            ("one.example", None, "one.example"),
            ("two.example.", None, "two.example"),
            ("alias.example", "one.example", "one.example"),
        ):
            endpoint = Endpoint(host, server.port, tls=True)
            SocketConnector(certificates.client(), given).open(endpoint, 10.0).close()
            served = server.connections[-1]
            served.until(lambda served=served: served.sni is not None)
            assert served.sni == asked


def test_the_server_sees_our_certificate(certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.demanding_server()) as server:
        ours = open_tls(server, certificates.client("worker-1"))
        ours.sendall(b"?", timeout=5)
        assert ours.recv(1, timeout=5) == b"?"
        assert server.until_accepts(1).client_subject["commonName"] == "worker-1"
        look.close(ours.raw)


def test_a_refusal_of_our_certificate_blames_no_endpoint(certificates: Certificates) -> None:
    context = certificates.client()
    Certificates().authority.issue_cert(common_name="impostor").configure_cert(context)
    demanding = certificates.demanding_server()
    demanding.maximum_version = ssl.TLSVersion.TLSv1_2  # there the server answers within the handshake
    with ScriptedServer(tls=demanding) as server:
        with pytest.raises(HandshakeError, match=r"(?i)alert") as caught:
            open_tls(server, context)
        assert caught.value.local


def test_settings_that_do_not_fit_blame_no_endpoint(certificates: Certificates) -> None:
    with ScriptedServer(tls=certificates.server()) as server:
        with pytest.raises(HandshakeError, match="handshake failed") as caught:
            open_tls(server, certificates.client(), server_hostname=".leading.dot")
        assert caught.value.local
        assert isinstance(caught.value.__cause__, ValueError)


def test_settings_that_no_server_can_meet_blame_no_endpoint(certificates: Certificates) -> None:
    context = certificates.client()
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
    with ScriptedServer(tls=certificates.server()) as server:
        with pytest.raises(HandshakeError, match=r"(?i)no protocols available") as caught:
            open_tls(server, context)
        assert caught.value.local


def test_certificates_that_cannot_be_loaded_blame_no_endpoint(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise FileNotFoundError("no such file: ca.pem")

    monkeypatch.setattr(connectors.ssl, "create_default_context", fail)
    with ScriptedServer(tls=certificates.server()) as server:
        with pytest.raises(HandshakeError, match=r"ca\.pem") as caught:
            SocketConnector().open(server.endpoint, 10.0)
        assert caught.value.local


@contextlib.contextmanager
def no_descriptor_to_be_had() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_authorities_that_there_was_no_descriptor_to_read_are_read_the_next_time(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificates.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    connector = SocketConnector()
    with ScriptedServer(tls=certificates.server()) as server:
        sock = socket.create_connection(("127.0.0.1", server.port))
        server.until_accepts(1)
        with monkeypatch.context() as patch, no_descriptor_to_be_had():
            patch.setattr(connectors, "open_tcp", lambda *_: sock)  # the last that could be had
            with pytest.raises(HandshakeError, match="Too many open files") as caught:
                connector.open(server.endpoint, 10.0)
        assert caught.value.local
        connector.open(server.endpoint, 10.0).close()


def test_no_descriptor_left_for_a_handshake_is_our_own_fault(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:  # Python may want to read a module
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", fail)
    with ScriptedServer(script=NoHandshake(), tls=certificates.server()) as server:
        with pytest.raises(HandshakeError, match="Too many open files") as caught:
            open_tls(server, certificates.client())
        assert caught.value.local


def test_the_default_context_is_made_once_and_only_for_tls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificates.client()
    made = []

    def make() -> ssl.SSLContext:
        made.append(context)
        return context

    monkeypatch.setattr(connectors.ssl, "create_default_context", make)
    connector = SocketConnector()
    with ScriptedServer() as plain, ScriptedServer(tls=certificates.server()) as secure:
        connector.open(plain.endpoint, 10.0).close()
        assert not made
        for _ in range(2):
            connector.open(secure.endpoint, 10.0).close()
        assert len(made) == 1


def test_a_peer_that_speaks_no_tls_is_a_failed_handshake(certificates: Certificates) -> None:
    with ScriptedServer(script=Send(b"220 not tls at all\r\n")) as server:
        endpoint = Endpoint("127.0.0.1", server.port, tls=True)
        with pytest.raises(HandshakeError, match="handshake failed") as caught:
            SocketConnector(certificates.client()).open(endpoint, 10.0)
        assert not caught.value.local


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_leaves_in_the_handshake_is_a_failed_handshake(
    certificates: Certificates, how: str
) -> None:
    def leave(connection: ServedConnection) -> None:
        connection.receive()
        getattr(connection, how)()

    with ScriptedServer(script=leave) as server:
        endpoint = Endpoint("127.0.0.1", server.port, tls=True)
        with pytest.raises(HandshakeError, match="handshake failed") as caught:
            SocketConnector(certificates.client()).open(endpoint, 10.0)
        assert isinstance(caught.value.__cause__, OSError)


# -- one time limit


class Dribble:
    """Lets the handshake begin, a byte at a time: each wait is short, all of them together are not."""

    def __call__(self, connection: ServedConnection) -> None:
        connection.receive()
        connection.send(b"\x16\x03\x03\x0f\xff")  # a record of 4,095 bytes begins
        while True:
            connection.send(b"\x02")
            connection.pause(0.02)


@pytest.mark.parametrize("step", [NoHandshake(), Dribble()], ids=["silent", "dribbling"])
@pytest.mark.parametrize("cancel", [None, threading.Event()], ids=["no flag", "flag"])
def test_a_handshake_gets_what_is_left_of_the_dial(
    certificates: Certificates, step: Any, cancel: Any
) -> None:
    connector = SocketConnector(certificates.client())
    with ScriptedServer(script=step) as server:
        endpoint = Endpoint("127.0.0.1", server.port, tls=True)
        with taking(0.35, 1.5), pytest.raises(ConnectTimeoutError, match=r"TLS handshake .* 0\.4 s"):
            connector.open(endpoint, 0.4, cancel)
        server.until_accepts(1).until_ended()


def test_time_spent_on_connecting_is_gone_for_the_handshake(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A black hole costs the first 0.7 s; a time limit started anew would end at 1.5 s."""
    connector = SocketConnector(certificates.client())
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.7)
    with ScriptedServer() as hole, ScriptedServer(script=NoHandshake()) as server:
        hole.black_hole()
        answer_names_with(monkeypatch, ("127.0.0.1", hole.port), ("127.0.0.1", server.port))
        with taking(0.75, 1.4), pytest.raises(ConnectTimeoutError, match="TLS handshake"):
            connector.open(Endpoint("service.example", 1, tls=True), 0.8)


@pytest.mark.parametrize("step", [NoHandshake(), Dribble()], ids=["silent", "dribbling"])
def test_a_handshake_can_be_cancelled(certificates: Certificates, step: Any) -> None:
    cancel = threading.Event()
    connector = SocketConnector(certificates.client())
    with ScriptedServer(script=step) as server:
        endpoint = Endpoint("127.0.0.1", server.port, tls=True)
        with (
            later(cancel.set),
            taking(0.05, 3.0),
            pytest.raises(CancelledError, match="TLS handshake was cancelled"),
        ):
            connector.open(endpoint, 20.0, cancel)
        server.until_accepts(1).until_ended()


@pytest.mark.parametrize("step", [Deaf(), ReadSlowly(10_000)], ids=["deaf", "slow"])
def test_a_slow_reader_cannot_stretch_a_write(certificates: Certificates, step: Any) -> None:
    for tls in (None, certificates.server()):
        with ScriptedServer(script=step, tls=tls) as server:
            ours = open_tls(server, certificates.client())
            ours.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            before = time.thread_time()
            with taking(0.45, 2.0), pytest.raises(TimeoutError, match=r"0\.5 s passed: \d+ of 1000000 bytes"):
                ours.writev_all([b"x" * 1_000] * 1_000, timeout=0.5)
            assert time.thread_time() - before < 0.1
            look.close(ours.raw)


def test_a_dribbling_answer_cannot_stretch_a_read(certificates: Certificates) -> None:
    def dribble(connection: ServedConnection) -> None:
        while True:
            connection.send(b".")
            connection.pause(0.03)

    with ScriptedServer(script=dribble, tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        with taking(0.25, 2.0), pytest.raises(TimeoutError, match=r"0\.3 s passed: \d+ of 100000 bytes"):
            ours.recv_exactly(100_000, timeout=0.3)
        look.close(ours.raw)


# -- going over to TLS


@pytest.mark.parametrize("server_hostname", ["127.0.0.1", "localhost"])
def test_a_plain_connection_goes_over_to_tls(certificates: Certificates, server_hostname: str) -> None:
    script = [Answer(b"go ahead\n", times=1), StartTls(certificates.server()), Echo()]
    with ScriptedServer(script=script) as server:
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        plain = ours.raw
        ours.sendall(b"STARTTLS\n")
        assert ours.recv_until(b"\n", 100, timeout=5) == b"go ahead\n"
        secure = ours.start_tls(certificates.client(), server_hostname, timeout=5)
        assert ours.raw is secure
        assert plain.fileno() == -1
        ours.sendall(b"secret", timeout=5)
        assert ours.recv_exactly(6, timeout=5) == b"secret"
        assert b"secret" in server.received[0]
        with pytest.raises(UsageError, match="already"):
            ours.start_tls(certificates.client(), server_hostname)
        look.close(ours.raw)


def test_plain_text_read_ahead_is_not_taken_for_protected(certificates: Certificates) -> None:
    with ScriptedServer(script=Answer(b"go ahead\ninjected\n")) as server:
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        ours.sendall(b"STARTTLS\n")
        ours.recv_until(b"\n", 100, timeout=5)
        with pytest.raises(UsageError, match="9 bytes of plain text"):
            ours.start_tls(certificates.client(), "127.0.0.1")
        assert ours.recv_exactly(9) == b"injected\n"
        look.close(ours.raw)


def test_an_upgrade_that_fails_says_why_and_loses_no_descriptor(certificates: Certificates) -> None:
    with ScriptedServer(script=StartTls(certificates.server("other.example"))) as server:
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        with pytest.raises(HandshakeError, match="certificate verify failed"):
            ours.start_tls(certificates.client(), "127.0.0.1", timeout=5)
        look.close(ours.raw)
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        with pytest.raises(HandshakeError, match="server_hostname") as caught:
            ours.start_tls(certificates.client(), None, timeout=5)
        assert caught.value.local
        look.close(ours.raw)


@pytest.mark.parametrize("step", [NoHandshake(), Dribble()], ids=["silent", "dribbling"])
def test_an_upgrade_has_one_time_limit_and_can_be_interrupted(certificates: Certificates, step: Any) -> None:
    context = certificates.client()
    with ScriptedServer(script=step) as server:
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        with taking(0.25, 2.0), pytest.raises(TimeoutError, match=r"0\.3 s passed: the TLS handshake"):
            ours.start_tls(context, "127.0.0.1", timeout=0.3)
        look.close(ours.raw)
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        with (
            later(lambda: ours.interrupt(socket.SHUT_RDWR, "shut down")),
            taking(0.05, 5.0),
            pytest.raises(ConnectionAbortedError, match="shut down"),
        ):
            ours.start_tls(context, "127.0.0.1")
        look.close(ours.raw)


def test_an_interrupt_that_meets_the_emptied_socket_is_not_lost(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the plain socket's last breath and the TLS socket's first."""
    with ScriptedServer(script=NoHandshake()) as server:
        ours = Stream(SocketConnector().open(server.endpoint, 10.0))
        begin = Stream.start_tls.__globals__["begin_tls"]

        def begin_and_be_interrupted(*arguments: Any) -> ssl.SSLSocket:
            secure: ssl.SSLSocket = begin(*arguments)
            ours.interrupt(socket.SHUT_RDWR, "shut down")
            return secure

        monkeypatch.setitem(Stream.start_tls.__globals__, "begin_tls", begin_and_be_interrupted)
        with taking(0, 5.0), pytest.raises(ConnectionAbortedError, match="shut down"):
            ours.start_tls(certificates.client(), "127.0.0.1", timeout=20)
        look.close(ours.raw)
