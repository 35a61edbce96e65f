"""What is lost, delayed or repeated when something fails, by setting: the table of docs/delivery.md.

Nothing is ever reordered on its way to one member: each of these tests looks at the order too.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from connpool import (
    Broadcaster,
    Connection,
    LinkState,
    MemorySpool,
    SpoolDamaged,
    SpoolError,
    SQLiteSpool,
)
from connpool.delivery.segment import Segment
from connpool.testing import FaultProxy
from tests.helpers import guarantees
from tests.helpers.architecture import ROOT
from tests.helpers.guarantees import arguments
from tests.helpers.scripts import run_program
from tests.helpers.sinks import (
    MUCH,
    Sink,
    all_alive,
    broadcasting,
    fill,
    first_comings,
    kill,
    numbered,
    refused,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together

PAGE = ROOT / "docs" / "delivery.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def a() -> Iterator[Sink]:
    with Sink(answers=True) as server:
        yield server


@pytest.fixture
def b() -> Iterator[Sink]:
    with Sink(answers=True) as server:
        yield server


def bring_back(server: Sink) -> None:
    server.is_deaf = False
    server.start()


def until_dead(sender: Broadcaster) -> None:
    until(lambda: all(link.state is LinkState.DEAD for link in sender.links()), "the death of all")


# -- the peer is killed


@pytest.mark.parametrize("setting", guarantees.UNCONFIRMED)
def test_what_a_killed_peer_had_not_read_is_lost(a, path, setting):
    a.is_deaf = True
    with broadcasting(a, **arguments(setting, path)) as sender:
        assert sender.broadcast(b"unread").sent, "the system has taken it, and so it counts as sent"
        kill(a)
        until_dead(sender)
        bring_back(a)
        all_alive(sender)
        sender.broadcast(b"next")
        a.until_has(b"next")
        assert a.lines == [b"next"]


@pytest.mark.parametrize("is_behind", [False, True])
def test_what_a_killed_peer_had_not_read_is_sent_again_if_it_has_to_confirm(a, path, is_behind):
    a.is_deaf = True
    with FaultProxy(a.endpoint) as proxy:
        if is_behind:
            proxy.refuse()
        with broadcasting(proxy, **arguments("confirm", path)) as sender:
            future = sender.broadcast_async(b"unread")
            if is_behind:
                assert future.result(10).spooled
                proxy.heal()
            until(lambda: proxy.bytes_up > len(b"unread"), "the message's way through")
            kill(a)
            assert not future.result(10).sent
            bring_back(a)
            a.until_has(b"unread")


@pytest.mark.parametrize("setting", guarantees.SPOOLED)
def test_what_is_for_a_dead_peer_arrives_in_order_when_it_is_back(a, b, path, setting):
    with broadcasting(a, b, **arguments(setting, path)) as sender:
        all_alive(sender)
        sender.broadcast(b"m-0")
        a.until_has(b"m-0")
        kill(a)
        until(lambda: sum(link.state is LinkState.DEAD for link in sender.links()) == 1)
        for message in numbered(50, begin=1):
            assert str(a.endpoint) in sender.broadcast(message).spooled
        assert b.until_lines(51) == numbered(51)
        bring_back(a)
        assert a.until_lines(51) == numbered(51)


def test_a_peer_that_is_killed_before_it_has_confirmed_gets_the_message_again_and_no_other(a, path):
    a.last = 3
    with broadcasting(a, **arguments("confirm", path)) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        a.until_has(b"m-4")
        assert a.lines == [b"m-0", b"m-1", b"m-2", b"m-2", b"m-3", b"m-4"]


# -- the peer hangs, or is slow


@pytest.mark.parametrize("setting", ["MemorySpool", "SQLiteSpool", "write_ahead"])
def test_a_peer_that_reads_nothing_gets_all_in_order_once_it_reads_and_delays_nobody_else(
    a, b, path, setting
):
    a.is_deaf = True
    a.answers = b.answers = False
    with broadcasting(a, b, **arguments(setting, path)) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent()[a.endpoint])
        for message in numbered(20):
            sender.broadcast(message)
        b.until_has(*numbered(20))
        assert b"m-0" not in a.lines
        a.is_deaf = False
        a.until_has(b"m-19")
        assert a.lines == b.lines == [b"f" * MUCH] * n + numbered(20)


def test_without_a_spool_the_sender_waits_for_a_peer_that_reads_nothing(a, path):
    a.is_deaf = True
    a.answers = False
    messages = [b"%d-" % number + b"x" * MUCH for number in range(200)]
    n_sent = 0

    def send() -> None:
        nonlocal n_sent
        for message in messages:
            sender.broadcast(message)
            n_sent += 1

    def hear() -> None:
        strand = sender._office.roster.links[str(a.endpoint)].strand
        until(lambda: strand.holder is not None, "a sender that waits")
        assert n_sent < len(messages)
        a.is_deaf = False

    with broadcasting(a, **arguments("no spool", path)) as sender:
        all_alive(sender)
        together(send, hear)
        assert a.until_lines(200) == messages


def test_a_peer_that_hangs_for_longer_than_confirm_waits_gets_its_message_twice(a, path):
    def impatient(conn: Connection, message: bytes) -> None:
        conn.recv_until(b"\n", 1_000, timeout=0.05 if a.is_deaf else 10)

    a.is_deaf = True
    with broadcasting(a, **{**arguments("confirm", path), "confirm": impatient}) as sender:
        assert not sender.broadcast(b"m-0").sent
        a.is_deaf = False
        sender.broadcast(b"m-1")
        a.until_has(b"m-1")
        until(lambda: a.n_lines == 2 + a.lines.count(b"m-0") - 1)
        assert a.lines.count(b"m-0") >= 2
        assert first_comings(a.lines) == numbered(2)


# -- the network drops everything


@pytest.mark.parametrize("setting", guarantees.UNCONFIRMED)
def test_what_is_sent_into_a_network_that_drops_it_is_lost_until_that_is_noticed(a, path, setting):
    with FaultProxy(a.endpoint) as proxy, broadcasting(proxy, **arguments(setting, path)) as sender:
        all_alive(sender)
        sender.broadcast(b"m-0")
        a.until_has(b"m-0")
        proxy.forget()
        assert sender.broadcast(b"void").sent
        proxy.reset()  # how a firewall says at last that it knows of no such connection
        until(lambda: proxy.accepts == 2, "another connection")
        all_alive(sender)
        sender.broadcast(b"m-1")
        a.until_has(b"m-1")
        assert a.lines == numbered(2)


def test_what_is_sent_into_a_network_that_drops_it_is_sent_again_if_it_has_to_be_confirmed(a, path):
    with FaultProxy(a.endpoint) as proxy, broadcasting(proxy, **arguments("confirm", path)) as sender:
        all_alive(sender)
        sender.broadcast(b"m-0")
        proxy.forget()
        future = sender.broadcast_async(b"m-1")
        until(lambda: sender.unsent().total == 1, "a message on its way")
        proxy.reset()
        assert not future.result(10).sent
        assert a.until_lines(2) == numbered(2)


# -- the own process is killed

SENDER = """
import os, signal, sys
from connpool import SQLiteSpool
from tests.helpers.guarantees import arguments
from tests.helpers.sinks import broadcasting

class Deadly(SQLiteSpool):
    def put(self, *arguments):
        positions = super().put(*arguments)
        if moment == "put":
            die()
        return positions

    def remove(self, positions):
        if moment == "remove" and positions:
            die()
        super().remove(positions)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

endpoint, setting, path, moment, *messages = sys.argv[1:]
with broadcasting(endpoint, **arguments(setting, path, Deadly)) as sender:
    sender.wait_ready(0.2 if moment == "spooled" else 10)
    for message in messages:
        sender.broadcast(message.encode())
    if moment != "remove":
        die()
    sender.flush(10)
"""


def run_and_kill(server: Sink, setting: str, path: Path, moment: str, *messages: bytes) -> None:
    """Broadcast *messages* in a process that is killed at that moment."""
    ran = run_program(SENDER, server.endpoint, setting, path, moment, *(each.decode() for each in messages))
    assert ran.status == -signal.SIGKILL, ran.err


@pytest.mark.parametrize("setting", guarantees.ALL)
def test_what_was_sent_arrives_though_the_sender_is_killed_at_once(a, path, setting):
    # Answers that nobody has read would make the system throw away what it still has.
    a.answers = setting == "confirm"
    run_and_kill(a, setting, path, "sent", *numbered(10))
    assert a.until_lines(10) == numbered(10)


def test_what_waits_in_memory_is_lost_with_the_process(a, path):
    a.stop()
    run_and_kill(a, "MemorySpool", path, "spooled", b"m-0")
    a.start()
    with broadcasting(a, **arguments("MemorySpool", path)) as sender:
        sender.broadcast(b"m-1")
        assert a.until_lines(1) == [b"m-1"]


@pytest.mark.parametrize("setting", guarantees.IN_A_FILE)
def test_what_waits_in_a_file_is_sent_by_the_next_process_and_first(a, path, setting):
    a.stop()
    run_and_kill(a, setting, path, "spooled", *numbered(3))
    a.start()
    with broadcasting(a, **arguments(setting, path)) as sender:
        sender.broadcast(b"m-3")
        assert a.until_lines(4) == numbered(4)


@pytest.mark.parametrize("setting", guarantees.AHEAD)
def test_with_write_ahead_even_the_message_at_which_the_process_was_killed_arrives(a, path, setting):
    run_and_kill(a, setting, path, "put", b"m-0")
    assert a.lines == []
    with broadcasting(a, **arguments(setting, path)):
        assert a.until_lines(1) == numbered(1)


@pytest.mark.parametrize("setting", guarantees.IN_A_FILE)
def test_what_was_sent_but_not_yet_taken_out_of_the_file_is_sent_again_and_nothing_else(a, path, setting):
    a.stop()
    run_and_kill(a, setting, path, "spooled", *numbered(3))
    a.start()
    run_and_kill(a, setting, path, "remove")
    assert a.until_lines(3) == numbered(3)
    with broadcasting(a, **arguments(setting, path)) as sender:
        sender.broadcast(b"m-3")
        a.until_has(b"m-3")
        assert a.lines == numbered(3) + numbered(4)


# -- the machine loses power


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 1)])
def test_what_waits_is_on_the_disk_before_broadcast_returns_unless_durable_is_false(
    path, durable, synchronous, monkeypatch
):
    modes: list[int] = []  # of the commits since the message is there
    commit = Segment.commit

    def look(segment: Segment) -> None:
        if segment.number("SELECT count(*) FROM message"):
            modes.append(segment.number("PRAGMA synchronous"))  # 2: this commit is flushed
        commit(segment)

    monkeypatch.setattr(Segment, "commit", look)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        spool = SQLiteSpool(path, durable=durable)
        with broadcasting(f"127.0.0.1:{nobody.getsockname()[1]}", spool=spool) as sender:
            assert sender.broadcast(b"m-0").spooled
            assert modes[0] == synchronous


# -- the disk is full


def fill_disk(spool: SQLiteSpool) -> None:
    """Let its file take not a page more."""
    segment = spool._keeper.ledger.segment
    segment.execute(f"PRAGMA max_page_count = {segment.number('PRAGMA page_count')}")


def test_with_a_full_disk_those_who_live_get_it_and_the_answer_names_those_who_do_not(a, b, path):
    with broadcasting(a, b, **arguments("SQLiteSpool", path)) as sender:
        all_alive(sender)
        kill(a)
        until(lambda: sum(link.state is LinkState.DEAD for link in sender.links()) == 1)
        sender.broadcast(b"m-0")
        fill_disk(sender._spool)
        large = b"m-1-" + b"x" * 100_000
        delivery = sender.broadcast(large)
        assert (delivery.sent, delivery.refused) == ((b.endpoint,), (str(a.endpoint),))
        assert a.endpoint in delivery.refused
        kill(b)
        until_dead(sender)
        with pytest.raises(SpoolError, match="full"):
            sender.broadcast(large)
        bring_back(a)
        assert a.until_lines(1) == [b"m-0"]


@pytest.mark.parametrize("setting", guarantees.AHEAD)
def test_with_a_full_disk_write_ahead_refuses_and_sends_nothing(a, path, setting):
    with broadcasting(a, **arguments(setting, path)) as sender:
        all_alive(sender)
        sender.broadcast(b"m-0")
        fill_disk(sender._spool)
        with pytest.raises(SpoolError, match="full"):
            sender.broadcast(b"m-1-" + b"x" * 100_000)
        sender._spool._keeper.ledger.segment.execute("PRAGMA max_page_count = 1000000")
        sender.broadcast(b"m-2")
        assert a.until_lines(2) == [b"m-0", b"m-2"]


# -- the file is damaged


@pytest.mark.parametrize("setting", guarantees.IN_A_FILE)
def test_of_a_damaged_file_what_can_be_read_is_sent_in_order_and_the_rest_is_told(a, path, setting):
    a.stop()
    messages = [b"m-%d-" % number + b"x" * 500 for number in range(60)]
    with broadcasting(a, **arguments(setting, path)) as sender:
        for message in messages:
            sender.broadcast(message)
    content = bytearray(path.read_bytes())
    at = content.index(messages[30])
    content[at - 2_000 : at] = bytes(2_000)
    path.write_bytes(content)
    told: list[object] = []
    spool = SQLiteSpool(path, listener=told.append)
    (damage,) = (event for event in told if isinstance(event, SpoolDamaged))
    assert Path(damage.aside).exists()
    assert 0 < damage.recovered < len(messages)
    a.start()
    with broadcasting(a, **{**arguments(setting, path.with_name("other")), "spool": spool}):
        rest = iter(messages)
        assert all(line in rest for line in a.until_lines(damage.recovered))


# -- the page


def test_an_interrupt_of_the_spool_is_kept_from_nobody_though_others_have_the_message(a):
    class Struck(MemorySpool):
        def put(self, queues, message, id):
            raise KeyboardInterrupt

    with refused() as nobody, broadcasting(a, nobody, spool=Struck()) as sender:
        until(lambda: {link.state for link in sender.links()} == {LinkState.ALIVE, LinkState.DEAD})
        with pytest.raises(KeyboardInterrupt):
            sender.broadcast(b"one")
        a.until_has(b"one")


def test_every_cell_of_the_table_names_a_test_that_there_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = _references(text)
    cells = [
        cell
        for row in re.findall(r"^\| [a-z].*$", _table(text), re.M)[1:]
        for cell in row.strip("| ").split(" | ")[1:]
    ]
    assert len(cells) == 8 * len(guarantees.ALL)
    for cell in cells:
        labels = re.findall(r"\]\[(\w+)\]", cell)
        assert labels or cell == "does not apply", cell
        for label in labels:
            file, name = known[label]
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), label


def _references(text: str) -> dict[str, tuple[str, str]]:
    return {
        label: (file, name)
        for label, file, name in re.findall(r'^\[(\w+)\]: \.\./(tests/\S+) "(\w+)"$', text, re.M)
    }


def _table(text: str) -> str:
    return text.partition("## What is lost, and when")[2].partition("\n## ")[0]
