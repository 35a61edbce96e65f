"""Files that one owner has to itself."""

from __future__ import annotations

import errno
import gc
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from connpool import SpoolError
from connpool.wire import disk
from connpool.wire.disk import FileLock
from tests.conftest import open_files
from tests.helpers.forks import in_child
from tests.helpers.interrupts import SignalStrike, at_every_bytecode


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_lock_excludes_others_in_the_same_process_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.try_take(path)
    assert lock is not None
    assert FileLock.try_take(path) is None
    assert mode_of(path) == 0o600

    lock.end()
    lock.end()
    assert not path.exists()
    again = FileLock.try_take(path)
    assert again is not None
    again.end()


def test_a_lock_that_is_dropped_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.try_take(path)
    assert lock is not None
    del lock
    assert not path.exists()


def test_an_interrupt_in_the_attempt_to_take_it_leaves_anothers_lock_in_place(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.try_take(path)
    assert lock is not None

    def interrupted(file, how) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk.fcntl, "flock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            FileLock.try_take(path)
    gc.collect()
    assert lock.is_in_place()
    assert FileLock.try_take(path) is None
    lock.end()


def test_a_forked_child_neither_has_nor_ends_its_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.try_take(path)
    assert lock is not None

    def child() -> tuple[bool, bool]:
        lock.end()
        return FileLock.try_take(path) is None, path.exists()

    assert in_child(child) == (True, True)
    assert FileLock.try_take(path) is None
    lock.end()


def test_who_has_opened_a_lock_file_that_is_removed_meanwhile_looks_again(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    real, left = disk.fcntl.flock, [2]

    def flock(file, how) -> None:
        if left[0]:
            left[0] -= 1
            path.unlink()  # the last owner ends just now
        real(file, how)

    monkeypatch.setattr(disk.fcntl, "flock", flock)
    lock = FileLock.try_take(path)
    assert lock is not None
    assert path.exists()
    assert left == [0]
    assert FileLock.try_take(path) is None
    lock.end()


def test_a_lock_whose_file_another_has_begun_anew_leaves_that_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock.try_take(path)
    assert lock is not None
    assert lock.is_in_place()
    path.unlink()
    other = FileLock.try_take(path)
    assert other is not None
    assert (lock.is_in_place(), other.is_in_place()) == (False, True)
    lock.end()
    assert FileLock.try_take(path) is None, "the other still excludes"
    assert lock.is_in_place(), "there is nothing to be mended any more"
    other.end()


def test_a_lock_that_cannot_be_had_for_another_reason_is_an_error(tmp_path, monkeypatch) -> None:
    def flock(file, how) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(disk.fcntl, "flock", flock)
    with pytest.raises(SpoolError, match=re.escape(f"spool {tmp_path / 'a.lock'}: No locks available")):
        FileLock.try_take(tmp_path / "a.lock")


def test_a_lock_file_that_cannot_be_looked_at_is_an_error_and_leaves_nobody_excluded(
    tmp_path, monkeypatch
) -> None:
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", real)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(SpoolError, match=f"spool {tmp_path / 'a.lock'}: Input/output error") as caught:
        FileLock.try_take(tmp_path / "a.lock")
    del caught
    lock = FileLock.try_take(tmp_path / "a.lock")
    assert lock is not None
    lock.end()


def test_a_new_file_is_private_and_an_old_one_is_left_as_it_is(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"content")
    old.chmod(0o640)
    disk.create(new)
    disk.create(old)

    assert (new.read_bytes(), mode_of(new)) == (b"", 0o600)
    assert (old.read_bytes(), mode_of(old)) == (b"content", 0o640)


def test_a_renewed_file_is_another_with_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    before = disk.identity(path)
    disk.renew(path)

    assert disk.identity(path) != before
    assert (path.read_bytes(), mode_of(path)) == (b"content", 0o640)
    assert os.listdir(tmp_path) == ["file"]


def test_files_are_found_by_the_whole_of_their_names(tmp_path: Path) -> None:
    for name in ("a.db", "a.db.2", "a.db.10", "aXdb", "a.db.2-wal", "xa.db"):
        (tmp_path / name).touch()
    found = disk.names_like(tmp_path / "a.db", r"(\.\d+)?")
    assert [path.name for path in found] == ["a.db", "a.db.10", "a.db.2"]


def test_what_is_not_there_has_no_size_and_is_removed_already(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert (disk.size_of(path), disk.identity(path)) == (None, None)
    with disk.reading(path) as nothing:
        assert nothing is None
    disk.remove(path)
    path.write_bytes(b"12345")
    assert disk.size_of(path) == 5


def test_every_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    for call in (
        lambda: disk.create(path),
        lambda: disk.rename(path, tmp_path / "x"),
        lambda: disk.renew(path),
        lambda: disk.names_like(path, ""),
        lambda: FileLock.try_take(path),
    ):
        with pytest.raises(SpoolError, match=re.escape(f"spool {path}: No such file or directory")):
            call()
    with pytest.raises(SpoolError, match=re.escape(f"{tmp_path}: Is a directory")), disk.reading(tmp_path):
        pass


def open_and_close(folder: Path) -> None:
    """Everything by which a descriptor is opened."""
    path = folder / "file"
    lock = FileLock.try_take(folder / "file.lock")
    assert lock is not None
    disk.create(path)
    with disk.reading(path) as file:
        assert file is not None
        file.read()
    disk.renew(path)
    disk.rename(path, folder / "renamed")
    disk.remove(folder / "renamed")
    lock.end()


def test_an_interrupt_at_any_moment_leaves_no_descriptor_open(tmp_path: Path, monkeypatch) -> None:
    ignored: set[type[BaseException]] = set()
    monkeypatch.setattr(sys, "unraisablehook", lambda args: ignored.add(args.exc_type))
    n = 0
    for n, strike in enumerate(at_every_bytecode(disk, kind=SignalStrike)):
        folder = tmp_path / str(n)
        folder.mkdir()
        before = open_files()
        with strike:
            open_and_close(folder)
        strike._raised = None  # its frames hold what was open
        if open_files() - before:
            gc.collect()
        assert not open_files() - before, strike
    assert n > 70
    # The strike itself, in a finaliser; and a file object that nobody got closes itself and says so.
    assert ignored <= {KeyboardInterrupt, ResourceWarning}


def test_a_renamed_file_has_its_new_name_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert (tmp_path / "new" / "name").exists()

    monkeypatch.setattr(disk.os, "fsync", fsync)
    (tmp_path / "new").mkdir()
    (tmp_path / "old").touch()
    disk.rename(tmp_path / "old", tmp_path / "new" / "name")
    assert flushed == [str(tmp_path / "new")]


def test_a_renewed_file_is_never_for_others_eyes(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "spool.db"
    disk.create(path)
    path.write_bytes(b"content")
    modes = []

    def copy(source: BinaryIO, target: BinaryIO) -> None:
        modes.append(os.fstat(target.fileno()).st_mode & 0o777)
        target.write(source.read())

    monkeypatch.setattr(disk.shutil, "copyfileobj", copy)
    disk.renew(path)

    assert [*modes, path.stat().st_mode & 0o777] == [0o600, 0o600]


@pytest.mark.parametrize("is_link", [True, False], ids=["a link", "a file that all may read"])
def test_a_renewed_file_goes_into_nothing_that_another_has_put_in_its_way(tmp_path: Path, is_link) -> None:
    path, elsewhere, in_the_way = tmp_path / "file", tmp_path / "elsewhere", tmp_path / "file.copy"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    elsewhere.write_bytes(b"another's")
    elsewhere.chmod(0o666)
    if is_link:
        in_the_way.symlink_to(elsewhere)
    else:
        in_the_way.hardlink_to(elsewhere)
    disk.renew(path)
    assert elsewhere.read_bytes() == b"another's"
    assert not path.is_symlink()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"secret", 0o600)


def test_a_renewed_file_is_on_the_disk_before_it_takes_the_place_of_the_other(
    tmp_path: Path, monkeypatch
) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(disk.os, "fsync", fsync)
    (tmp_path / "file").write_bytes(b"content")
    disk.renew(tmp_path / "file")
    assert flushed == [str(tmp_path / "file.copy"), str(tmp_path)]


def test_a_lock_in_a_directory_that_is_gone_ends(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lock = FileLock.try_take(folder / "a.lock")
    assert lock is not None
    os.unlink(folder / "a.lock")
    folder.rmdir()
    folder.touch()  # not a directory any more
    with pytest.raises(SpoolError, match=re.escape(f"spool {folder / 'a.lock'}: Not a directory")):
        lock.end()
    assert lock._file.closed
