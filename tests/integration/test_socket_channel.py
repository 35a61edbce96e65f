"""Requests and answers over a connection of a pool, and what becomes of the connection."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator

import pytest

from connpool import (
    CallPool,
    CallTimeoutError,
    Channel,
    ChannelClosedError,
    Connection,
    ConnectionPool,
    FramingError,
    LengthPrefixed,
    Raw,
    SocketChannel,
)
from connpool.testing import Answer, Reset, ScriptedServer, Send, ServedConnection, Silence
from tests.helpers.forks import in_child
from tests.helpers.switchboard import until

UPPER = Answer(lambda request: request.upper(), delimiter=b"\n")


@pytest.fixture
def pool() -> Iterator[CallPool]:
    with CallPool() as made:
        yield made


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(script=UPPER) as running:
        yield running


@pytest.fixture
def sockets(server: ScriptedServer) -> Iterator[ConnectionPool]:
    with ConnectionPool(server.endpoint, max_size=4, name="lines") as made:
        yield made


def test_it_is_a_channel(sockets):
    assert isinstance(SocketChannel(sockets, "upper", {"say"}), Channel)


def test_a_request_is_a_line_and_its_answer_the_next(pool, sockets, server):
    pool.init(SocketChannel(sockets, "upper", {"say", b"raw"}))
    assert pool.call("upper", "say", "hello") == b"SAY HELLO"
    assert pool.call("upper", "say", timeout=5) == b"SAY"
    assert pool.call("upper", b"raw", b"\xff") == b"RAW \xff"
    assert server.accepts == 1
    assert sockets.stats().in_use == 1


def test_a_call_has_its_time_and_no_more_though_its_answer_comes_by_drops(pool):
    def drip(connection: ServedConnection) -> None:
        connection.receive()
        for _ in range(60):
            connection.send(b".")
            connection.pause(0.05)
        connection.send(b"\n")

    with ScriptedServer(script=drip) as server, ConnectionPool(server.endpoint) as sockets:
        pool.init(SocketChannel(sockets, "slow", {"say"}))
        with pytest.raises(CallTimeoutError, match=r"no answer within 0\.2 s"):
            pool.call("slow", "say", timeout=0.2)


def test_an_answer_that_comes_in_pieces_is_whole(pool, sockets, server):
    server.script = [Answer(b"", times=1, delimiter=b"\n"), Send(b"a"), Send(b"b"), Send(b"c\n"), Silence()]
    pool.init(SocketChannel(sockets, "upper", {"say"}))
    assert pool.call("upper", "say") == b"abc"


def test_another_protocol_is_a_framing_and_two_callables(pool, server, sockets):
    def encode(method: int, payload: int) -> bytes:
        return bytes([method, payload])

    def decode(method: int, message: bytes) -> int:
        assert method == 1
        return sum(message)

    server.script = Answer(lambda request: request)
    pool.init(SocketChannel(sockets, "sum", {1}, framing=LengthPrefixed(2), encode=encode, decode=decode))
    assert pool.call("sum", 1, 4) == 5
    assert server.until_accepts(1).received == b"\x00\x02\x01\x04"


def test_a_framing_that_bounds_nothing_serves_as_well(pool, sockets):
    pool.init(SocketChannel(sockets, "upper", {"say\n"}, framing=Raw()))
    assert pool.call("upper", "say\n") == b"SAY\n"


def test_the_peer_may_be_asked_for_the_methods(pool, sockets):
    asked = []

    def methods(channel):
        asked.append(channel.call("what", None, timeout=5))
        return {"say"}

    id = pool.init(SocketChannel(sockets, "upper", methods))
    assert (asked, pool.info(id).methods) == ([b"WHAT"], {"say"})


def test_the_other_end_reads_requests_with_the_same_class(sockets):
    channel = SocketChannel(sockets, "upper", {"say"})
    assert channel.parse(b"say hel") == []
    assert channel.parse(b"lo world\nsay\nsa") == [("say", "hello world"), ("say", None)]


def test_what_cannot_be_sent_is_the_callers_error_and_nothing_was_sent(pool, sockets, server):
    pool.init(SocketChannel(sockets, "upper", {"say"}))
    with pytest.raises(FramingError):
        pool.call("upper", "say", "two\nlines")
    assert pool.call("upper", "say", "one") == b"SAY ONE"
    assert server.accepts == 1


def test_a_request_that_is_not_bytes_is_the_callers_error_and_the_channel_stays(pool, sockets, server):
    texts = SocketChannel(sockets, "upper", {"say"}, framing=Raw(), encode=lambda _, payload: payload)
    pool.init(texts)
    with pytest.raises(FramingError, match="a message is bytes, not 'str': 'text'"):
        pool.call("upper", "say", "text")
    assert pool.call("upper", "say", b"bytes\n") == b"BYTES\n"
    assert server.accepts == 1


def test_an_answer_that_cannot_be_decoded_is_the_callers_error_and_the_channel_stays(pool, sockets):
    class Numbers(SocketChannel):
        def decode(self, method, message):
            return int(message)

    pool.init(Numbers(sockets, "upper", {"5", "x"}))
    with pytest.raises(ValueError, match="invalid literal"):
        pool.call("upper", "x")
    assert pool.call("upper", "5") == 5


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Answer(b"", times=1, delimiter=b"\n"), Reset()], id="reset"),
        pytest.param([Answer(b"", times=1, delimiter=b"\n")], id="end"),
        pytest.param([Answer(b"one\ntwo\n", times=1, delimiter=b"\n"), Silence()], id="two answers"),
        pytest.param([Answer(b"one\ntw", times=1, delimiter=b"\n"), Silence()], id="an answer and a half"),
        pytest.param([Send(b"unasked\n"), Silence()], id="unasked"),
    ],
)
def test_a_peer_that_does_not_keep_to_the_protocol_closes_the_channel(pool, sockets, server, script):
    if len(script) == 1:
        script = [*script, lambda connection: connection.close()]
    server.script = script
    pool.init(SocketChannel(sockets, "upper", {"say"}))
    if isinstance(script[0], Send):
        conn = pool.map("upper", lambda info: info.channel)[0]._conns[0]
        until(lambda: not sockets._lender.connector.is_usable(conn.raw))
    with pytest.raises(ChannelClosedError) as caught:
        pool.call("upper", "say", timeout=5)
    assert isinstance(caught.value.__cause__, OSError)
    assert pool.is_empty("upper")
    until(lambda: sockets.stats().size == 0)


def test_a_late_answer_is_never_taken_for_the_next_ones(pool, sockets, server):
    server.script = Silence()
    pool.init(SocketChannel(sockets, "upper", {"say"}), revive=True)
    server.until_accepts(1)
    server.script = UPPER
    with pytest.raises(CallTimeoutError) as caught:
        pool.call("upper", "say", timeout=0.05)
    assert isinstance(caught.value.__cause__, TimeoutError)
    until(lambda: pool.resources() == ["upper"])
    assert pool.call("upper", "say", timeout=5) == b"SAY"
    assert server.accepts == 2
    server.until_accepts(1).until_ended()


def test_a_peer_that_the_system_has_given_up_has_closed_the_channel(pool, sockets, monkeypatch):
    pool.init(SocketChannel(sockets, "upper", {"say"}))

    def give_up(*_: object) -> bytes:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(Connection, "recv", give_up)
    with pytest.raises(ChannelClosedError, match="Connection timed out"):
        pool.call("upper", "say", timeout=5)
    assert pool.resources() == []


def test_a_call_that_has_no_time_sends_nothing_and_leaves_the_channel_as_it_is(pool, sockets, server):
    pool.init(SocketChannel(sockets, "upper", {"say"}))
    with pytest.raises(CallTimeoutError) as caught:
        pool.call("upper", "say", "never", timeout=0)
    assert caught.value.__cause__ is None
    assert pool.call("upper", "say", "hello", timeout=5) == b"SAY HELLO"
    assert server.received == [b"say hello\n"]


def test_an_answer_that_is_late_is_told_with_the_seconds_it_had(pool, sockets, server):
    server.script = Silence()
    pool.init(SocketChannel(sockets, "upper", {"say"}))
    with pytest.raises(CallTimeoutError, match=r"no answer within 0\.0\d{1,6} s$"):
        pool.call("upper", "say", where=bool, timeout=0.03)  # some of it is over when the call begins


def test_a_peer_that_breaks_the_framing_closes_the_channel(pool, sockets, server):
    server.script = [Answer(b"\xff\xff\xff\xff", times=1), Silence()]
    framing = LengthPrefixed(4, max_size=100)
    pool.init(SocketChannel(sockets, "upper", {"say"}, framing=framing))
    with pytest.raises(ChannelClosedError) as caught:
        pool.call("upper", "say", timeout=5)
    assert isinstance(caught.value.__cause__, FramingError)


def test_what_was_half_read_before_is_forgotten_when_it_is_opened_again(pool, sockets, server):
    server.script = [Answer(b"ha", times=1, delimiter=b"\n"), Reset()]
    pool.init(SocketChannel(sockets, "upper", {"say"}), revive=True)
    server.until_accepts(1)
    server.script = UPPER
    with pytest.raises(ChannelClosedError):
        pool.call("upper", "say", timeout=5)
    until(lambda: pool.resources() == ["upper"])
    assert pool.call("upper", "say", timeout=5) == b"SAY"


def test_it_may_be_opened_for_one_endpoint(pool, sockets):
    with ScriptedServer(script=UPPER) as other:
        pool.init(SocketChannel(sockets, "upper", {"say"}), other.endpoint)
        pool.call("upper", "say")
        assert other.accepts == 1
        pool.close()
        until(lambda: sockets.stats().size == 0)


def test_closing_it_closes_its_connection_once(sockets, server):
    channel = SocketChannel(sockets, "upper", {"say"})
    channel.open()
    channel.close()
    channel.close()
    assert sockets.stats().size == 0
    with pytest.raises(ChannelClosedError, match="not open"):
        channel.call("say", None)


def test_a_forked_child_may_open_it_again_with_a_connection_of_its_own(pool, sockets, server):
    channel = SocketChannel(sockets, "upper", {"say"})
    pool.init(channel)

    def open_again() -> tuple[bytes, bytes]:
        pool.init(channel)
        return pool.call("upper", "say", "one"), pool.call("upper", "say", "two")

    assert in_child(open_again) == (b"SAY ONE", b"SAY TWO")
    assert pool.call("upper", "say", "mine") == b"SAY MINE"
    assert server.accepts == 2


def test_one_that_is_closed_just_when_a_call_takes_its_connection_in_hand_sends_nothing(sockets, server):
    class Closing(deque):
        def popleft(self):
            conn = super().popleft()
            channel._conns = deque()
            channel.close()  # by another thread, which finds nothing to close
            return conn

    channel = SocketChannel(sockets, "upper", {"say"})
    channel.open()
    server.until_accepts(1)
    channel._conns = Closing(channel._conns)
    with pytest.raises(ChannelClosedError, match="it was closed"):
        channel.call("say", None)
    assert sockets.stats().size == 0
    server.until_accepts(1).until_ended()
    assert server.until_accepts(1).received == b""


def test_one_that_was_opened_again_after_it_broke_survives_an_answer_that_cannot_be_decoded(
    pool, sockets, server
):
    class Numbers(SocketChannel):
        def decode(self, method, message):
            return int(message)

    server.script = [Answer(b"", times=1, delimiter=b"\n"), Reset()]
    pool.init(Numbers(sockets, "upper", {"5", "x"}), revive=True)
    server.until_accepts(1)
    server.script = UPPER
    with pytest.raises(ChannelClosedError):
        pool.call("upper", "5", timeout=5)
    until(lambda: pool.resources() == ["upper"])
    with pytest.raises(ValueError, match="invalid literal"):
        pool.call("upper", "x", timeout=5)
    assert pool.call("upper", "5", timeout=5) == 5
    assert server.accepts == 2
