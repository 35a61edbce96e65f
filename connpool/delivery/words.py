"""A link in the words of an error."""

from __future__ import annotations

from connpool.model.delivery import LinkInfo, LinkState
from connpool.pool.failures import in_words

__all__ = ["describe"]


def describe(link: LinkInfo) -> str:
    """What is the matter with *link*; the errors of a dial name its endpoint themselves."""
    endpoint, error = str(link.endpoint), link.last_error
    if error is None:
        return f"{endpoint} is {'not tried yet' if link.state is LinkState.NEW else link.state.value}"
    words = in_words(error)
    return words if endpoint in words else f"{endpoint}: {words}"
