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
from connpool.cli.ctrl_c import INTERRUPTED_STATUS
from connpool.cli.demo import Options, demo
from connpool.cli.logbook import Logbook
from connpool.cli.second_act import second_act
from connpool.errors import ConfigError

__all__ = ["main"]

USAGE_STATUS: Final = 2
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
    if sys.stdout is None:  # it was closed: nothing else may get its descriptor, either
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
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
    parser = Parser(
        prog="python -m connpool",
        description="Thread-safe connection pools: see them at work, or try the endpoints that a file names.",
        epilog="For what a program can do with them: python -m pydoc connpool.ConnectionPool",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "demo",
        help="servers are killed and come back: no request is left unanswered, no message is lost",
        description="In the first act many threads ask three servers of this machine through one pool; one"
        " of them is killed (SIGKILL) and comes back on its port. In the second a program broadcasts numbered"
        " lines over 'A && B || C', while the servers and the program itself are killed and come back. Exit"
        " status 0 means: every request was answered, every answer was right, and the killed server served"
        " again; every line that was accepted is in the log of each server to which it was due, in order.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--act", type=int, choices=(1, 2), default=argparse.SUPPRESS, help="this one alone")
    command.add_argument("--seconds", type=_seconds, default=5.0, metavar="N", help="how long an act lasts")
    command.add_argument(
        "--threads", type=_count, default=32, metavar="N", help="how many threads ask in act 1"
    )
    command.add_argument("--plain", action="store_true", help="one line per half second; repaint nothing")
    command.add_argument(
        "--plot",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="draw act 2 there, as SVG; needs threaded-connpool[plot]",
    )
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
    act = getattr(options, "act", None)
    try:
        draw = _picture(options.plot) if "plot" in options and act != 1 else None
    except ImportError as error:
        print(f"--plot needs matplotlib, of threaded-connpool[plot]: {error}", file=sys.stderr)
        return USAGE_STATUS
    except ConfigError as error:
        print(f"--plot: {error}", file=sys.stderr)
        return USAGE_STATUS
    status = 0
    if act != 2:
        status = demo(Options(seconds=options.seconds, n_threads=options.threads, plain=plain))
    if act != 1 and status != INTERRUPTED_STATUS:
        status = second_act(options.seconds, plain=plain, draw=draw) or status
    return status


def _picture(path: Path) -> Callable[[Logbook], None]:
    """What draws the second act into *path*.

    Raises:
        ImportError: matplotlib is not installed.
        ConfigError: no file can be written there.
    """
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written")
    from connpool.ext.plot import draw_delivery  # noqa: PLC0415 - on demand only

    return lambda log: log.draw(draw_delivery, path)


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
