"""A disk that fails for a while: what was accepted stays, and what comes later does not suffer for it."""

from __future__ import annotations

import errno
import platform
import sqlite3
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

from connpool import SpoolError, SQLiteSpool
from connpool.delivery import keeper, mend, segment
from connpool.delivery.faults import Damaged, UnwritableError
from connpool.delivery.ledger import Ledger
from connpool.delivery.segment import Segment
from tests.helpers.scripts import run_program

FDATASYNC = {"x86_64": 75, "aarch64": 83}
# What a thread does within a filter of its own: the system refuses it that one call.
WITHIN = """
    import ctypes, os, struct, sys, threading
    def cannot(call, deed):
        rules = (0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x5_0005), (0x06, 0, 0, 0x7FFF_0000)
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
        program = struct.pack("H6xP", len(rules), ctypes.addressof(code))
        libc = ctypes.CDLL(None)
        def run():
            if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
                os._exit(77)
            deed()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
"""


@pytest.mark.skipif(platform.machine() not in FDATASYNC, reason="the number of that call is not known here")
def test_what_could_not_be_flushed_costs_nothing_that_is_accepted_later(tmp_path: Path) -> None:
    program = textwrap.dedent(WITHIN) + textwrap.dedent(
        f"""
        from connpool import SpoolError, SQLiteSpool
        spool = SQLiteSpool(os.path.join(sys.argv[1], "spool.db"))
        for n in range(3):
            spool.put(["a"], bytes(600), bytes([n] * 16))

        def try_in_vain():
            for n, size in (3, 60_000), (4, 20_000):
                try:
                    spool.put(["a"], bytes(size), bytes([n] * 16))
                except SpoolError as error:
                    print("FSYNC" in str(error), [item.id[0] for item in spool.peek("a", 9, 99_999)])

        cannot({FDATASYNC[platform.machine()]}, try_in_vain)
        spool.put(["a"], bytes(600), bytes([5] * 16))
        os.kill(os.getpid(), 9)
        """
    )
    ran = run_program(program, tmp_path)
    if ran.status == 77:
        pytest.skip("no call may be refused here")
    assert (ran.err, ran.status, ran.out.splitlines()) == ("", -9, ["True [0, 1, 2]"] * 2)
    spool = SQLiteSpool(tmp_path / "spool.db")
    assert spool.damage is None
    assert [item.id[0] for item in spool.peek("a", 9, 99_999)] == [0, 1, 2, 5]
    spool.close()


def fail_once(patch: pytest.MonkeyPatch, owner: object, name: str, error: Exception) -> None:
    """Let the method *name* of *owner* raise *error*, and work again from then on."""
    real = getattr(owner, name)

    def fail(*_: object, **__: object) -> NoReturn:
        patch.setattr(owner, name, real)
        raise error

    patch.setattr(owner, name, fail)


def ids_in(spool: SQLiteSpool) -> list[int]:
    items = spool.peek("a", 1_000, 10_000_000)
    spool.release([item.position for item in items])
    return [item.id[0] for item in items]


@pytest.mark.parametrize("is_read", [True, False], ids=["cannot be read", "cannot be rolled back"])
def test_what_a_full_disk_kept_in_the_file_stays_removed_though_the_file_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    spool = SQLiteSpool(tmp_path / "spool.db")
    for n in range(5):
        spool.put(["a"], b"1", bytes([n] * 16))
    fail_once(monkeypatch, Ledger, "remove", UnwritableError("no space"))
    spool.remove([item.position for item in spool.peek("a", 2, 99)])
    if is_read:
        fail_once(monkeypatch, Segment, "begin", Damaged("it cannot be read, for a moment"))
    else:
        fail_once(monkeypatch, Segment, "commit", SpoolError("it cannot be written, for a moment"))
        fail_once(monkeypatch, Segment, "roll_back", SpoolError("nor rolled back"))
        with pytest.raises(SpoolError, match="cannot be written"):
            spool.put(["a"], b"1", bytes([6] * 16))
    assert ids_in(spool) == [2, 3, 4]
    assert spool.count("a") == 3
    spool.put(["a"], b"1", bytes([5] * 16))
    assert ids_in(spool) == [2, 3, 4, 5]
    spool.close()
    spool = SQLiteSpool(tmp_path / "spool.db")
    assert ids_in(spool) == [2, 3, 4, 5]
    spool.close()


def test_a_removal_that_has_happened_is_no_error_because_the_empty_file_cannot_be_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = SQLiteSpool(tmp_path / "spool.db")
    spool.put(["a"], b"1", bytes(16))
    (item,) = spool.peek("a", 2, 99)
    fail_once(monkeypatch, Ledger, "remove", UnwritableError("no space"))
    fail_once(monkeypatch, keeper, "renewed", SpoolError("it cannot be opened, for a moment"))
    spool.remove([item.position])
    assert spool.count("a") == 0
    spool.put(["a"], b"2", bytes([1] * 16))
    assert ids_in(spool) == [1]
    spool.close()


def test_a_disk_that_can_neither_be_read_nor_keeps_the_copy_is_a_spool_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = SQLiteSpool(tmp_path / "spool.db")
    spool.put(["a"], b"1", bytes(16))
    stock = segment.take_stock
    left = 2  # the copy is opened as it is written, and then for good

    def take_stock_but_once(new: Segment) -> object:
        nonlocal left
        left -= 1
        if not left:
            raise Damaged("what was just written cannot be read")
        return stock(new)

    fail_once(monkeypatch, Segment, "begin", Damaged("it cannot be read, for a moment"))
    monkeypatch.setattr(segment, "take_stock", take_stock_but_once)
    with pytest.raises(SpoolError, match="the disk does not keep what is written"):
        spool.put(["a"], b"2", bytes([1] * 16))
    assert ids_in(spool) == [0]
    spool.close()


def test_a_file_that_cannot_be_read_while_it_is_mended_leaves_no_half_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = SQLiteSpool(tmp_path / "spool.db")
    spool.put(["a"], b"1", bytes(16))
    fail_once(monkeypatch, Segment, "begin", Damaged("it cannot be read, for a moment"))
    fail_once(monkeypatch, mend.Salvage, "rows", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(SpoolError, match="Input/output error"):
        spool.put(["a"], b"2", bytes([1] * 16))
    assert [path for path in tmp_path.iterdir() if "mending" in path.name] == []
    assert ids_in(spool) == [0]
    spool.close()


def test_a_file_that_could_only_be_read_for_a_moment_is_opened_once_more(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "spool.db"
    SQLiteSpool(path).close()
    with monkeypatch.context() as patch:  # so SQLite opens what it cannot open otherwise
        patch.setattr(
            segment,
            "_connect",
            lambda path: sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None),
        )
        with pytest.raises(SpoolError, match=r"spool\.db: .*READONLY"):
            SQLiteSpool(path)
    spool = SQLiteSpool(path)
    spool.put(["a"], b"1", bytes(16))
    spool.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="SQLite cannot be told to leave the log alone")
def test_a_log_whose_index_cannot_be_opened_is_not_removed(tmp_path: Path) -> None:
    program = """
        import os, tempfile
        from connpool import SpoolError, SQLiteSpool
        from connpool.delivery import segment
        set_up = segment.set_up

        def set_up_without_index(new):
            os.chmod(path + "-shm", 0)
            try:
                set_up(new)
            finally:
                os.chmod(path + "-shm", 0o400)

        if os.getuid() == 0:  # who may do everything
            os.setgid(65_534)
            os.setuid(65_534)
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            path = os.path.join(folder, "spool.db")
            if not os.fork():
                spool = SQLiteSpool(path)
                spool.put(["a"], b"1", bytes(16))
                os._exit(0)
            os.wait()
            segment.set_up = set_up_without_index
            try:
                SQLiteSpool(path)
            except SpoolError as error:
                print("CANTOPEN" in str(error))
            segment.set_up = set_up
            os.chmod(path + "-shm", 0o600)
            spool = SQLiteSpool(path)
            print(spool.count("a"), spool.damage)
            spool.close()
    """
    ran = run_program(textwrap.dedent(program), tmp_path)
    assert (ran.err, ran.status, ran.out.splitlines()) == ("", 0, ["True", "1 None"])
