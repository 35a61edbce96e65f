"""Transports that come from outside, and those that leave: add_connection and take."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable

import pytest

from connpool import (
    CheckoutTimeoutError,
    CloseReason,
    ConnectionInfo,
    ConnectionOpened,
    ConnectionPool,
    ConnState,
    Endpoint,
    NoEndpointError,
    PoolClosedError,
    PoolExhaustedError,
    Request,
    UsageError,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Line, Switchboard
from tests.helpers.wire import taking


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


# -- take: an idle one for good


def test_take_never_dials_and_gives_none_when_nothing_is_idle() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with taking(0, 1):
            assert pool.take() is None
        held = pool.try_connect(timeout=5)
        assert pool.take() is None, "a lent one is not idle"
        held.release()
        server.until_accepts(1)
        assert server.accepts == 1


def test_as_many_are_taken_as_were_idle_and_then_none() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=3) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(3)]
        for conn in conns:
            conn.release()
        raws = [pool.take() for _ in range(4)]
        assert raws.pop() is None
        assert len(set(raws)) == 3
        assert pool.stats().size == 0
        for raw in raws:
            raw.sendall(b"mine")
            assert raw.recv(9) == b"mine"
        pool.close()
        assert pool.take() is None
        for raw in raws:
            raw.sendall(b"x")  # the pool's end is not theirs
            raw.close()


def test_take_passes_over_dead_ones(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(3)]
        server.until_accepts(3)
        by_number = {server.connections[i].number: i for i in range(3)}
        assert len(by_number) == 3
        for conn in conns:
            conn.release()
        for served in server.connections[1:]:
            served.close()
        clock.advance(1)
        raw = pool.take()
        raw.sendall(b"alive")
        assert raw.recv(9) == b"alive"
        raw.close()
        assert pool.take() is None
        assert pool.stats().closed[CloseReason.BROKEN] == 2


def test_take_tells_why_it_parts_with_what_nobody_may_have(clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, clock=clock, max_lifetime=9) as pool,
    ):
        pool.try_connect(timeout=5).release()
        clock.advance(9)
        assert pool.take() is None
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_a_where_that_raises_takes_nothing() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(2)]
        for conn in conns:
            conn.release()
        seen: list[int] = []

        def choose(info: ConnectionInfo) -> bool:
            seen.append(info.id)
            if len(seen) == 2:
                raise KeyError("where")
            return False

        with pytest.raises(KeyError, match="where"):
            pool.take(Request(where=choose))
        assert pool.stats().idle == 2
        raw = pool.take(Request(where=lambda info: info.id == seen[0]))
        raw.close()


def test_an_interrupt_while_take_looks_loses_no_place_though_it_is_kept() -> None:
    def strike(raw: object) -> bool:
        raise KeyboardInterrupt

    with ConnectionPool.of(object, is_usable=strike, max_size=1, reap_interval=None) as pool:
        pool.try_connect(timeout=5).release()
        with pytest.raises(KeyboardInterrupt) as caught:
            pool.take()
        pool.try_connect(timeout=0.5).release()
        assert caught.value


@pytest.mark.parametrize("way", ["take", "try_connect"])
def test_what_is_cleared_while_where_is_asked_is_closed_if_that_says_no(way: str) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, max_size=1, reap_interval=None) as pool:
        pool.try_connect(timeout=5).release()

        def turn_down(info: ConnectionInfo) -> bool:
            if info.uses:
                pool.clear()
            return not info.uses

        found = getattr(pool, way)(Request(where=turn_down, timeout=5))
        assert not board.lines[0].is_open
        assert pool.stats().closed == {CloseReason.STALE: 1}
        if way == "try_connect":
            found.release()


def test_what_take_passes_over_stays_in_its_order() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        loans = [pool.try_connect() for _ in range(4)]
        lines = [loan.raw for loan in loans]
        for loan in loans:
            loan.release()
        wanted = min(info.id for info in pool.connections())
        lines.remove(pool.take(Request(where=lambda info: info.id == wanted)))
        assert [pool.take() for _ in range(3)] == lines[::-1]


def test_take_shows_what_it_finds_as_idle() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        pool.try_connect().release()
        shown: list[ConnectionInfo] = []
        assert pool.take(Request(where=shown.append)) is None
        assert shown == list(pool.connections())
        assert [info.state for info in shown] == [ConnState.IDLE]


def test_take_heeds_the_endpoint_asked_for() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint]) as pool,
    ):
        pool.try_connect(a.endpoint, timeout=5).release()
        assert pool.take(b.endpoint) is None
        raw = pool.take(str(a.endpoint))
        assert raw.getpeername()[1] == a.port
        raw.close()


def test_take_finds_what_is_idle_where_no_checkout_goes_just_now() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} || {b.endpoint}") as pool,
    ):
        ports = []
        for endpoint in (a.endpoint, b.endpoint):
            with pool.try_connect(endpoint, timeout=5) as conn:
                ports.append(conn.socket.getsockname()[1])
        pool.blacklist(a.endpoint)  # b's group lends
        pool.pause()  # and nobody does
        taken = [pool.take(Request(where=lambda info: info.endpoint == b.endpoint)), pool.take()]
        assert [raw.getsockname()[1] for raw in taken] == ports[::-1]
        assert (pool.take(), pool.stats().size) == (None, 0)
        for raw in taken:
            raw.close()


def test_take_prefers_what_a_checkout_would_get_just_now() -> None:
    with ConnectionPool("a:1 || b:1", connector=Switchboard()) as pool:
        lines = [pool.try_connect(endpoint) for endpoint in ("a:1", "b:1")]
        for loan in lines:
            loan.release()
        pool.blacklist("a:1")
        assert [str(pool.take().endpoint) for _ in range(2)] == ["b:1", "a:1"]


def test_take_finds_what_was_added_at_an_endpoint_that_is_blacklisted() -> None:
    with ConnectionPool(None, connector=Switchboard()) as pool:
        added = Line(Endpoint.of("a:1"))
        pool.add_connection(added, "a:1")
        pool.blacklist("a:1")
        assert pool.take() is added


# -- add_connection


def test_what_is_added_is_lent(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with peer, ConnectionPool() as pool:
        with taking(0, 1), pytest.raises(NoEndpointError):
            pool.try_connect(timeout=20)
        pool.add_connection(mine)
        assert (pool.stats().idle, pool.stats().opened) == (1, 1)
        with pool.try_connect(timeout=5) as conn:
            assert conn.raw is conn.socket is mine
            assert conn.uses == 0
            conn.sendall(b"hello", timeout=5)
            assert peer.recv(9) == b"hello"
            with pytest.raises((NoEndpointError, PoolExhaustedError)):
                pool.try_connect(timeout=0)
    assert mine.fileno() == -1, "the pool owned it"


def test_the_same_transport_is_not_added_twice(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with peer, ConnectionPool() as pool:
        pool.add_connection(mine)
        with pytest.raises(UsageError):
            pool.add_connection(mine)
        with pool.try_connect(timeout=5), pytest.raises(UsageError):
            pool.add_connection(mine)
        assert pool.stats().size == 1
        assert pool.take() is mine
        pool.add_connection(mine)  # it had left the pool
        assert pool.stats().size == 1


def test_the_same_descriptor_is_not_added_twice(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with peer, ConnectionPool() as pool:
        pool.add_connection(mine)
        twin = socket.socket(fileno=mine.fileno())
        try:
            with pytest.raises(UsageError):
                pool.add_connection(twin)
        finally:
            twin.detach()


def test_a_closed_socket_is_not_added(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with ConnectionPool() as pool:
        mine.close()
        with pytest.raises(UsageError):
            pool.add_connection(mine)
        assert pool.stats().size == 0
        peer.close()


class Driver:
    """A connection of a database driver, whose descriptor nobody may ask for once it is closed."""

    def __init__(self) -> None:
        self._ends = socket.socketpair()
        self._is_open = True

    def fileno(self) -> int:
        if not self._is_open:
            raise RuntimeError("the connection is closed")
        return self._ends[0].fileno()

    def close(self) -> None:
        self._is_open = False
        for end in self._ends:
            end.close()


def test_what_is_closed_and_says_so_by_an_error_is_not_added_and_keeps_nobody_out() -> None:
    with ConnectionPool.of(Driver, max_size=3) as pool:
        with pool.try_connect(timeout=5) as conn:
            conn.raw.close()
            other = Driver()
            pool.add_connection(other)
        assert pool.take() is not None
        assert pool.stats().size == 1
        other.close()
        with pytest.raises(UsageError, match="is closed already"):
            pool.add_connection(other)


def test_what_has_no_descriptor_is_added() -> None:
    raw = io.BytesIO()
    with ConnectionPool() as pool:
        pool.add_connection(raw)
        with pytest.raises(UsageError, match="is in it already"):
            pool.add_connection(raw)
        assert pool.take() is raw


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pool: pool.clear(), CloseReason.STALE),
        (lambda pool: setattr(pool, "route", "b:1"), CloseReason.STALE),
        (lambda pool: pool.resize(1), CloseReason.SURPLUS),
        (lambda pool: pool.configure(max_per_endpoint=1), CloseReason.SURPLUS),
    ],
)
def test_what_is_added_while_the_pool_is_changed_is_closed(
    change: Callable[[ConnectionPool], object], reason: CloseReason
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, reap_interval=None) as pool, pool.try_connect(timeout=5):
        pool.listen(lambda event: change(pool), ConnectionOpened)
        line = Line(Endpoint("a", 1))
        pool.add_connection(line, "a:1")
        assert not line.is_open
        assert (pool.stats().idle, pool.stats().size) == (0, 1)
        assert pool.stats().closed == {reason: 1}


def test_what_is_no_transport_is_not_added(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with mine, peer, ConnectionPool(max_size=1) as pool, ConnectionPool(max_size=1) as other:
        with pytest.raises(UsageError, match="None is no transport"):
            pool.add_connection(None)  # which take() returns when there is nothing
        other.add_connection(mine)
        with other.try_connect(timeout=5) as conn:
            with pytest.raises(UsageError, match=r"<Connection .*> is a loan; add what it detaches"):
                pool.add_connection(conn)
            pool.add_connection(conn.detach())
        assert pool.take() is mine


def test_what_finds_no_place_stays_the_callers(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        with pool.try_connect(timeout=5), pytest.raises(PoolExhaustedError):
            pool.add_connection(mine)
        pool.close()
        with pytest.raises(PoolClosedError):
            pool.add_connection(mine)
    mine.sendall(b"open")
    assert peer.recv(9) == b"open"
    mine.close()
    peer.close()


def test_what_is_added_counts_among_those_of_its_endpoint(pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_per_endpoint=1) as pool, mine, peer:
        with pool.try_connect(timeout=5), pytest.raises(PoolExhaustedError):
            pool.add_connection(mine)
        assert mine.fileno() >= 0


def test_what_is_added_is_of_the_only_endpoint_of_the_route_though_others_are_known(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    mine, peer = pair
    with ScriptedServer() as server, ScriptedServer() as other, ConnectionPool(server.endpoint) as pool, peer:
        pool.try_connect(other.endpoint).release()
        pool.add_connection(mine)
        with pool.try_connect(server.endpoint) as conn:
            assert conn.raw is mine


def test_what_is_added_without_an_endpoint_serves_who_chooses_beside_the_route(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    mine, peer = pair
    with ConnectionPool("127.0.0.1:1, 127.0.0.1:2", max_size=1) as pool, peer:
        pool.add_connection(mine)
        with pool.try_connect(Request(where=lambda info: True, timeout=5)) as conn:
            assert conn.raw is mine


def test_what_is_added_for_an_endpoint_serves_it() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        raw = socket.create_connection(("127.0.0.1", server.port))
        pool.add_connection(raw, server.endpoint)
        with pool.try_connect(server.endpoint, timeout=5) as conn:
            assert conn.raw is raw
            assert conn.endpoint == server.endpoint
        server.until_accepts(1)
        assert server.accepts == 1


def test_without_a_route_what_is_added_for_an_endpoint_serves_who_pins_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    mine, peer = pair
    with ConnectionPool(sharable=True) as pool, peer:
        pool.add_connection(mine, "a:1")
        with pool.try_connect(timeout=5) as conn:
            assert (conn.raw, str(conn.endpoint)) == (mine, "a:1")
        with pool.share(timeout=5) as conn:
            assert conn.raw is mine
        pool.blacklist("a:1")
        with pool.try_connect(timeout=5) as conn:  # nobody else can serve
            assert conn.raw is mine
        pool.unblacklist("a:1")
        assert pool.take() is mine
        mine.close()
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=5)


def test_without_a_route_only_a_pin_is_dialled() -> None:
    with ScriptedServer() as server, ConnectionPool() as pool:
        added = socket.create_connection(("127.0.0.1", server.port))
        pool.add_connection(added, server.endpoint)
        with pool.try_connect(timeout=5):
            with pytest.raises(PoolExhaustedError):
                pool.try_connect(timeout=0)
            pool.try_connect(server.endpoint, timeout=5).release()
        server.until_accepts(2)
        assert server.accepts == 2


def test_without_a_route_what_a_pin_had_dialled_is_kept_for_pins() -> None:
    with ScriptedServer() as server, ConnectionPool() as pool:
        pool.try_connect(server.endpoint, timeout=5).release()
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=5)
        with pool.try_connect(server.endpoint, timeout=5) as conn:
            assert conn.uses == 1


def test_what_is_added_without_an_endpoint_never_serves_a_pin(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    mine, peer = pair
    with (
        peer,
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool([a.endpoint, b.endpoint]) as pool,
    ):
        pool.add_connection(mine)
        with pool.try_connect(a.endpoint, timeout=5) as conn:
            assert conn.raw is not mine
        lent = [pool.try_connect(timeout=5) for _ in range(3)]
        assert mine in [conn.raw for conn in lent]
        for conn in lent:
            conn.release()


def test_what_is_added_serves_who_waits(clock: FakeClock, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, peer = pair
    got: list[object] = []

    def wait() -> None:
        with pool.try_connect(server.endpoint, timeout=20) as conn:
            got.append(conn.raw)

    with (
        peer,
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, clock=clock, connect_timeout=20) as pool,
    ):
        server.black_hole()
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        clock.until_waiting(1)
        pool.add_connection(mine, server.endpoint)
        thread.join(10)
        assert not thread.is_alive()
        assert got == [mine]
        pool.shutdown()


def test_an_added_one_that_died_is_not_lent(
    clock: FakeClock, pair: tuple[socket.socket, socket.socket]
) -> None:
    mine, peer = pair
    with ConnectionPool(clock=clock) as pool:
        pool.add_connection(mine)
        peer.close()
        clock.advance(1)
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=0)
        assert mine.fileno() == -1


def test_an_added_one_may_be_released_terminated_and_detached(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    mine, peer = pair
    with peer, ConnectionPool() as pool:
        pool.add_connection(mine)
        pool.try_connect().release()
        assert pool.try_connect().detach() is mine
        assert pool.stats().size == 0
        pool.add_connection(mine)
        pool.try_connect().terminate()
        assert peer.recv(1) == b""


def test_what_was_added_and_is_blacklisted_is_lent_only_if_nothing_else_that_was_added_can_serve() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    with ConnectionPool(max_size=2) as pool:
        for (ours, _), endpoint in zip(pairs, ("a:1", "b:1"), strict=True):
            pool.add_connection(ours, endpoint)
        pool.blacklist("a:1")
        held = pool.try_connect(timeout=0)
        assert str(held.endpoint) == "b:1"
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.05)
        assert isinstance(held.detach(), socket.socket)
        with pool.try_connect(timeout=5) as conn:
            assert str(conn.endpoint) == "a:1"
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


def test_what_was_added_beside_a_route_and_is_blacklisted_is_lent_if_no_endpoint_can_serve(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    with ConnectionPool(["a:1", "b:1"]) as pool, theirs:
        pool.add_connection(ours)
        for endpoint in ("a:1", "b:1"):
            pool.blacklist(endpoint)
        with pool.try_connect(timeout=0) as conn:
            added = conn.endpoint
        pool.blacklist(added)
        with pool.try_connect(timeout=5) as conn:
            assert conn.endpoint == added
