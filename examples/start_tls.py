"""Pool connections of a protocol that begins in clear and goes over to TLS, as SMTP does.

    python examples/start_tls.py mail.example:25

A second argument names a file with the authority to trust instead of the system's.
"""

# ruff: noqa: T201 - a program that speaks to people

import ssl
import sys

from connpool import Connection, ConnectionPool, HandshakeError, SocketConnector


def expect(conn: Connection, code: bytes) -> None:
    """Read one reply, which may have several lines, and insist on its code."""
    while (line := conn.recv_until(b"\r\n"))[3:4] == b"-":
        pass
    if not line.startswith(code):
        raise ConnectionError(f"{code.decode()} expected, got {line!r}")


def make_pool(address: str, trusted: str | None) -> ConnectionPool:
    """A pool that lends nothing but connections that speak TLS and have said hello."""
    context = ssl.create_default_context(cafile=trusted)

    def greet(conn: Connection) -> None:
        expect(conn, b"220")
        conn.sendall(b"STARTTLS\r\n")
        expect(conn, b"220")
        conn.start_tls(context)  # the certificate must be made out to the endpoint's host
        conn.sendall(b"EHLO client.example\r\n")
        expect(conn, b"250")

    return ConnectionPool(address, connector=SocketConnector(handshake=greet), max_size=4, name="mail")


def main(address: str, trusted: str | None) -> int:
    """Say NOOP on a pooled connection. Returns the exit status."""
    with make_pool(address, trusted) as pool:
        try:
            with pool.try_connect(timeout=10) as conn:
                conn.sendall(b"NOOP\r\n", timeout=5)
                expect(conn, b"250")
                print(f"{conn.endpoint} is well, over {conn.info.tls}")
        except HandshakeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
