"""What becomes of records whose key was dropped: by an interrupt, or by a holder who forgot."""

from __future__ import annotations

from connpool.model.states import CloseReason
from connpool.pool.core import Books
from connpool.pool.jobs import Todo
from connpool.pool.record import Key, Phase, Record
from connpool.pool.sharing import Hold, dissolve

__all__ = ["recover"]


def recover(books: Books, todo: Todo) -> None:
    """Free the places of all that was dropped. Called with the lock held."""
    while books.lost:
        lost = books.lost[0]
        if isinstance(lost, Record):
            _recover_one(books, lost, todo)
        else:
            _recover_share(books, *lost, todo)
        books.lost.popleft()  # only now: an interrupt before has it recovered again


def _recover_share(books: Books, hold: Hold, number: int, todo: Todo) -> None:
    record = hold.record
    if number in hold.sharers:
        record.condemn(CloseReason.LOST)  # whoever dropped it may have left half a message on it
        books.tally.lost += 1
        todo.lost.append((record, hold.sharers[number]))
    hold.sharers.pop(number, None)
    key = dissolve(books, hold)
    if key is not None and record.phase is Phase.OPEN:
        books.doom(key, CloseReason.LOST, todo)


def _recover_one(books: Books, record: Record, todo: Todo) -> None:
    if record.phase is Phase.CLOSED:
        return
    key = Key(record)
    for waiter in books.queue:
        if waiter.attempt is record:
            waiter.attempt = None
    if record.notes is not None and record.notes.was_forgotten and record.phase is Phase.OPEN:
        books.tally.lost += 1
        todo.lost.append((record, record.tenure))
    if record.raw is None:  # nothing was opened, or it is closed already
        books.forget(record)
        todo.gone.append(record)
    elif record.phase is Phase.CLOSING:
        todo.doomed.append(key)
    else:
        books.doom(key, CloseReason.LOST, todo)
