"""Programs in an interpreter of their own: what is to be seen only from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.helpers.architecture import ROOT

LIMIT = 50.0  # seconds; below the time limit of a test, and far above what any of them takes
ALOUD = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}  # what they print is out, however they end


class Ran(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str
    seconds: float


def run_program(text: str, *arguments: object, flags: tuple[str, ...] = ("-X", "dev")) -> Ran:
    """Run the Python program *text* to its end."""
    return _run([*flags, "-c", textwrap.dedent(text), *map(str, arguments)])


@contextmanager
def running_program(text: str) -> Iterator[subprocess.Popen[str]]:
    """The Python program *text*, which is gone in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ALOUD},
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def run_file(path: Path, *arguments: object, flags: tuple[str, ...] = ("-X", "dev")) -> Ran:
    """Run the Python program in the file *path* to its end."""
    return _run([*flags, str(path), *map(str, arguments)])


def _run(arguments: list[str]) -> Ran:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, **ALOUD},
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
