"""What errors say of a broadcaster and its links."""

from __future__ import annotations

from connpool.errors import PoolClosedError
from connpool.model.delivery import LinkInfo, LinkState
from connpool.pool.failures import in_words

__all__ = ["closed", "describe"]


def describe(link: LinkInfo) -> str:
    """What is the matter with *link*; the errors of a dial name its endpoint themselves."""
    endpoint, error = str(link.endpoint), link.last_error
    if error is None:
        return f"{endpoint} is {'not tried yet' if link.state is LinkState.NEW else link.state.value}"
    words = in_words(error)
    return words if endpoint in words else f"{endpoint}: {words}"


def closed(name: str) -> PoolClosedError:
    """What whoever still has a message for the broadcaster called *name* is told."""
    return PoolClosedError(f"broadcaster {name!r} is closed", pool=name)
