"""What has come, for those who wait for it: an interrupt of one leaves the others as they were."""

from __future__ import annotations

import threading

import pytest

from connpool import Endpoint, LinkEvent
from connpool.delivery.mailbox import MOST_NEWS, Mailbox
from tests.helpers.interrupts import SignalStrike, at_every_bytecode


def test_who_is_interrupted_while_receiving_keeps_no_later_one_from_having_input_read() -> None:
    wanted: list[bool] = []
    for strike in at_every_bytecode(Mailbox.recv, Mailbox._look, Mailbox._wait_for, kind=SignalStrike):
        mailboxes: list[Mailbox] = []

        def look(these: list[Mailbox] = mailboxes) -> None:
            wanted.append(these[0].wants_input())

        mailbox = Mailbox(threading.RLock(), "news", look)
        mailboxes.append(mailbox)
        with strike:
            mailbox.recv(0)
        wanted.clear()
        mailbox.recv(0)
        assert wanted == [True, True], strike
        assert not mailbox.wants_input(), strike


@pytest.mark.parametrize(("is_wanted", "n_lost"), [(False, 1), (True, 0)])
def test_of_events_that_nobody_takes_the_last_are_kept_and_all_where_a_handler_is_there(
    is_wanted: bool, n_lost: int
) -> None:
    mailbox = Mailbox(threading.RLock(), "news", lambda: None)
    if is_wanted:
        mailbox.install(LinkEvent.DEAD, lambda *_: None)
    with mailbox._lock:
        for n in range(MOST_NEWS + 1):
            mailbox.post_locked(LinkEvent.DEAD, Endpoint("a", n + 1))
    assert [news.endpoint.port for news in mailbox._news] == list(range(1 + n_lost, MOST_NEWS + 2))


def test_where_the_broadcaster_is_closed_nobody_wants_input_though_a_handler_is_there() -> None:
    mailbox = Mailbox(threading.RLock(), "news", lambda: None)
    mailbox.install(LinkEvent.INPUT, lambda *_: None)
    assert mailbox.wants_input()
    mailbox.close()
    assert not mailbox.wants_input()
