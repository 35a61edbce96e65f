"""The benchmarks of the spool report every row."""

import pytest

from benchmarks.__main__ import measure
from benchmarks.plan import Plan
from benchmarks.spool import QUEUE, filled

BLINK = Plan(repeats=1, seconds=0.03, warm_up=0.01, backlog=300)
CONTENDERS = ("bare", "ours", "ours, 16 threads", "ours, not durable")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "spool",
            [*((who, "turns") for who in CONTENDERS), ("ours", "x bare"), ("ours, 16 threads", "x bare")],
        ),
        ("spool-drain", [("ours", "turns")]),
        ("spool-memory", [("ours", "per spooled message")]),
    ],
)
def test_each_answers_its_question_with_every_row(name, rows):
    section = measure(name, BLINK)

    assert section.question.endswith("?")
    assert [(row.who, row.what) for row in section.rows] == rows


def test_a_spool_is_filled_with_as_many_messages_as_were_asked_for():
    with filled(777) as kept:
        assert kept.count(QUEUE) == 777
