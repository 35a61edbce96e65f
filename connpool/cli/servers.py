"""Servers as processes of their own, to be killed and brought back."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from types import TracebackType
from typing import Final

from connpool.model.endpoint import Endpoint

__all__ = ["ServerProcess", "ServerProcessError"]

HOST: Final = "127.0.0.1"
START_TIMEOUT: Final = 20.0  # seconds; a machine under load takes some to start an interpreter
STOP_TIMEOUT: Final = 2.0


class ServerProcessError(Exception):
    """A server process did not start; the sentence tells which and why."""


class ServerProcess:
    """One server in a process of its own. It keeps its port whenever it is started again.

    As a context manager it runs inside the block and is gone, and reaped, after it.

    Args:
        name: For messages.
        program: The file of one that serves the port it is given, and says that and its number.
        options: What else it is given.

    Attributes:
        pid: Of the process that serves, or did last.
    """

    def __init__(self, name: str, program: str, *options: str) -> None:
        self.name = name
        self.pid = 0
        self._program = program
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        # Holds the port while nobody serves it: else the system may give it to somebody else.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind((HOST, 0))
        self._port: int = self._place.getsockname()[1]

    @property
    def endpoint(self) -> Endpoint:
        """Its address; the same after a restart."""
        return Endpoint(HOST, self._port)

    @property
    def is_running(self) -> bool:
        """Whether it has a process, which has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, or start it again on its port. Returns when it listens.

        Raises:
            ServerProcessError: it ended at once, or does not listen within 20 s.
        """
        # By its path and isolated (-I): neither the environment nor the current
        # directory decides what it imports. A process group of its own, because
        # Ctrl-C at a terminal goes to a whole group, and these end in good order.
        process = subprocess.Popen(
            [sys.executable, "-I", self._program, f"--port={self._port}", *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert process.stdout is not None
        is_ready = select.select([process.stdout], [], [], START_TIMEOUT)[0]
        words = process.stdout.readline().split() if is_ready else []
        if len(words) != 2:
            process.kill()
            _, complaint = process.communicate()
            reason = complaint.strip().splitlines()[-1:] or [f"it said nothing within {START_TIMEOUT:g} s"]
            raise ServerProcessError(f"server {self.name} did not start: {reason[0]}")
        self._process, self.pid = process, int(words[1])

    def kill(self) -> None:
        """End it as a crash does: at once, without a word to its clients."""
        self._end(is_violent=True)

    def stop(self) -> None:
        """End it in good order. Does nothing if it does not run."""
        self._end(is_violent=False)

    def _end(self, *, is_violent: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if is_violent:
            process.kill()
        try:
            process.communicate(timeout=STOP_TIMEOUT)  # closes its standard input, for which it listens
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def __enter__(self) -> ServerProcess:
        try:
            self.start()
        except BaseException:
            self._place.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._place.close()
