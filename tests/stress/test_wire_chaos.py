"""Real sockets of all kinds, servers and callers that misbehave: no loan's bytes ever meet another's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from connpool import (
    Connection,
    ConnectionClosed,
    ConnectionPool,
    ConnPoolError,
    EndpointDown,
    Request,
    SocketConnector,
    UsageError,
)
from connpool.pool.shared import SharedConnection
from connpool.testing import FaultProxy, ScriptedServer, ServedConnection
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.stress.works import balanced

N_WORKERS: Final = 5
N_EVENTS: Final = 50
LARGE: Final = 3_000_000  # bytes that no socket takes at once
PATIENCE: Final = 5.0  # seconds; in a calm house nothing takes as long


def body_of(who: str, size: int) -> bytes:
    return (f"<{who}>".encode() * (size // (len(who) + 2) + 1))[:size]


class Server(ScriptedServer):
    """Answers numbered requests in the way that each asks for. Half a request, or one in clear, fails it."""

    def __init__(self, certificates: Certificates, **how: Any) -> None:
        super().__init__(script=self._take_requests, **how)
        self._upgrade = certificates.server()

    def _take_requests(self, served: ServedConnection) -> None:
        is_secure = self._tls is not None
        while True:
            line = served.request(b"\n")
            if line == b"STARTTLS\n":
                assert not is_secure
                served.send(b"OK\n")
                served.start_tls(self._upgrade)
                is_secure = True
                continue
            kind, who, size, how, secrecy = line.decode().split()
            body = b""
            while len(body) < int(size):
                body += served.receive(int(size) - len(body))
            assert (kind, body) == ("ask", body_of(who, int(size))), f"{who} is mixed with {body!r:.80}"
            assert secrecy == ("secret" if is_secure else "plain"), f"{who} came by the wrong way"
            self._answer(served, b"got %b 50\n%b" % (who.encode(), body_of(who, 50)), how)

    def _answer(self, served: ServedConnection, answer: bytes, how: str) -> None:
        match how:
            case "late":
                served.pause(0.03)
                served.send(answer)
            case "twice":
                served.send(answer + answer)
            case "pieces":
                for i in range(0, len(answer), 9):
                    served.send(answer[i : i + 9])
            case "half" | "half-close":
                served.send(answer[:9])
            case "deaf":
                served.send(answer)
                served.pause(0.1)
            case "reset":
                served.reset()
            case _:
                served.send(answer)
        if how.endswith("close"):
            served.close()


class House:
    """A pool, its servers and networks, and what each loan has done."""

    def __init__(self, seed: int, stack: ExitStack, certificates: Certificates, path: Path) -> None:
        self.dice = dice = Random(seed)
        self.is_calm = dice.random() < 0.4
        self.tls = certificates.client()
        tls, unix = {"tls": certificates.server()}, {"unix": path / "socket"}
        self.servers = [stack.enter_context(Server(certificates, **how)) for how in ({}, tls, unix, {}, tls)]
        self.plain = self.servers[0].endpoint
        self.proxies = [stack.enter_context(FaultProxy(s.endpoint)) for s in self.servers[3:]]
        self.endpoints = [server.endpoint for server in self.servers[:3]]
        self.endpoints += [proxy.endpoint for proxy in self.proxies]
        self.numbers = itertools.count(1)
        self.owing: set[int] = set()  # connections that were left with an answer to come
        self.doomed: set[int] = set()  # connections that nobody may get any more
        self.downs: list[EndpointDown] = []
        self.departed: list[int] = []
        self.n_edits, self.is_over = 0, False
        self.pool = ConnectionPool(
            self.draw_route(),
            connector=SocketConnector(tls=self.tls, server_hostname="localhost"),
            listeners=[self._hear],
            max_size=dice.randint(1, 5),
            connect_timeout=PATIENCE if self.is_calm else 0.5,
            look_after_idle=dice.choice([0, 0.05, 0.5]),
            blacklist_initial=0.02,
            blacklist_max=0.1,
            sharable=True,
            max_sharers=dice.choice([None, 2]),
            revive=dice.choice([False, "force"]),
            dial_in_caller=dice.random() < 0.2,
            reap_interval=0.02,
        )

    def _hear(self, event: object) -> None:
        if isinstance(event, EndpointDown) and event.error is not None:
            self.downs.append(event)
        elif isinstance(event, ConnectionClosed):
            self.doomed.add(event.id)

    def draw_route(self) -> str:
        chosen = self.dice.sample(self.endpoints, self.dice.randint(1, len(self.endpoints)))
        return "".join(f"{e}{self.dice.choice([', ', ' && ', ' || '])}" for e in chosen).rstrip(" ,&|")

    def edit(self) -> None:
        self.n_edits += 1  # odd while one is under way
        self.pool.route = self.draw_route()  # type: ignore[assignment]
        self.n_edits += 1

    def suffer(self) -> None:
        for _ in range(N_EVENTS):
            time.sleep(self.dice.choice([0.005, 0.03]))
            with suppress(ConnPoolError):  # the pool does not know each endpoint all the time
                self.dice.choice(self._deeds())()
        self.is_over = True

    def _deeds(self) -> list[Callable[[], object]]:
        pool, dice = self.pool, self.dice
        deeds: list[Callable[[], object]] = [
            pool.sweep,
            lambda: pool.clear(dice.choice([None, *self.endpoints]), interrupt=dice.random() < 0.5),
            lambda: pool.resize(max_size=dice.randint(1, 5)),
            self.edit,
            lambda: pool.blacklist(dice.choice(self.endpoints), 0.03),
            lambda: (pool.pause(), time.sleep(0.005), pool.resume()),
            lambda: (pool.shutdown(), pool.reopen()),
            lambda: balanced(pool),
        ]
        if not self.is_calm:
            proxy = dice.choice(self.proxies)
            deeds += [proxy.reset, proxy.close, proxy.heal, lambda: proxy.cut(dice.randrange(3_000))]
            deeds += [lambda: proxy.delay(0.01), lambda: (proxy.reject(), time.sleep(0.01), proxy.heal())]
        return deeds

    def lend(self, dice: Random) -> None:
        """One loan, in one of many ways, that ends in one of many ways."""
        pinned = dice.choice(self.endpoints) if dice.random() < 0.3 else None
        request = Request(pinned, shared=dice.random() < 0.3, timeout=dice.choice([0, 0.05, PATIENCE]))
        n_edits, doomed, route = self.n_edits, self.doomed.copy(), self.pool.route
        conn = self.pool.try_connect(request)
        info = conn.info
        assert info.id not in doomed, f"{conn!r} was to be closed"
        if not isinstance(conn, SharedConnection) or info.tls is not None:  # or it broke as others used it
            assert info.endpoint.tls is (info.tls is not None)
        if pinned is not None:
            assert info.endpoint == pinned
        elif route is not None and n_edits % 2 == 0 and n_edits == self.n_edits:
            assert info.endpoint in route.endpoints, f"{conn!r} is not on {route}"
        ways = [self.ask, self.ask, self.hurry, self.leave, self.end, self.clog, self.detach]
        if info.endpoint == self.plain:
            ways.append(self.upgrade)
        try:
            with conn:
                dice.choice(ways)(conn, dice)
        except Exception:
            self.doomed.add(info.id)
            raise

    def request(self, conn: Connection, dice: Random, how: str, size: int | None = None) -> tuple[str, bytes]:
        who = f"{conn.info.id}/{next(self.numbers)}"
        size = dice.choice([0, 10, 70_000]) if size is None else size
        secrecy = "secret" if conn.endpoint.tls else "plain"
        return who, f"ask {who} {size} {how} {secrecy}\n".encode() + body_of(who, size)

    def read(self, conn: Connection, who: str, dice: Random, timeout: float = PATIENCE) -> None:
        """Read the answer to *who*, in one of many ways."""
        if isinstance(conn, SharedConnection) or dice.random() < 0.5:
            line = conn.recv_until(b"\n", timeout=timeout)
        else:
            line = b""
            while not line.endswith(b"\n"):
                line += conn.recv_exactly(1, timeout=timeout)
        self.expect(conn, line, b"got %b 50\n" % who.encode())
        self.expect(conn, conn.recv_exactly(50, timeout=timeout), body_of(who, 50))

    def expect(self, conn: Connection, answer: bytes, expected: bytes) -> None:
        if answer != expected:
            assert conn.info.id in self.owing, f"{answer!r} is not {expected!r}"
            raise ConnectionError("the answer to one who did not wait for it")

    def ask(self, conn: Connection, dice: Random) -> None:
        for _ in range(dice.randint(1, 3)):
            who, message = self.request(conn, dice, dice.choice(["now", "now", "pieces"]))
            conn.exchange([message], lambda c, who=who: self.read(c, who, dice), PATIENCE)  # type: ignore[misc]

    def hurry(self, conn: Connection, dice: Random) -> None:
        """A deadline that passes in the midst of an answer, or a server that leaves."""
        how = dice.choice(["late", "half", "half-close", "reset", "close"])
        who, message = self.request(conn, dice, how)
        conn.exchange([message], lambda c: self.read(c, who, dice, dice.choice([0, 0.01])), PATIENCE)

    def clog(self, conn: Connection, dice: Random) -> None:
        """A deadline that passes in the midst of a request."""
        who, message = self.request(conn, dice, "deaf", 10)
        conn.exchange([message], lambda c: self.read(c, who, dice), PATIENCE)
        who, message = self.request(conn, dice, "now", LARGE)
        conn.exchange([message], lambda c: self.read(c, who, dice), dice.choice([0, 0.02]))

    def leave(self, conn: Connection, dice: Random) -> None:
        """Go with an answer to come, or half read."""
        if isinstance(conn, SharedConnection):
            return  # others would read it
        _, message = self.request(conn, dice, dice.choice(["now", "late", "twice", "close"]), 10)
        self.owing.add(conn.info.id)
        conn.sendall(message, PATIENCE)
        if dice.random() < 0.7:
            if dice.random() < 0.5:
                conn.recv_exactly(10, timeout=PATIENCE)
            else:
                conn.recv_until(b"\n", timeout=PATIENCE)
            if conn.endpoint.tls:  # the rest of a record is not in the socket any more
                self.doomed.add(conn.info.id)

    def end(self, conn: Connection, dice: Random) -> None:
        self.ask(conn, dice)
        number = conn.info.id
        if dice.random() < 0.5:
            conn.terminate()
            self.doomed.add(number)
        else:
            conn.release()
        with pytest.raises(UsageError):
            conn.sendall(b"of no request")

    def detach(self, conn: Connection, dice: Random) -> None:
        self.ask(conn, dice)
        if isinstance(conn, SharedConnection):
            return
        (_, message), number = self.request(conn, dice, "pieces"), conn.info.id
        with conn.detach() as raw:
            self.doomed.add(number)
            self.departed.append(number)
            raw.settimeout(PATIENCE)
            raw.sendall(message)
            answer = raw.recv(1)
        assert answer in (b"g", b"") or number in self.owing

    def upgrade(self, conn: Connection, dice: Random) -> None:
        """Go over to TLS; now and then for a name that nobody has there, which is the caller's own fault."""
        if isinstance(conn, SharedConnection):
            return
        conn.sendall(b"STARTTLS\n", PATIENCE)
        self.expect(conn, conn.recv_until(b"\n", timeout=PATIENCE), b"OK\n")
        name = dice.choice(["localhost", "localhost", "elsewhere"])
        conn.start_tls(self.tls, name, PATIENCE)
        assert (name, conn.endpoint.tls) == ("localhost", True)
        self.ask(conn, dice)


@pytest.mark.parametrize("seed", range(6))
def test_no_loans_bytes_meet_those_of_another(seed: int, certificates: Certificates, tmp_path: Path) -> None:
    def work(number: int) -> None:
        dice = Random(100 * seed + number)
        while not house.is_over:
            try:
                house.lend(dice)
            except (ConnPoolError, OSError):
                time.sleep(0.001)

    with ExitStack() as stack:
        house = House(seed, stack, certificates, tmp_path)
        together(*(lambda n=n: work(n) for n in range(N_WORKERS)), house.suffer, limit=50)
        assert house.pool.close(PATIENCE) == 0
        until(lambda: house.pool.stats().size == 0)
        stats = balanced(house.pool)
        assert (stats.opened, stats.lost) == (sum(stats.closed.values()) + len(house.departed), 0)
        assert not (house.is_calm and house.downs), "the callers' faults are no endpoint's"
        for proxy in house.proxies:
            proxy.stop()
        for server in house.servers:
            server.until(lambda server=server: server.open == 0)
