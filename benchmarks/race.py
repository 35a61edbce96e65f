"""Threads that borrow and give back until the time is up."""

from __future__ import annotations  # array[float] is no expression before 3.12

import gc
import math
import resource
import threading
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from time import perf_counter, sleep
from typing import Protocol, runtime_checkable

from attrs import Factory, define, field, frozen

#: True while a race runs: a list that is emptied at the end, because no flag is cheaper to look at.
Running = list[bool]

#: A thread served less than this share of the mean starves.
STARVING = 0.01


_turns = attrgetter("turns")


def _floats() -> array[float]:
    return array("d")


@define
class Track:
    """What one thread notes. It alone writes, except where the window is opened and shut.

    Attributes:
        bundle: So many turns are counted together.
        turns: How many are over, from the start on.
        waits: Seconds of each checkout that ended since the window was opened, even
            after it was shut: a thread that never had its turn shows in no other way.
        holds: Seconds that each of these connections was held.
        aways: Seconds the thread stayed away after each turn.
        served: Turns that ended while the window was open.
    """

    bundle: range = range(1)
    turns: int = 0
    waits: array[float] = Factory(_floats)
    holds: array[float] = Factory(_floats)
    aways: array[float] = Factory(_floats)
    served: int = 0

    def forget_times(self) -> None:
        """What was so far was the warm-up."""
        self.waits, self.holds, self.aways = _floats(), _floats(), _floats()


class Spinner(Protocol):
    """Something that lends and takes back."""

    def spin(self, running: Running, track: Track) -> None:
        """Borrow and give back while *running*, and count the turns by the bundle.

        Every spinner spells this loop out itself: a loop shared by all would call
        what it measures through a wrapper, and that costs a floor a third of its speed.
        """

    def close(self) -> None:
        """Let go of everything."""


class Queue(Protocol):
    """Something whose threads wait for one another, so that there are waits to measure."""

    def take(self) -> Callable[[], object]:
        """Borrow one, waiting for it if need be; what is returned gives it back."""

    def close(self) -> None:
        """Give up everything."""


class Lender(Spinner, Queue, Protocol):
    """A spinner with waits to measure."""


@runtime_checkable
class Elsewhere(Protocol):
    """A contender that runs its races in another process, and tells how they ended."""

    def spin_there(self, threads: int, seconds: float, warm_up: float, bundle: int) -> Result:
        """What ``spin`` came to there."""

    def spin_timed_there(
        self, threads: int, seconds: float, warm_up: float, hold: float, away: float
    ) -> TimedResult:
        """What ``spin_timed`` came to there."""

    def close(self) -> None:
        """Let go of everything."""


@frozen
class Result:
    """What one race came to.

    Attributes:
        served: Turns of each thread.
        seconds: How long the turns were counted.
        cpu: Seconds of processor time that the process spent meanwhile.
    """

    served: tuple[int, ...]
    seconds: float
    cpu: float = field(default=0.0, kw_only=True)

    @property
    def rate(self) -> float:
        """Turns a second, of all threads together."""
        return sum(self.served) / self.seconds

    @property
    def cpu_a_turn(self) -> float:
        """Seconds of processor time for each turn."""
        return ratio(self.cpu, sum(self.served))

    @property
    def starved(self) -> int:
        """How many threads got nothing, or next to nothing."""
        mean_served = sum(self.served) / len(self.served)
        return sum(turns == 0 or turns < STARVING * mean_served for turns in self.served)

    @property
    def most_to_least(self) -> float:
        """Turns of the best served thread for each turn of the worst served one."""
        return ratio(max(self.served), min(self.served))


@frozen
class TimedResult(Result):
    """What a race with a look at the clock on every turn came to.

    Attributes:
        waits: Seconds that each single checkout took.
        hold: Mean seconds a connection was really held: a sleep lasts longer than asked for.
        away: Mean seconds a thread really stayed away after giving back.
    """

    waits: tuple[float, ...] = field(repr=False)
    hold: float
    away: float

    @property
    def p99_wait(self) -> float:
        """Seconds that 99 of 100 checkouts did not exceed."""
        return sorted(self.waits)[math.ceil(len(self.waits) * 0.99) - 1]

    @property
    def longest_wait(self) -> float:
        """Seconds of the slowest checkout."""
        return max(self.waits)

    def ideal_rate(self, size: int) -> float:
        """Turns a second if all *size* connections were held all the time."""
        return ratio(size, self.hold)

    def ideal_wait(self, size: int) -> float:
        """Seconds each checkout takes if all connections are always held and all threads served in turn.

        A round of all threads lasts threads / size holds, of which a thread spends
        one holding and the time it stays away not asking.
        """
        return (len(self.served) / size - 1) * self.hold - self.away


def spin(
    spinner: Spinner | Elsewhere, threads: int, seconds: float, warm_up: float, *, bundle: int = 1
) -> Result:
    """Let *threads* take turns as fast as they can; nobody looks at the clock meanwhile."""
    if isinstance(spinner, Elsewhere):
        return spinner.spin_there(threads, seconds, warm_up, bundle)
    tracks, elapsed, cpu = race(spinner.spin, threads, seconds, warm_up, bundle)
    return Result(tuple(track.served for track in tracks), elapsed, cpu=cpu)


def spin_timed(
    lender: Queue | Elsewhere,
    threads: int,
    seconds: float,
    warm_up: float,
    *,
    hold: float = 0.0,
    away: float = 0.0,
) -> TimedResult:
    """Let *threads* take turns: hold for *hold* seconds, stay away for *away*, and time every checkout."""
    if isinstance(lender, Elsewhere):
        return lender.spin_timed_there(threads, seconds, warm_up, hold, away)

    def take_turns(running: Running, track: Track) -> None:
        while running:
            asked = perf_counter()
            give_back = lender.take()
            track.waits.append(perf_counter() - asked)
            if hold:
                track.holds.append(timed_sleep(hold))
            give_back()
            track.turns += 1
            if away:
                track.aways.append(timed_sleep(away))

    tracks, elapsed, cpu = race(take_turns, threads, seconds, warm_up)
    return TimedResult(
        tuple(track.served for track in tracks),
        elapsed,
        cpu=cpu,
        waits=tuple(wait for track in tracks for wait in track.waits),
        hold=mean(hold for track in tracks for hold in track.holds),
        away=mean(away for track in tracks for away in track.aways),
    )


def timed_sleep(seconds: float) -> float:
    """Sleep, and say how long it really took."""
    began = perf_counter()
    sleep(seconds)
    return perf_counter() - began


def race(
    job: Callable[[Running, Track], None], threads: int, seconds: float, warm_up: float, bundle: int = 1
) -> tuple[list[Track], float, float]:
    """Run *job* on so many threads at once; count for *seconds*, *warm_up* seconds after the start.

    The first threads to leave the gate have everything to themselves for a while,
    which says nothing about the rest of their lives: hence the warm-up.

    Returns:
        The track of each thread; how many seconds were really counted, because under load
        the thread that ends the race comes late; and the processor time spent in them.

    Raises:
        BaseException: what the first of the failing threads raised, once all have ended.
    """
    gc.collect()  # one contender's rubbish is not the next one's work
    running: Running = [True]
    tracks = [Track(range(bundle)) for _ in range(threads)]
    gate = threading.Barrier(threads + 1)

    def start(track: Track) -> None:
        gate.wait()
        job(running, track)

    with ThreadPoolExecutor(threads) as runners:
        futures = [runners.submit(start, track) for track in tracks]
        try:
            gate.wait()
            sleep(warm_up)
            for track in tracks:
                track.forget_times()
            began, spent = perf_counter(), processor_time()
            before = turns_of(tracks)
            sleep(seconds)
            after = turns_of(tracks)
            ended, spent = perf_counter(), processor_time() - spent
            for track, first, last in zip(tracks, before, after, strict=True):
                track.served = last - first
        except BaseException:
            gate.abort()  # or an interrupt leaves the runners waiting there for ever
            raise
        finally:
            running.clear()
    for future in futures:
        future.result()
    return tracks, ended - began, spent


def turns_of(tracks: list[Track]) -> list[int]:
    """The turns of all tracks at one moment: in one step, in which no thread is given the interpreter.

    A thousand threads that come in between keep it for seconds, of which some tracks would count
    everything, and the others nothing.
    """
    return list(map(_turns, tracks))


def processor_time() -> float:
    """Seconds that all threads of this process have spent, in the kernel too."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ratio(figure: float, base: float) -> float:
    """*figure* for each one of *base*; without end if that is nothing."""
    return figure / base if base else math.inf


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    known = list(values)
    return math.fsum(known) / len(known) if known else 0.0
