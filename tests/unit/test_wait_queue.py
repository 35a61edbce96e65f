"""The order in which waiters are served, and the alarm of who stands at the front."""

from __future__ import annotations

from connpool import Request
from connpool.pool.waiters import Waiter, WaitQueue


def waiter(number: int) -> Waiter:
    return Waiter(Request(), number, 0, 0.0)


def queue_of(*numbers: int) -> WaitQueue:
    queue = WaitQueue()
    for number in numbers:
        queue.join(waiter(number))
    return queue


def test_one_that_comes_back_finds_its_old_place() -> None:
    queue = queue_of(1, 3, 5)
    for number in (4, 0, 6):
        queue.join(waiter(number))
    assert [waiter.number for waiter in queue] == [0, 1, 3, 4, 5, 6]


def test_who_stands_at_the_front_keeps_its_alarm_unless_one_comes_back_before_it() -> None:
    queue = queue_of(1, 3)
    first = queue.waiters[0]
    first.front_at = 7.0
    queue.join(waiter(2))
    assert first.front_at == 7.0
    queue.join(waiter(0))
    assert first.front_at is None
