"""Shippers as processes of their own, and what is known of their messages whatever becomes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from attrs import frozen

from connpool.model.route import Route

__all__ = ["Shipper", "Standing"]

ROOT: Final = Path(__file__).parents[2]
STOP_TIMEOUT: Final = 30.0  # seconds; it has some to get rid of what it has


@frozen
class Standing:
    """How things stand with a shipper, by its own word.

    Attributes:
        alive: The endpoints to which its links are open.
        unsent: How many messages wait, by queue.
    """

    alive: frozenset[str] = frozenset()
    unsent: Mapping[str, int] = {}


class Shipper:
    """A program that sends numbered lines, in one process after the other on the same spool.

    As a context manager it is gone, and reaped, after the block.

    Args:
        name: What its lines begin with.
        route: To whom it sends.
        spool: Where they wait.
        rate: Lines a second; 0: as many as it can.
        changed: Told of each number that is accepted.
        program: What the interpreter is given to run.

    Attributes:
        accepted: The numbers for which ``broadcast`` has returned, in any of its processes, each
            with the group that took it.
        standing: What the present process said last; None: it has said nothing yet, or there is none.
        pid: Of the present process, or the last one.
    """

    def __init__(
        self,
        name: str,
        route: Route,
        spool: Path,
        *,
        rate: float = 0.0,
        changed: threading.Condition | None = None,
        program: Sequence[str] = ("-m", "connpool.cli.shipper"),
    ) -> None:
        self.name = name
        self.accepted: dict[int, int | None] = {}
        self.standing: Standing | None = None
        self.pid = 0
        self.changed = threading.Condition() if changed is None else changed
        self._options = [
            *program,
            f"--route={route}",
            f"--spool={spool}",
            f"--sender={name}",
            f"--rate={rate}",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._listening: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has a process, which has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, or let it go on where it was: with the number after the last that was accepted."""
        process = subprocess.Popen(
            [sys.executable, *self._options, f"--first={max(self.accepted, default=0) + 1}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C at a terminal is not for it
        )
        assert process.stdout is not None
        self._process, self.pid = process, process.pid
        self._listening = threading.Thread(target=self._listen, args=(process.stdout,), name="listening")
        self._listening.start()

    def _listen(self, said: IO[bytes]) -> None:
        """Take in all that the process says, until its end."""
        for line in said:
            if line.startswith(b"{"):
                told = json.loads(line)
                self.standing = Standing(frozenset(told["alive"]), told["unsent"])
                continue
            number, group = line.split()
            with self.changed:
                self.accepted[int(number)] = None if group == b"-" else int(group)
                self.changed.notify_all()

    def kill(self) -> None:
        """End it as a crash does, and take in what it said before."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def finish(self) -> int:
        """Let it send no more lines than it has, wait until they have arrived, and return its exit status."""
        assert self._process is not None
        return self._end()

    def _end(self) -> int:
        process, listening = self._process, self._listening
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        assert listening is not None
        try:
            process.stdin.close()
            status = process.wait(STOP_TIMEOUT)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            listening.join()
            process.stdout.close()
            self._process = self.standing = None
        return status

    def __enter__(self) -> Shipper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
