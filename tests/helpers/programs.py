"""``python -m connpool`` as a process of its own, and what is left of those that it started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.helpers.architecture import ROOT

LIMIT = 50.0  # seconds; a machine may be busy


@contextmanager
def running(*arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process of its own, which is gone in the end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "connpool", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "COLUMNS": "60",
            "PYTHONUNBUFFERED": "",
        },  # the output is buffered, as it is for most
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def read_until(program: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Everything up to the line with *text*."""
    assert program.stdout is not None
    told = b""
    for line in program.stdout:
        told += line
        if text in line:
            return told
    raise AssertionError(f"{text!r} was not said: {told.decode()}")


def processes_named_in(told: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"process (\d+)", told)]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
