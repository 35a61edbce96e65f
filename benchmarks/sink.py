"""A server that reads as fast as it can and says nothing, in a process of its own.

``python benchmarks/sink.py`` says its port and serves until its standard input ends. It imports the standard
library alone, so that it starts at once.
"""

import argparse
import os
import socket
import sys
import threading
from typing import Final

CHUNK: Final = 1_048_576


def main() -> None:
    """Listen, say the port, and serve."""
    parser = argparse.ArgumentParser(description="Reads what it is sent.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--expect", type=int, help="say so whenever one connection has brought so many bytes")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        threading.Thread(target=accept, args=(listener, options.expect), daemon=True).start()
        say(str(listener.getsockname()[1]))
        sys.stdin.read()
    os._exit(0)  # the threads that read are of no use any more


def accept(listener: socket.socket, expected: int | None) -> None:
    """Give each connection a thread."""
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=swallow, args=(conn, expected), daemon=True).start()


def swallow(conn: socket.socket, expected: int | None) -> None:
    """Read what comes, until the client leaves."""
    buffer = bytearray(CHUNK)
    total = 0
    try:
        with conn:
            while size := conn.recv_into(buffer):
                total += size
                if total == expected:
                    say("all")
    except OSError:  # the client left in the midst of it
        pass


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
