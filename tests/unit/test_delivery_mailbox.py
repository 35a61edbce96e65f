"""What has come, for those who wait for it: an interrupt of one leaves the others as they were."""

from __future__ import annotations

import threading

from connpool.delivery.mailbox import Mailbox
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
