"""Lists of buffers on their way out, without copying what is large."""

from __future__ import annotations

import array
import mmap
from collections.abc import Iterable
from operator import index
from typing import Any, TypeAlias

__all__ = ["BytesLike", "as_views", "check_size", "drop_front", "gather"]

BytesLike: TypeAlias = "bytes | bytearray | memoryview | array.array[Any] | mmap.mmap"


def as_views(buffers: Iterable[BytesLike]) -> list[memoryview]:
    """Give a view of bytes over each buffer that is not empty. The caller releases them."""
    try:
        return [view for view in map(_as_bytes, buffers) if view]
    except TypeError:
        if type(buffers) in (bytes, bytearray, memoryview):
            raise TypeError(f"buffers must be several bytes-like objects, got {buffers!r:.60}") from None
        raise


def _as_bytes(buffer: BytesLike) -> memoryview:
    view = memoryview(buffer)
    try:
        return view.cast("B")
    except TypeError:  # it has gaps, which no system call takes; or several dimensions, and no bytes
        return memoryview(view.tobytes())


def check_size(n: int) -> None:
    """Refuse what is no number of bytes."""
    if n.__class__ is not int:
        try:
            n = index(n)
        except TypeError:
            raise TypeError(f"a number of bytes must be a whole number, got {n!r}") from None
    if n < 0:
        raise ValueError(f"a number of bytes cannot be negative: {n}")


def drop_front(views: list[memoryview], sent: int) -> None:
    """Take *sent* bytes off the front of *views*."""
    done = 0
    for view in views:
        if len(view) > sent:
            break
        sent -= len(view)
        view.release()
        done += 1
    del views[:done]
    if sent:
        front = views[0]
        views[0] = front[sent:]
        front.release()


def gather(views: list[memoryview], most: int) -> bytes:
    """Join views from the front, at least one, as long as they have no more than *most* bytes."""
    picked: list[memoryview] = []
    size = 0
    for view in views:
        size += len(view)
        if size > most and picked:
            break
        picked.append(view)
    return b"".join(picked)
