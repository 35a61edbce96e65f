"""Looking through a pile while others take from it and add to it, and going through a flock that grows."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from connpool.pool.flock import Flock
from connpool.pool.piles import look_through
from tests.helpers.together import together

WHILE = 0.3  # seconds that the threads of a test are at it


class Thing:
    """Compared by identity, as keys are."""


class Busy(deque[str]):
    """A pile that others use between any two steps, as without the GIL they do."""

    def __init__(self, things: str, *meanwhile: Callable[[Busy], object]) -> None:
        super().__init__(things)
        self._meanwhile = list(meanwhile)  # done before the first look, the second, ...

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("deque mutated during iteration")

    def __getitem__(self, place: int) -> str:
        if self._meanwhile:
            self._meanwhile.pop(0)(self)
        return super().__getitem__(place)


@pytest.mark.parametrize(
    ("meanwhile", "found"),
    [
        ([], "abcd"),
        ([lambda pile: pile.append("e")], "abcd"),
        ([lambda pile: pile.popleft()], "bcd"),
        ([lambda pile: None, lambda pile: pile.popleft()], "bcd"),
        ([lambda pile: None, lambda pile: pile.remove("b")], "acd"),
        ([lambda pile: pile.pop()], "abc"),
        ([lambda pile: pile.clear()], ""),
        ([lambda pile: None, lambda pile: pile.append(pile.popleft())], "bcd"),
    ],
    ids="nothing add take-left take-left-later take-middle take-right take-all go-round".split(),
)
def test_what_lies_there_all_the_time_is_found_once_and_in_order(
    meanwhile: list[Callable[[Busy], object]], found: str
) -> None:
    seen = "".join(look_through(Busy("abcd", *meanwhile)))
    assert [each for each in seen if each in found] == list(found)
    assert len(set(seen)) == len(seen)


def test_a_pile_is_looked_through_while_threads_take_from_it_and_add_to_it() -> None:
    resident = [Thing() for _ in range(4)]
    pile = deque([*resident, Thing()])
    until = time.monotonic() + WHILE

    def churn() -> None:
        while time.monotonic() < until:
            for _ in range(50):
                pile.append(pile.pop())

    def look() -> None:
        while time.monotonic() < until:
            seen = look_through(pile)
            assert seen[:4] == resident
            assert len(seen) <= 5

    together(churn, look)


def test_a_flock_is_gone_through_while_threads_add_to_it_and_forget_its_members() -> None:
    flock: Flock[Thing] = Flock()
    resident = {Thing() for _ in range(8)}
    for thing in resident:
        flock.add(thing)
    until = time.monotonic() + WHILE

    def come_and_go() -> None:
        while time.monotonic() < until:
            things = [Thing() for _ in range(10)]
            for thing in things:
                flock.add(thing)
            flock.discard(things[0])

    def look() -> None:
        while time.monotonic() < until:
            assert resident <= set(flock)

    together(come_and_go, look)
    gc.collect()
    assert set(flock) == resident


def test_a_flock_keeps_nobody_alive_and_counts_each_once() -> None:
    flock: Flock[Thing] = Flock()
    one, other = Thing(), Thing()
    for thing in (one, other, one):
        flock.add(thing)
    assert len(list(flock)) == 2
    flock.discard(other)
    flock.discard(other)
    assert list(flock) == [one]
    del one, thing
    gc.collect()
    assert list(flock) == []
