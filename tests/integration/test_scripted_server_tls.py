"""The scripted server over TLS."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import pytest

from connpool.model.endpoint import Endpoint
from connpool.testing import (
    Answer,
    Echo,
    Ending,
    NoHandshake,
    ScriptedServer,
    ServedConnection,
    StartTls,
)
from tests.helpers.certificates import Certificates
from tests.helpers.clients import dialled


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
    assert server.until_accepts(1).sni == "a.example"


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


def test_a_client_that_leaves_in_the_middle_is_seen_as_a_failed_handshake(certificates: Certificates):
    with ScriptedServer(tls=certificates.server()) as server:
        with dialled(server) as client:
            client.sendall(b"\x16\x03\x01")  # the first bytes of a hello
            served = server.until_accepts(1)
        assert served.until_ended() is Ending.HANDSHAKE


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


@pytest.mark.parametrize("is_secure", [False, True])
def test_large_messages_cross_whole_in_both_directions(certificates: Certificates, is_secure: bool):
    blob = bytes(range(256)) * 32_000
    context = certificates.server() if is_secure else None
    with (
        ScriptedServer(tls=context, script=big_echo(len(blob))) as server,
        dialled(server) as plain,
        certificates.client().wrap_socket(plain, server_hostname="localhost")
        if is_secure
        else plain as client,
    ):
        client.sendall(blob)
        back = bytearray()
        while len(back) < len(blob):
            back += client.recv(65536)
        assert back == blob


def big_echo(n: int) -> Callable[[ServedConnection], None]:
    def step(connection: ServedConnection) -> None:
        data = bytearray()
        while len(data) < n:
            data += connection.receive()
        connection.send(bytes(data))

    return step
