"""Connectors: what they are made of, what is filled in, and what they do not tell."""

from __future__ import annotations

import functools
import logging
import socket
import ssl
from typing import Any

import pytest

from connpool.errors import CancelledError, ConfigError, ConnectTimeoutError
from connpool.model.endpoint import Endpoint
from connpool.wire import look, waiting
from connpool.wire.connector import CallableConnector, SocketConnector
from connpool.wire.dial import interleave
from connpool.wire.full_connector import adapt
from connpool.wire.waiting import Budget, pause, wait_until_ready
from tests.helpers.wire import info, taking

HERE = Endpoint("127.0.0.1", 1)


class OnlyOpens:
    """The least a connector can be."""

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: object) -> Any:
        return endpoint, timeout, cancel


def test_everything_but_open_may_be_left_out() -> None:
    full = adapt(OnlyOpens())
    assert full.open(HERE, 1.0, None) == (HERE, 1.0, None)
    assert full.is_usable(object())
    full.close(object())
    assert (full.prompt, full.reset, full.handshake, full.permissions) == (False, None, None, None)


def test_sockets_of_a_foreign_connector_are_looked_at_and_closed() -> None:
    full = adapt(OnlyOpens())
    ours, theirs = socket.socketpair()
    assert full.is_usable(ours)
    theirs.close()
    assert not full.is_usable(ours)
    full.close(ours)
    assert ours.fileno() == -1


def test_what_a_connector_has_is_used() -> None:
    class Whole(OnlyOpens):
        prompt = True

        def close(self, raw: Any) -> None:
            raw.append("close")

        def is_usable(self, raw: Any) -> bool:
            return "dead" not in raw

        def reset(self, raw: Any) -> None:
            raw.append("reset")

    full = adapt(Whole())
    raw: list[str] = []
    assert full.reset is not None
    full.reset(raw)
    full.close(raw)
    assert raw == ["reset", "close"]
    assert not full.is_usable(["dead"])
    assert full.prompt


def test_what_cannot_open_is_no_connector() -> None:
    with pytest.raises(ConfigError, match="needs open"):
        adapt(object())  # type: ignore[arg-type]


def test_a_callable_is_called_without_arguments_and_its_hooks_are_used() -> None:
    calls: list[object] = []
    connector = CallableConnector(lambda: "raw", calls.append, lambda raw: raw == "raw", calls.append)
    full = adapt(connector)
    assert full.open(Endpoint.callable("db"), 1.0, None) == "raw"
    assert full.is_usable("raw")
    assert not full.is_usable("other")
    assert full.reset is not None
    full.reset("a")
    full.close("b")
    assert calls == ["a", "b"]
    assert not full.prompt
    assert adapt(CallableConnector(dict)).reset is None


@pytest.mark.parametrize(
    "hooks", [{"open": None}, {"open": 3}, {"open": dict, "close": 3}, {"open": dict, "is_fatal": 3}]
)
def test_hooks_must_be_callable(hooks: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be callable"):
        CallableConnector(**hooks)


def test_no_repr_shows_what_a_hook_is_bound_to() -> None:
    login = functools.partial(print, "secret")
    assert "secret" not in repr(CallableConnector(login))
    assert "secret" not in repr(SocketConnector(handshake=login, permissions=login))  # type: ignore[arg-type]
    assert "dict" in repr(CallableConnector(dict))
    assert "tls=verified" in repr(SocketConnector())


def test_the_socket_connector_is_prompt_and_shows_its_hooks() -> None:
    full = adapt(SocketConnector(handshake=print, permissions=set))
    assert full.prompt
    assert (full.handshake, full.permissions) == (print, set)
    assert full.reset is None


@pytest.mark.parametrize(
    "settings",
    [
        {"tls": True},
        {"tls": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        {"server_hostname": 3},
        {"server_hostname": "a\0b"},
        {"keepalive": (60, 10)},
        {"keepalive": (32_768, 10, 3)},
        {"keepalive": (60, 2**40, 3)},
        {"keepalive": (60, 10, 128)},
        {"keepalive": (60, 0, 3)},
        {"keepalive": (60, True, 3)},
        {"keepalive": 60},
        {"source_address": "127.0.0.1"},
        {"source_address": ("localhost", 0)},
        {"source_address": ("127.0.0.1", 65536)},
        {"source_address": ("127.0.0.1", True)},
    ],
)
def test_a_setting_out_of_range_is_refused_and_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SocketConnector(**settings)


def test_switching_verification_off_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with caplog.at_level(logging.WARNING, "connpool"):
        assert "tls=verified" in repr(SocketConnector(tls=context))
        assert not caplog.records
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        assert "tls=unverified" in repr(SocketConnector(tls=context))
    assert "verifies nobody" in caplog.text


def test_the_address_families_take_turns_in_the_resolvers_order() -> None:
    hosts = ["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]
    turns = [i[4][0] for i in interleave([info(host, 80) for host in hosts])]
    assert turns == ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]
    assert [i[4][0] for i in interleave([info(h, 80) for h in ("10.0.0.1", "::1")])] == ["10.0.0.1", "::1"]


# -- the budget of a dial


class Flag:
    def __init__(self, after: int = 0) -> None:
        self.after = after

    def is_set(self) -> bool:
        self.after -= 1
        return self.after < 0


def test_a_budget_is_spent_even_while_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "now", lambda: 1e9)
    budget = Budget(HERE, 0.1, Flag(after=1_000))

    def dream() -> None:
        while not budget.wait(pause, "dreaming"):
            pass

    expected = r"127\.0\.0\.1:1: dreaming .* the 0\.1 s of the dial"
    with taking(0.05, 3.0), pytest.raises(ConnectTimeoutError, match=expected):
        dream()


def test_what_one_phase_of_a_dial_has_taken_the_next_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    at, asked = [1e9], []
    monkeypatch.setattr(waiting, "now", lambda: at[0])
    budget = Budget(HERE, 1.0)

    def take(seconds: float | None) -> bool:
        asked.append(seconds)
        at[0] += 0.75
        return True

    assert budget.wait(take, "resolving")
    assert budget.wait(take, "connecting")
    assert asked == [1.0, 0.25]
    with pytest.raises(ConnectTimeoutError, match="shaking hands"):
        budget.wait(take, "shaking hands")


def test_a_budget_without_a_limit_and_a_flag_waits_without_end() -> None:
    asked: list[float | None] = []
    assert Budget(HERE, None).wait(lambda seconds: asked.append(seconds) or "done", "waiting") == "done"
    assert asked == [None]
    Budget(HERE, None).wait(lambda seconds: asked.append(seconds) or "done", "waiting", at_most=0.5)
    assert asked[1] == 0.5


def test_a_cancelled_budget_says_so_before_any_wait() -> None:
    budget = Budget(HERE, 0.0, Flag())
    with pytest.raises(CancelledError, match="dreaming was cancelled"):
        budget.wait(pause, "dreaming")


def test_a_wait_is_never_longer_than_the_system_can_count() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"!")
        assert wait_until_ready(ours.fileno(), 1, 1e12)
        assert look.is_usable(theirs)
