"""The second act of ``demo``: lines are shipped to servers that are killed, by a program that is killed."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from attrs import frozen

from connpool.cli import collector
from connpool.cli.audit import audit
from connpool.cli.ctrl_c import INTERRUPTED_STATUS, CtrlC, watching_for_ctrl_c
from connpool.cli.logbook import GROUPS, NAMES, Logbook, Sample, is_success, live_line, summary
from connpool.cli.screen import Screen
from connpool.cli.servers import ServerProcess, ServerProcessError
from connpool.cli.shipping import Shipper
from connpool.model.delivery import GLOBAL
from connpool.model.route import Route

__all__ = ["second_act"]

RATE: Final = 500.0  # lines a second: the picture should fit
TICK: Final = 0.05  # seconds between two looks at how things stand, and at Ctrl-C
PAINT_INTERVAL: Final = 0.1
PLAIN_INTERVAL: Final = 0.5
FAILED_STATUS: Final = 1


@frozen
class Cue:
    """Who is killed, or brought back, and when: after which part of the whole."""

    at: float
    deed: str
    whom: tuple[str, ...]


CUES: Final = (
    Cue(0.08, "kill", ("A",)),
    Cue(0.18, "kill", ("B",)),
    Cue(0.32, "start", ("A",)),
    Cue(0.42, "start", ("B",)),
    Cue(0.50, "kill", ("shipper",)),
    Cue(0.54, "start", ("shipper",)),
    Cue(0.66, "kill", ("A", "B", "C")),
    Cue(0.78, "start", ("C",)),
    Cue(0.86, "start", ("A", "B")),
)


def second_act(seconds: float, *, plain: bool, draw: Callable[[Logbook], object] | None = None) -> int:
    """Run it and say what came of it.

    Args:
        seconds: How long lines are sent.
        plain: Paint nothing over.
        draw: Called with what happened.

    Returns:
        0: every line that was accepted is in the log of each server to which it was due, none out of order;
        1: not so; 130: Ctrl-C.
    """
    screen = Screen(plain=plain)
    with ExitStack() as stack:
        ctrl_c = stack.enter_context(watching_for_ctrl_c())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            servers = {name: stack.enter_context(server_named(name, folder / name)) for name in NAMES}
            route = Route.parse(
                " || ".join(" && ".join(str(servers[name].endpoint) for name in group) for group in GROUPS)
            )
            shipper = stack.enter_context(Shipper("shipper", route, folder / "spool", rate=RATE))
            play = Play(seconds, screen, ctrl_c, servers, shipper, plain=plain)
            play.run()
        except ServerProcessError as error:
            screen.let_go()
            print(error, file=sys.stderr)
            return FAILED_STATUS
        screen.let_go()
        if ctrl_c.was_pressed():
            screen.say("interrupted: the logs were not compared")
            return INTERRUPTED_STATUS
        found = audit(
            {"shipper": shipper.accepted}, {name: (folder / name).read_bytes() for name in NAMES}, GROUPS
        )
    screen.say(summary(play.log, shipper.accepted, found, seconds))
    if draw is not None:
        draw(play.log)
    return 0 if is_success(play.log, shipper.accepted, found) else FAILED_STATUS


def server_named(name: str, log: Path) -> ServerProcess:
    """One of the servers, not started yet."""
    return ServerProcess(name, collector.__file__, f"--log={log}")


class Play:
    """What happens when.

    Attributes:
        log: What has happened so far.
    """

    def __init__(
        self,
        seconds: float,
        screen: Screen,
        ctrl_c: CtrlC,
        servers: Mapping[str, ServerProcess],
        shipper: Shipper,
        *,
        plain: bool,
    ) -> None:
        self.log = Logbook()
        self._seconds = seconds
        self._screen = screen
        self._ctrl_c = ctrl_c
        self._servers = servers
        self._shipper = shipper
        self._interval = PLAIN_INTERVAL if plain else PAINT_INTERVAL
        self._names = {str(server.endpoint): name for name, server in servers.items()} | {GLOBAL: "any"}
        self._began = self._paint_at = time.monotonic()

    def run(self) -> None:
        """All cues; ends early at Ctrl-C.

        Raises:
            ServerProcessError: a server could not be brought back.
        """
        for name, server in self._servers.items():
            self._screen.say(
                f"server {name}    {server.endpoint}, process {server.pid}; it logs and acknowledges"
            )
        self._shipper.start()
        self._screen.say(
            f"shipper     process {self._shipper.pid}; {RATE:.0f} lines a second over A && B || C,"
            " each in its spool first"
        )
        self._wait_for_first_word()
        self._began = self._paint_at = time.monotonic()
        for cue in CUES:
            self._watch(cue.at * self._seconds)
            if self._ctrl_c.was_pressed():
                return
            self._do(cue)
        self._watch(self._seconds)
        if not self._ctrl_c.was_pressed():
            self.log.status = self._shipper.finish()

    def _wait_for_first_word(self) -> None:
        """An interpreter takes its time to start: do not begin without it."""
        while self._shipper.is_running and self._shipper.standing is None and not self._ctrl_c.was_pressed():
            time.sleep(TICK)

    def _do(self, cue: Cue) -> None:
        for name in cue.whom:
            one = self._shipper if name == "shipper" else self._servers[name]
            if cue.deed == "kill":
                self.log.kills[name] += 1
                one.kill()
            else:
                one.start()
        at = time.monotonic() - self._began
        who = "the shipper" if cue.whom == ("shipper",) else " and ".join(cue.whom)
        what = "killed (SIGKILL)" if cue.deed == "kill" else "back"
        self.log.marks.append((at, f"{who} {'killed' if cue.deed == 'kill' else 'back'}"))
        self._screen.say(f"{at:5.1f}s -- {who} {'is' if len(cue.whom) == 1 else 'are'} {what}")

    def _watch(self, until: float) -> None:
        """Let time pass until so many seconds after the beginning, or Ctrl-C."""
        while (left := self._began + until - time.monotonic()) > 0 and not self._ctrl_c.was_pressed():
            time.sleep(min(left, TICK))
            self.log.samples.append(self._look())
            now = time.monotonic()
            if now >= self._paint_at:
                self._screen.show(live_line(self.log.samples))
                self._paint_at = now + self._interval

    def _look(self) -> Sample:
        standing = self._shipper.standing
        return Sample(
            at=time.monotonic() - self._began,
            accepted=len(self._shipper.accepted),
            alive={
                name: None if standing is None else endpoint in standing.alive
                for endpoint, name in self._names.items()
                if name != "any"
            },
            unsent={
                name: None if standing is None else standing.unsent.get(queue, 0)
                for queue, name in self._names.items()
            },
        )
