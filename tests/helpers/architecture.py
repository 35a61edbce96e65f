"""The house rules that a syntax tree can show: floors, monopolies, lock discipline.

Each checker takes a module's tree and gives one sentence per offence. They are a
net, not a proof: they look at names, not through calls.
"""

from __future__ import annotations

import ast
import builtins
import dis
import socket
import ssl
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "connpool"

# From the ground up: a module imports from its own floor and from those below.
FLOORS: Final = (
    "errors",
    "clock",
    "model",
    "wire",
    "pool",
    "upkeep",
    "delivery",
    "calls",
    "settings_file",
    "registry",
    "__init__",  # the public names
    "ext",
    "cli",
    "testing",
    "__main__",
)
# Upward, but for annotations alone: an error says which endpoint it is about.
NAMED_IN_ANNOTATIONS: Final = {("connpool.errors", "connpool.model.endpoint")}

THE_TIME: Final = {"time", "datetime"}
THE_WIRE: Final = {"socket", "ssl", "select", "selectors", "_socket", "_ssl"}
OS_ERRORS: Final = {
    name
    for source in (builtins, socket, ssl)
    for name, value in vars(source).items()
    if isinstance(value, type) and issubclass(value, OSError)
}
EXEMPT: Final = {"testing", "cli", "ext"}  # ext: each file speaks for one outside library

# Slow, or not ours: what may run for long, or may come back into the pool.
SLOW: Final = set(
    """open close is_usable reset sleep join start result handshake permissions listener handler callback
    connect connect_ex getaddrinfo resolve dial shutdown interrupt abandon
    recv recv_into recv_exactly recv_until send sendall sendmsg writev_all start_tls do_handshake unwrap
    debug info warning error exception critical log warn print""".split()
)

NOT_SLOW: Final = {"books.queue.join"}  # a waiter joins the queue; no thread is waited for


class Import(NamedTuple):
    """One imported module, and whether only a type checker ever sees it."""

    module: str
    line: int
    is_for_types: bool


@cache
def parse(path: Path) -> ast.Module:
    """Read the tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor_of(module: str) -> str:
    """Name the floor that *module*, such as ``connpool.model.route``, stands on."""
    _, _, below = module.partition(".")
    return below.split(".")[0] or "__init__"


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Every import, wherever it stands; ``from package import name`` counts as ``package.name``."""
    for node, is_for_types in _with_type_checking(tree, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, is_for_types)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            known = modules()
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in known else base, node.lineno, is_for_types)


def _with_type_checking(node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, inside
    is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _with_type_checking(child, inside or (is_guard and field == "body"))


def climbing_imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Imports of ours from a higher floor, and relative ones."""
    here = FLOORS.index(floor_of(module))
    for found in imports_of(tree):
        if found.module.startswith("."):
            yield f"line {found.line}: relative import of {found.module}"
        elif found.module.split(".")[0] == "connpool" and FLOORS.index(floor_of(found.module)) > here:
            if found.is_for_types and (module, found.module) in NAMED_IN_ANNOTATIONS:
                continue
            yield f"line {found.line}: {module} stands below {found.module}"


def foreign_imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Imports from outside the standard library and attrs."""
    for found in imports_of(tree):
        top = found.module.split(".")[0]
        if top not in sys.stdlib_module_names | {"attr", "attrs", "connpool"} and floor_of(module) != "ext":
            yield f"line {found.line}: {found.module} is neither ours nor attrs"


def broken_monopolies(module: str, tree: ast.Module) -> Iterator[str]:
    """Who asks the time, touches the wire or catches its errors without being the one that may."""
    floor = floor_of(module)
    if floor in EXEMPT:
        return
    for found in imports_of(tree):
        top = found.module.split(".")[0]
        if top in THE_TIME and floor != "clock":
            yield f"line {found.line}: only connpool.clock asks the time"
        if top in THE_WIRE and floor != "wire" and not found.is_for_types:
            yield f"line {found.line}: only connpool.wire touches {top}"
    if floor != "wire":
        for line, name in _caught(tree):
            if name in OS_ERRORS:
                yield f"line {line}: only connpool.wire catches {name}"


def _caught(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names in ``except`` clauses and in ``contextlib.suppress``."""
    for node in ast.walk(tree):
        caught: list[ast.expr] = []
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = [node.type]
        elif isinstance(node, ast.Call) and _name_of(node.func) == "suppress":
            caught = node.args
        for expression in caught:
            for part in expression.elts if isinstance(expression, ast.Tuple) else [expression]:
                yield expression.lineno, _name_of(part)


def _name_of(expression: ast.expr) -> str:
    """The last part of a dotted name."""
    return ast.unparse(expression).rpartition(".")[2]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def lock_offences(tree: ast.Module) -> Iterator[str]:
    """Breaches of: decide under the lock, do without it, record under it."""
    for function in ast.walk(tree):
        if not isinstance(function, Function):
            continue
        holds = function.name.endswith("_locked")
        for node, is_locked in _with_lock(function, holds):
            where = f"line {getattr(node, 'lineno', 0)}: {function.name}"
            if is_locked and _takes_lock(node):
                yield f"{where} takes a lock while one is held"
            if isinstance(node, ast.Call):
                name = _name_of(node.func)
                if name.endswith("_locked") and not is_locked:
                    yield f"{where} calls {name} without the lock"
                if is_locked and name in SLOW and not _is_harmless(node):
                    yield f"{where} calls {ast.unparse(node.func)} under the lock"


def thread_offences(tree: ast.Module) -> Iterator[str]:
    """Threads without a name, which nobody knows in a dump, or that hold up the end of the interpreter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if "name" not in given:
                yield f"line {node.lineno} makes a thread without a name"
            if given.get("daemon") != "True":
                yield f"line {node.lineno} makes a thread that the interpreter waits for"


def unguarded_jumps(source: str) -> Iterator[str]:
    """Rounds of loops in locked sections, and conditions of comprehensions, whose interrupt would not unlock.

    The compiler of Python 3.12 and 3.13 leaves a conditional jump backwards out of ``with``, and there
    signals are looked for. In a function of its own such a loop does no harm.
    """
    locked = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.With) and _takes_lock(node)
        for line in range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
    }
    for code in _codes(compile(source, "module", "exec")):
        guarded = [range(entry.start, entry.end) for entry in dis.Bytecode(code).exception_entries]
        for jump in dis.get_instructions(code):
            line = jump.positions.lineno if jump.positions else None
            is_free = not any(jump.offset in offsets for offsets in guarded)
            if jump.opname == "JUMP_BACKWARD" and is_free and line in locked:
                yield f"line {line}: {code.co_qualname} goes round a loop"


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Functions, without the comprehensions of theirs that have code of their own."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType) and not const.co_name.startswith("<"):
            yield from _codes(const)


def _with_lock(node: ast.AST, is_locked: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs with *node*, and whether the lock is held there."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda):
            continue  # runs at another time; functions are looked at by themselves
        yield child, is_locked
        if isinstance(child, ast.With) and _takes_lock(child):
            for part in child.body:
                yield part, True
                yield from _with_lock(part, True)
        else:
            yield from _with_lock(child, is_locked)


def _takes_lock(node: ast.AST) -> bool:
    if isinstance(node, ast.With):
        return any(_name_of(item.context_expr) in ("_lock", "lock") for item in node.items)
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("lock.acquire")


def _is_harmless(call: ast.Call) -> bool:
    if ast.unparse(call.func) in NOT_SLOW:
        return True
    return isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Constant)  # ", ".join
