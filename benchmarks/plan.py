"""How long to measure."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import frozen

from benchmarks.report import Finding


@frozen
class Plan:
    """How long to measure.

    Attributes:
        repeats: How often each contender runs; they take turns.
        seconds: How long turns are counted in each run.
        warm_up: Seconds that each run lasts before they are.
        idle: Connections whose memory is counted.
        backlog: Messages that wait when their receiver comes.
        pools: So many of them in one repository, at most.
        strikes: Interrupts of each pool, at most.
        stride: Every so-manieth size of the growth curves.
        peers: Whether other people's pools run too.
    """

    repeats: int
    seconds: float
    warm_up: float
    idle: int = 2_000
    backlog: int = 100_000
    pools: int = 10_000
    strikes: int = 200
    stride: int = 1
    peers: bool = False


#: Answers the question in the first line of its docstring.
Workload: TypeAlias = Callable[[Plan], Sequence[Finding]]
