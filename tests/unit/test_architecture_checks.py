"""The checkers of the house rules find what they are there to find, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.helpers import architecture


def offences(
    check: Callable[[str, ast.Module], Iterator[str]], source: str, module: str = "connpool.pool.core"
) -> list[str]:
    return list(check(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("connpool.pool.core", "from connpool.upkeep.reaper import Reaper"),
        ("connpool.model.route", "import connpool.pool.core"),
        ("connpool.wire.dial", "def f():\n    from connpool import ConnectionPool"),
        ("connpool.pool.core", "from connpool import upkeep"),
        ("connpool.clock", "if TYPE_CHECKING:\n    from connpool.model.endpoint import Endpoint"),
        ("connpool.pool.core", "from .record import Record"),
    ],
)
def test_an_import_that_climbs_is_caught(module: str, source: str) -> None:
    assert len(offences(architecture.climbing_imports, source, module)) == 1


def test_imports_on_one_floor_and_downwards_are_fine() -> None:
    source = "import attrs, threading\nfrom connpool.pool.record import Key\nfrom connpool import errors"
    assert offences(architecture.climbing_imports, source) == []
    assert offences(architecture.foreign_imports, source) == []
    named = "if TYPE_CHECKING:\n    from connpool.model.endpoint import Endpoint"
    assert offences(architecture.climbing_imports, named, "connpool.errors") == []
    assert len(offences(architecture.climbing_imports, named[17:].lstrip(), "connpool.errors")) == 1


def test_a_foreign_library_is_caught_except_where_it_belongs() -> None:
    assert len(offences(architecture.foreign_imports, "import redis")) == 1
    assert offences(architecture.foreign_imports, "import redis", "connpool.ext.redis") == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "from datetime import datetime",
        "import socket",
        "import ssl as s",
        "try:\n    f()\nexcept OSError:\n    pass",
        "try:\n    f()\nexcept (ValueError, TimeoutError):\n    pass",
        "try:\n    f()\nexcept socket.timeout:\n    pass",
        "with contextlib.suppress(ConnectionError):\n    f()",
        "if TYPE_CHECKING:\n    import time",
    ],
)
def test_a_broken_monopoly_is_caught(source: str) -> None:
    assert len(offences(architecture.broken_monopolies, source)) == 1
    assert offences(architecture.broken_monopolies, source, "connpool.testing.server") == []


def test_each_monopoly_has_its_owner() -> None:
    assert offences(architecture.broken_monopolies, "import time", "connpool.clock") == []
    catch = "import socket\ntry:\n    f()\nexcept OSError:\n    pass"
    assert offences(architecture.broken_monopolies, catch, "connpool.wire.io") == []
    assert offences(architecture.broken_monopolies, "if TYPE_CHECKING:\n    import ssl") == []


@pytest.mark.parametrize(
    "body",
    [
        "with self._lock:\n            self.connector.close(raw)",
        "with self._lock:\n            if x:\n                logger.info('closed')",
        "with self._lock, other:\n            thread.join()",
        "with pool._lock:\n            raw.sendall(b'x')",
        "self.serve_locked()",
        "self._books.serve_locked()\n        with self._lock:\n            self.serve_locked()",
        "with self._lock:\n            with other._lock:\n                pass",
        "with self._lock:\n            self._lock.acquire()",
        "with self._lock:\n            f = lambda: 1\n        self.serve_locked()",
    ],
)
def test_an_offence_against_the_lock_is_caught(body: str) -> None:
    tree = ast.parse(f"class Pool:\n    def work(self):\n        {body}\n")
    assert len(list(architecture.lock_offences(tree))) == 1


@pytest.mark.parametrize(
    "body", ["with self._lock:\n            pass", "raw.close()", "self._lock.acquire()"]
)
def test_a_locked_method_neither_takes_the_lock_nor_does_slow_things(body: str) -> None:
    tree = ast.parse(f"class Pool:\n    def work_locked(self):\n        {body}\n")
    assert len(list(architecture.lock_offences(tree))) == 1


def test_decide_do_record_is_no_offence() -> None:
    tree = ast.parse(
        """
class Pool:
    def work(self):
        with self._lock:
            doomed = self._expire_locked()
            text = ", ".join(doomed)
            later = lambda: self.connector.close(1)
        self.connector.close(doomed)
        with self._lock:
            self._forget_locked(doomed)

    def _expire_locked(self):
        return self._forget_locked()
"""
    )
    assert list(architecture.lock_offences(tree)) == []


def test_a_thread_that_nobody_knows_or_that_holds_up_the_end_is_caught() -> None:
    assert list(architecture.thread_offences(ast.parse("threading.Thread(name=n, daemon=True)"))) == []
    for source in ("threading.Thread(daemon=True)", "threading.Thread(name=n)"):
        assert len(list(architecture.thread_offences(ast.parse(source)))) == 1
