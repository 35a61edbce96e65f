"""Files that one owner at a time has to itself: locks, renames, directories."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from connpool.errors import SpoolError

__all__ = [
    "FileLock",
    "Identity",
    "absolute",
    "create",
    "cut",
    "followed",
    "identity",
    "names_like",
    "reading",
    "remove",
    "rename",
    "renew",
    "require_directory",
    "size_of",
]

Identity: TypeAlias = tuple[int, int]  # device and inode: which file it is, whatever its name

# Not a function of ours: an interrupt in it would lose the descriptor that it returns.
_open_private: Final = partial(os.open, mode=0o600)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Let what the system says become an error that names *path*."""
    try:
        yield
    except OSError as error:
        raise SpoolError(f"spool {path}: {error.strerror or error}") from error


class FileLock:
    """An exclusive lock that ends with its process, however that ends.

    It belongs to one open descriptor, so that two owners in one process exclude each other too.
    """

    __slots__ = ("_file", "_is_held", "_path", "_process")

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._process = os.getpid()
        self._is_held = False
        self._file = file

    @classmethod
    def try_take(cls, path: Path) -> FileLock | None:
        """Take the lock of the file *path*, made if need be; None: somebody has it.

        Raises:
            SpoolError: the file cannot be made or locked.
        """
        while True:
            with _told(path):
                lock = cls(path, FileIO(path, "ab", opener=_open_private))
                try:
                    fcntl.flock(lock._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lock._is_held = True  # an interrupt before: the file may be another's, and stays
                    if lock.is_in_place():
                        return lock
                except (OSError, SpoolError) as error:
                    lock.abandon()
                    if isinstance(error, BlockingIOError):
                        return None
                    raise
            lock.abandon()  # its last owner has removed the file: it excludes nobody any more

    def is_in_place(self) -> bool:
        """Whether others who look for it find it: nobody has removed or replaced its file."""
        with _told(self._path):
            try:
                mine = _identity(os.fstat(self._file.fileno()))
            except ValueError:  # it has just ended
                return True
            return identity(self._path) == mine

    def end(self) -> None:
        """Let another have it, and remove the file; again: do nothing. A forked parent keeps it."""
        try:
            is_ours = self._is_held and not self._file.closed and self._process == os.getpid()
            if is_ours and self.is_in_place():
                remove(self._path)  # while it is locked: whoever has opened it meanwhile will look again
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and leave the file. The lock stays while a forked parent has it open."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.end()


class Directory:
    """A directory that is open. Nothing else closes its descriptor when it is dropped.

    One call opens it and puts it away, one takes it out and closes it: an interrupt comes before or after.
    """

    __slots__ = ("_descriptors",)

    def __init__(self, path: Path) -> None:
        self._descriptors: list[int] = []  # one, while it is open
        self._descriptors.extend(map(os.open, (path,), (os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,)))

    def sync(self) -> None:
        """Wait until what has its name in it has it on the disk, too."""
        os.fsync(self._descriptors[0])

    def close(self) -> None:
        """Close it; again: do nothing."""
        with suppress(IndexError):
            next(map(os.close, iter(self._descriptors.pop, None)))

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()


def _identity(facts: os.stat_result) -> Identity:
    return facts.st_dev, facts.st_ino


def identity(path: Path) -> Identity | None:
    """Which file *path* is; None: there is none."""
    with _told(path):
        try:
            return _identity(path.stat())
        except FileNotFoundError:
            return None


def absolute(path: str) -> Path:
    """*path*, whatever the working directory will be."""
    with _told(Path(path)):
        return Path(os.path.abspath(path))


def followed(path: Path) -> Path:
    """Where *path* leads if it is a symbolic link: a file has one lock, by whatever name."""
    with _told(path):
        return Path(os.path.realpath(path)) if path.is_symlink() else path


def require_directory(path: Path) -> None:
    """See that *path* can be a file.

    Raises:
        SpoolError: its directory does not exist, or it is one itself, or no file at all.
    """
    with _told(path):
        if not path.parent.is_dir():
            raise SpoolError(f"spool {path}: there is no directory {path.parent}")
        if path.is_dir():
            raise SpoolError(f"spool {path}: it is a directory, a file is wanted")
        if path.exists() and not path.is_file():  # to open a pipe would take until somebody writes to it
            raise SpoolError(f"spool {path}: it is no regular file")


def create(path: Path) -> None:
    """Make the empty file *path*, for its owner's eyes only, unless there is one.

    Raises:
        SpoolError: it cannot be made; or it is there, and cannot be read and written.
    """
    with _told(path):
        FileIO(path, "ab+", opener=_open_private).close()


def size_of(path: Path) -> int | None:
    """Size of *path* in bytes; None: there is no such file."""
    with _told(path):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO | None]:
    """Open *path* to be read; None: there is no such file."""
    with _told(path), ExitStack() as files:
        try:
            file = files.enter_context(path.open("rb"))
        except FileNotFoundError:
            file = None
        yield file


def cut(path: Path, size: int) -> None:
    """Let *path* end after *size* bytes."""
    with _told(path):
        os.truncate(path, size)


def remove(path: Path) -> None:
    """Remove the file *path* if there is one."""
    with _told(path):
        path.unlink(missing_ok=True)


def rename(old: Path, new: Path) -> None:
    """Call *old* *new* from now on, even if the power fails in the next moment."""
    with _told(old):
        old.rename(new)
        directory = Directory(new.parent)
        try:
            directory.sync()
        finally:
            directory.close()


def renew(path: Path) -> None:
    """Put a copy in the place of *path*: the same bytes, another identity."""
    copy = path.with_name(path.name + ".copy")
    with _told(path):
        copy.unlink(missing_ok=True)  # somebody did not finish; or it is another's, or leads elsewhere
        with path.open("rb") as old, open(copy, "xb", opener=_open_private) as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fchmod(new.fileno(), stat.S_IMODE(os.fstat(old.fileno()).st_mode))
            os.fsync(new.fileno())
    rename(copy, path)


def names_like(path: Path, ending: str) -> list[Path]:
    """Files beside *path* that are called like it, and then something that matches *ending*; sorted."""
    pattern = re.compile(re.escape(path.name) + ending)
    with _told(path):
        return sorted(path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name))
