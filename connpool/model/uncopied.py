"""What stands for one thing outside: a copy would have it end twice."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

__all__ = ["Uncopied"]


class Uncopied:
    """Is neither copied nor pickled.

    A copy of a loan would give its connection back a second time, to two holders;
    one of a pool would close it when the copy is dropped.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse what ``copy`` and ``pickle`` ask.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self!r} cannot be copied or pickled: there is one of it")
