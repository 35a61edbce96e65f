"""Share a few database connections among many threads.

    python examples/database.py /tmp/visits.db

With psycopg it is the same: ``ConnectionPool.of(lambda: psycopg.connect(dsn), reset=lambda db: db.rollback(),
is_usable=lambda db: not db.closed)``, but with ``conn.raw.transaction()`` for ``conn.raw`` in the ``with``
statements: at the end of a block of its own a connection of psycopg is closed.
"""

# ruff: noqa: T201 - a program that speaks to people

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

from connpool import ConnectionPool


def make_pool(path: str) -> ConnectionPool:
    """Four connections for however many threads."""
    return ConnectionPool.of(
        lambda: sqlite3.connect(path, check_same_thread=False, timeout=10),
        reset=lambda db: db.rollback(),  # what the last holder left half done is nobody's business
        max_size=4,
        checkout_timeout=10,
        name="visits",
    )


def count_visit(pool: ConnectionPool, visitor: int) -> None:
    """One transaction, on whichever connection is free."""
    with pool.try_connect() as conn, conn.raw as transaction:
        transaction.execute("insert into visits values (?)", (visitor,))


def main(path: str) -> int:
    """Let sixteen threads write, then count. Returns the exit status."""
    with make_pool(path) as pool:
        with pool.try_connect() as conn, conn.raw as transaction:
            transaction.execute("create table if not exists visits (visitor)")
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda visitor: count_visit(pool, visitor), range(100)))
        with pool.try_connect() as conn:
            n_visits = conn.raw.execute("select count(*) from visits").fetchone()[0]
        print(f"{n_visits} visits over {pool.stats().opened} connections")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
