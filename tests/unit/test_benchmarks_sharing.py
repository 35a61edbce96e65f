"""The benchmarks of sharing and of many pools report every row."""

import pytest

from benchmarks import many
from benchmarks.__main__ import measure
from benchmarks.plan import Plan

BLINK = Plan(repeats=1, seconds=0.03, warm_up=0.01)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "sharing",
            [
                *((who, "turns") for who in ("exclusive", "shared", "joined")),
                *((f"{who}, through with", "turns") for who in ("exclusive", "shared")),
                ("shared", "x exclusive"),
                ("joined", "x exclusive"),
                ("shared, through with", "x exclusive, through with"),
            ],
        ),
        ("exchange", [("exclusive", "turns"), ("shared", "turns"), ("shared", "x exclusive")]),
        (
            "pools",
            [
                *((f"{n} pools", what) for n in (10, 20) for what in ("lookup", "lookup x that of 10")),
                ("empty pool", "memory"),
            ],
        ),
        (
            "reaper",
            [
                *(
                    (f"{n} pools", what)
                    for n in (10, 20)
                    for what in ("processor time per expiry", "processor time x that of 10")
                ),
                ("all of them", "threads at the end"),
            ],
        ),
    ],
)
def test_each_answers_its_question_with_every_row(name, rows, monkeypatch):
    monkeypatch.setattr(many, "COUNTS", (10, 20))
    section = measure(name, BLINK)

    assert section.question.endswith("?")
    assert [(row.who, row.what) for row in section.rows] == rows
    assert all(value >= 0 for row in section.rows for value in row.values)
