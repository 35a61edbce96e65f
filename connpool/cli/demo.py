"""The first act of ``demo``: three servers, one pool, many threads; a server is killed and comes back."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Final

from attrs import frozen

from connpool.cli import line_server
from connpool.cli.crowd import Crowd
from connpool.cli.ctrl_c import INTERRUPTED_STATUS, CtrlC, watching_for_ctrl_c
from connpool.cli.outcome import Outage, is_success, summary
from connpool.cli.screen import Screen, at_rank, milliseconds
from connpool.cli.servers import ServerProcess, ServerProcessError
from connpool.model.endpoint import Endpoint
from connpool.model.route import Route
from connpool.model.states import EndpointState
from connpool.model.stats import EndpointInfo
from connpool.pool.pool import ConnectionPool

__all__ = ["Options", "demo"]

NAMES: Final = ("A", "B", "C")
VICTIM: Final = 1
MAX_SIZE: Final = 12
WORK: Final = 0.004  # seconds that a server takes to answer: time enough to be killed in the middle
TICK: Final = 0.05  # seconds between two looks at how things stand, and at Ctrl-C
PAINT_INTERVAL: Final = 0.1
PLAIN_INTERVAL: Final = 0.5
PATIENCE: Final = 10.0  # seconds that the killed server gets to serve again, should a third not be enough

FAILED_STATUS: Final = 1


@frozen
class Options:
    """What the command was given."""

    seconds: float
    n_threads: int
    plain: bool


def demo(options: Options) -> int:
    """Run it and say what came of it.

    Returns:
        0: every request was answered, rightly, and the killed server served
        again; 1: not so; 130: Ctrl-C.
    """
    screen = Screen(plain=options.plain)
    with ExitStack() as stack:
        ctrl_c = stack.enter_context(watching_for_ctrl_c())
        try:
            servers = [stack.enter_context(server_named(name)) for name in NAMES]
            pool = stack.enter_context(make_pool([server.endpoint for server in servers], options.seconds))
            introduce(servers, pool, options, screen)
            crowd = stack.enter_context(Crowd(pool, options.n_threads))
            play = Play(options, screen, ctrl_c, servers[VICTIM], pool, crowd)
            play.run()
        except ServerProcessError as error:
            screen.let_go()
            print(error, file=sys.stderr)
            return FAILED_STATUS
        seconds = play.seconds_so_far()
        crowd.finish()
        screen.let_go()
        if ctrl_c.was_pressed():
            screen.say("interrupted: this is how far it came")
        screen.say(summary(crowd.askers, pool.stats(), play.outage, seconds))
        if ctrl_c.was_pressed():
            return INTERRUPTED_STATUS
        return 0 if is_success(crowd.askers, play.outage) else FAILED_STATUS


def server_named(name: str) -> ServerProcess:
    """One of the servers, not started yet."""
    return ServerProcess(name, line_server.__file__, f"--work={WORK}")


def make_pool(endpoints: list[Endpoint], seconds: float) -> ConnectionPool:
    """The pool that is shown."""
    return ConnectionPool(
        Route.of(*endpoints),
        name="demo",
        max_size=MAX_SIZE,
        checkout_timeout=10,
        # The defaults, 1 s and up to 60 s, suit servers that are away for minutes.
        blacklist_initial=min(0.25, seconds / 32),
        blacklist_max=min(1.0, seconds / 16),
    )


def introduce(servers: list[ServerProcess], pool: ConnectionPool, options: Options, screen: Screen) -> None:
    """Say who takes part."""
    for server in servers:
        screen.say(
            f"server {server.name}    {server.endpoint}, process {server.pid};"
            f" an answer takes {milliseconds(WORK)}"
        )
    config = pool.config
    screen.say(f"pool        {options.n_threads} threads, at most {config.max_size} connections")
    screen.say(
        f"            a server that cannot be dialled is left alone for {config.blacklist_initial:.2g} s,"
        f" then twice as long, up to {config.blacklist_max:.2g} s"
    )


class Play:
    """What happens when. It neither asks nor answers: it kills, revives, watches and paints.

    Attributes:
        outage: What is known so far of the victim's absence.
    """

    def __init__(
        self,
        options: Options,
        screen: Screen,
        ctrl_c: CtrlC,
        victim: ServerProcess,
        pool: ConnectionPool,
        crowd: Crowd,
    ) -> None:
        self.outage = Outage(victim.name)
        self._options = options
        self._screen = screen
        self._ctrl_c = ctrl_c
        self._victim = victim
        self._pool = pool
        self._crowd = crowd
        self._began = self._painted_at = time.monotonic()
        self._paint_at = self._began
        self._turns_painted = 0

    def seconds_so_far(self) -> float:
        """Seconds since the threads began."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Three acts; each ends early at Ctrl-C.

        Raises:
            ServerProcessError: the victim could not be brought back.
        """
        victim, outage, third = self._victim, self.outage, self._options.seconds / 3
        self._watch(third)
        if self._ctrl_c.was_pressed():
            return
        outage.killed_at = time.monotonic()
        victim.kill()
        self._tell(f"server {victim.name} is killed (SIGKILL)")
        self._watch(third)
        if self._ctrl_c.was_pressed():
            return
        victim.start()
        outage.back_at, outage.process = time.monotonic(), victim.pid
        self._tell(f"server {victim.name} is back on {victim.endpoint}, process {victim.pid}")
        self._watch(third)
        if outage.served_at is None:
            self._watch(PATIENCE, only_until_served=True)

    def _watch(self, seconds: float, *, only_until_served: bool = False) -> None:
        """Let *seconds* pass, or what is left until Ctrl-C."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._ctrl_c.was_pressed():
            time.sleep(min(left, TICK))
            endpoints = self._pool.endpoints()
            self.outage.observe(endpoints[VICTIM], self._crowd.askers)
            now = time.monotonic()
            if now >= self._paint_at:
                self._paint(endpoints, now)
                self._paint_at = now + (PLAIN_INTERVAL if self._options.plain else PAINT_INTERVAL)
            if only_until_served and self.outage.served_at is not None:
                return

    def _tell(self, text: str) -> None:
        self._screen.say(f"{self.seconds_so_far():5.1f}s -- {text}")

    def _paint(self, endpoints: tuple[EndpointInfo, ...], now: float) -> None:
        turns = sum(asker.turns for asker in self._crowd.askers)
        rate = (turns - self._turns_painted) / (now - self._painted_at)
        waits = self._crowd.take_waits()
        hosts = " ".join(
            f"{name} {describe(info, now):8}" for name, info in zip(NAMES, endpoints, strict=True)
        )
        self._screen.show(  # no wider than 79 columns
            f"{now - self._began:5.1f}s {rate:5.0f} turns/s {hosts}"
            f" wait p50 {milliseconds(at_rank(waits, 0.50))} p99 {milliseconds(at_rank(waits, 0.99))}"
        )
        self._painted_at, self._turns_painted = now, turns


def describe(info: EndpointInfo, now: float) -> str:
    """One endpoint in the live line: its connections, or for how long it is blacklisted."""
    if info.state is EndpointState.UP:
        return f"{info.size} open"
    if info.state is EndpointState.PROBING:
        return "probing"
    if info.retry_at is None or info.retry_at <= now:
        return "out, due"
    return f"out {info.retry_at - now:.1f}s"
