"""Any route, any settings, whatever happens: what was accepted arrives, at each endpoint in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from connpool import (
    Broadcaster,
    Connection,
    ConnectionPool,
    Delivery,
    Lines,
    MemorySpool,
    SocketConnector,
    SQLiteSpool,
    UnknownEndpointError,
)
from tests.helpers.certificates import Certificates
from tests.helpers.sinks import GUARD, QUICK, Sink, by_sender, first_comings, numbered
from tests.helpers.together import together

N: Final = 150  # messages of each sender
EVENTS: Final = 25


def draw_route(dice: Random, sinks: list[Sink]) -> str:
    """Groups of members that are one sink or a list of two, until each sink is on the route."""
    text, left = "", [str(sink.endpoint) for sink in sinks]
    while left:
        text += left.pop(0)
        if left:
            text += dice.choice([" || ", " && ", " && ", ", "])
    return text


def draw_settings(dice: Random) -> dict[str, Any]:
    return {
        "write_ahead": dice.random() < 0.4,
        "standby": dice.choice(["hot", "cold"]),
        "failover": dice.random() < 0.9,
        "fail_back_after": dice.choice([0.0, 0.0, 0.1]),
        "flush_rate": dice.choice([None, None, 3_000]),
        "heartbeat": dice.choice([None, (0.05, b"beat-0")]),
        "send_timeout": 0.5,
    }


def confirmed(conn: Connection, message: bytes) -> None:
    answer = conn.recv_until(b"\n", 100_000, timeout=0.5)
    assert answer == b"got %b\n" % message


class House:
    """A broadcaster that is closed now and then, and followed by another with the same spool."""

    def __init__(
        self, route: str, connector: SocketConnector, path: Path | None, settings: dict[str, Any]
    ) -> None:
        self.route = self._route = route
        self._connector = connector
        self._path = path
        self._settings = settings
        self.begin()

    def begin(self) -> None:
        self._pool = ConnectionPool(
            self._route,
            connector=self._connector,
            max_size=20,
            blacklist_initial=QUICK,
            blacklist_max=4 * QUICK,
            connect_timeout=1.0,
        )
        spool = MemorySpool() if self._path is None else SQLiteSpool(self._path)
        self.sender = Broadcaster(self._pool, spool=spool, framing=Lines(), **self._settings)

    def end(self, timeout: float) -> int:
        unsent = self.sender.close(timeout)
        self._pool.close(GUARD)
        return unsent

    def edit(self, dice: Random) -> None:
        """Take one endpoint out of a list, or have all of them back. The next broadcaster has that route."""
        self._route = self.route
        lists = [name for name in self.route.split(" ") if name.endswith(",")]  # each is followed by another
        if lists and dice.random() < 0.5:
            self._route = self.route.replace(f"{dice.choice(lists)} ", "")
        self.sender.pool.route = self._route  # type: ignore[assignment]

    def restart(self, dice: Random) -> None:
        if self._path is not None:
            self.end(dice.choice([0.0, 0.1]))
            self.begin()


@contextmanager
def all_of(locks: list[threading.Lock]) -> Iterator[None]:
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def happen(dice: Random, sink: Sink, house: House, sending: list[threading.Lock]) -> None:
    """One thing that happens to *sink*, or to the broadcaster."""
    what = dice.choice(
        ["crash", "crash", "leave", "return", "return", "kill", "deaf", "hear", "hand", "restart", "edit"]
    )
    match what:
        case "crash":
            sink.refuse()
            sink.kill()
        case "leave":
            sink.refuse()  # who stops gives its port away, perhaps to another program
            for connection in list(sink.connections):
                connection.close()
        case "return":
            sink.start()
        case "kill":
            sink.kill()
        case "deaf" | "hear":
            sink.is_deaf = what == "deaf"
        case "hand":
            with suppress(UnknownEndpointError):
                dice.choice([house.sender.mark_dead, house.sender.mark_alive])(sink.endpoint)
        case "edit":
            with all_of(sending):
                house.edit(dice)
        case "restart":
            with all_of(sending):
                house.restart(dice)


def check_arrived(message: bytes, delivery: Delivery, lines: dict[str, set[bytes]], route: str) -> None:
    """Check that *message* is with each who was sent it, and with one of each member for whom it waited."""
    for endpoint in delivery.sent:
        assert message in lines[str(endpoint)], (message, delivery)
    members = [member.strip() for group in route.split("||") for member in group.split("&&")]
    for queue in delivery.spooled:
        whole = [member for member in members if queue and set(queue.split(", ")) <= set(member.split(", "))]
        of_whom = whole[0].split(", ") if whole else list(lines)
        assert any(message in lines[name] for name in of_whom), (message, delivery)
    assert delivery.sent or delivery.spooled, (message, delivery)


@pytest.mark.parametrize("seed", range(10))
def test_what_was_accepted_arrives_in_order_whatever_happens(
    seed: int, tmp_path: Path, certificates: Certificates
) -> None:
    dice = Random(seed)
    settings = draw_settings(dice)
    confirms = dice.random() < 0.7
    accepted: list[tuple[bytes, Delivery]] = []

    def send(number: int) -> None:
        own = Random(100 * seed + number)
        for message in numbered(N, who=f"s{number}"):
            padding = b"-" + b"x" * own.choice([1_000, 60_000]) if own.random() < 0.1 else b""
            with sending[number]:
                accepted.append((message + padding, house.sender.broadcast(message + padding)))
            time.sleep(own.choice([0.0, 0.0, 0.005]))

    def torment() -> None:
        for _ in range(EVENTS):
            happen(dice, dice.choice(sinks), house, sending)
            time.sleep(dice.choice([0.0, 0.01, 0.05]))

    with ExitStack() as stack:
        tls = certificates.server() if dice.random() < 0.3 else None
        sinks = [stack.enter_context(Sink(tls=tls, answers=confirms)) for _ in range(dice.randint(1, 5))]
        route = draw_route(dice, sinks)
        path = dice.choice([None, tmp_path / "spool"])
        house = House(
            route,
            SocketConnector(tls=certificates.client()),
            path,
            settings | ({"confirm": confirmed} if confirms else {}),
        )
        sending = [threading.Lock() for _ in range(dice.choice([1, 2, 3]))]
        together(*(lambda n=n: send(n) for n in range(len(sending))), torment, limit=60)
        house.sender.pool.route = route  # type: ignore[assignment]
        for sink in sinks:
            sink.is_deaf = False
            sink.start()
        assert house.sender.flush(GUARD) == 0, house.sender.links()
        assert house.end(GUARD) == 0
        for sink in sinks:
            sink.stop()
        lines = {str(sink.endpoint): sink.lines for sink in sinks}
        for endpoint, arrived in lines.items():
            for who, numbers in by_sender(first_comings(arrived)).items():
                assert numbers == sorted(numbers), (endpoint, who)
        if confirms:  # else what lay in a buffer when a sink died has left the broadcaster, and is lost
            known = {endpoint: set(arrived) for endpoint, arrived in lines.items()}
            for message, delivery in accepted:
                check_arrived(message, delivery, known, route)
