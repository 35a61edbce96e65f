"""An argument of the wrong kind is refused where it is given, by a sentence that shows it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import attrs
import pytest

from connpool import (
    Broadcaster,
    CallPool,
    ConfigError,
    ConnectionPool,
    Connector,
    Identified,
    Lines,
    LinkEvent,
    MemorySpool,
    NoEndpointError,
    PoolClosed,
    Reply,
    Repository,
    Route,
    SocketChannel,
    SocketConnector,
    Spool,
    UsageError,
)
from connpool.testing import FakeClock
from connpool.wire.buffers import as_views
from tests.helpers.channels import RESOURCE, Tape


@pytest.fixture(name="pool")
def make_pool() -> Iterator[ConnectionPool]:
    with ConnectionPool("a:1", reconnect=False) as pool:
        yield pool


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ConnectionPool("a:1", name=5), "name must be a text, got 5"),
        (
            lambda: ConnectionPool("a:1", listeners=print),
            "listeners must be several functions, got <b",
        ),
        (lambda: ConnectionPool("a:1", connector=SocketConnector), "is a class; give one that is made of it"),
        (lambda: ConnectionPool("a:1", config={}), "config must be a PoolConfig, got {}"),
        (lambda: ConnectionPool("a:1", clock=5), "clock must have the methods now and wait, got 5"),
        (lambda: ConnectionPool("a:1", clock=FakeClock), "clock must have the methods now and wait, got <c"),
        (lambda: ConnectionPool("a:1", rng=5), "rng must be a Random, got 5"),
        (lambda: ConnectionPool("a:1", paused="no"), "paused must be True or False, got 'no'"),
        (lambda: ConnectionPool("a:1").pause("no"), "fail must be True or False, got 'no'"),
        (lambda: ConnectionPool("a:1").clear(interrupt="no"), "interrupt must be True or False, got 'no'"),
        (lambda: ConnectionPool("a:1").run(print, idempotent="no"), "idempotent must be True or False, got"),
        (lambda: ConnectionPool("a:1").run("work"), "work must be a function, got 'work'"),
        (lambda: ConnectionPool("a:1").listen(print, [PoolClosed]), "PoolClosed'>] is not a kind of event"),
        (lambda: ConnectionPool(b"a:1"), "or several, got b'a:1'"),
        (lambda: CallPool(5), "name must be a text, got 5"),
        (lambda: CallPool(listeners=5), "listeners must be several functions, got 5"),
        (lambda: Repository(5), "name must be a text, got 5"),
        (lambda: CallPool(clock=5), "clock must have the methods now and wait, got 5"),
        (lambda: Repository().new(5, "a:1"), "name must be a text, got 5"),
        (lambda: Repository().new(None, "a:1"), "name must be a text, got None"),
        (lambda: SocketConnector(nodelay="yes"), "nodelay must be True or False, got 'yes'"),
        (lambda: SocketConnector(server_hostname=5), "server_hostname must be a text or None, got 5"),
        (lambda: SocketConnector(handshake=5), "handshake must be a function or None, got 5"),
        (
            lambda: SocketConnector(permissions={"read"}),
            "permissions must be a function or None, got {'read'}",
        ),
        (lambda: Reply(1, retry_after=-1), "retry_after must be a number from 0 on or None, got -1"),
        (lambda: Reply(1, retry_after="1"), "retry_after must be a number from 0 on or None, got '1'"),
        (
            lambda: Reply(1, retry_after=math.nan),
            "retry_after must be a number from 0 on or None, got nan",
        ),
        (lambda: Identified(Lines), "framing must have the methods encode and feed, got <class"),
    ],
)
def test_a_wrong_argument_is_shown(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": {"V"}, "framing": 5}, "framing must have the methods encode and feed, got 5"),
        ({"methods": {"V"}, "framing": Lines}, "framing must have the methods encode and feed, got <class"),
        ({"methods": {"V"}, "encode": 5}, "encode must be a function or None, got 5"),
        ({"methods": {"V"}, "decode": 5}, "decode must be a function or None, got 5"),
        ({"methods": 5}, "methods of a channel are hashable things, not 5"),
        ({"methods": "VOLT"}, "methods of a channel are a collection, not 'VOLT'"),
    ],
)
def test_a_wrong_argument_of_a_channel_is_shown(
    pool: ConnectionPool, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, UsageError)) as caught:
        SocketChannel(pool, "meter", **settings)
    assert said in str(caught.value)


def test_a_channel_is_made_over_a_pool() -> None:
    with pytest.raises(ConfigError, match="pool must be a ConnectionPool, got 'a:1'"):
        SocketChannel("a:1", "meter", {"V"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spool": "a.db"}, "spool must have the methods of Spool, got 'a.db'"),
        ({"spool": MemorySpool}, "spool must have the methods of Spool, got <class"),
        ({"framing": Lines}, "framing must have the methods encode and feed, got <class"),
    ],
)
def test_a_wrong_argument_of_a_broadcaster_is_shown(
    pool: ConnectionPool, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Broadcaster(pool, **settings)
    assert said in str(caught.value)


def test_a_broadcaster_names_its_main_settings() -> None:
    named = inspect.signature(Broadcaster).parameters.values()
    settings = {each.name: each.default for each in named if each.kind is each.KEYWORD_ONLY}
    unsaid = {"spool": None, "framing": None, "confirm": None}
    assert settings == unsaid | {"write_ahead": False, "failover": True, "reconnect": True}


def test_a_wrong_argument_of_a_broadcasters_method_is_shown(pool: ConnectionPool) -> None:
    with Broadcaster(pool, reconnect=False) as broadcaster:
        for wait in (broadcaster.recv, broadcaster.check_event):
            for timeout in ("5", math.inf):
                with pytest.raises(ConfigError, match=f"timeout must be .*, got {timeout!r}"):
                    wait(timeout)  # type: ignore[arg-type]
        for limited in (broadcaster.flush, broadcaster.wait_ready, broadcaster.close):
            for timeout in ("5", math.inf, math.nan, -1, True):
                with pytest.raises(ConfigError, match=f"timeout must be .*, got {timeout!r}"):
                    limited(timeout)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="handler must be a function or None, got 5"):
            broadcaster.check_event(0, 5)  # type: ignore[arg-type]
        for install in (broadcaster.on, broadcaster.on_any):
            with pytest.raises(ConfigError, match="a handler must be callable, got 5"):
                install(LinkEvent.DEAD, 5)  # type: ignore[arg-type]


def test_what_is_no_channel_is_not_added() -> None:
    with CallPool("bench") as calls:
        with pytest.raises(ConfigError, match="a channel needs open, call and close; 5 has no open"):
            calls.init(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="info must be a ChannelInfo, got 5"):
            calls.put(5)  # type: ignore[arg-type]
        assert calls.resources() == []


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), True])
def test_a_broadcaster_that_cannot_tell_how_long_it_may_wait_does_nothing(
    pool: ConnectionPool, timeout: Any
) -> None:
    with Broadcaster(pool, reconnect=False) as broadcaster:
        for wait in (broadcaster.flush, broadcaster.wait_ready, broadcaster.close):
            with pytest.raises(ConfigError, match="timeout must be at least 0 seconds and finite, or None"):
                wait(timeout)
        with pytest.raises(NoEndpointError):  # it is open
            broadcaster.broadcast(b"x")


@pytest.mark.parametrize("listeners", [(), (repr,)], ids=["unheard", "heard"])
@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), float("inf"), True])
def test_a_checkout_that_cannot_tell_how_long_it_may_wait_takes_nothing(timeout: Any, listeners: Any) -> None:
    with ConnectionPool.of(object, sharable=True, max_size=1, listeners=listeners) as pool:
        pool.try_connect().release()
        for ask in (pool.try_connect, pool.share):
            with pytest.raises(ConfigError, match="timeout must be at least 0 seconds and finite"):
                ask(timeout=timeout)
        assert pool.stats().idle == 1
        with pytest.raises(ConfigError):
            pool.try_connect(timeout=Fraction(1, 2))  # type: ignore[arg-type]
        pool.try_connect(timeout=0).release()


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), True])
def test_a_call_that_cannot_tell_how_long_it_may_wait_calls_nothing(timeout: Any) -> None:
    tape = Tape()
    with CallPool() as calls:
        calls.init(tape)
        with pytest.raises(ConfigError, match="timeout must be at least 0 seconds and finite"):
            calls.call(RESOURCE, "get", timeout=timeout)
        assert tape.calls == []
        assert calls.call(RESOURCE, "get", 1, timeout=5.0) == 1


@pytest.mark.parametrize("fd", [None, "x", 1.5, True])
def test_what_is_no_descriptor_is_not_opened(pool: ConnectionPool, fd: Any) -> None:
    with pytest.raises(ConfigError, match=f"fd must be an open descriptor, got {fd!r}"):
        pool.open_file(fd)


def test_a_shutdown_that_cannot_tell_what_to_cut_off_changes_nothing(pool: ConnectionPool) -> None:
    for how in (7, -1, "all", None):
        with pytest.raises(
            ConfigError, match=f"how must be socket.SHUT_RD, SHUT_WR or SHUT_RDWR, got {how!r}"
        ):
            pool.shutdown(how)  # type: ignore[arg-type]
    assert pool.stats().state.value == "open"


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), True])
def test_a_close_that_cannot_tell_how_long_it_may_take_changes_nothing(timeout: Any) -> None:
    with ConnectionPool("a:1") as pool, Repository() as repo:
        for close in (pool.close, repo.close):
            with pytest.raises(ConfigError, match="timeout must be at least 0 seconds and finite"):
                close(timeout)
        assert pool.stats().state.value == "open"


@pytest.mark.parametrize("methods", ["VOLT", b"VOLT", 5, None])
def test_a_channel_is_not_changed_to_methods_that_are_none(methods: Any) -> None:
    with CallPool() as calls:
        id = calls.init(Tape())
        with pytest.raises(UsageError, match=r"methods (of a channel are|that a channel is to have)"):
            calls.update(RESOURCE, lambda info: attrs.evolve(info, methods=methods))
        assert calls.info(id).methods == {"get", "set"}


def test_what_is_popped_is_named_by_an_id_or_a_resource() -> None:
    with CallPool() as calls:
        id = calls.init(Tape())
        for wanted in ({}, {"where": bool}, {"id": id, "resource": RESOURCE}, {"id": id, "where": bool}):
            with pytest.raises(UsageError, match="pop needs an id or a resource"):
                calls.pop(**wanted)
        assert calls.resources() == [RESOURCE]


def test_a_class_all_of_whose_methods_are_static_is_a_connector() -> None:
    class Opener:
        @staticmethod
        def open(endpoint: object, timeout: object, cancel: object) -> object:
            return "opened"

    with ConnectionPool("a:1", connector=Opener) as pool, pool.try_connect(timeout=5) as conn:
        assert conn.raw == "opened"


def test_protocols_can_be_asked_for_at_run_time() -> None:
    assert isinstance(SocketConnector(), Connector)
    assert isinstance(MemorySpool(), Spool)
    assert not isinstance(object(), (Connector, Spool))


def test_buffers_are_several() -> None:
    with pytest.raises(TypeError, match="buffers must be several bytes-like objects, got b'abc'"):
        as_views(b"abc")  # type: ignore[arg-type]


def test_several_endpoints_are_a_route() -> None:
    assert str(Route.coerce(["a:1", "b:1"])) == "a:1, b:1"
