"""Ask a line server, or the next one if it is down.

Start two servers, each in a terminal of its own (they end with their input), and kill one while this runs:

    python -m connpool.cli.line_server --port 7001
    python -m connpool.cli.line_server --port 7002
    python examples/failover.py "127.0.0.1:7001, 127.0.0.1:7002" 100000

The number says how often it asks; without one it is done before anybody could kill anything.
"""

# ruff: noqa: T201 - a program that speaks to people

import sys

from connpool import Connection, ConnectionPool, NoEndpointError


def ask(conn: Connection) -> str:
    """One request and its answer. Harmless if done twice, so the pool may repeat it."""
    conn.sendall(b"how are you?\n", timeout=2)
    answer = conn.recv_until(b"\n", timeout=2).decode().strip()
    return f"{conn.endpoint} said {answer}"


def main(route: str, times: int) -> int:
    """Ask *times* times. Returns the exit status."""
    with ConnectionPool(route, name="lines", connect_timeout=1) as pool:
        for _ in range(times):
            try:
                print(pool.run(ask, idempotent=True))
            except NoEndpointError as error:
                print(f"nobody there: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(
        __doc__
        if len(sys.argv) < 2
        else main(sys.argv[1], times=int(sys.argv[2]) if len(sys.argv) > 2 else 10)
    )
