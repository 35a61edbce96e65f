"""A peer that has our import name: it races in a process, and a virtual environment, of its own.

The other process is this very file, run by the other environment's interpreter. It takes one order a line and
answers each with one line, so that its races come between those of the others, in the same rounds.
"""

import json
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    sys.path.append(str(ROOT))  # last, so that the environment's own packages come first

from benchmarks.race import Result, TimedResult, spin, spin_timed  # noqa: E402


def without_paths() -> dict[str, str]:
    """The environment of a process that is to find its own packages, not ours of the same name."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Apart:
    """The project called ``connpool`` on PyPI.

    Attributes:
        python: Of an environment where ``pip install connpool attrs`` was run; None: not here.
    """

    name: ClassVar[str] = "connpool of PyPI"
    why_missing: ClassVar[str] = "not asked for (--pypi PYTHON)"
    python: ClassVar[str | None] = None

    def __init__(self, size: int) -> None:
        assert self.python is not None, self.why_missing
        self._process = subprocess.Popen(
            [self.python, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=without_paths(),
        )
        self._size = size

    def ask(self, job: str, **order: Any) -> Any:
        """What the other process answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "size": self._size, **order}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:  # what it died of stands above, on our standard error
            raise ChildProcessError(
                f"{self.python} has ended with status {self._process.wait()} and not answered: "
                "`pip install connpool attrs` must have been run there"
            )
        return json.loads(answer)

    def spin_there(self, threads: int, seconds: float, warm_up: float, bundle: int) -> Result:
        answer = self.ask("spin", threads=threads, seconds=seconds, warm_up=warm_up, bundle=bundle)
        return Result(tuple(answer["served"]), answer["seconds"], cpu=answer["cpu"])

    def spin_timed_there(
        self, threads: int, seconds: float, warm_up: float, hold: float, away: float
    ) -> TimedResult:
        answer = self.ask(
            "spin_timed", threads=threads, seconds=seconds, warm_up=warm_up, hold=hold, away=away
        )
        return TimedResult(
            tuple(answer["served"]),
            answer["seconds"],
            cpu=answer["cpu"],
            waits=tuple(answer["waits"]),
            hold=answer["hold"],
            away=answer["away"],
        )

    @classmethod
    def version(cls) -> str:
        """The version that is installed there."""
        with cls(1) as apart:
            return str(apart.ask("version"))

    def close(self) -> None:
        """End the other process."""
        self._process.communicate()

    def __enter__(self) -> "Apart":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve() -> None:
    """Do what each line of the standard input says."""
    make = import_module("benchmarks.peers.pypi_connpool").Pool
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(do(make, **order)) + "\n")
        sys.stdout.flush()


def do(make: Any, *, job: str, size: int, **order: Any) -> object:
    """Carry out one order."""
    if job == "version":
        return metadata.version(make.distribution)
    pool = make(size)
    try:
        if job == "spin":
            result = spin(pool, order.pop("threads"), order.pop("seconds"), order.pop("warm_up"), **order)
            return {"served": result.served, "seconds": result.seconds, "cpu": result.cpu}
        timed = spin_timed(pool, order.pop("threads"), order.pop("seconds"), order.pop("warm_up"), **order)
        return {
            "served": timed.served,
            "seconds": timed.seconds,
            "cpu": timed.cpu,
            "waits": timed.waits,
            "hold": timed.hold,
            "away": timed.away,
        }
    finally:
        pool.close()


if __name__ == "__main__":
    serve()
