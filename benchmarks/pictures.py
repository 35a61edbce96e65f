"""The pictures, drawn from a file of figures: ``python -m benchmarks.pictures figures.json docs/img``.

No colour means anything by itself: ours is thick and blue, a floor is dotted, everybody else is grey, and
each line has its name at its end.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
except ImportError:
    pyplot = None

WIDTH = 8.3  # inches; at 100 dots each it is as wide as a README
CAPTION = 165  # letters of a line below a picture
SHARP = 200  # dots an inch of a PNG
BLUE, GREY, DARK, PALE = "#0063a6", "#8c8c8c", "#333333", "#d9d9d9"
STYLES = ("-", "--", "-.", ":")
FEW = (
    "ours",
    "psycopg_pool",
    "SQLAlchemy",
    "redis-py",
    "urllib3",
    "queue.LifoQueue",
    "pymongo",
    "DBUtils",
)

Points = Sequence[tuple[float, float]]


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the figures allow, as PNG and SVG. Returns the PNGs; none if matplotlib is not installed."""
    if pyplot is None:
        return []
    mpl.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "connpool", "axes.spines.top": False, "axes.spines.right": False}
    )
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (workload, picture) in PICTURES.items():
        if not document["workloads"].get(workload):
            continue
        figure = picture(document)
        if figure is None:
            continue
        figure.text(0.01, 0.01, caption(document), fontsize=6.5, color=DARK, va="bottom")
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=SHARP)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        pyplot.close(figure)
        drawn.append(path)
    return drawn


def caption(document: Mapping[str, Any]) -> str:
    """Where it was measured, and what."""
    machine, python = document["machine"], document["python"]
    peers = [
        f"{name} {version}" for name, version in document.get("peers", {}).items() if version[:1].isdigit()
    ]
    first = (
        f"{python['implementation']} {python['version']}, {machine['cpus']} cores, {machine['cpu']}; "
        f"connpool {document['commit']}, {document['began'][:10]}"
    )
    return "\n".join([first, *textwrap.wrap(", ".join(peers), CAPTION)])


# -- what is in the file


def curves(document: Mapping[str, Any], workload: str, what: str) -> dict[str, Points]:
    """By contender."""
    return {
        curve["who"]: curve["points"]
        for curve in document["workloads"][workload]["curves"]
        if curve["what"] == what
    }


def figures(document: Mapping[str, Any], workload: str, what: str) -> dict[str, float | None]:
    """The median of each contender; None: without end."""
    return {
        row["who"]: row["median"] for row in document["workloads"][workload]["rows"] if row["what"] == what
    }


# -- how it is drawn


def looks(who: str, number: int) -> dict[str, Any]:
    """How a contender's line looks."""
    if who == "ours":
        return {"color": BLUE, "linewidth": 2.8, "zorder": 5}
    if who.startswith("floor"):
        return {"color": DARK, "linewidth": 1.3, "linestyle": ":"}
    return {"color": GREY, "linewidth": 1.2, "linestyle": STYLES[number % 3]}


def name_lines(axes: Any, ends: Iterable[tuple[float, float, str]], size: float = 8) -> None:
    """Write each name to the right of its line's end, and none upon another."""
    height = 1.25 * size * 100 / 72  # of a line of text, in dots
    axes.figure.set_dpi(100)
    axes.figure.canvas.draw()
    places = sorted((axes.transData.transform((x, y))[1], x, y, who) for x, y, who in ends)
    levels: list[float] = []
    for level, *_ in places:
        levels.append(max(level, levels[-1] + height) if levels else level)
    over = levels[-1] - axes.bbox.y1 if levels else 0.0
    if over > 0:  # push down from the top
        top = axes.bbox.y1
        for number in reversed(range(len(levels))):
            levels[number] = top = min(levels[number], top)
            top -= height
    for level, (_, x, y, who) in zip(levels, places, strict=True):
        shift = (level - axes.transData.transform((x, y))[1]) * 72 / 100
        axes.annotate(
            who,
            (x, y),
            xytext=(8, shift),
            textcoords="offset points",
            va="center",
            fontsize=size,
            color=BLUE if who.startswith("ours") else DARK,
            fontweight="bold" if who.startswith("ours") else "normal",
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 1},
        )


def sheet(height: float, title: str, *, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure with a title, and its axes."""
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    figure.suptitle(title, x=0.01, y=0.985, ha="left", fontsize=11, fontweight="bold")
    return figure, axes


def as_rate(value: float, _: object = None) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def as_count(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def plot_rates(axes: Any, lines: Mapping[str, Points], size: float = 8) -> None:
    """Rates over sizes, both on logarithmic axes, with a tick at each size."""
    for number, (who, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=2.5, **looks(who, number))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(as_count))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(as_rate))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    name_lines(axes, [(*points[-1], who) for who, points in lines.items()], size)


def throughput(document: Mapping[str, Any]) -> Any:
    lines = curves(document, "W11", "threads on 8 connections")
    figure, ((axes,),) = sheet(4.9, "Turns a second, by threads that share 8 connections")
    figure.subplots_adjust(left=0.075, right=0.79, top=0.92, bottom=0.19)
    plot_rates(axes, lines)
    axes.set_xlabel("threads")
    return figure


def waiting(document: Mapping[str, Any]) -> Any:
    lines = {
        who: points
        for who, points in curves(document, "W5", "waits").items()
        if who in FEW or who == "floor C"
    }
    starved = figures(document, "W5", "starved threads")
    figure, ((axes,),) = sheet(4.6, "How long checkouts wait: 32 threads, 8 connections held for 1 ms")
    figure.subplots_adjust(left=0.075, right=0.72, top=0.92, bottom=0.18)
    ends = []
    for number, (who, points) in enumerate(lines.items()):
        xs = [max(wait, 1e-6) * 1e3 for wait, _ in points]
        ys = [max(1 - share, 2e-4) for _, share in points]
        axes.plot(xs, ys, **looks(who, number))
        label = f"{who}: {starved[who]:.0f} starve" if starved.get(who) else who
        ends.append((xs[-1], ys[-1], label))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1e-2, None)
    axes.invert_yaxis()
    axes.set_yticks([1, 0.5, 0.1, 0.01, 0.001], ["0 %", "50 %", "90 %", "99 %", "99.9 %"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    axes.set_xlabel("so many of the checkouts waited at most so long")
    axes.grid(color=PALE, linewidth=0.6)
    name_lines(axes, ends)
    return figure


def starvation(document: Mapping[str, Any]) -> Any:
    lines = curves(document, "W5", "turns of each thread")
    shown = [who for who in FEW if who in lines]
    rows = -(-len(shown) // 4)
    figure, grid = sheet(
        1.1 + 1.45 * rows,
        "Who is served: turns of each of 32 threads, 8 connections held for 1 ms",
        rows=rows,
        columns=4,
        sharey=True,
    )
    figure.subplots_adjust(left=0.06, right=0.99, top=0.83, bottom=0.2, hspace=0.55, wspace=0.12)
    most = max(y for who in shown for _, y in lines[who])
    for axes, who in zip(grid.flat, shown, strict=False):
        points = lines[who]
        served = [y for _, y in points]
        axes.bar(range(len(served)), served, width=0.85, color=BLUE if who == "ours" else GREY)
        none = sum(y < 0.01 for y in served)
        verdict = f"{none} threads get nothing" if none else "all are served alike"
        axes.set_title(f"{who}\n{verdict}", fontsize=8.5, color=BLUE if who == "ours" else DARK, loc="left")
        axes.set_xticks([])
        axes.set_ylim(0, 1.05 * most)
        axes.axhline(1, color=DARK, linewidth=0.6, linestyle=":")
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("x mean", fontsize=8)
    return figure


def failover(document: Mapping[str, Any]) -> Any:
    lines = curves(document, "W10", "turns a second around a death")
    failed = figures(document, "W10", "failed turns")
    rows = len(lines)
    figure, grid = sheet(
        1.3 + 1.15 * rows, "One of three servers is killed, and comes back", rows=rows, sharex=True
    )
    figure.subplots_adjust(left=0.075, right=0.985, top=0.86, bottom=0.2, hspace=0.45)
    for (axes,), (who, points) in zip(grid, lines.items(), strict=True):
        before = [y for x, y in points if x < 0]
        mean = sum(before) / len(before) or 1.0
        xs, ys = zip(*((x, y / mean) for x, y in points), strict=True)
        axes.fill_between(xs, ys, step="post", color=BLUE if who.startswith("ours") else GREY, linewidth=0)
        back = -2 * points[0][0]
        for at, text in ((0.0, " killed"), (back, " back")):
            axes.axvline(at, color=DARK, linewidth=0.9, linestyle="--")
            axes.text(at, 2.08, text, fontsize=7.5, color=DARK, va="top")
        axes.set_ylim(0, 2.1)
        axes.set_xlim(xs[0], xs[-1])
        axes.set_yticks([0, 1])
        lost = failed.get(who) or 0
        axes.set_title(
            f"{who}: {as_rate(round(mean, -2))} turns/s before, {lost:.0f} requests failed",
            fontsize=8.5,
            loc="left",
            color=BLUE if who.startswith("ours") else DARK,
        )
    grid[-1][0].set_xlabel("seconds; turns in each 10 ms, for each one before the kill")
    return figure


def growth(document: Mapping[str, Any]) -> Any:
    figure, grid = sheet(5.2, "How a turn's cost grows", rows=2, columns=2)
    figure.subplots_adjust(left=0.075, right=0.93, top=0.87, bottom=0.14, hspace=0.5, wspace=0.4)
    titles = ("threads with a connection each", "connections for 8 threads", "endpoints", "pools")
    for axes, what in zip(grid.flat, titles, strict=True):
        lines = curves(document, "W11", what)
        plot_rates(axes, lines)
        axes.set_title(f"turns a second, by {what}", fontsize=9, loc="left")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high / 30), high * 1.5)
        axes.tick_params(axis="x", labelsize=7)
    return figure


def interrupts(document: Mapping[str, Any]) -> Any:
    lost = figures(document, "W13", "lost by 1,000 signals")
    order = sorted(lost, key=lambda who: (lost[who] or 0.0, who), reverse=True)
    figure, ((axes,),) = sheet(
        1.2 + 0.24 * len(order),
        "Of 1,000 well-aimed Ctrl-C, so many lose a connection's place, or leave a lock held",
    )
    figure.subplots_adjust(left=0.21, right=0.95, top=0.9, bottom=0.14)
    values = [lost[who] or 0.0 for who in order]
    axes.barh(order, values, color=[BLUE if who == "ours" else GREY for who in order], height=0.7)
    for number, (who, value) in enumerate(zip(order, values, strict=True)):
        axes.text(
            value + 6,
            number,
            f"{value:.0f}",
            va="center",
            fontsize=9,
            fontweight="bold" if who == "ours" else "normal",
            color=BLUE if who == "ours" else DARK,
        )
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    return figure


PICTURES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "throughput": ("W11", throughput),
    "waiting": ("W5", waiting),
    "starvation": ("W5", starvation),
    "failover": ("W10", failover),
    "growth": ("W11", growth),
    "interrupts": ("W13", interrupts),
}


def main() -> int:
    """Draw the figures of one file into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=main.__doc__)
    parser.add_argument("figures", type=Path, help="the JSON file that a run has written")
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    args = parser.parse_args()
    drawn = draw(json.loads(args.figures.read_text(encoding="utf-8")), args.folder)
    if not drawn:
        sys.stderr.write("nothing drawn: matplotlib is not installed, or these figures have no curves\n")
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
