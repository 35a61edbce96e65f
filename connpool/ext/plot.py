"""Pictures of what a pool or a broadcaster went through. Needs matplotlib: ``threaded-connpool[plot]``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["draw_delivery"]

WIDTH: Final = 8.3  # inches
ALIVE, DEAD = "#0063a6", "#d9d9d9"
DARK: Final = "#333333"
STYLES: Final = ("-", "--", "-.", ":")


def draw_delivery(
    path: Path,
    times: Sequence[float],
    *,
    rate: Sequence[float],
    unsent: Mapping[str, Sequence[int | None]],
    alive: Mapping[str, Sequence[bool | None]],
    marks: Sequence[tuple[float, str]],
) -> None:
    """Draw how a broadcaster fared, as SVG.

    Args:
        path: The file that is written.
        times: Seconds at which it was looked at.
        rate: Messages a second that were accepted then.
        unsent: How many waited then, by whom they waited for; None: nobody knew.
        alive: Who was alive then; None: nobody knew.
        marks: What happened when.
    """
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "connpool"})
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    top.plot(times, rate, color=ALIVE)
    top.set_ylabel("accepted a second")
    for (name, counts), style in zip(unsent.items(), STYLES * len(unsent), strict=False):
        known = [math.nan if count is None else count for count in counts]
        middle.plot(times, known, style, color=DARK, label=name)
    middle.set_ylabel("unsent")
    middle.legend(frameon=False, fontsize=8)
    for row, states in enumerate(alive.values()):
        for begin, end, state in spells(times, states):
            if state is not None:
                bottom.barh(row, end - begin, left=begin, height=0.6, color=ALIVE if state else DEAD)
    bottom.set_yticks(range(len(alive)), list(alive))
    bottom.invert_yaxis()
    bottom.set_xlabel("seconds")
    bottom.set_ylabel("alive")
    for axes in (top, middle, bottom):
        axes.set_xlim(0, max(times, default=1))
        axes.spines[["top", "right"]].set_visible(False)
        for at, _ in marks:
            axes.axvline(at, color=DARK, linewidth=0.5, alpha=0.5)
    for at, text in marks:
        top.annotate(
            text, (at, 1), xycoords=("data", "axes fraction"), rotation=60, fontsize=7, annotation_clip=False
        )
    figure.savefig(path, format="svg", metadata={"Date": None})


def spells(
    times: Sequence[float], states: Sequence[bool | None]
) -> Iterator[tuple[float, float, bool | None]]:
    """From when to when each state lasted."""
    ends = [*times[1:], times[-1]] if times else []
    for state, looks in groupby(zip(times, ends, states, strict=True), lambda look: look[2]):
        seen = list(looks)
        yield seen[0][0], seen[-1][1], state
