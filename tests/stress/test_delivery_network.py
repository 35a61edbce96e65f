"""Members behind a bad network: what it delays arrives once, what it breaks is not torn, mixed or doubled."""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from random import Random
from typing import Any, Final

import pytest

from connpool import (
    Broadcaster,
    Connection,
    ConnPoolError,
    Delivery,
    Identified,
    Lines,
    LinkEvent,
    MemorySpool,
    SocketConnector,
)
from connpool.testing import Ending, FaultProxy
from connpool.testing.relay import Way
from tests.helpers.certificates import Certificates
from tests.helpers.sinks import (
    GUARD,
    Diary,
    Sink,
    all_alive,
    broadcasting,
    by_sender,
    first_comings,
    narrow,
    numbered,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together

N: Final = 150  # messages of each sender
EVENTS: Final = 25
Road = tuple[Sink, FaultProxy]


def delay(dice: Random, road: Road, sender: Broadcaster) -> None:
    """Something that loses nothing happens to a road, or to the pool."""
    sink, proxy = road
    pool = sender.pool
    ways = dice.choice([(), (Way.UP,), (Way.DOWN,)])
    match dice.choice(["delay", "limit", "stall", "deaf", "heal", "heal", "pause", "clear", "resize"]):
        case "delay":
            proxy.delay(dice.choice([0.001, 0.02]), *ways)
        case "limit":
            proxy.limit(200_000, *ways)  # in pieces of some kB
        case "stall":
            proxy.drop(*ways)
            time.sleep(dice.choice([0.01, 0.05]))
            proxy.heal()
        case "deaf":
            sink.is_deaf = True
        case "heal":
            sink.is_deaf = False
            proxy.heal()
        case "pause":
            pool.pause(fail=dice.random() < 0.5)
            pool.resume()
        case "clear":
            pool.clear()
        case "resize":
            pool.resize(max_size=1)
            pool.resize(max_size=20)


def half_close(sink: Sink, how: int) -> None:
    for connection in list(sink.connections):
        if connection.ending is None:
            with suppress(OSError):
                socket.socket.shutdown(connection._transport.sock, how)


def spoil(dice: Random, road: Road, sender: Broadcaster) -> None:
    """Something happens to a road that breaks connections, or to those of the pool."""
    sink, proxy = road
    match dice.choice(
        ["cut", "cut", "reset", "close", "forget", "half", "half", "hand", "shut down", "clear", "return"]
    ):
        case "cut":
            proxy.cut(
                dice.choice([0, 37, 5_000, 70_000]),
                dice.choice([Way.UP, Way.DOWN]),
                ending=dice.choice([Ending.OURS, Ending.OUR_RESET]),
            )
        case "reset":
            proxy.reset()
        case "close":
            proxy.close()
        case "forget":
            proxy.forget()
        case "half":
            half_close(sink, dice.choice([socket.SHUT_WR, socket.SHUT_RD]))
        case "hand":
            sender.mark_dead(proxy.endpoint)
        case "shut down":
            sender.pool.shutdown(dice.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
            sender.pool.reopen()
        case "clear":
            sender.pool.clear(interrupt=True)
        case "return":
            proxy.heal()


def connector(dice: Random, certificates: Certificates, *, is_secure: bool) -> SocketConnector:
    tls = certificates.client() if is_secure else None
    return SocketConnector(tls=tls, handshake=dice.choice([None, narrow().handshake]))


def roads(stack: ExitStack, dice: Random, certificates: Certificates, **options: Any) -> list[Road]:
    """Some sinks, each behind a proxy; all with TLS, or none."""
    tls = certificates.server() if dice.random() < 0.5 else None
    sinks = [stack.enter_context(Sink(tls=tls, **options)) for _ in range(dice.choice([1, 2, 3]))]
    return [(sink, stack.enter_context(FaultProxy(sink.endpoint))) for sink in sinks]


def padded(dice: Random, message: bytes) -> bytes:
    return message + b"-" + b"x" * dice.choice([0, 10, 1_000, 1_000, 40_000])


def heal_all(all_roads: list[Road]) -> None:
    for sink, proxy in all_roads:
        sink.is_deaf = False
        proxy.heal()


@pytest.mark.parametrize("seed", range(6))
def test_what_a_network_only_delays_arrives_once_and_no_link_dies(
    seed: int, certificates: Certificates
) -> None:
    dice = Random(seed)
    given: list[bytes] = []
    diary = Diary()
    with ExitStack() as stack:
        all_roads = roads(stack, dice, certificates)
        sender = stack.enter_context(
            broadcasting(
                *(proxy for _, proxy in all_roads),
                spool=dice.choice([None, MemorySpool(), MemorySpool()]),
                write_ahead=False,
                heartbeat=(0.02, b"beat-0"),
                pool_settings={
                    "connector": connector(dice, certificates, is_secure=all_roads[0][1].endpoint.tls)
                },
            )
        )
        all_alive(sender)
        sender.on(LinkEvent.DEAD, diary)

        def send(number: int) -> None:
            own = Random(100 * seed + number)
            for message in numbered(N, who=f"s{number}"):
                given.append(padded(own, message))
                sender.broadcast(given[-1])

        def torment() -> None:
            for _ in range(EVENTS):
                delay(dice, dice.choice(all_roads), sender)
                time.sleep(dice.choice([0.0, 0.01]))
            heal_all(all_roads)

        together(lambda: send(0), lambda: send(1), torment, limit=40)
        assert sender.flush(GUARD) == 0
        assert diary.told == []
        sender.close(GUARD)
        for sink, _ in all_roads:
            until(lambda sink=sink: sink.open == 0, "the end of all connections")
            lines = [line for line in sink.lines if not line.startswith(b"beat")]
            assert sorted(lines) == sorted(given)
            for numbers in by_sender(lines).values():
                assert numbers == list(range(N))


@pytest.mark.parametrize("seed", range(8))
def test_what_a_network_breaks_is_neither_torn_nor_reordered_nor_confirmed_twice(
    seed: int, certificates: Certificates
) -> None:
    dice = Random(seed)
    confirms = seed % 2 == 0
    confirmed: Counter[tuple[str, bytes]] = Counter()
    given: list[tuple[bytes, Delivery]] = []
    diary = Diary()

    def confirm(conn: Connection, message: bytes) -> None:
        answer = conn.recv_until(b"\n", 100_000, timeout=0.3)
        _, proper = Identified.split(answer[4:-1])
        assert proper == message
        confirmed[str(conn.endpoint), message] += 1

    with ExitStack() as stack:
        all_roads = roads(stack, dice, certificates, answers=confirms)
        names = {str(proxy.endpoint): sink for sink, proxy in all_roads}
        sender = stack.enter_context(
            broadcasting(
                *(proxy for _, proxy in all_roads),
                framing=Identified(Lines()),
                confirm=confirm if confirms else None,
                write_ahead=dice.random() < 0.5,
                send_timeout=0.3,
                pool_settings={
                    "connector": connector(dice, certificates, is_secure=all_roads[0][1].endpoint.tls),
                    "connect_timeout": 1.0,
                },
            )
        )
        sender.on(LinkEvent.DEAD | LinkEvent.ALIVE, diary)

        def send(number: int) -> None:
            own = Random(100 * seed + number)
            for message in [padded(own, each) for each in numbered(N, who=f"s{number}")]:
                delivery = sender.broadcast(message)
                given.append((message, delivery))
                if confirms:
                    for endpoint in delivery.sent:
                        assert any(line.endswith(b" " + message) for line in names[str(endpoint)].lines)

        def torment() -> None:
            for _ in range(EVENTS):
                with suppress(ConnPoolError):
                    spoil(dice, dice.choice(all_roads), sender)
                time.sleep(dice.choice([0.0, 0.01, 0.03]))
            heal_all(all_roads)

        together(lambda: send(0), lambda: send(1), torment, limit=40)
        assert sender.flush(GUARD) == 0, sender.links()
        sender.close(GUARD)
        for name, sink in names.items():
            pairs = [Identified.split(line) for line in sink.lines]
            assert len({id for id, _ in pairs}) == len({line for _, line in pairs}) == len(set(pairs))
            firsts = first_comings(line for _, line in pairs)
            for numbers in by_sender(firsts).values():
                assert numbers == sorted(numbers), name
            assert set(firsts) <= {message for message, _ in given}  # none is torn
            assert confirms or len(pairs) == len(firsts), name
            changes = diary.of(name)
            assert all(one is not other for one, other in itertools.pairwise(changes)), changes
            if confirms:
                assert set(firsts) == {message for message, _ in given}
        assert set(confirmed.values()) <= {1}
