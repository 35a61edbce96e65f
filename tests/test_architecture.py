"""The rules of the house, read off the source itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import architecture
from tests.helpers.architecture import PACKAGE, ROOT, modules, parse

MODULES = pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
PUBLIC = """
    ConnectionPool Connection Endpoint Route Request PoolConfig SocketConnector
    PoolStats ConnectionInfo EndpointInfo CloseReason
    ConnPoolError ConfigError RouteSyntaxError UsageError NotSharableError PoolClosedError PoolPausedError
    PoolExhaustedError CheckoutTimeoutError CancelledError ConnectError ConnectTimeoutError HandshakeError
    PermissionDeniedError NoEndpointError SpoolError SpoolFullError SpoolCorruptError
    CallError NoResourceError MethodNotSupportedError FilteredOutError ChannelClosedError
    RepositoryError UnknownPoolError DuplicatePoolError
""".split()


@MODULES
def test_every_module_stands_on_a_known_floor(module: str, path: Path) -> None:
    assert architecture.floor_of(module) in architecture.FLOORS


@MODULES
def test_imports_go_down_only(module: str, path: Path) -> None:
    assert list(architecture.climbing_imports(module, parse(path))) == []


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: {found.module for found in architecture.imports_of(parse(path)) if not found.is_for_types}
        for module, path in modules().items()
    }
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


@MODULES
def test_only_attrs_is_imported_beside_the_standard_library(module: str, path: Path) -> None:
    assert list(architecture.foreign_imports(module, parse(path))) == []


@MODULES
def test_the_time_and_the_wire_have_one_owner_each(module: str, path: Path) -> None:
    assert list(architecture.broken_monopolies(module, parse(path))) == []


@MODULES
def test_no_interrupt_leaves_a_lock_held(module: str, path: Path) -> None:
    assert list(architecture.unguarded_jumps(path.read_text())) == []


@MODULES
def test_nothing_slow_or_foreign_runs_under_a_lock(module: str, path: Path) -> None:
    assert list(architecture.lock_offences(parse(path))) == []


@MODULES
def test_a_thread_has_a_name_and_holds_up_no_end(module: str, path: Path) -> None:
    if architecture.floor_of(module) != "cli":
        assert list(architecture.thread_offences(parse(path))) == []


@MODULES
def test_a_module_can_be_read_in_one_sitting(module: str, path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_importable_from_the_top(name: str) -> None:
    import connpool

    assert name in connpool.__all__
    assert hasattr(connpool, name)


def test_importing_connpool_starts_no_thread_and_warns_of_nothing() -> None:
    look = "import connpool, threading; print(threading.active_count())"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", look],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.stdout.strip(), ran.stderr) == ("1", "")


def test_importing_connpool_waits_for_nothing_that_is_not_asked_for() -> None:
    look = (
        "import sys, threading, connpool; print(sorted({'attr', 'ssl', 'sqlite3'} & {*sys.modules}));"
        "from connpool import *; print(connpool.ConnectionPool.__name__, 'connpool.upkeep' in sys.modules);"
        "pool = ConnectionPool(); print('connpool.upkeep' in sys.modules, connpool.repository().name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.stdout.splitlines(), ran.stderr) == (["[]", "ConnectionPool False", "True default"], "")


def test_a_name_that_is_not_public_is_said_to_be_missing() -> None:
    import connpool

    with pytest.raises(AttributeError, match="module 'connpool' has no attribute 'Pool'"):
        connpool.Pool  # noqa: B018
    assert {*connpool.__all__} <= {*dir(connpool)}


def test_the_readme_gives_the_very_line_that_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    line = re.search(r'^readme_line="(.*)"$', script, re.MULTILINE)
    assert line is not None
    assert line[1] in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_tour_of_the_source_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / "source.md").read_text(encoding="utf-8")))
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert named == {name for name in files if not name.endswith("__.py")}


def test_setup_cfg_holds_no_tool_settings() -> None:
    """A tool that finds a section there ignores the one in pyproject.toml."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    allowed = ("metadata", "options", "egg_info")  # the last is added where a source distribution is made
    assert [name for name in config.sections() if name.split(".")[0] not in allowed] == []
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert {"pytest", "ruff", "mypy"} <= tomllib.load(file)["tool"].keys()
