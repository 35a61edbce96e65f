"""What a user is told of a broadcaster and its links, by errors or when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connpool.errors import PoolClosedError
from connpool.model.delivery import LinkInfo, LinkState
from connpool.pool.failures import in_words

if TYPE_CHECKING:
    from connpool.delivery.office import Office

__all__ = ["closed", "describe", "links_of", "require_open"]


def links_of(office: Office) -> tuple[LinkInfo, ...]:
    """Each link as it stands."""
    spool = None if office.is_closed else office.spool
    with office._lock:
        links = office.roster.links.values()
        return tuple(link.describe(0 if spool is None else spool.count(link.queue)) for link in links)


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


def require_open(office: Office, cause: Exception | None = None) -> None:
    """Refuse what comes after the beginning of the close.

    Raises:
        PoolClosedError: the broadcaster is closed.
    """
    if office.is_closed:
        raise closed(office.name) from cause
