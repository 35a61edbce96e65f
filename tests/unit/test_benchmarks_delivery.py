"""The benchmarks of delivery report every row."""

import socket

import pytest

from benchmarks.__main__ import measure
from benchmarks.delivery import HOST, MESSAGE, Ours, flush_all, someone_who_never_reads, write_all
from benchmarks.plan import Plan
from benchmarks.servers import Sink
from connpool import Endpoint

BLINK = Plan(repeats=1, seconds=0.03, warm_up=0.01, backlog=600)
TO_ONE = ("bare", "ours", "ours, with a spool")
TO_THREE = ("three bare", "ours, to three", "ours, to three, spool")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "broadcast",
            [
                *((who, "turns") for who in (*TO_ONE, *TO_THREE)),
                ("ours", "x bare"),
                ("ours, with a spool", "x bare"),
                ("ours, to three", "x three bare"),
                ("ours, to three, spool", "x three bare"),
            ],
        ),
        (
            "bystanders",
            [
                *((who, "turns") for who in ("all alive", "one dead", "one blocked")),
                ("one dead", "x all alive"),
                ("one blocked", "x all alive"),
            ],
        ),
        ("flush", [("bare", "turns"), ("ours", "turns"), ("ours", "x bare")]),
    ],
)
def test_each_answers_its_question_with_every_row(name, rows):
    section = measure(name, BLINK)

    assert section.question.endswith("?")
    assert [(row.who, row.what) for row in section.rows] == rows
    assert all(value > 0 for row in section.rows for value in row.values)


def test_a_blocked_receiver_takes_nothing_more_when_the_counting_begins():
    with someone_who_never_reads() as port:
        ours = Ours([port], spool=True, blocked=port)
        before = ours.broadcaster.unsent()[Endpoint(HOST, port)]
        ours.broadcaster.broadcast(MESSAGE)

        assert before > 0
        assert ours.broadcaster.unsent()[Endpoint(HOST, port)] == before + 1
        ours.close()


@pytest.mark.parametrize("way", [write_all, flush_all])
def test_a_backlog_counts_as_sent_when_its_last_byte_was_read(way):
    with Sink(expected=600 * len(MESSAGE)) as server:
        assert way(server, 600).served == (600,)
        with socket.create_connection((HOST, server.port)) as conn:
            conn.sendall(MESSAGE * 600)
            assert server.hear() == "all\n"  # one word for each backlog: none is left over
