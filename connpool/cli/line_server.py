"""A small server to try a pool on: it answers each line with its own number and the line's fingerprint.

``python -m connpool.cli.line_server --port 7001`` serves until its standard
input ends or Ctrl-C; so a server that a program started through a pipe never
outlives that program. It imports nothing but the standard library, and so
starts at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socketserver
import sys
import threading
import time
from typing import Final

__all__ = ["answer_to", "fingerprint"]

HOST: Final = "127.0.0.1"


def fingerprint(line: bytes) -> bytes:
    """What an answer to *line*, and to no other, must contain."""
    return hashlib.blake2b(line, digest_size=8).hexdigest().encode()


def answer_to(line: bytes) -> bytes:
    """The answer of this process: its number, so that a restart shows, and the fingerprint."""
    return b"%d %s\n" % (os.getpid(), fingerprint(line))


class Conversation(socketserver.StreamRequestHandler):
    """One connection: a line in, a line out, until the client leaves."""

    disable_nagle_algorithm = True
    server: LineServer

    def handle(self) -> None:
        try:
            for line in self.rfile:
                time.sleep(self.server.work)
                self.wfile.write(answer_to(line))
        except OSError:  # the client left in the middle
            pass


class LineServer(socketserver.ThreadingTCPServer):
    """Serves each connection on a thread of its own.

    Args:
        port: 0: any free one.
        work: Seconds that an answer takes.
    """

    allow_reuse_address = True  # come back while connections of its predecessor linger in TIME_WAIT
    allow_reuse_port = True  # whoever starts it may hold the port for it
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, work: float) -> None:
        super().__init__((HOST, port), Conversation)
        self.work = work

    @property
    def port(self) -> int:
        return int(self.server_address[1])


def main() -> None:
    """Serve, and say the port and the process's number in one line as soon as clients may come."""
    parser = argparse.ArgumentParser(description="Answers each line with its fingerprint.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--work", type=float, default=0.0, help="seconds that an answer takes")
    options = parser.parse_args()
    with LineServer(options.port, options.work) as server:
        serving = threading.Thread(target=server.serve_forever, name="line-server", daemon=True)
        serving.start()
        print(f"{server.port} {os.getpid()}", flush=True)
        try:
            sys.stdin.buffer.read()
        except KeyboardInterrupt:
            pass
        server.shutdown()
        serving.join()


if __name__ == "__main__":
    main()
