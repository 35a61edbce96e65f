"""The command line: which commands there are, and what they are given."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from connpool.cli.check import check
from connpool.cli.demo import Options, demo

__all__ = ["main"]

USAGE_STATUS: Final = 2
INTERRUPTED_STATUS: Final = 130  # what shells report for a program that Ctrl-C ended
NO_READER_STATUS: Final = 141  # likewise for one whose output nobody reads any more


class Parser(argparse.ArgumentParser):
    """Answers a mistake with the whole help: whoever mistypes a command wants to see which there are."""

    def error(self, message: str) -> NoReturn:
        self.print_help(sys.stderr)
        self.exit(USAGE_STATUS, f"\n{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status.

    Args:
        arguments: Without the program's name; None: those of this process.

    Raises:
        SystemExit: with 2 if the arguments make no sense, with 0 after ``--help``.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:  # before or after the time in which the command takes care of it
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # What is still buffered goes nowhere: else the interpreter fails once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER_STATUS


def _parser() -> Parser:
    parser = Parser(prog="python -m connpool", description="Thread-safe connection pools: see them at work.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "demo",
        help="three servers, one pool, many threads; one server is killed and comes back",
        description="Starts three servers on this machine and lets many threads ask them through one pool."
        " A third of the way one server is killed (SIGKILL), two thirds of the way it comes back on its port."
        " Exit status 0 means: every request was answered, every answer was right, and the killed server"
        " served again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--seconds", type=_seconds, default=8.0, metavar="N", help="how long it lasts")
    command.add_argument("--threads", type=_count, default=32, metavar="N", help="how many threads ask")
    command.add_argument("--plain", action="store_true", help="one line per half second; repaint nothing")
    command.set_defaults(run=_demo)
    command = commands.add_parser(
        "check",
        help="dial every endpoint that a pools file names",
        description="Reads a TOML file as Repository.from_toml does, dials every endpoint once, and says how"
        " long that took or why it failed. Exit status 1: the file is wrong, or an endpoint is out of reach.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="the TOML file")
    command.set_defaults(run=_check)
    return parser


def _demo(options: argparse.Namespace) -> int:
    plain = options.plain or not sys.stdout.isatty()
    return demo(Options(seconds=options.seconds, n_threads=options.threads, plain=plain))


def _check(options: argparse.Namespace) -> int:
    return check(options.file)


def _number(
    text: str, kind: Callable[[str], float], is_in_range: Callable[[float], bool], what: str
) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not is_in_range(value):
        raise argparse.ArgumentTypeError(f"{what} expected, got {text!r}")
    return value


def _seconds(text: str) -> float:
    return _number(text, float, lambda value: 0.5 <= value <= 86_400, "a number of seconds from 0.5 to 86400")


def _count(text: str) -> int:
    return int(_number(text, int, lambda value: 1 <= value <= 1_000, "a whole number from 1 to 1000"))
