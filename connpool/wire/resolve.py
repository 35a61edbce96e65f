"""From a host name to addresses, on threads that a caller may abandon."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeAlias

from connpool.clock import shut_gate, wait
from connpool.errors import ConnectError, ConnectTimeoutError
from connpool.wire import threads
from connpool.wire.waiting import Budget, pause

__all__ = ["MAX_LOOKUPS", "MAX_OF_NAME", "AddressInfo", "is_address", "resolve"]

AddressInfo: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"

# getaddrinfo cannot be interrupted: a caller whose time is up leaves its thread
# behind. This many may be under way for one name, so that one that hangs keeps no
# other from being looked up, and in the whole process; further ones wait.
MAX_OF_NAME: Final = 8
MAX_LOOKUPS: Final = 64

# What says that the own resolver is at fault, or out of reach, rather than the name wrong. So does any
# OSError that is no gaierror: it stands for EAI_SYSTEM.
_LOCAL: Final = frozenset({socket.EAI_AGAIN, socket.EAI_MEMORY})

# Who occupies which place, of a name or of the process (None). One setdefault claims one, atomically, and
# the claim dies with the look-up that it names: a Ctrl-C at any moment can neither lose a place nor leave a
# lock held.
_Place: TypeAlias = "tuple[str | None, int]"
_under_way: Final[dict[_Place, weakref.ref[_Lookup]]] = {}

# In a forked child no look-up is under way, whatever the parent was doing.
os.register_at_fork(after_in_child=_under_way.clear)


def resolve(budget: Budget) -> list[AddressInfo]:
    """Give all addresses of the budget's endpoint, in the resolver's order.

    ``socket.getaddrinfo`` is looked up at each call, so it can be replaced.
    An address written in digits is not looked up at all.

    Raises:
        ConnectError: There is no such name; ``local`` if the own resolver failed.
        ConnectTimeoutError: The time is up; ``local`` if older look-ups left no
            room to begin.
        CancelledError: The dial was cancelled.
    """
    host, port = budget.endpoint.host, budget.endpoint.port
    numeric = _read_digits(host, port)
    if numeric is not None:
        return [numeric]
    try:
        answer = _look_up(host, port, budget)
    except (OSError, UnicodeError) as exc:  # UnicodeError: no such name can exist
        if isinstance(exc, ConnectError):
            raise
        raise _unresolved(budget, exc) from exc
    if not answer:
        raise ConnectError(f"{budget.endpoint}: {host!r} has no address", endpoint=budget.endpoint)
    return answer


def is_address(host: str) -> bool:
    """Whether *host* is an address in digits, and no name."""
    return _read_digits(host, 0) is not None


def _read_digits(host: str, port: int) -> AddressInfo | None:
    for family, address in ((socket.AF_INET, (host, port)), (socket.AF_INET6, (host, port, 0, 0))):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address
    return None


class _Lookup(threading.Thread):
    """One call of getaddrinfo. The thread ends with it, whether or not anybody still waits."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"connpool-resolve-{host}", daemon=True)
        self._query = host, port
        self._claims: list[tuple[_Place, weakref.ref[_Lookup]]] = []
        # A plain lock as a one-shot signal: a Ctrl-C inside Event.wait could leave the event locked.
        self._done = shut_gate()
        self.answer: list[AddressInfo] = []
        self.error: BaseException | None = None

    def claim_place(self) -> bool:
        """Take one of the name's places and one of the process's. False: either has none left."""
        if self._claim(self._query[0], MAX_OF_NAME) and self._claim(None, MAX_LOOKUPS):
            return True
        self.give_place_back()
        return False

    def _claim(self, whose: str | None, most: int) -> bool:
        for place in zip(repeat(whose), range(most)):
            mine = weakref.ref(self, partial(_free, place))
            if _under_way.setdefault(place, mine) is mine:
                self._claims.append((place, mine))
                return True
        return False

    def give_place_back(self) -> None:
        """Free what was claimed, unless that was done before."""
        claims, self._claims = self._claims, []
        for place, mine in claims:
            _free(place, mine)

    def run(self) -> None:
        try:
            host, port = self._query
            self.answer = list(dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except BaseException as exc:  # noqa: BLE001 - handed to the waiting thread
            self.error = (_shortage() if isinstance(exc, socket.gaierror) else None) or exc
        finally:
            self.give_place_back()
            self._done.release()

    def is_done_within(self, seconds: float | None) -> bool:
        return wait(self._done, seconds)


def _shortage() -> OSError | None:
    """What a look-up lacks here: a resolver without a descriptor says that there is no such name."""
    try:
        socket.socket().close()
    except OSError as error:
        return error
    return None


def _free(place: _Place, mine: weakref.ref[_Lookup]) -> None:
    """Free *place*, unless it was given back: the look-up may be forgotten long after that."""
    if _under_way.get(place) is mine:
        _under_way.pop(place, None)


def _look_up(host: str, port: int, budget: Budget) -> list[AddressInfo]:
    phase = f"resolving {host!r}"
    lookup = _Lookup(host, port)
    _wait_for_place(lookup, host, budget, phase)
    try:
        is_started = threads.start(lookup)
    except BaseException:
        lookup.give_place_back()  # now, since the traceback would keep the claim alive
        raise
    if not is_started:
        lookup.give_place_back()
        raise ConnectError(
            f"{budget.endpoint}: no thread to resolve {host!r} can be had",
            endpoint=budget.endpoint,
            local=True,
        )
    while not budget.wait(lookup.is_done_within, phase):
        pass
    lookup.join()  # it has nothing left to do: no thread outlives its answer
    if lookup.error is not None:
        raise lookup.error
    return lookup.answer


def _wait_for_place(lookup: _Lookup, host: str, budget: Budget, phase: str) -> None:
    while not lookup.claim_place():
        try:
            budget.wait(pause, phase, at_most=0.02)
        except ConnectTimeoutError as exc:
            raise ConnectTimeoutError(
                f"{budget.endpoint}: {host!r} was not looked up within the {budget.timeout:g} s of the dial: "
                f"{MAX_OF_NAME} older look-ups of it, or {MAX_LOOKUPS} in all, are still under way",
                endpoint=budget.endpoint,
                local=True,
            ) from exc


def _unresolved(budget: Budget, exc: OSError | UnicodeError) -> ConnectError:
    code = exc.errno if isinstance(exc, OSError) else None
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
    error = ConnectError(
        f"{budget.endpoint}: cannot resolve {budget.endpoint.host!r}: {reason}",
        endpoint=budget.endpoint,
        local=isinstance(exc, OSError) and (not isinstance(exc, socket.gaierror) or code in _LOCAL),
    )
    error.errno = code
    return error
