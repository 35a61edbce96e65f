"""Whatever members do: who listens hears each message once, in order, between a life and a death."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from random import Random
from typing import Any, Final

import pytest

from connpool import (
    Broadcaster,
    Endpoint,
    LengthPrefixed,
    Lines,
    LinkEvent,
    LinkState,
    PoolClosedError,
    SocketConnector,
)
from connpool.testing import ScriptedServer, ServedConnection
from tests.helpers.certificates import Certificates
from tests.helpers.sinks import GUARD, broadcasting
from tests.helpers.switchboard import until
from tests.helpers.together import together

EVENTS: Final = 25
MOST: Final = 1_000  # bytes of a message
INPUT, DEAD, ALIVE = LinkEvent.INPUT, LinkEvent.DEAD, LinkEvent.ALIVE

Told = tuple[LinkEvent, str, bytes]


class Session:
    """What a member has said on one connection, and how it was to end."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.n_said = 0
        self.fate = ""


class Talker(ScriptedServer):
    """A member that says numbered messages, in pieces, until the fate of its connection is decided."""

    def __init__(self, seed: int, framing: Lines | LengthPrefixed, **options: Any) -> None:
        super().__init__(script=self._talk, **options)
        self._seed = seed
        self._framing = framing
        self.sessions: list[Session] = []
        self.is_silent = False

    def decide(self, fate: str) -> None:
        """How all its connections end: they ``"leave"``, ``"crash"`` or ``"offend"`` against the framing."""
        for session in self.sessions.copy():
            session.fate = session.fate or fate

    def _talk(self, connection: ServedConnection) -> None:
        session = Session(b"%d-%d" % (self.port, connection.number))
        self.sessions.append(session)
        dice = Random(self._seed + connection.number)
        rest = b""
        while not session.fate:
            if not self.is_silent:
                message = b"%b-%d-" % (session.name, session.n_said) + b"x" * dice.choice([0, 1, 900])
                rest += self._framing.encode(message)
                session.n_said += 1
            now = len(rest) if self.is_silent else dice.randint(0, len(rest))
            connection.send(rest[:now])
            rest = rest[now:]
            connection.pause(dice.choice([0.0, 0.002, 0.01]))
        if session.fate == "crash":
            connection.reset()
        offence = b"\xff" * (MOST + 1) if session.fate == "offend" else b""
        connection.send(rest + offence + self._framing.encode(b"")[: len(offence)])
        if offence:
            connection.until_gone()
        connection.close()


def happen(dice: Random, talker: Talker) -> None:
    match dice.choice(["leave", "leave", "crash", "offend", "refuse", "return", "return"]):
        case "refuse":
            talker.refuse()
            talker.decide("crash")
        case "return":
            talker.start()
        case fate:
            talker.decide(fate)


class Listener:
    """Hears of all events, in one of the ways there are, and takes each message when it is told of it."""

    def __init__(self, sender: Broadcaster, way: str, dice: Random) -> None:
        self.told: list[Told] = []
        self._sender = sender
        self._dice = dice
        self._is_handed = way == "handed"
        if not self._is_handed:
            sender.on(INPUT | DEAD | ALIVE, self.hear)
        if way != "thread":
            sender.check_event(0, self.hear if self._is_handed else None)

    def hear(self, sender: Broadcaster, event: LinkEvent, endpoint: Endpoint) -> None:
        message = b""
        if event is INPUT:
            found = sender.recv(0)
            assert found is not None
            assert found[0] == endpoint
            message = found[1]
        self.told.append((event, str(endpoint), message))
        if self._dice.random() < 0.02:
            time.sleep(0.005)

    def has_all(self, talkers: list[Talker]) -> bool:
        """Whether it has heard all that was said but for what a crash may have taken."""
        n_heard = Counter(
            message.rpartition(b"-")[0].rpartition(b"-")[0] for _, _, message in self.told.copy()
        )
        sessions = [session for talker in talkers for session in talker.sessions]
        return all(n_heard[each.name] == each.n_said for each in sessions if each.fate != "crash")

    def poll(self) -> None:
        while self._sender.check_event(None, self.hear if self._is_handed else None):
            pass


def check_told(told: list[Told], talker: Talker) -> None:
    """Check that of each connection its messages came in order, in one life, and all if it left in order."""
    mine = [(event, message) for event, endpoint, message in told if endpoint == str(talker.endpoint)]
    changes = [event for event, _ in mine if event is not INPUT]
    assert all(one is not other for one, other in itertools.pairwise(changes)), changes
    heard: dict[bytes, int] = {}
    lives: list[set[bytes]] = [set()]
    is_alive = False
    for event, message in mine:
        if event is not INPUT:
            is_alive = event is ALIVE
            lives.append(set())
            continue
        port, number, place, padding = message.split(b"-")
        name = port + b"-" + number
        assert is_alive, message
        assert int(place) == heard.get(name, 0), (message, heard.get(name))
        assert not padding.strip(b"x")
        heard[name] = int(place) + 1
        lives[-1].add(name)
    assert all(len(names) <= 1 for names in lives), lives
    assert sum(map(len, lives)) == len(heard), lives
    for session in talker.sessions:
        n_heard = heard.get(session.name, 0)
        assert n_heard <= session.n_said
        assert n_heard == session.n_said or session.fate == "crash", (session.name, session.fate, n_heard)


def is_alive(sender: Broadcaster) -> bool:
    return all(link.state is LinkState.ALIVE for link in sender.links())


@pytest.mark.parametrize("seed", range(6))
def test_what_members_say_is_heard_once_and_in_order_whatever_they_do(
    seed: int, certificates: Certificates
) -> None:
    dice = Random(seed)
    framing = dice.choice([Lines(max_size=MOST), LengthPrefixed(2, max_size=MOST)])
    tls = certificates.server() if dice.random() < 0.3 else None
    way = ["thread", "polled", "handed"][seed % 3]
    is_over = threading.Event()
    with ExitStack() as stack:
        talkers = [
            stack.enter_context(Talker(100 * n, framing, tls=tls)) for n in range(dice.choice([1, 2, 3]))
        ]
        connector = SocketConnector(tls=certificates.client())
        sender = stack.enter_context(
            broadcasting(*talkers, framing=framing, pool_settings={"connector": connector})
        )
        listener = Listener(sender, way, dice)

        def send() -> None:
            with suppress(PoolClosedError):
                while not is_over.wait(0.001):
                    sender.broadcast(b"hello")

        def torment() -> None:
            try:
                for _ in range(EVENTS):
                    happen(dice, dice.choice(talkers))
                    time.sleep(dice.choice([0.0, 0.02, 0.05]))
                for talker in talkers:
                    talker.is_silent = True
                    talker.start()
                until(lambda: is_alive(sender), "the life of all")
                until(lambda: listener.has_all(talkers), "the hearing of all")
            finally:
                is_over.set()
                sender.close(GUARD)

        together(send, torment, *([listener.poll] if way != "thread" else []), limit=40)
        n_told = len(listener.told)
        for talker in talkers:
            check_told(listener.told, talker)
        assert n_told == len(listener.told)
