"""Whether everything that was accepted has arrived: the senders' word against the servers' logs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

__all__ = ["Accepted", "Audit", "audit", "line_of"]

Accepted = Mapping[str, Mapping[int, int | None]]  # of each sender, the group of each number

_LINE: Final = re.compile(rb"(\w+) (\d+)")


def line_of(sender: str, number: int) -> bytes:
    """What *sender* sends as its message *number*."""
    return b"%s %d" % (sender.encode(), number)


@frozen
class Audit:
    """What was found.

    Attributes:
        missing: What is not where it was due, a sentence each.
        disordered: What came for the first time after something newer of its sender, a sentence each.
        received: How many lines each server got, those that came again included.
        repeated: How many of these had come before, for each server and sender.
    """

    missing: tuple[str, ...]
    disordered: tuple[str, ...]
    received: Mapping[str, int]
    repeated: Mapping[tuple[str, str], int]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, and nothing out of order."""
        return not self.missing and not self.disordered


def audit(accepted: Accepted, logs: Mapping[str, bytes], groups: Sequence[Sequence[str]]) -> Audit:
    """Compare.

    Args:
        accepted: None as a group: it was to reach whichever group came back first.
        logs: What each server has written down, by its name.
        groups: The names of the servers in each group of the route.
    """
    arrived = {server: _by_sender(log) for server, log in logs.items()}
    first = {
        (server, sender): tuple(dict.fromkeys(numbers))
        for server, senders in arrived.items()
        for sender, numbers in senders.items()
    }
    return Audit(
        missing=tuple(_missing(accepted, {key: set(numbers) for key, numbers in first.items()}, groups)),
        disordered=tuple(
            f"{sender} {later} came to {server} after {earlier}"
            for (server, sender), numbers in first.items()
            for earlier, later in pairwise(numbers)
            if later < earlier
        ),
        received={server: sum(map(len, senders.values())) for server, senders in arrived.items()},
        repeated={
            (server, sender): len(arrived[server][sender]) - len(numbers)
            for (server, sender), numbers in first.items()
        },
    )


def _by_sender(log: bytes) -> dict[str, list[int]]:
    """The numbers in the order of their arrival. A line that a kill tore is none: nobody was told of it."""
    found: dict[str, list[int]] = {}
    for line in log.splitlines():
        if match := _LINE.fullmatch(line):
            found.setdefault(match[1].decode(), []).append(int(match[2]))
    return found


def _missing(
    accepted: Accepted, arrived: Mapping[tuple[str, str], set[int]], groups: Sequence[Sequence[str]]
) -> Iterator[str]:
    for sender, messages in accepted.items():
        for number, group in messages.items():
            lacking = [
                [server for server in servers if number not in arrived.get((server, sender), ())]
                for servers in (groups if group is None else [groups[group]])
            ]
            if all(lacking):
                yield f"{sender} {number} is not at {' or '.join(' and '.join(each) for each in lacking)}"
