"""``python -m benchmarks``: measure, print a table, write JSON. Judges nobody: the exit status is 0."""

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks import peers, pictures
from benchmarks.adapters import Ours
from benchmarks.peers.apart import Apart
from benchmarks.plan import Plan
from benchmarks.report import Gap, Section, as_json, as_text, surroundings
from benchmarks.summary import as_markdown
from benchmarks.workloads import WORKLOADS

RESULTS = Path("benchmarks", "results")

USUAL = Plan(repeats=3, seconds=0.5, warm_up=0.2, peers=True)
QUICK = Plan(
    repeats=1,
    seconds=0.1,
    warm_up=0.05,
    idle=500,
    backlog=5_000,
    pools=1_000,
    strikes=8,
    stride=4,
    peers=True,
)
FULL = Plan(repeats=9, seconds=2.0, warm_up=0.2, peers=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what *arguments* ask for. Returns the exit status."""
    options = parser().parse_args(arguments)
    plan: Plan = options.plan
    Ours.is_kept_up = options.upkeep
    if options.repeats is not None:
        plan = attrs.evolve(plan, repeats=options.repeats)
    if options.alone:
        plan = attrs.evolve(plan, peers=False)
    Apart.python = options.pypi
    where = surroundings()
    if plan.peers:
        where["peers"] = peers.versions()
    say(heading(plan, where))
    sections = []
    for name in options.only:
        sections.append(measure_or_tell(name, plan))
        say(as_text(sections[-1]) + "\n")
    figures = as_json(sections, attrs.asdict(plan), where)
    if options.json is not None:
        options.json.write_text(figures, encoding="utf-8")
    folder = options.into or (RESULTS if options.only == list(WORKLOADS) else None)
    if folder is not None:
        keep(folder, sections, figures)
    return 0


def keep(folder: Path, sections: Sequence[Section], figures: str) -> None:
    """Write the tables, the figures and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(as_text(section) for section in sections)
    (folder / "table.txt").write_text(tables + "\n", encoding="utf-8")
    (folder / "table.md").write_text(as_markdown(sections), encoding="utf-8")
    (folder / "figures.json").write_text(figures, encoding="utf-8")
    drawn = pictures.draw(json.loads(figures), folder)
    say(f"written: {len(drawn)} pictures, the tables and the figures, in {folder}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast and how fair the pool is, as ratios to floors measured in the same run.",
    )
    length = made.add_mutually_exclusive_group()
    length.add_argument(
        "--quick",
        dest="plan",
        action="store_const",
        const=QUICK,
        default=USUAL,
        help="a first impression, in a minute and a half",
    )
    length.add_argument(
        "--full",
        dest="plan",
        action="store_const",
        const=FULL,
        help="figures to publish; up to ten times as long",
    )
    made.add_argument(
        "--repeats", type=count, metavar="N", help=f"rounds of each workload (usually {USUAL.repeats})"
    )
    made.add_argument(
        "--only", type=names, default=list(WORKLOADS), metavar="W1,W4", help=f"some of {', '.join(WORKLOADS)}"
    )
    made.add_argument(
        "--upkeep",
        action="store_true",
        help="give our pools lifetimes, validation and a reserve, so that the reaper is always busy",
    )
    made.add_argument("--alone", action="store_true", help="without other people's pools")
    made.add_argument(
        "--pypi",
        metavar="PYTHON",
        help="the interpreter of an environment that has the project called connpool on PyPI, and attrs",
    )
    made.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help=f"write tables, figures and pictures there (usually, if everything is run, {RESULTS})",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    return made


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 expected, got {number}")
    return number


def names(text: str) -> list[str]:
    known = {name.lower(): name for name in WORKLOADS}
    wanted = [part.strip() for part in text.split(",")]
    for name in wanted:
        if name.lower() not in known:
            raise argparse.ArgumentTypeError(f"no workload {name!r}: there are {', '.join(WORKLOADS)}")
    return [known[name.lower()] for name in wanted]


def measure(name: str, plan: Plan) -> Section:
    """One workload's answer, below its question."""
    workload = WORKLOADS[name]
    question = (inspect.getdoc(workload) or "").partition("\n")[0]
    return Section(name, question, tuple(workload(plan)))


def measure_or_tell(name: str, plan: Plan) -> Section:
    """The same; what fails is told in its place, and the other workloads run."""
    try:
        return measure(name, plan)
    except Exception as error:  # noqa: BLE001 - somebody else's pool may raise anything
        return Section(name, "failed", (Gap("all", repr(error)),))


def heading(plan: Plan, where: Mapping[str, object]) -> str:
    """Where and how it is measured."""
    facts = "".join(f"{what}: {fact}\n" for what, fact in where.items())
    window = f"{plan.seconds:g} s each after {plan.warm_up:g} s of warm-up"
    return f"{facts}rounds: {plan.repeats}, {window}; median (smallest to largest)\n"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
