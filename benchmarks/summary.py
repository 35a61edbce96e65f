"""One table of what tells most, for people: a line for each contender, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.report import Row, Section, shown

COLUMNS: Sequence[tuple[str, str, str]] = (
    ("W1", "turns", "1 thread"),
    ("W2", "turns", "8 threads, 8 connections"),
    ("W4", "turns", "64 threads, 4 connections"),
    ("W5", "p99 wait", "p99 wait, 1 ms held"),
    ("W5", "starved threads", "starved of 32"),
    ("W5", "processor a turn", "processor a turn, 1 ms held"),
    ("W13", "lost by 1,000 signals", "lost by 1,000 Ctrl-C"),
    ("W12", "import", "import"),
)


def as_markdown(sections: Sequence[Section]) -> str:
    """The medians; a dash where a contender has no figure."""
    found = {(section.name, row.what, row.who): row for section in sections for row in section.rows}
    columns = [column for column in COLUMNS if any(key[:2] == column[:2] for key in found)]
    whos = dict.fromkeys(
        who for name, what, who in found if (name, what) in {column[:2] for column in columns}
    )
    lines = [
        "| | " + " | ".join(title for *_, title in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for who in whos:
        cells = (cell(found, (name, what, who)) for name, what, _ in columns)
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(found: Mapping[tuple[str, str, str], Row], key: tuple[str, str, str]) -> str:
    row = found.get(key)
    if row is None:
        return "-"
    return shown(statistics.median(row.values), row.unit)
