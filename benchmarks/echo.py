"""A server that sends back what it is sent, 64 bytes at a time, in a process of its own.

``python benchmarks/echo.py`` says its port and serves until its standard input ends. It imports the standard
library alone, so that it starts at once.
"""

import argparse
import os
import socket
import ssl
import sys
import threading
from typing import Final

SIZE: Final = 64  # bytes of a request, and of the answer
BACKLOG: Final = 1024


def main() -> None:
    """Listen, say the port, and serve."""
    parser = argparse.ArgumentParser(description="Sends back what it is sent.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", help="a file with a key and its chain: TLS")
    options = parser.parse_args()
    context = None
    if options.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    with socket.create_server(("127.0.0.1", options.port), backlog=BACKLOG) as listener:
        threading.Thread(target=accept, args=(listener, context), daemon=True).start()
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()
    os._exit(0)  # the threads that serve are of no use any more


def accept(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Give each connection a thread."""
    while True:
        conn, _ = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(conn, context), daemon=True).start()


def serve(conn: socket.socket, context: ssl.SSLContext | None) -> None:
    """Send back what comes, until the client leaves."""
    try:
        if context is not None:
            conn = context.wrap_socket(conn, server_side=True)
        with conn:
            while data := conn.recv(SIZE):
                conn.sendall(data)
    except OSError:  # the client left in the midst of it
        pass


if __name__ == "__main__":
    main()
