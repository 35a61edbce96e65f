"""A small server for messages that must arrive: it writes each line into its log, then acknowledges it.

``python -m connpool.cli.collector --log FILE --port 7001`` serves until its
standard input ends or Ctrl-C. It imports nothing but the standard library, and
so starts at once.
"""

from __future__ import annotations

import argparse
import os
import socketserver
import sys
import threading
from pathlib import Path
from typing import Final

__all__ = ["acknowledgement"]

HOST: Final = "127.0.0.1"
CHUNK: Final = 65_536


def acknowledgement(line: bytes) -> bytes:
    """What the sender of *line*, and of no other, gets once it is in the log."""
    return b"ok %s\n" % line


class Conversation(socketserver.BaseRequestHandler):
    """One connection: lines in, as many acknowledgements out, until the client leaves."""

    server: Collector

    def handle(self) -> None:
        rest = b""
        try:
            while data := self.request.recv(CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                self.server.note(lines)
                self.request.sendall(b"".join(map(acknowledgement, lines)))
        except OSError:  # the client left in the middle
            pass


class Collector(socketserver.ThreadingTCPServer):
    """Serves each connection on a thread of its own.

    Args:
        port: 0: any free one.
        log: What it gets is added at the end.
    """

    allow_reuse_address = True  # come back while connections of its predecessor linger in TIME_WAIT
    allow_reuse_port = True  # whoever starts it may hold the port for it
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, log: Path) -> None:
        super().__init__((HOST, port), Conversation)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # A kill may have torn the last line of its predecessor. Nobody was promised that one.
        self.note([b""])

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def note(self, lines: list[bytes]) -> None:
        """Write *lines* down. What the system has been given survives the death of this process."""
        os.write(self._log, b"".join(line + b"\n" for line in lines))

    def server_close(self) -> None:
        super().server_close()
        os.close(self._log)


def main() -> None:
    """Serve, and say the port and the process's number in one line as soon as clients may come."""
    parser = argparse.ArgumentParser(description="Logs and acknowledges each line.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--log", type=Path, required=True, help="where the lines are written")
    options = parser.parse_args()
    with Collector(options.port, options.log) as server:
        serving = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
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
