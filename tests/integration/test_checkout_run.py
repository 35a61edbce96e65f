"""The stale rule: what may be done again is done again, and nothing else."""

from __future__ import annotations

import select
import socket

import pytest

from connpool import CloseReason, Connection, ConnectionPool, NoEndpointError, Request, SocketConnector
from connpool.testing import (
    Answer,
    Close,
    Echo,
    Ending,
    Reset,
    ScriptedServer,
    Send,
    ServedConnection,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.stress.works import Caller


def request(conn: Connection) -> bytes:
    conn.sendall(b"request\n", timeout=5)
    return conn.recv_exactly(6, timeout=5)


def read_second_and(end: Close | Reset, answer: bytes = b"") -> list[object]:
    """Answer one request; read the second, say *answer*, and end."""

    def take(connection: ServedConnection) -> None:
        connection.request(b"\n")

    return [Answer(b"answer", times=1, delimiter=b"\n"), take, Send(answer), end]


def test_work_is_done_with_a_connection_that_is_given_back() -> None:
    with ScriptedServer(script=Answer(b"answer")) as server, ConnectionPool(server.endpoint) as pool:
        assert [pool.run(request) for _ in range(3)] == [b"answer"] * 3
        assert server.accepts == 1
        assert (pool.stats().idle, pool.stats().in_use) == (1, 0)


@pytest.mark.parametrize("end", [Close(), Reset()])
def test_idempotent_work_on_a_stale_connection_is_done_again_on_a_fresh_one(end: Close | Reset) -> None:
    with ScriptedServer(script=read_second_and(end)) as server, ConnectionPool(server.endpoint) as pool:
        assert pool.run(request, idempotent=True) == b"answer"
        uses: list[int] = []

        def work(conn: Connection) -> bytes:
            uses.append(conn.uses)
            return request(conn)

        assert pool.run(work, idempotent=True) == b"answer"
        assert uses == [1, 0]
        assert server.accepts == 2
        assert server.received == [b"request\n" * 2, b"request\n"]
        assert (pool.stats().in_use, pool.stats().closed) == (0, {CloseReason.BROKEN: 1})


def test_work_that_is_not_idempotent_is_never_done_twice() -> None:
    with ScriptedServer(script=read_second_and(Close())) as server, ConnectionPool(server.endpoint) as pool:
        pool.run(request)
        with pytest.raises(ConnectionError):
            pool.run(request)
        assert server.received == [b"request\n" * 2], "the second request was seen once"
        assert server.accepts == 1
        assert pool.stats().size == 0


@pytest.mark.parametrize("end", [Close(), Reset()])
def test_work_is_never_repeated_once_a_byte_of_the_answer_came(end: Close | Reset) -> None:
    def work(conn: Connection) -> bytes:
        conn.sendall(b"request\n", timeout=5)
        return conn.recv_exactly(1, timeout=5) + conn.recv_exactly(5, timeout=5)

    with (
        ScriptedServer(script=read_second_and(end, b"a")) as server,
        ConnectionPool(server.endpoint) as pool,
    ):
        pool.run(work, idempotent=True)
        if isinstance(end, Reset):  # a reset may overtake the byte; then nothing was read
            server.script = read_second_and(Close(), b"a")
            pool.clear()
            pool.run(work, idempotent=True)
        before = server.accepts
        with pytest.raises(ConnectionError):
            pool.run(work, idempotent=True)
        assert server.accepts == before


def test_a_new_connection_that_breaks_is_no_reason_to_repeat() -> None:
    calls: list[int] = []

    def work(conn: Connection) -> bytes:
        calls.append(conn.uses)
        return request(conn)

    with ScriptedServer(script=Close()) as server, ConnectionPool(server.endpoint) as pool:
        with pytest.raises(ConnectionError):
            pool.run(work, idempotent=True)
        assert calls == [0]


def test_work_is_repeated_once_at_most() -> None:
    with ScriptedServer(script=read_second_and(Close())) as server, ConnectionPool(server.endpoint) as pool:
        pool.run(request)
        server.script = Close()
        with pytest.raises(ConnectionError):
            pool.run(request, idempotent=True)
        assert server.accepts == 2
        assert pool.stats().size == 0


def test_an_error_that_is_not_the_connections_is_no_reason_to_repeat() -> None:
    calls: list[int] = []

    def work(conn: Connection) -> None:
        calls.append(conn.uses)
        raise (ValueError if len(calls) % 2 else OSError)("my own")

    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        pool.try_connect(timeout=5).release()
        with pytest.raises(ValueError, match="my own"):
            pool.run(work, idempotent=True)
        pool.try_connect(timeout=5).release()
        with pytest.raises(OSError, match="my own"):
            pool.run(work, idempotent=True)
        assert calls == [1, 1]


def test_a_time_out_is_no_reason_to_repeat() -> None:
    calls: list[int] = []

    def work(conn: Connection) -> bytes:
        calls.append(conn.uses)
        return conn.recv_exactly(1, timeout=0.05)

    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        pool.try_connect(timeout=5).release()
        with pytest.raises(TimeoutError):
            pool.run(work, idempotent=True)
        assert calls == [1]


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_whole_pool_of_dead_idle_connections_is_no_obstacle(idempotent: bool) -> None:
    with (
        ScriptedServer(script=Answer(b"answer")) as server,
        ConnectionPool(server.endpoint, max_size=32) as pool,
    ):
        conns = [pool.try_connect(timeout=5) for _ in range(32)]
        server.until_accepts(32)
        for conn in conns:
            conn.release()
        server.kill()
        assert pool.run(request, idempotent=idempotent) == b"answer"
        assert pool.stats().in_use == 0


def test_the_repetition_gets_a_new_connection_although_idle_ones_are_left() -> None:
    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ConnectionPool(server.endpoint, max_size=2) as pool,
    ):
        conns = [pool.try_connect(timeout=5) for _ in range(2)]
        for conn in conns:
            assert request(conn) == b"answer"
            conn.release()
        uses: list[int] = []

        def work(conn: Connection) -> bytes:
            uses.append(conn.uses)
            return request(conn)

        assert pool.run(work, idempotent=True) == b"answer"
        assert uses == [1, 0]
        assert server.accepts == 3


@pytest.mark.parametrize("limit", [{"max_size": 2}, {"max_per_endpoint": 2}])
def test_where_another_gets_the_place_of_a_stale_one_an_idle_one_makes_room_for_the_repetition(
    limit: dict[str, int],
) -> None:
    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ConnectionPool(server.endpoint, **limit) as pool,
    ):
        for loan in [pool.try_connect(timeout=5) for _ in range(2)]:
            assert request(loan) == b"answer"
            loan.release()
        uses: list[int] = []
        others: list[Caller] = []

        def work(conn: Connection) -> bytes:
            uses.append(conn.uses)
            if not others:
                others.append(Caller(pool, Request(where=lambda info: info.uses == 0)))
                until(lambda: pool.stats().waiting == 1)
                assert pool.stats().idle == 1
            return request(conn)

        assert pool.run(work, Request(timeout=5), idempotent=True) == b"answer"
        assert uses == [1, 0]
        others[0].loan().release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1, CloseReason.EVICTED: 1}


def test_a_pinned_request_is_repeated_at_its_own_endpoint() -> None:
    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ScriptedServer(script=Answer(b"answer")) as other,
        ConnectionPool([other.endpoint, server.endpoint]) as pool,
    ):
        for _ in range(2):
            assert pool.run(request, server.endpoint, idempotent=True) == b"answer"
        assert (server.accepts, other.accepts) == (2, 0)


def test_what_work_gave_back_itself_is_not_given_back_again() -> None:
    with ScriptedServer(script=Echo()) as server, ConnectionPool(server.endpoint) as pool:
        pool.run(Connection.release)
        assert pool.stats().idle == 1
        pool.run(Connection.terminate)
        assert pool.stats().size == 0
        raw = pool.run(Connection.detach)
        raw.close()


def test_what_the_next_holder_meets_has_no_work_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lenient(SocketConnector):
        def is_fatal(self, error: Exception) -> bool:
            return False

    calls: list[Connection] = []

    def work(conn: Connection) -> None:
        calls.append(conn)
        raise LookupError

    give_back = Connection.release

    def release_to_a_quick_one(conn: Connection) -> None:
        monkeypatch.undo()
        give_back(conn)
        with pytest.raises(ConnectionError), pool.try_connect(timeout=5) as other:
            request(other)

    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ConnectionPool(server.endpoint, connector=Lenient()) as pool,
    ):
        pool.run(request)
        monkeypatch.setattr(Connection, "release", release_to_a_quick_one)
        with pytest.raises(LookupError):
            pool.run(work, idempotent=True)
        assert len(calls) == 1


def test_an_interrupt_of_its_return_is_no_reason_to_repeat() -> None:
    class Interrupted(SocketConnector):
        def is_fatal(self, error: Exception) -> bool:
            raise KeyboardInterrupt

    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ConnectionPool(server.endpoint, connector=Interrupted()) as pool,
    ):
        pool.run(request)
        with pytest.raises(KeyboardInterrupt):
            pool.run(request, idempotent=True)
        assert server.accepts == 1


def test_work_that_raises_closes_its_connection() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:

        def work(conn: Connection) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            pool.run(work)
        server.until_accepts(1).until_ended()
        assert server.closes == [Ending.EOF]


def test_many_threads_survive_a_server_that_closes_after_every_second_request() -> None:
    with (
        ScriptedServer(script=read_second_and(Close())) as server,
        ConnectionPool(server.endpoint, max_size=4) as pool,
    ):

        def work() -> None:
            for _ in range(25):
                assert pool.run(request, idempotent=True) == b"answer"

        together(*[work] * 8, limit=30)
        assert server.peak <= 4
        assert pool.stats().in_use == 0


def hung_up_on(pool: ConnectionPool) -> bool:
    """Whether the peer's end has come, on the one idle connection, which stays where it is."""
    with pool.try_connect(timeout=5) as conn:
        return bool(select.select([conn], [], [], 5)[0])


@pytest.mark.parametrize("end", [Close(), Reset()])
def test_a_connection_hung_up_on_a_moment_ago_is_replaced_before_work_begins(end: Close | Reset) -> None:
    """Though nothing may be done twice, and a checkout so soon after the last does not look."""
    answer = Answer(b"answer", times=1, delimiter=b"\n")
    with ScriptedServer(script=[answer, end]) as server, ConnectionPool(server.endpoint) as pool:
        assert pool.run(request) == b"answer"
        assert hung_up_on(pool)
        assert pool.run(request) == b"answer"
        assert server.accepts == 2
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_a_shared_connection_is_not_looked_at_while_its_holders_wait_for_answers() -> None:
    with (
        ScriptedServer(script=Answer(b"answer", delimiter=b"\n")) as server,
        ConnectionPool(server.endpoint, sharable=True, max_size=1) as pool,
        pool.share() as other,
    ):
        other.sendall(b"request\n", timeout=5)
        assert select.select([other], [], [], 5)[0], "an answer lies there"
        assert pool.run(lambda conn: conn.uses, Request(shared=True)) == 1
        assert other.recv_exactly(6, timeout=5) == b"answer"
        assert server.accepts == 1


def test_where_a_look_may_take_long_run_does_not_look() -> None:
    looks: list[object] = []
    with ConnectionPool.of(object, is_usable=lambda raw: looks.append(raw) or True) as pool:
        assert [pool.run(lambda conn: conn.uses) for _ in range(3)] == [0, 1, 2]
        assert not looks


def test_where_nothing_can_be_dialled_stale_work_fails_at_once_instead_of_waiting_for_what_is_used() -> None:
    ours, theirs = socket.socketpair()
    other, _peer = socket.socketpair()

    def work(conn: Connection) -> None:
        theirs.close()
        conn.recv_exactly(1, timeout=5)

    with ConnectionPool(None, max_size=2) as pool, _peer:
        for raw in (other, ours):
            pool.add_connection(raw, "db:1")
        for loan in reversed([pool.try_connect(timeout=0) for _ in range(2)]):
            loan.release()
        with pytest.raises(NoEndpointError, match="no route to dial"):
            pool.run(work, Request(timeout=5), idempotent=True)
        assert (pool.stats().idle, pool.stats().timeouts) == (1, 0)
