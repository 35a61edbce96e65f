"""Whatever a network did: once it is healthy again, so is the pool."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest

from connpool import ConnectionPool, ConnPoolError
from connpool.clock import SystemClock
from connpool.testing import FaultProxy, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.faults import WatchedConnector, turns_until_served, use
from tests.helpers.switchboard import check_books, until
from tests.helpers.together import together
from tests.helpers.wire import info

LANES = 10  # pools at a time, each with a network of its own
ROUNDS = 10  # of each
DIAL_TIMEOUT = 1.0
CAP = 0.3  # of the back-off
SLACK = 2.0  # for a busy machine
FAULTS = ("refuse", "black hole", "reset", "accept and stay silent", "slow TLS", "DNS failure", "cut")

# Each lane has its way of using a pool.
WAYS: list[dict[str, Any]] = [
    {},
    {"fail_fast": False},
    {"min_idle": 2, "reap_interval": 0.05},
    {"fail_fast": False, "reconnect": False},
    {"reap_interval": None},
]


class Names:
    """The resolver of all lanes, in which each lane's name does as that lane says."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ports: dict[str, int] = {}
        self.ill: set[str] = set()
        patch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host in self.ill:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
        return [info("127.0.0.1", self.ports[host])]


class Lane:
    """One pool, and a network that a seeded chance makes ill and well again."""

    def __init__(self, number: int, proxy: FaultProxy, names: Names, connector: WatchedConnector) -> None:
        self.name = f"lane-{number}.test"
        self._hung_dials = number // len(WAYS)  # none in the first lane of each way, one in the second
        self.pool = ConnectionPool(
            f"tls://{self.name}:443",
            connector=connector,
            name=self.name,
            max_size=4,
            look_after_idle=0,
            connect_timeout=DIAL_TIMEOUT,
            blacklist_initial=0.02,
            blacklist_max=CAP,
            **WAYS[number % len(WAYS)],
        )
        self._rng = random.Random(number)
        self._proxy = proxy
        self._names = names
        self._connector = connector
        names.ports[self.name] = proxy.port

    def live(self) -> None:
        """All rounds, with one pool: what one round leaves behind is there in the next."""
        with self.pool:
            for number in range(ROUNDS):
                if number == 3:
                    self._connector.hang(self._hung_dials)
                story = self._suffer()
                self._heal()
                try:
                    together(*[self._served] * 4)
                except BaseException as stuck:
                    stuck.add_note(f"{self.name}, round {number}: {story}: {self.pool.stats()}")
                    stuck.add_note(f"{self.pool.endpoints()}")
                    raise
            self._connector.let_go()
            until(lambda: self.pool.stats().opening == 0 == self.pool.stats().closing)
            check_books(self.pool)

    def _suffer(self) -> str:
        """Let one to three faults come over the network while it is in use."""
        story = self._rng.sample(FAULTS, self._rng.randint(1, 3))
        for fault in story:
            self._befall(fault)
            together(*[partial(self._hapless, self._rng.choice([0.02, 0.1, 0.3]))] * 3)
        return ", ".join(story)

    def _befall(self, fault: str) -> None:
        match fault:
            case "refuse":
                self._proxy.refuse()
            case "black hole":
                self._proxy.black_hole()
            case "reset":
                self._proxy.reject()
                self._proxy.reset()
            case "accept and stay silent":
                self._proxy.drop()
            case "slow TLS":
                self._proxy.delay(self._rng.choice([0.05, 0.15, 0.5]))
            case "DNS failure":
                self._names.ill.add(self.name)
            case "cut":
                self._proxy.cut(self._rng.randrange(1, 3_000))

    def _heal(self) -> None:
        self._names.ill.discard(self.name)
        self._proxy.heal()

    def _hapless(self, patience: float) -> None:
        """One user while all is ill: may fail, may not hang."""
        began = SystemClock.now()
        with suppress(ConnPoolError, OSError), self.pool.try_connect(timeout=patience) as conn:
            use(conn, timeout=patience)
        assert SystemClock.now() - began < 2 * patience + 3

    def _served(self) -> None:
        within = DIAL_TIMEOUT + CAP + SLACK
        turns_until_served(self.pool, within, timeout=within)


def test_after_a_hundred_rounds_of_faults_a_pool_serves_within_a_dial_and_a_back_off(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch)
    with ExitStack() as stack:
        server = stack.enter_context(ScriptedServer(tls=certificates.server()))
        lanes = []
        for number in range(LANES):
            proxy = stack.enter_context(FaultProxy(server.endpoint))
            connector = WatchedConnector(tls=certificates.client(), server_hostname="localhost")
            stack.callback(connector.let_go)
            lanes.append(Lane(number, proxy, names, connector))
        together(*[lane.live for lane in lanes], limit=50)
