"""A program that broadcasts numbered lines and can be killed at any time: it goes on where it was.

``python -m connpool.cli.shipper --route "A && B || C" --spool FILE`` says the number of each line once
``broadcast`` has returned, with the group that took it, and ten times a second how things stand. It
stops when its standard input ends, and ends when everything has arrived.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from connpool import (
    Broadcaster,
    Connection,
    ConnectionPool,
    Delivery,
    Lines,
    LinkState,
    Route,
    SQLiteSpool,
)
from connpool.cli.audit import line_of
from connpool.cli.collector import acknowledgement

__all__ = ["NOT_ALL_STATUS"]

STDIN: Final = 0
STDOUT: Final = 1
TICK: Final = 0.1  # seconds between two lines on how things stand
ANSWER_TIMEOUT: Final = 5.0  # seconds
FLUSH_TIMEOUT: Final = 20.0  # seconds without any progress after which it gives up
NOT_ALL_STATUS: Final = 3  # not all has arrived; it is still in the spool


def main() -> int:
    """Ship. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Broadcasts numbered lines.")
    parser.add_argument("--route", type=Route.parse, required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--sender", default="shipper", help="what each line begins with")
    parser.add_argument("--first", type=int, default=1, help="the number of the first line")
    parser.add_argument("--rate", type=float, default=0.0, help="lines a second; 0: as many as it can")
    options = parser.parse_args()
    is_over = threading.Event()
    threading.Thread(target=wait_for_end_of_input, args=(is_over,), daemon=True).start()
    with broadcaster_of(options.route, options.spool) as broadcaster, telling(broadcaster):
        for number in paced(itertools.count(options.first), options.rate, is_over):
            accepted(number, broadcaster.broadcast(line_of(options.sender, number)))
        return 0 if flush(broadcaster) else NOT_ALL_STATUS


@contextmanager
def broadcaster_of(route: Route, path: Path) -> Iterator[Broadcaster]:
    """One that loses nothing by the death of a process, be it this one."""
    pool = ConnectionPool(route, blacklist_initial=0.05, blacklist_max=0.25, connect_timeout=2)
    # durable=False: what the system has been given survives this process, if not a power failure.
    spool = SQLiteSpool(path, durable=False)
    with pool, Broadcaster(pool, spool=spool, framing=Lines(), confirm=confirm, write_ahead=True) as made:
        yield made


def wait_for_end_of_input(is_over: threading.Event) -> None:
    """Whoever started this closes its standard input, or has died."""
    while os.read(STDIN, 4_096):  # sys.stdin has a lock, for which the end of the program would wait
        pass
    is_over.set()


def paced(numbers: Iterator[int], rate: float, is_over: threading.Event) -> Iterator[int]:
    """*numbers*, not too fast, until it is over."""
    began = time.monotonic()
    for count, number in enumerate(numbers):
        if is_over.wait(max(0.0, began + count / rate - time.monotonic())) if rate else is_over.is_set():
            return
        yield number


def confirm(conn: Connection, message: bytes) -> None:
    """Wait until the server has *message* in its log."""
    answer = conn.recv_until(b"\n", 1_000, ANSWER_TIMEOUT)
    if answer != acknowledgement(message):
        raise ValueError(f"not the answer to {message!r}: {answer!r}")


def flush(broadcaster: Broadcaster) -> bool:
    """Wait until everything has arrived. False: it did not get on for too long."""
    left = broadcaster.unsent().total
    while left:
        before, left = left, broadcaster.flush(FLUSH_TIMEOUT)
        if left >= before:
            return False
    return True


# -- what it says: whole lines, each by one call, so that a kill tears none


def accepted(number: int, delivery: Delivery) -> None:
    say(f"{number} {'-' if delivery.group is None else delivery.group}")


@contextmanager
def telling(broadcaster: Broadcaster) -> Iterator[None]:
    """Say how things stand, again and again, inside the block."""
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(TICK):
            alive = [str(link.endpoint) for link in broadcaster.links() if link.state is LinkState.ALIVE]
            say(json.dumps({"alive": alive, "unsent": dict(broadcaster.unsent())}))

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def say(line: str) -> None:
    os.write(STDOUT, line.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
