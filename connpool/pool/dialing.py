"""What may take long: opening, looking at and closing transports, with no lock held."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from connpool import clock as real
from connpool.errors import CancelledError, ConnectError, PermissionDeniedError, UsageError
from connpool.model.endpoint import Endpoint
from connpool.model.events import ConnectionOpened, ConnectionOpening
from connpool.model.states import CloseReason
from connpool.pool.closing import close_all
from connpool.pool.connection import Connection
from connpool.pool.failures import is_fatal_by, no_login
from connpool.pool.jobs import Dial
from connpool.pool.record import CLOSED, Key, Record
from connpool.wire import threads
from connpool.wire.full_connector import FullConnector
from connpool.wire.io import FileStream, Stream, is_tls, open_stream
from connpool.wire.waiting import Cancel

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["Dialler", "EitherCancel"]

logger = logging.getLogger("connpool.pool")

JOIN_GRACE: Final = 0.25  # seconds ``join`` gives threads whose dials were cancelled


class EitherCancel:
    """Set as soon as one of two flags is."""

    __slots__ = ("_flags",)

    def __init__(self, *flags: Cancel) -> None:
        self._flags = flags

    def is_set(self) -> bool:
        return any(flag.is_set() for flag in self._flags)


class Dialler:
    """Runs a pool's dials, looks and closes: on short-lived threads, or on the caller's own.

    A thread lives for one dial. Starting it costs a twentieth of a millisecond,
    and nothing is left behind when the pool is closed.
    """

    def __init__(self, lender: Lender, connector: FullConnector, name: str) -> None:
        self._lender = lender
        self._connector = connector
        self._name = name
        self.idents: list[int] = []  # threads inside ``open`` just now
        # Weakly: a thread that an interrupt kept from being started must not keep its key.
        self._threads: set[weakref.ref[threading.Thread]] = set()

    def is_dialling_here(self) -> bool:
        """Whether this very thread is inside ``open`` of this pool."""
        return threading.get_ident() in self.idents

    # -- dials and looks

    def start(self, dial: Dial) -> bool:
        """Run *dial* on a thread of its own. False: none can be had."""
        verb = "look" if dial.is_look else "dial"
        name = f"connpool-{verb}-{self._name}-{dial.key.record.id}"
        return self._spawn(name, self._run_apart, dial)

    def _spawn(self, name: str, target: Any, *args: Any) -> bool:
        load = deque([args])
        thread = threading.Thread(target=_carry, args=(target, load), name=name, daemon=True)
        self._threads.add(weakref.ref(thread, self._threads.discard))
        try:
            return threads.start(thread)
        except BaseException:
            load.clear()  # ``threading`` keeps what it was kept from starting, and that would keep the keys
            raise

    def _run_apart(self, dial: Dial) -> None:
        config = self._lender.config
        try:
            self.run(dial, config.connect_timeout)
        except Exception:
            logger.exception("pool %r: recording a dial failed", self._name)

    def run(self, dial: Dial, timeout: float) -> None:
        """Run *dial* on this thread and record what came of it.

        Raises:
            BaseException: only what is no Exception (Ctrl-C) and only after its place was freed.
        """
        record, lender = dial.key.record, self._lender
        began = lender.now()
        ident = threading.get_ident()
        error: BaseException | None = None
        self.idents.append(ident)
        try:
            if not dial.is_look:
                self.tell_opening(record)
                self._open(record, timeout, dial.cancel)
                self.tell_opened(record, lender.now() - began)
            elif not self.is_usable(record):
                error = ConnectionError("found dead when looked at")
        except BaseException as caught:  # noqa: BLE001 - whatever it is, somebody waits to be told
            error = caught
        finally:
            self.idents.remove(ident)
        try:
            lender.record_dial(dial, error, began)
            if error is not None and not isinstance(error, Exception):
                raise error
        finally:
            del error  # its traceback leads back here: a circle would keep the stack alive

    def tell_opening(self, record: Record) -> None:
        """With the key in hand: the first that is heard of a connection."""
        listeners, name = self._lender.listeners, self._name
        record.is_begun = True
        if listeners.by_kind[ConnectionOpening]:
            now = self._lender.now()
            listeners.tell(ConnectionOpening(name, now, record.id, record.host.endpoint))

    def tell_opened(self, record: Record, seconds: float) -> None:
        """With the key in hand: from now on it can be lent."""
        logger.debug("pool %r: connection %d to %s is open", self._name, record.id, record.host.endpoint)
        listeners, name = self._lender.listeners, self._name
        if listeners.by_kind[ConnectionOpened]:
            now = self._lender.now()
            listeners.tell(ConnectionOpened(name, now, record.id, record.host.endpoint, seconds))

    def _open(self, record: Record, timeout: float, cancel: Cancel) -> None:
        """Open the transport and run the connector's hooks on it, all within *timeout* seconds."""
        endpoint = record.host.endpoint
        connector = self._connector
        deadline = real.now() + timeout
        _require_wanted(endpoint, cancel)  # its thread may come late, and the peer need not hear of it then
        record.raw = connector.open(endpoint, timeout, cancel)  # from here on ``shutdown`` can interrupt it
        if record.raw is None:
            raise TypeError("`open` returned None")
        record.stream = open_stream(record.raw, is_private=connector.keeps_nothing)
        _require_wanted(endpoint, cancel)  # once the transport can be seen: who cancels looks for it after
        if connector.handshake is None and connector.permissions is None:
            return
        try:
            self._greet(record, deadline)
        except (ConnectError, CancelledError):
            raise
        except Exception as error:
            raise no_login(error, endpoint) from error

    def _greet(self, record: Record, deadline: float) -> None:
        """Let the connector's hooks speak to the peer before anybody else does."""
        connector, endpoint = self._connector, record.host.endpoint
        greeting = Connection()
        greeting._record = record
        greeting._key = Badge(record)
        stream = record.stream
        if stream is not None:
            stream.deadline = deadline
        try:
            if connector.handshake is not None:
                connector.handshake(greeting)
            required = self._lender.config.required_permissions
            if connector.permissions is not None and required:
                missing = required - frozenset(connector.permissions(greeting))
                if missing:
                    listed = ", ".join(sorted(missing))
                    raise PermissionDeniedError(f"{endpoint} does not grant: {listed}", endpoint=endpoint)
        finally:
            is_over = not hasattr(greeting, "_key")
            if not is_over:
                del greeting._key  # a hook that kept it holds nothing
            if stream is not None:
                stream.deadline = None
        if is_over:
            raise UsageError("a hook cannot give back the connection that it greets")
        if record.fate is CloseReason.BROKEN:  # and not to be lent: it would be dialled anew for ever
            raise ConnectionError("the hook has left the connection broken, or read to its end")

    def is_usable(self, record: Record) -> bool:
        """Look at an idle transport. A look that fails finds it dead."""
        try:
            return bool(self._connector.is_usable(record.raw))
        except Exception as error:  # noqa: BLE001 - foreign code
            logger.debug("pool %r: looking at connection %d failed: %r", self._name, record.id, error)
            return False

    def reset(self, record: Record) -> bool:
        """Make a transport ready for its next holder. A reset that fails says no."""
        reset = self._connector.reset
        try:
            return reset is None or reset(record.raw) is not False
        except Exception as error:  # noqa: BLE001 - foreign code
            logger.warning("pool %r: resetting connection %d failed: %r", self._name, record.id, error)
            return False

    def is_fatal(self, record: Record, error: BaseException | None) -> bool:
        """Whether *error*, which has left a block, is the end of its transport. An interrupt always is."""
        ask = self._connector.is_fatal
        if ask is None or not isinstance(error, Exception):
            return True
        return is_fatal_by(ask, error, logger, f"pool {self._name!r}: is_fatal of connection {record.id}")

    # -- closes

    def close_all(
        self, keys: Iterable[Key], *, apart: bool = False
    ) -> tuple[list[Key], BaseException | None]:
        """Close the transports of *keys*. Returns those that are closed, and what interrupted one of them.

        The others are reported by the threads that close them. *apart*: all of them are.

        A foreign ``close`` runs on a thread, for which the caller waits only a
        moment: as a rule it is over by then, and one that hangs holds up nobody.
        """
        if not apart and (self._connector.prompt or self._lender.config.dial_in_caller):
            closed = list(keys)
            interrupts = [self.close(key.record) for key in closed]
            try:
                return closed, next((interrupt for interrupt in interrupts if interrupt is not None), None)
            finally:
                del interrupts  # their tracebacks lead back here
        close_all(
            deque(keys), self._close_one, partial(self._spawn, f"connpool-close-{self._name}"), apart=apart
        )
        return [], None

    def _close_one(self, key: Key) -> None:
        """Close and report it; what interrupts that (a listener's SystemExit) ends nobody's thread."""
        try:
            interrupt = self.close(key.record)
            self._lender.record_closed([key])
        except BaseException as error:  # noqa: BLE001 - the others are still to be closed
            interrupt = error
        if interrupt is not None:
            logger.error("pool %r: closing connection %d met %r", self._name, key.record.id, interrupt)
        del interrupt  # its traceback leads back here: a circle would keep the key

    def close(self, record: Record) -> BaseException | None:
        """Close one transport, once; it is gone whatever ``close`` raises, and errors are only logged.

        Returns what is no error but an interrupt, for the thread that it was meant for.
        """
        raw = record.raw
        if raw is None or record.phase is CLOSED:  # or the parent's, and its thread has forked meanwhile
            return None
        is_file = isinstance(raw, FileStream)
        close: Callable[[Any], object] = FileStream.close if is_file else self._connector.close
        stream = record.stream
        record.raw = None  # an interrupt after this, and before the next line, would have it dropped unclosed
        try:
            if is_tls(raw) and isinstance(stream, Stream):
                stream.close_in_turn(close)
            else:
                close(raw)
        except Exception:
            logger.exception("pool %r: closing connection %d failed", self._name, record.id)
        except BaseException as interrupt:  # noqa: BLE001 - its place must be freed all the same
            return interrupt
        return None

    def close_forgotten(self, record: Record) -> None:
        """The pool itself was dropped unclosed: close what cannot block, in its finaliser."""
        if self._connector.prompt:
            self.close(record)

    def join(self) -> None:
        """Wait a moment for threads that have nothing left to do but to end."""
        deadline = real.now() + JOIN_GRACE
        for reference in self._threads.copy():
            thread = reference()
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - real.now()))


def _require_wanted(endpoint: Endpoint, cancel: Cancel) -> None:
    if cancel.is_set():
        raise CancelledError(f"opening a connection to {endpoint} was called off")


def _carry(target: Callable[..., object], load: deque[tuple[Any, ...]]) -> None:
    """Run *target* on its own thread, unless who started that was interrupted and took the *load* back."""
    try:
        args = load.pop()
    except IndexError:
        return
    target(*args)


class Badge(Key):
    """Shows a hook the record that is being opened. Not a key: dropping it means nothing."""

    __slots__ = ()

    def __del__(self) -> None:
        """Nothing is lost with it."""
