"""The first act of the demo: what is noted of an outage, and what is told in the end."""

from __future__ import annotations

from typing import Any

import pytest

from connpool import ConnectionPool, EndpointState
from connpool.cli.crowd import Asker
from connpool.cli.outcome import Outage, summary
from connpool.cli.screen import Screen, at_rank, milliseconds


class Shown:
    """What a pool shows of an endpoint."""

    def __init__(self, state: EndpointState, since: float) -> None:
        self.state = state
        self.since = since


def asker(number: int, **known: Any) -> Asker:
    nobody: Any = None
    made = Asker(nobody, number, lets_pool_repeat=number % 2 == 0)
    for name, value in known.items():
        setattr(made, name, value)
    return made


def observe(outage: Outage, state: EndpointState, since: float, *askers: Asker) -> None:
    shown: Any = Shown(state, since)
    outage.observe(shown, askers)


def test_a_blacklisting_is_that_of_the_kill_only_if_it_comes_after_it() -> None:
    outage = Outage("B")
    observe(outage, EndpointState.BLACKLISTED, 0.5)
    assert outage.noticed_at is None
    outage.killed_at = 1.0
    observe(outage, EndpointState.BLACKLISTED, 0.5)
    observe(outage, EndpointState.UP, 1.5)
    assert outage.noticed_at is None
    observe(outage, EndpointState.BLACKLISTED, 2.0)
    observe(outage, EndpointState.PROBING, 3.0)
    assert outage.noticed_at == 2.0


def test_it_serves_again_with_the_first_answer_of_its_successor() -> None:
    askers = asker(0, first_served_at={7: 1.0, 8: 6.0}), asker(1, first_served_at={8: 5.0}), asker(2)
    outage = Outage("B", process=7)
    observe(outage, EndpointState.UP, 0.0, *askers)
    assert outage.served_at is None
    outage.back_at, outage.process = 4.0, 8
    observe(outage, EndpointState.UP, 0.0, *askers)
    assert outage.served_at == 5.0


def told(outage: Outage, *askers: Asker) -> str:
    with ConnectionPool("127.0.0.1:1") as pool:
        return summary(askers, pool.stats(), outage, 2.0)


WHOLE = {"killed_at": 1.0, "noticed_at": 1.25, "back_at": 2.0, "served_at": 2.5, "process": 8}


def test_the_summary_counts_and_judges() -> None:
    first = asker(0, right=30, repeated_by_pool=2, slowest_repeated=0.75)
    second = asker(1, right=10)
    second.served[8] = 4
    second.errors["ConnectionResetError"] = 3
    text = told(Outage("B", **WHOLE), first, second)
    for matter in (
        "40 in 2.0 s (20 a second): 40 right, 0 wrong; 0 requests without an answer",
        "10 to 30 turns per thread (most to least: 3.00)",
        "250 ms",
        "the slowest repeated request was answered within 750 ms",
        "B answered 500 ms after it was back, 4 requests by its new process",
        "run(idempotent=True), 1 threads: 2 repeated by the pool; errors seen: none\n",
        "own retry loop, 1 threads: errors seen: 3 ConnectionResetError (0 given up)",
        "0 opened; closed: none; 0 dials failed",
        "every request was answered, every answer was right, and the killed server served again",
    ):
        assert matter in text


@pytest.mark.parametrize(
    ("flaw", "outage", "why"),
    [
        ({"wrong": 2}, WHOLE, "not as promised: 2 wrong answers\n"),
        ({"lost": 1}, WHOLE, "not as promised: 1 requests without an answer\n"),
        ({}, WHOLE | {"served_at": None}, "not as promised: 1 server that did not come back into service\n"),
    ],
)
def test_what_was_not_as_promised_is_said(flaw: dict[str, int], outage: dict[str, Any], why: str) -> None:
    assert why in told(Outage("B", **outage), asker(0, right=1, **flaw)) + "\n"


def test_an_interrupted_act_is_not_judged() -> None:
    assert "verdict" not in told(Outage("B"), asker(0))
    assert "B was not brought back" in told(Outage("B", killed_at=1.0), asker(0))


def test_waits_are_told_by_rank() -> None:
    assert [at_rank([1, 2, 3, 4], part) for part in (0.0, 0.5, 0.99, 1.0)] == [1, 3, 4, 4]
    assert at_rank([], 0.5) == 0.0
    assert [milliseconds(s) for s in (0.0123, 0.00996, 0.0012)] == ["12 ms", "10 ms", "1.2 ms"]


def test_the_live_line_is_painted_over_and_what_is_said_stays_above(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen(plain=False)
    screen.say("begun")
    screen.show("one")
    screen.show("two" * 100)
    screen.say("news")
    screen.let_go()
    screen.say("end")
    live = "two" * 26 + "t"
    clear = "\r\x1b[K"
    shown = capsys.readouterr().out
    assert shown == f"begun\n{clear}one{clear}{live}{clear}news\n{clear}{live}\nend\n"


def test_where_nothing_is_painted_over_each_line_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(plain=True)
    screen.show("one" * 100)
    screen.say("news")
    screen.let_go()
    assert capsys.readouterr().out == "one" * 100 + "\nnews\n"
