"""How long a dial may take: one time limit and one cancel flag for every phase, and no thread too many."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from connpool.errors import CancelledError, ConnectError, ConnectTimeoutError, HandshakeError
from connpool.model.endpoint import Endpoint
from connpool.testing import ScriptedServer
from connpool.wire import resolve
from connpool.wire.connector import SocketConnector
from tests.helpers.forks import in_child
from tests.helpers.together import together
from tests.helpers.wire import (
    answer_names_with,
    later,
    refused_port,
    stuck_resolver,
    taking,
)

NAME = Endpoint("service.example", 80)


# -- the resolver's threads


@pytest.mark.parametrize("n_names", [1, resolve.MAX_LOOKUPS + 4], ids=["one name", "many names"])
def test_only_so_many_look_ups_hang_at_a_time(monkeypatch: pytest.MonkeyPatch, n_names: int) -> None:
    def dial_once(number: int) -> ConnectTimeoutError:
        with pytest.raises(ConnectTimeoutError) as caught:
            SocketConnector().open(Endpoint(f"service-{number % n_names}.example", 80), 0.4)
        assert caught.value.local == ("older look-ups" in str(caught.value))
        return caught.value

    most = resolve.MAX_OF_NAME if n_names == 1 else resolve.MAX_LOOKUPS
    with stuck_resolver(monkeypatch) as resolver:
        with taking(0.3, 5.0):  # the errors are kept, as pools do: no traceback may keep a place
            errors = together(*(partial(dial_once, number) for number in range(most + 4)))
        assert resolver.peak == most
        assert sum(error.local for error in errors) == 4
    with refused_port() as refused:
        answer_names_with(monkeypatch, refused.getsockname())
        for _ in range(most + 4):  # every place was given back
            with pytest.raises(ConnectError, match="refused"):
                SocketConnector().open(NAME, 5.0)


def test_a_name_whose_look_ups_hang_keeps_no_other_from_being_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dial_once() -> None:
        with pytest.raises(ConnectTimeoutError):
            SocketConnector().open(NAME, 0.2)

    with ScriptedServer() as server, stuck_resolver(monkeypatch) as resolver:
        together(*[dial_once] * (resolve.MAX_OF_NAME + 2))

        def answer(host: str, *arguments: Any, **options: Any) -> Any:
            if host == NAME.host:
                return resolver(host, *arguments, **options)
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        SocketConnector().open(Endpoint("other.example", server.port), 5.0).close()


def test_a_look_up_that_finds_no_room_waits_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server, stuck_resolver(monkeypatch) as resolver:
        endpoint = Endpoint("service.example", server.port)

        def dial_once() -> None:
            SocketConnector().open(endpoint, 10.0).close()

        def free_when_full() -> None:
            resolver.until_inside(resolve.MAX_OF_NAME)
            resolver.free()

        together(*[dial_once] * (resolve.MAX_OF_NAME + 2), free_when_full)
        assert resolver.peak == resolve.MAX_OF_NAME


def test_look_ups_that_hang_in_the_parent_take_no_room_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def dial_once() -> None:
        with pytest.raises(ConnectTimeoutError):
            SocketConnector().open(NAME, 0.2)

    with ScriptedServer() as server, stuck_resolver(monkeypatch):
        together(*[dial_once] * resolve.MAX_OF_NAME)

        def job() -> None:
            answer_names_with(monkeypatch, ("127.0.0.1", server.port))
            SocketConnector().open(NAME, 2.0).close()

        in_child(job)


def test_a_place_whose_claimant_vanished_is_free_again() -> None:
    """As when a Ctrl-C strikes between the claim and the start."""
    for _ in range(resolve.MAX_LOOKUPS * 2):
        assert resolve._Lookup("nowhere.example", 1).claim_place()
    assert not resolve._under_way


def test_who_is_forgotten_after_its_look_up_frees_nobody_elses_place() -> None:
    early, late = (resolve._Lookup("nowhere.example", 1) for _ in range(2))
    assert early.claim_place()
    early.give_place_back()
    assert late.claim_place()  # before the thread that waited for the first has looked at its answer
    held = dict(resolve._under_way)
    del early
    assert resolve._under_way == held


# -- time and cancellation, phase by phase


def full_unix_queue(path: Path) -> list[socket.socket]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    fillers = [listener]
    while True:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        fillers.append(filler)
        if filler.connect_ex(str(path)):
            return fillers


@pytest.fixture(params=["name", "connect", "two addresses", "unix"])
def endless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An endpoint whose dial never gets beyond one phase."""
    if request.param == "name":
        with stuck_resolver(monkeypatch):
            yield NAME
    elif request.param == "unix":
        fillers = full_unix_queue(tmp_path / "full")
        yield Endpoint.unix(tmp_path / "full")
        for sock in fillers:
            sock.close()
    else:
        with ScriptedServer() as one, ScriptedServer() as two:
            one.black_hole()
            two.black_hole()
            answer_names_with(monkeypatch, ("127.0.0.1", one.port), ("127.0.0.1", two.port))
            yield NAME if request.param == "two addresses" else one.endpoint


@pytest.mark.parametrize("cancel", [None, threading.Event()], ids=["no flag", "flag"])
def test_every_phase_ends_with_the_one_time_limit(endless: Endpoint, cancel: Any) -> None:
    before = time.thread_time()
    with taking(0.35, 1.5), pytest.raises(ConnectTimeoutError, match=r"within the 0\.4 s") as caught:
        SocketConnector().open(endless, 0.4, cancel)
    assert caught.value.endpoint == endless
    assert not isinstance(caught.value, HandshakeError)
    assert time.thread_time() - before < 0.2


def test_every_phase_ends_when_it_is_cancelled(endless: Endpoint) -> None:
    cancel = threading.Event()
    cancelled_at: list[float] = []
    with later(lambda: (cancelled_at.append(time.monotonic()), cancel.set())):
        with pytest.raises(CancelledError, match="was cancelled"):
            SocketConnector().open(endless, 20.0, cancel)
        assert time.monotonic() - cancelled_at[0] < 1.0


def test_an_interrupted_race_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    class CtrlC:
        calls = 0

        def is_set(self) -> bool:
            self.calls += 1
            if self.calls > 2:
                raise KeyboardInterrupt
            return False

    with ScriptedServer() as silent:
        silent.black_hole()
        with pytest.raises(KeyboardInterrupt):
            SocketConnector().open(silent.endpoint, 5.0, CtrlC())
