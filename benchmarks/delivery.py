"""What a broadcaster costs beside a bare socket, and what a member that is away costs the others."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter

from benchmarks.compare import interleave, rates, spin_all, versus
from benchmarks.plan import Plan, Workload
from benchmarks.race import Result, Running, Track
from benchmarks.report import Row, at_least
from benchmarks.servers import HOST, Sink
from connpool import Broadcaster, ConnectionPool, Endpoint, MemorySpool

MESSAGE = b"x" * 200
LARGE = b"x" * 65_536
BATCH = 512  # messages that the bare loop joins and writes at a time
PATIENCE = 10.0  # seconds


class Bare:
    """A socket for each receiver, written to in turn."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.conns = [dial(port) for port in ports]

    def spin(self, running: Running, track: Track) -> None:
        sends = [conn.sendall for conn in self.conns]
        message, bundle = MESSAGE, track.bundle
        while running:
            for _ in bundle:
                for send in sends:
                    send(message)
            track.turns += len(bundle)

    def close(self) -> None:
        for conn in self.conns:
            conn.close()


class Ours:
    """A broadcaster over all receivers.

    Args:
        ports: Of the receivers.
        spool: Whether a message may wait.
        blocked: Of a receiver among them that reads nothing: it is brought to the point
            at which it takes nothing more.
    """

    def __init__(self, ports: Sequence[int], *, spool: bool = False, blocked: int | None = None) -> None:
        self.pool = ConnectionPool(route_to(ports), max_size=len(ports))
        self.broadcaster = Broadcaster(self.pool, spool=MemorySpool() if spool else None)
        self.broadcaster.broadcast(MESSAGE)  # waits for those that can be reached
        while blocked is not None and not self.broadcaster.unsent()[Endpoint(HOST, blocked)]:
            self.broadcaster.broadcast(LARGE)

    def spin(self, running: Running, track: Track) -> None:
        broadcast = self.broadcaster.broadcast
        message, bundle = MESSAGE, track.bundle
        while running:
            for _ in bundle:
                broadcast(message)
            track.turns += len(bundle)

    def close(self) -> None:
        self.broadcaster.close(0.0)
        self.pool.close(0.0)


def broadcast(plan: Plan) -> list[Row]:
    """How many messages of 200 bytes does one thread broadcast, for each that it sends by bare sockets?"""
    with sinks(3) as ports:
        one = ports[:1]
        results = spin_all(
            plan,
            {
                "bare": lambda _: Bare(one),
                "ours": lambda _: Ours(one),
                "ours, with a spool": lambda _: Ours(one, spool=True),
                "three bare": lambda _: Bare(ports),
                "ours, to three": lambda _: Ours(ports),
                "ours, to three, spool": lambda _: Ours(ports, spool=True),
            },
            threads=1,
            size=1,
        )
    return [
        *rates(results),
        versus(results, "ours", "bare", at_least(0.5)),
        versus(results, "ours, with a spool", "bare", at_least(0.5)),
        versus(results, "ours, to three", "three bare", at_least(0.4)),
        versus(results, "ours, to three, spool", "three bare", at_least(0.4)),
    ]


def bystanders(plan: Plan) -> list[Row]:
    """How many messages does one thread broadcast to three, one of whom is away, for each when none is?"""
    with sinks(3) as ports, nobody() as dead, someone_who_never_reads() as blocked:
        results = spin_all(
            plan,
            {
                "all alive": lambda _: Ours(ports, spool=True),
                "one dead": lambda _: Ours([*ports[:2], dead], spool=True),
                "one blocked": lambda _: Ours([*ports[:2], blocked], spool=True, blocked=blocked),
            },
            threads=1,
            size=1,
        )
    return [
        *rates(results),
        versus(results, "one dead", "all alive", at_least(0.9)),
        versus(results, "one blocked", "all alive", at_least(0.9)),
    ]


def flush(plan: Plan) -> list[Row]:
    """How fast does a backlog reach a receiver that has come, for each message that a bare socket brings?"""
    count = plan.backlog
    with Sink(expected=count * len(MESSAGE)) as server:
        contenders = {"bare": partial(write_all, server, count), "ours": partial(flush_all, server, count)}
        results = interleave(contenders, lambda run: run(), plan.repeats)
    return [*rates(results), versus(results, "ours", "bare", at_least(0.5))]


def write_all(server: Sink, count: int) -> Result:
    """Dial, and write everything in batches; it is over when the other side has it."""
    backlog = messages(count)
    began = perf_counter()
    with dial(server.port) as conn:
        for begin in range(0, count, BATCH):
            conn.sendall(b"".join(backlog[begin : begin + BATCH]))
        server.hear()
    return Result((count,), perf_counter() - began)


def messages(count: int) -> list[bytes]:
    """So many messages that differ: what lies in memory once only would be read from the cache."""
    return [b"%0*d" % (len(MESSAGE), number) for number in range(count)]


def flush_all(server: Sink, count: int) -> Result:
    """Let a broadcaster begin with a full spool; it is over when the other side has everything."""
    spool = MemorySpool()
    queue = str(Endpoint(HOST, server.port))
    for number, message in enumerate(messages(count)):
        spool.put([queue], message, number.to_bytes(16, "big"))
    began = perf_counter()
    with ConnectionPool(route_to([server.port])) as pool, Broadcaster(pool, spool=spool):
        server.hear()
        return Result((count,), perf_counter() - began)


# -- who is sent to


@contextmanager
def sinks(count: int) -> Iterator[list[int]]:
    """Ports of so many receivers that read as fast as they can, each in a process of its own."""
    with ExitStack() as stack:
        yield [stack.enter_context(Sink()).port for _ in range(count)]


@contextmanager
def nobody() -> Iterator[int]:
    """A port at which every dial is refused."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]


@contextmanager
def someone_who_never_reads() -> Iterator[int]:
    """A port at which connections are made by the system alone."""
    with socket.create_server((HOST, 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def dial(port: int) -> socket.socket:
    conn = socket.create_connection((HOST, port), PATIENCE)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn.settimeout(None)
    return conn


def route_to(ports: Sequence[int]) -> str:
    return " && ".join(f"{HOST}:{port}" for port in ports)


WORKLOADS: Mapping[str, Workload] = {"broadcast": broadcast, "bystanders": bystanders, "flush": flush}
