"""Routes that change while others send, and members that come and go: each copy is with who has its place."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest

from connpool import (
    Broadcaster,
    Connection,
    ConnectionPool,
    ConnPoolError,
    Delivery,
    Endpoint,
    Lines,
    LinkEvent,
    LinkState,
    MemorySpool,
    SQLiteSpool,
)
from tests.helpers.sinks import GUARD, QUICK, Sink, numbered
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.upkeep import let_pass

ROUNDS: Final = 40  # of orders

pytestmark = pytest.mark.usefixtures("quick_switches")


def confirmed(conn: Connection, message: bytes) -> None:
    answer = conn.recv_until(b"\n", 1_000, timeout=0.5)
    if answer != b"got %b\n" % message:
        raise ValueError(answer)


class House:
    """A broadcaster to three sinks whose operators, and those who hear of its links, all give it orders."""

    def __init__(self, seed: int, path: Path, sinks: list[Sink]) -> None:
        self.dice = dice = Random(seed)
        self._sinks = sinks
        self._names = [str(sink.endpoint) for sink in sinks]
        self.accepted: list[tuple[bytes, Delivery]] = []
        self.told: dict[Endpoint, LinkEvent] = {}  # the last of each
        self.is_calm = False  # those who hear give no orders any more
        self._ordering = threading.Lock()
        self.is_over = threading.Event()
        self.pool = ConnectionPool(
            " && ".join(self._names), max_size=10, blacklist_initial=QUICK, blacklist_max=2 * QUICK
        )
        self.sender = Broadcaster(
            self.pool,
            spool=dice.choice([MemorySpool, lambda: SQLiteSpool(path, durable=False)])(),
            framing=Lines(),
            confirm=confirmed,
            write_ahead=dice.random() < 0.5,
            standby=dice.choice(["hot", "cold"]),
        )
        self.sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, self._hear)

    def _hear(self, sender: Broadcaster, event: LinkEvent, endpoint: Endpoint) -> None:
        self.told[endpoint] = event
        with self._ordering:
            if not self.is_calm and self.dice.random() < 0.1:
                self.order(self.dice)

    def order(self, dice: Random) -> None:
        where = dice.choice(self._sinks).endpoint
        orders = [
            *[self.edit] * 5,
            lambda _: self.sender.add(where),
            lambda _: self.sender.remove(where),
            lambda _: self.sender.mark_dead(where),
            lambda _: self.sender.flush(0.005),
            lambda _: self.pool.clear(interrupt=True),
        ]
        with suppress(ConnPoolError):
            dice.choice(orders)(dice)

    def edit(self, dice: Random) -> None:
        some = dice.sample(self._names, dice.randint(1, 3))
        self.pool.route = "".join(name + dice.choice([" && ", " || ", ", "]) for name in some).rstrip(" &|,")  # type: ignore[assignment]

    def operate(self, dice: Random) -> None:
        for _ in range(ROUNDS):
            self.order(dice)
            let_pass(dice.choice([0.001, 0.003, 0.01]))

    def torment(self) -> None:
        dice = Random(self.dice.random())
        for _ in range(ROUNDS):
            sink = dice.choice(self._sinks)
            dice.choice([sink.refuse, sink.kill, sink.start, sink.start])()
            let_pass(dice.choice([0.002, 0.01]))

    def send(self, who: str) -> None:
        dice = Random(who)
        for message in numbered(1_000, who=who):
            if self.is_over.is_set():
                return
            self.accepted.append((message, self.sender.broadcast(message)))
            let_pass(dice.choice([0.0, 0.001, 0.004]))

    def run(self) -> None:
        def lead() -> None:
            together(lambda: self.operate(one), lambda: self.operate(other), self.torment, limit=GUARD)
            with self._ordering:
                self.is_calm = True
            self.pool.route = ", ".join(self._names)  # type: ignore[assignment] # while they send
            let_pass(0.02)
            self.is_over.set()

        one, other = Random(self.dice.random()), Random(self.dice.random())
        together(lambda: self.send("s"), lambda: self.send("t"), lead, limit=2 * GUARD)

    def check(self) -> None:
        assert self.sender.flush(GUARD) == 0, (self.sender.links(), self.sender.unsent())
        until(lambda: self.pool.stats().in_use == 1, "one loan, for the only member")
        living = {link.endpoint for link in self.sender.links() if link.state is LinkState.ALIVE}
        until(lambda: living == {each for each, event in self.told.items() if event is LinkEvent.ALIVE})
        assert self.sender.close(GUARD) == 0
        self.pool.close(GUARD)
        for sink in self._sinks:
            sink.stop()
        lines = {sink.endpoint: set(sink.lines) for sink in self._sinks}
        for message, delivery in self.accepted:
            for endpoint in delivery.sent:
                assert message in lines[endpoint], delivery
            assert any(message in those for those in lines.values()), delivery


@pytest.mark.parametrize("seed", range(6))
def test_no_copy_stays_behind_or_is_said_to_be_elsewhere_however_routes_change(
    seed: int, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        sinks = [stack.enter_context(Sink(answers=True)) for _ in range(3)]
        house = House(seed, tmp_path / "spool", sinks)
        house.run()
        for sink in sinks:
            sink.start()
        house.check()
