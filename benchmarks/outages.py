"""What users see when servers die: W9, one that restarts, and W10, one of three."""

import itertools
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from time import perf_counter, sleep
from typing import Any, Protocol

from attrs import Factory, define, frozen

from benchmarks import peers
from benchmarks.compare import each, interleave
from benchmarks.echo import SIZE
from benchmarks.peers.base import Peer
from benchmarks.peers.lifo_queue import Pool as LifoQueue
from benchmarks.plan import Plan, Workload
from benchmarks.race import ratio
from benchmarks.report import Curve, Finding, Gap, Unit, at_most
from benchmarks.servers import HOST, EchoServer
from connpool import Connection, ConnectionPool, Endpoint
from connpool.model.events import ConnectionOpening

REQUEST = b"x" * SIZE
PATIENCE = 5.0  # seconds that a write or a read may last
RETRY = 0.01  # seconds after which a user whose turn has failed asks again
STORM_THREADS = 64
STORM_SIZE = 16
PROBES = 3  # dials of one endpoint that back-off allows in the outage, and at its end
THREE_THREADS = 16
THREE_SIZE = 12
LONGEST = 6  # outages that a thread waits for its turn, once the server is back, before it counts as given up
BUCKET = 0.01


class Client(Protocol):
    """Somebody who asks servers that may die."""

    dials: int

    def turn(self, hold: Callable[[object], None]) -> None:
        """One request; *hold* is told which server gets it. Raises if it fails."""

    def close(self) -> None:
        """Let go of everything."""


def ask(conn: socket.socket) -> None:
    """One request and its answer, as one does without us."""
    conn.sendall(REQUEST)
    left = SIZE
    while left:
        data = conn.recv(left)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        left -= len(data)


class Ours:
    """Our pool over all servers.

    Args:
        ports: Of the servers.
        repeat: Whether a request that died with its connection is sent again by the pool.
        settings: Of the pool.
    """

    def __init__(self, ports: list[int], size: int, *, repeat: bool = False, **settings: Any) -> None:
        self.dials = 0
        self.repeat = repeat
        self.pool = ConnectionPool(
            [Endpoint(HOST, port) for port in ports], max_size=size, checkout_timeout=PATIENCE, **settings
        )
        self.pool.listen(self.count, ConnectionOpening)

    def count(self, event: object) -> None:
        self.dials += 1

    def turn(self, hold: Callable[[object], None]) -> None:
        def work(conn: Connection) -> None:
            assert conn.endpoint is not None
            hold(conn.endpoint.port)
            conn.sendall(REQUEST, PATIENCE)
            conn.recv_exactly(SIZE, PATIENCE)

        self.pool.run(work, idempotent=self.repeat)

    def close(self) -> None:
        self.pool.close()


class Theirs:
    """One pool of a peer's for each server, in turn; a failed request is sent once more, to the next server.

    That is what one writes around a pool of one server. With one server it is the bare pool.
    """

    def __init__(self, make: type[Peer], ports: list[int], size: int) -> None:
        self.dials = 0
        self.numbers = itertools.count()
        self.pools = [(port, make(size // len(ports), partial(self.dial, port))) for port in ports]

    def dial(self, port: int) -> socket.socket:
        self.dials += 1
        return socket.create_connection((HOST, port), PATIENCE)

    def turn(self, hold: Callable[[object], None]) -> None:
        first = next(self.numbers)
        for attempt in range(len(self.pools)):
            port, pool = self.pools[(first + attempt) % len(self.pools)]
            try:
                self.ask(pool, port, hold)
                return
            except OSError:
                if attempt == len(self.pools) - 1:
                    raise

    @staticmethod
    def ask(pool: Peer, port: int, hold: Callable[[object], None]) -> None:
        handle = pool.get()
        try:
            hold(port)
            ask(pool.raw(handle))
        except BaseException:
            pool.discard(handle)
            raise
        pool.put(handle)

    def close(self) -> None:
        for _, pool in self.pools:
            pool.close()


@define
class Log:
    """What one thread saw.

    Attributes:
        held_at: When its request was last given to a server; None: not yet, in this turn.
        done: When each turn was over that succeeded.
        began: When each of these began.
        failed: Of each turn that failed, when its request was given to a server.
        longest: Seconds of its longest turn.
    """

    held_at: float | None = None
    done: list[float] = Factory(list)
    began: list[float] = Factory(list)
    failed: list[float | None] = Factory(list)
    longest: float = 0.0

    def hold(self, server: object) -> None:
        self.held_at = perf_counter()


def keep_asking(client: Client, log: Log, is_over: Callable[[], bool]) -> None:
    """Take turn after turn; after one that failed wait for a moment."""
    while not is_over():
        log.held_at = None
        began = perf_counter()
        try:
            client.turn(log.hold)
        except (OSError, RuntimeError):
            log.failed.append(log.held_at)
            sleep(RETRY)
        else:
            log.began.append(began)
            log.done.append(perf_counter())
        log.longest = max(log.longest, perf_counter() - began)


def crowd(client: Client, threads: int, script: Callable[[list[Log]], None]) -> list[Log]:
    """Let so many threads ask while *script* runs; their logs."""
    logs = [Log() for _ in range(threads)]
    over = threading.Event()
    askers = [threading.Thread(target=keep_asking, args=(client, log, over.is_set)) for log in logs]
    for asker in askers:
        asker.start()
    try:
        script(logs)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    return logs


# -- W9


@frozen
class Storm:
    """How a restart was survived.

    Attributes:
        recovery: Seconds from the server's return until each thread had an answer.
        dials: From its death until then.
        failures: Turns that failed.
        longest: Seconds of the longest turn.
    """

    recovery: float
    dials: int
    failures: int
    longest: float


def w9(plan: Plan) -> list[Finding]:
    """A server restarts under 64 threads: how soon are all served again, and how hard is it hit?"""
    outage = max(0.2, plan.seconds)
    contenders: dict[str, Callable[[list[int], int], Client]] = {
        "ours": Ours,
        "ours, 50 ms back-off": partial(Ours, blacklist_initial=0.05, blacklist_max=0.2),
    }
    if plan.peers:
        contenders |= {name: partial(Theirs, peer) for name, peer in of_sockets().items()}

    def run(make: Callable[[list[int], int], Client]) -> Storm:
        with EchoServer() as server:
            client = make([server.port], STORM_SIZE)
            try:
                return storm(server, client, outage, plan.warm_up)
            finally:
                client.close()

    results = interleave(contenders, run, min(plan.repeats, 3))
    dials = {"ours": at_most(STORM_SIZE + PROBES)}
    return [
        *each(results, "all served again after", Unit.SECONDS, lambda result: result.recovery),
        *each(results, "dials", Unit.COUNT, lambda result: result.dials, dials),
        *each(results, "failed turns", Unit.COUNT, lambda result: result.failures),
        *each(results, "longest wait", Unit.SECONDS, lambda result: result.longest),
        *(gaps() if plan.peers else []),
    ]


def storm(server: EchoServer, client: Client, outage: float, warm_up: float) -> Storm:
    """Kill the server, start it again after *outage* seconds, and wait until all threads are served.

    Not for ever: some pools starve threads as long as there is anything to do.
    """
    limit = LONGEST * outage
    back = 0.0
    dials_before = 0

    def script(logs: list[Log]) -> None:
        nonlocal back, dials_before
        sleep(warm_up)
        dials_before = client.dials
        server.kill()
        sleep(outage)
        server.start()
        back = perf_counter()
        while not all(log.began and log.began[-1] > back for log in logs) and perf_counter() < back + limit:
            sleep(0.001)

    logs = crowd(client, STORM_THREADS, script)
    first = [next((d for b, d in zip(log.began, log.done, strict=True) if b > back), None) for log in logs]
    return Storm(
        recovery=max(limit if done is None else done - back for done in first),
        dials=client.dials - dials_before,
        failures=sum(len(log.failed) for log in logs),
        longest=max(log.longest for log in logs),
    )


def of_sockets() -> dict[str, type[Peer]]:
    """The peers whose pools take sockets, and wait."""
    return {name: peer for name, peer in peers.here().items() if peer.waits and not peer.own_protocol}


def gaps() -> list[Gap]:
    """Why the others are not among them."""
    return [
        Gap(name, peer.own_protocol or "raises instead of waiting")
        for name, peer in peers.here().items()
        if name not in of_sockets()
    ]


# -- W10


@frozen
class Failover:
    """How the death of one of three servers was survived.

    Attributes:
        turns: How many ended in each 10 ms, from the death on; keys before it are negative.
        failures: Turns that failed.
        lost: Those of them whose request was given to no server, or to one that was dead already.
        before: Turns a second before the death.
        after: Turns a second in the first 0.1 s after it.
        gap: Longest time without any turn.
    """

    turns: Mapping[int, int]
    failures: int
    lost: int
    before: float
    after: float
    gap: float


def w10(plan: Plan) -> list[Finding]:
    """One of three servers dies and comes back: what do 16 threads see, 10 ms by 10 ms?"""
    span = max(0.3, plan.seconds)
    contenders: dict[str, Callable[[list[int], int], Client]] = {
        "ours": Ours,
        "ours, idempotent": partial(Ours, repeat=True),
    }
    if plan.peers:
        contenders["three queues by hand"] = partial(Theirs, LifoQueue)

    def run(make: Callable[[list[int], int], Client]) -> Failover:
        with ExitStack() as stack:
            servers = [stack.enter_context(EchoServer()) for _ in range(3)]
            client = make([server.port for server in servers], THREE_SIZE)
            stack.callback(client.close)
            return failover(servers[1], client, span)

    results = interleave(contenders, run, min(plan.repeats, 3))
    nothing = {who: at_most(0, always=True) for who in ("ours", "ours, idempotent")}
    return [
        *each(results, "turns before", Unit.RATE, lambda result: result.before),
        *each(results, "of these, 0.1 s after", Unit.RATIO, lambda r: ratio(r.after, r.before)),
        *each(results, "longest standstill", Unit.SECONDS, lambda result: result.gap),
        *each(results, "failed turns", Unit.COUNT, lambda result: result.failures),
        *each(results, "not in flight", Unit.COUNT, lambda result: result.lost, nothing),
        *timelines(results, span),
        *([Gap(name, "a pool of one server") for name in peers.here()] if plan.peers else []),
    ]


def failover(server: EchoServer, client: Client, span: float) -> Failover:
    """*span* seconds with three servers, two spans with two, three spans after it has come back."""
    died = dead = 0.0

    def script(logs: list[Log]) -> None:
        nonlocal died, dead
        sleep(span + 0.1)  # the first dials are not what is looked at
        died = perf_counter()
        server.kill()
        dead = perf_counter()
        sleep(2 * span)
        server.start()
        sleep(3 * span)

    logs = crowd(client, THREE_THREADS, script)
    ends = sorted(done - died for log in logs for done in log.done)
    turns: dict[int, int] = {}
    for end in ends:
        turns[int(end // BUCKET)] = turns.get(int(end // BUCKET), 0) + 1
    return Failover(
        turns=turns,
        failures=sum(len(log.failed) for log in logs),
        lost=sum(held_at is None or held_at > dead for log in logs for held_at in log.failed),
        before=sum(-span < end < 0 for end in ends) / span,
        after=sum(0 <= end < 0.1 for end in ends) / 0.1,
        gap=max(later - sooner for sooner, later in itertools.pairwise(ends)),
    )


def timelines(results: Mapping[str, list[Failover]], span: float) -> list[Curve]:
    """Turns a second in each bucket, of the first round."""
    return [
        Curve(
            who,
            "turns a second around a death",
            tuple(
                (number * BUCKET, runs[0].turns.get(number, 0) / BUCKET)
                for number in range(-round(span / BUCKET), round(5 * span / BUCKET))
            ),
        )
        for who, runs in results.items()
    ]


WORKLOADS: Mapping[str, Workload] = {"W9": w9, "W10": w10}
