"""Pool scenarios as data: what several threads do, step by step, and what the pool tells of it.

A scenario is two texts, played against a real server, through public names alone::

    Scenario(
        "who waits gets what comes back",
        settings={"max_size": 1},
        steps='''
            check out a
            start one
            one: check out b
            until 1 waits
            check in a
        ''',
        tells='''
            CheckedOut 1
            CheckedIn 1
            one: CheckedOut 1
        ''',
        only="CheckedOut CheckedIn",
    )

A step is ``[thread:] verb [words] [fails Error]``; without a thread it is the main one's. A thread takes
its steps in turn while the main one goes on. What a step raises must be announced by ``fails``.

=======================================  ================================================================
``start NAME ...``, ``join NAME``        threads begin; the main one waits for the end of one
``check out LABEL``                      ``try_connect``
``check in LABEL``, ``terminate LABEL``  ``release``, ``terminate``
``read LABEL``                           ``recv``: until something comes, or the connection ends
``pause [fail]``, ``resume``             and ``clear [interrupt]``, ``close``, ``sweep``: the pool's own
``wait for N EVENT``                     until *N* such events have been told since the start
``until N waits``, ``until N knocks``    until *N* threads stand still in the pool; *N* logins have begun
``advance S``                            seconds pass on the fake clock
``counts NAME=N ...``                    what ``stats`` comes to say
``hold dials``, ``admit N``              logins stay unanswered; *N* of them, or ``all``, are answered
``refuse logins``, ``refuse dials``      whoever comes is turned away, by the login or by the system
``accept dials``                         both no longer
``speak``, ``cut``                       the server sends a byte on every connection, or resets it
=======================================  ================================================================

A line told is ``[thread:] Event [id] [reason] [fields] [after S s]``. The thread stands before what must be
told on the caller's own, unless that is the main one. The seconds are left out where they are 0, and on real
time. Lines joined by ``&`` may come in any order. After each scenario everything is given back and closed,
and the life of each connection is checked.
"""

from __future__ import annotations

import builtins
import contextlib
import enum
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
from attrs import Factory, frozen

import connpool
from connpool import Connection, ConnectionPool, SocketConnector, UsageError
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.actor import Actor
from tests.helpers.doorman import Doorman
from tests.helpers.switchboard import until

LIMIT: Final = 10.0  # real seconds in which whatever is waited for must come about
OF_THE_CALLER: Final = {"CheckoutStarted", "CheckedOut", "CheckoutFailed", "CheckedIn"}
LIFE: Final = "ConnectionOpening (ConnectionOpened (CheckedOut CheckedIn )*)?ConnectionClosed"


@frozen
class Scenario:
    """One rule of a pool, as what is done and what is told.

    Attributes:
        rule: A sentence.
        settings: What the pool is made with.
        only: Names of the events that count; empty: all do.
        ignore: Names of those that do not.
        has_ids: Whether the numbers of connections count; where dials race they cannot.
        is_real: On real time, with the reaper's own thread.
    """

    rule: str
    steps: str
    tells: str
    settings: Mapping[str, Any] = Factory(dict)
    only: str = ""
    ignore: str = "PoolOpened GroupSwitched"
    has_ids: bool = True
    is_real: bool = False

    def __str__(self) -> str:
        return self.rule

    def play(self) -> None:
        """Do the steps, and compare what is told."""
        with ScriptedServer() as server, Stage(self, server) as stage:
            stage.perform()


class Stage:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, server: ScriptedServer) -> None:
        self._scenario = scenario
        self.server = server
        self.doorman = server.script = Doorman()
        self.clock = FakeClock()
        self._actors: dict[str, Actor] = {}
        self._loans: dict[str, Connection] = {}
        self._changed = threading.Condition()
        self._events: list[Any] = []
        self._lines: list[str] = []
        self.pool = ConnectionPool(
            server.endpoint,
            connector=SocketConnector(handshake=self.doorman.log_in),
            name="scenario",
            clock=None if scenario.is_real else self.clock,
            listeners=(self._hear,),
            **scenario.settings,
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Give everything back and close; where the scenario went well, check the connections' lives."""
        self.doorman.admit(math.inf)
        for loan in self._loans.values():
            with contextlib.suppress(UsageError):  # it was given back
                loan.terminate()
        self.pool.close()
        for actor in self._actors.values():
            actor.order(None)
            actor.join(LIMIT)
        if kind is None:
            self._until(self._is_over, "over")
            check_lives(self._events)
            assert self.server.peak <= self.pool.config.max_size

    def perform(self) -> None:
        """Do the steps, wait for the threads, and compare what was told."""
        for line in filter(None, map(str.strip, self._scenario.steps.splitlines())):
            self._do(line)
        for actor in self._actors.values():
            actor.finish()
        tells = re.sub(r"&\s+", "& ", self._scenario.tells)
        expected = [line.strip() for line in tells.splitlines() if line.strip()]
        groups = [line.split(" & ") for line in expected]
        self._until(lambda: len(self._lines) >= sum(map(len, groups)), "all told")
        told, rest = [], list(self._lines)
        for group in groups:
            told.append(" & ".join(sorted(rest[: len(group)], key=(group + rest).index)))
            del rest[: len(group)]
        assert told + rest == expected, "told:\n" + "\n".join(self._lines)

    # -- what is done

    def _do(self, line: str) -> None:
        found = re.fullmatch(r"(?:(\w+): )?(.+?)(?: fails (\w+))?", line)
        assert found is not None, line
        who, what, failing = found.groups()
        verb = next((verb for verb in VERBS if f"{what} ".startswith(f"{verb} ")), None)
        assert verb is not None, f"no such verb: {line}"
        words = what.removeprefix(verb).split()

        def order() -> None:
            if failing is None:
                VERBS[verb](self, *words)
                return
            kind = getattr(connpool, failing, None) or getattr(builtins, failing)
            try:
                VERBS[verb](self, *words)
            except kind:
                return
            raise AssertionError(f"did not fail: {line}")

        if who is None:
            order()
        else:
            self._actors[who].order(order)

    def start(self, *names: str) -> None:
        for name in names:
            self._actors[name] = Actor(name)
            self._actors[name].start()

    def join(self, name: str) -> None:
        self._actors[name].finish()

    def check_out(self, label: str) -> None:
        self._loans[label] = self.pool.try_connect()

    def loan(self, label: str) -> Connection:
        return self._loans[label]

    def wait_for(self, n: str, name: str) -> None:
        kind = getattr(connpool, name)
        self._until(lambda: sum(type(event) is kind for event in self._events) >= int(n), f"{n} {name}")

    def until(self, n: str, what: str) -> None:
        {"waits": self.clock.until_waiting, "knocks": self.doorman.until_knocks}[what](int(n))

    def counts(self, *wanted: str) -> None:
        names = [each.partition("=")[0] for each in wanted]

        def counted() -> list[str]:
            stats = self.pool.stats()
            return [f"{name}={getattr(stats, name)}" for name in names]

        until(lambda: counted() == list(wanted), f"{wanted}")  # what was told may yet have to be recorded

    def accept_dials(self) -> None:
        self.doorman.refuse(is_refusing=False)
        self.server.start()

    def _is_over(self) -> bool:
        closed = sum(type(event).__name__ == "ConnectionClosed" for event in self._events)
        return self.pool.stats().size == 0 and closed == len({e.id for e in self._events if hasattr(e, "id")})

    def _until(self, predicate: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, LIMIT), f"not {what}: {self._lines}"

    # -- what is told

    def _hear(self, event: Any) -> None:
        name, line = type(event).__name__, self._line(event)
        with self._changed:
            self._events.append(event)
            counts = not self._scenario.only or name in self._scenario.only.split()
            if counts and name not in self._scenario.ignore.split():
                self._lines.append(line)
            self._changed.notify_all()

    def _line(self, event: Any) -> str:
        values = attrs.asdict(event, recurse=False)
        words = [type(event).__name__]
        if event.pool != "scenario" or values.get("endpoint") not in (None, self.server.endpoint):
            words.append(f"of another pool: {event!r}")
        if self._scenario.has_ids and "id" in values:
            words.append(str(event.id))
        words += [value.value for value in values.values() if isinstance(value, enum.Enum)]
        words += [f"{name}={value}" for name, value in values.get("options", {}).items()]
        words += ["interrupt"] if values.get("interrupt") else []
        if values.get("seconds") and not self._scenario.is_real:
            words.append(f"after {event.seconds:g} s")
        who = threading.current_thread().name
        if words[0] in OF_THE_CALLER and who != "MainThread":
            words[0] = f"{who}: {words[0]}"
        return " ".join(words)


VERBS: Final[Mapping[str, Callable[..., object]]] = {
    "start": Stage.start,
    "join": Stage.join,
    "check out": Stage.check_out,
    "check in": lambda stage, label: stage.loan(label).release(),
    "terminate": lambda stage, label: stage.loan(label).terminate(),
    "read": lambda stage, label: stage.loan(label).recv(1, timeout=LIMIT),
    "pause": lambda stage, how="": stage.pool.pause(fail=how == "fail"),
    "resume": lambda stage: stage.pool.resume(),
    "clear": lambda stage, how="": stage.pool.clear(interrupt=how == "interrupt"),
    "close": lambda stage: stage.pool.close(),
    "sweep": lambda stage: stage.pool.sweep(),
    "wait for": Stage.wait_for,
    "until": Stage.until,
    "advance": lambda stage, seconds: stage.clock.advance(float(seconds)),
    "counts": Stage.counts,
    "hold dials": lambda stage: stage.doorman.hold(),
    "admit": lambda stage, n: stage.doorman.admit(math.inf if n == "all" else int(n)),
    "refuse logins": lambda stage: stage.doorman.refuse(),
    "refuse dials": lambda stage: stage.server.refuse(),
    "accept dials": Stage.accept_dials,
    "speak": lambda stage: [served.send(b".") for served in stage.server.connections],
    "cut": lambda stage: stage.server.kill(),
}


def check_lives(events: list[Any]) -> None:
    """Check that each connection, numbered in order, had one life, and each checkout one end."""
    lives: dict[int, list[str]] = {}
    for event in events:
        if hasattr(event, "id"):
            lives.setdefault(event.id, []).append(type(event).__name__)
    stories = {id: " ".join(life) for id, life in lives.items()}
    assert [f"{id}: {story}" for id, story in stories.items() if not re.fullmatch(LIFE, story)] == []
    assert sorted(lives) == list(range(1, len(lives) + 1))
    n = Counter(type(event).__name__ for event in events)
    assert n["CheckoutStarted"] == n["CheckedOut"] + n["CheckoutFailed"]
