"""Calls to servers that answer late, too much, half or not at all: each has its own answer, or a reason."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from contextlib import ExitStack
from random import Random
from typing import Any, Final

import pytest

from connpool import (
    CallPool,
    CallTimeoutError,
    ChannelClosedError,
    ChannelState,
    ConnectionPool,
    Lines,
    NoResourceError,
    Reply,
    SocketChannel,
    SocketConnector,
)
from connpool.testing import ScriptedServer, ServedConnection
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import until
from tests.helpers.together import together

N: Final = 40  # calls of each thread
MOST: Final = 1_000  # bytes of an answer
TIMEOUTS: Final = [None, 0.05, 0.2, 2.0]
LATE: Final = 1.0  # seconds after its deadline by which a call has ended, however busy the machine


class Moody(ScriptedServer):
    """Answers a line with the same line, as a rule."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(script=self._answer, **options)
        self._seed = seed
        self.is_well = False
        self.asked: list[bytes] = []

    def _answer(self, connection: ServedConnection) -> None:
        dice = Random(self._seed + connection.number)
        moods = ["well", "slow", "late", "more", "half", "babble", "leave", "crash", "rest", "end"]
        while True:
            line = connection.request(b"\n")
            self.asked.append(line)
            mood = "well" if self.is_well else dice.choices(moods, [20, *[1] * (len(moods) - 1)])[0]
            match mood:
                case "slow" | "late":
                    connection.pause(0.02 if mood == "slow" else 0.1)
                case "more":
                    line += line[: dice.randint(1, len(line))]
                case "half":
                    line = line[: len(line) // 2]
                case "babble":
                    line = b"z" * (MOST + 1)
                case "rest" | "end":
                    line = mood.encode() + b" " + line
                case "leave":
                    connection.close()
                case "crash":
                    connection.reset()
            connection.send(line)
            if mood in ("half", "babble"):
                connection.pause(0.05)
                connection.close()


class Patient(SocketChannel):
    def decode(self, method: str, message: bytes) -> Any:
        word, _, rest = message.partition(b" ")
        if word in (b"rest", b"end"):
            return Reply(rest, retry_after=0.01 if word == b"rest" else math.inf)
        return message


@pytest.mark.parametrize("seed", range(4))
def test_each_call_has_its_own_answer_or_a_reason_whatever_servers_do(
    seed: int, certificates: Certificates
) -> None:
    dice = Random(seed)
    tls = certificates.server() if seed % 2 else None
    outcomes: Counter[str] = Counter()
    noting = threading.Lock()
    with ExitStack() as stack:
        servers = [stack.enter_context(Moody(100 * n, tls=tls)) for n in range(2)]
        sockets = stack.enter_context(
            ConnectionPool(
                ", ".join(str(server.endpoint) for server in servers),
                connector=SocketConnector(tls=certificates.client()),
                checkout_timeout=0.5,
                blacklist_initial=0.01,
                blacklist_max=0.05,
            )
        )
        pool = stack.enter_context(CallPool(revive_initial=0.01, revive_max=0.05))
        for _ in range(3):
            pool.init(Patient(sockets, "echo", {"say"}, framing=Lines(max_size=MOST)), revive="force")

        def call(n: int) -> None:
            own = Random(100 * seed + n)
            for turn in range(N):
                mine, timeout = b"%d-%d" % (n, turn), own.choice(TIMEOUTS)
                began = time.monotonic()
                try:
                    assert pool.call("echo", "say", mine, timeout=timeout) == b"say " + mine
                    outcome = "answered"
                except (ChannelClosedError, CallTimeoutError, NoResourceError) as error:
                    outcome = type(error).__name__
                assert timeout is None or time.monotonic() - began < timeout + LATE
                with noting:
                    outcomes[outcome] += 1
                if outcome == "NoResourceError":
                    time.sleep(0.01)

        def torment() -> None:
            for _ in range(15):
                server = dice.choice(servers)
                dice.choice([server.refuse, server.kill, server.start])()
                time.sleep(dice.choice([0.0, 0.02]))

        together(*[lambda n=n: call(n) for n in range(6)], torment, limit=40)
        for server in servers:
            server.is_well = True
            server.start()
        assert sum(outcomes.values()) == 6 * N
        assert outcomes["answered"] > N, outcomes
        asked = Counter(line for server in servers for line in server.asked)
        assert max(asked.values()) == 1, asked.most_common(3)

        def is_well() -> bool:
            states = pool.map("echo", lambda info: info.state)
            return states == [ChannelState.IDLE] * 3

        until(is_well, "the return of all channels")
