"""Two senders, three receivers and twenty-four SIGKILLs: nothing that was accepted is lost or overtaken."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from connpool import Route
from connpool.cli import collector
from connpool.cli.audit import audit
from connpool.cli.servers import ServerProcess
from connpool.cli.shipping import Shipper

SEED = 1953  # every group is away for some thousand messages, alone and together with the other
SENDERS = ("s1", "s2")
RECEIVERS = ("A", "B", "C")
GROUPS = (("A", "B"), ("C",))
N_MESSAGES = 20_000
N_KILLS = 24
BATCH = 32  # messages; the usual 512 would allow too many to come twice
PATIENCE = 60.0  # seconds between two deeds
SENDER = f"""
import sys
from connpool.cli.shipper import main
from connpool.delivery import flushing

flushing.BATCH = {BATCH}
sys.exit(main())
"""


class Deed(NamedTuple):
    """What is done when so many messages, of all senders, have been accepted."""

    at: int
    victim: str
    what: str


def deeds(seed: int) -> Iterator[Deed]:
    """Every kill hits somebody who lives. A sender comes back at once, a receiver after some messages."""
    rng = random.Random(seed)
    back: dict[str, int] = {}
    for at in sorted(rng.sample(range(200, N_MESSAGES - 2_000), N_KILLS)):
        for name in [name for name, due in back.items() if due <= at]:
            yield Deed(back.pop(name), name, "start")
        victim = rng.choice([name for name in (*SENDERS, *RECEIVERS) if name not in back])
        yield Deed(at, victim, "kill")
        if victim in SENDERS:
            yield Deed(at, victim, "start")
        else:
            back[victim] = at + rng.randrange(100, 3_000)
    for name, due in back.items():
        yield Deed(min(due, N_MESSAGES), name, "start")


@pytest.mark.timeout(180)
def test_what_was_accepted_arrives_in_order_whoever_is_killed(tmp_path: Path) -> None:
    """Each message is in the spool before it is sent, and leaves it once the receiver has it in its log.

    ``durable=False`` is enough: a process that is killed takes nothing along of what it has written, since
    the system has that. Only a power failure would.

    At a kill a sender and a receiver may have one batch of messages between them that are in the log
    and still in the spool. These come again, and nothing else does; besides, a killed sender repeats
    the message that was accepted but not yet said to be.
    """
    kills: Counter[str] = Counter()
    with ExitStack() as stack:
        logs = {name: tmp_path / name for name in RECEIVERS}
        servers = {
            name: stack.enter_context(ServerProcess(name, collector.__file__, f"--log={logs[name]}"))
            for name in RECEIVERS
        }
        a, b, c = (servers[name].endpoint for name in RECEIVERS)
        route = Route.parse(f"{a} && {b} || {c}")
        progress = threading.Condition()
        shippers = {
            name: stack.enter_context(
                Shipper(name, route, tmp_path / f"{name}.spool", changed=progress, program=("-c", SENDER))
            )
            for name in SENDERS
        }

        def wait_for(count: int) -> None:
            def are_accepted() -> bool:
                return sum(len(shipper.accepted) for shipper in shippers.values()) >= count

            with progress:
                assert progress.wait_for(are_accepted, PATIENCE)

        for shipper in shippers.values():
            shipper.start()
        for deed in sorted(deeds(SEED)):
            wait_for(deed.at)
            subject = {**servers, **shippers}[deed.victim]
            assert subject.is_running is (deed.what == "kill"), deed
            getattr(subject, deed.what)()
            kills[deed.victim] += deed.what == "kill"
        wait_for(N_MESSAGES)
        assert [shipper.finish() for shipper in shippers.values()] == [0, 0]
    found = audit(
        {name: shipper.accepted for name, shipper in shippers.items()},
        {name: log.read_bytes() for name, log in logs.items()},
        GROUPS,
    )
    assert kills.total() == N_KILLS
    assert (found.missing, found.disordered) == ((), ())
    for (receiver, sender), repeated in found.repeated.items():
        assert repeated <= BATCH * (kills[receiver] + kills[sender]) + kills[sender], (receiver, sender)
    assert all(found.received[name] > 500 for name in RECEIVERS), "else the kills have missed their aim"
