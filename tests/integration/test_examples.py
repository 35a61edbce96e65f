"""Whatever a reader may copy out of the documentation runs, and prints what it says it prints."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest

from connpool import (
    Broadcaster,
    CallPool,
    Connection,
    ConnectionPool,
    ConnPoolError,
    PoolConfig,
    Repository,
    errors,
)
from connpool.cli.line_server import answer_to
from connpool.testing import Answer, Reset, ScriptedServer, Send, ServedConnection, StartTls
from tests.helpers.architecture import ROOT
from tests.helpers.certificates import Certificates

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/NOTES.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LIMIT = 30.0  # seconds


class Block(NamedTuple):
    """One piece of Python on a page, and the text that stands directly below it."""

    page: Path
    line: int
    source: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.M | re.S):
        yield Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])


BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_of_code_runs_and_prints_what_stands_below_it(
    block: Block, capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile("\n" * (block.line - 1) + block.source, block.page, "exec")  # errors name the page's line
    exec(code, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if block.output is None:
        assert printed == ""
    else:
        is_same = doctest.OutputChecker().check_output(block.output, printed, doctest.ELLIPSIS)
        assert is_same, f"printed:\n{printed}\ninstead of:\n{block.output}"


def test_the_pages_have_blocks() -> None:
    """An expression that finds none would let every page pass."""
    assert {block.page.name for block in BLOCKS} >= {
        "README.md",
        "failover.md",
        "tuning.md",
        "connectors.md",
    }


def anchors(page: Path) -> set[str]:
    """What may stand behind ``#`` in a link to *page*, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_link_within_the_project_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not leads_somewhere(page, link)] == []


def test_a_link_to_a_heading_that_is_not_there_is_noticed() -> None:
    page = ROOT / "docs" / "tuning.md"
    assert leads_somewhere(page, "lifecycle.md#which-one-is-lent")
    assert not leads_somewhere(page, "lifecycle.md#which-one-is-sold")
    assert not leads_somewhere(page, "#lifecycle.md")


def test_every_setting_is_explained_and_its_default_is_right() -> None:
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", text, re.M))
    defaults = {field.name: str(field.default).removesuffix(".0") for field in attrs.fields(PoolConfig)}
    assert told == defaults | {"required_permissions": "none"}


@pytest.mark.parametrize("kind", [Broadcaster, CallPool, Connection, ConnectionPool, Repository])
def test_each_public_method_is_on_some_page(kind: type) -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md"]
    code = "\n".join(
        found for page in pages for found in re.findall(r"^```.*?^```|`[^`\n]+`", page, re.M | re.S)
    )
    assert [name for name in dir(kind) if name[0] != "_" and not re.search(rf"\b{name}\b", code)] == []


def test_every_error_that_a_pool_raises_is_explained() -> None:
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    not_raised_by_pools = (errors.SpoolError, errors.CallError, errors.RepositoryError)
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, ConnPoolError)
        and not issubclass(kind, not_raised_by_pools)
    ]
    assert len(kinds) > 10
    assert [
        kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text and kind is not ConnPoolError
    ] == []


# -- the programs


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_an_example_without_arguments_tells_which_it_wants(name: str) -> None:
    ran = run(name)
    assert ran.returncode == 1
    assert f"    python examples/{name} " in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_example_of_failover_is_answered_although_one_server_breaks_and_one_is_down() -> None:
    def answer_twice_then_break(connection: ServedConnection) -> None:
        Answer(answer_to, times=2, delimiter=b"\n")(connection)
        connection.request(b"\n")
        Reset()(connection)

    with ScriptedServer(script=answer_twice_then_break) as server, ScriptedServer() as down:
        down.stop()
        ran = run("failover.py", f"{server.endpoint}, {down.endpoint}", 5)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count(f"{server.endpoint} said {os.getpid()} ") == 5
    assert server.accepts == 3  # the third and the fifth request were repeated on new connections


def test_the_example_of_failover_says_so_when_nobody_is_there() -> None:
    with ScriptedServer() as server:
        server.stop()
        ran = run("failover.py", server.endpoint)
    assert ran.returncode == 1
    assert ran.stderr.startswith("nobody there: pool 'lines': ")


def test_the_example_of_a_database_loses_no_transaction(tmp_path: Path) -> None:
    ran = run("database.py", tmp_path / "visits.db")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"100 visits over [1-4] connections\n", ran.stdout)


def test_the_example_of_start_tls_speaks_tls_before_it_says_hello(
    certificates: Certificates, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    certificates.authority.cert_pem.write_to_path(str(authority))
    script = [
        Send(b"220-mail.example\r\n220 ready\r\n"),
        Answer(b"220 go ahead\r\n", times=1, delimiter=b"\r\n"),
        StartTls(certificates.server()),
        Answer(b"250 fine\r\n", delimiter=b"\r\n"),
    ]
    with ScriptedServer(script=script) as server:
        ran = run("start_tls.py", server.endpoint, authority)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith(f"{server.endpoint} is well, over TLS")
        refused = run("start_tls.py", server.endpoint)  # the system does not know this authority
    assert refused.returncode == 1
    assert "certificate verify failed" in refused.stderr
