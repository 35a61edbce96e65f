"""Deeds in which an interrupt may strike, each with a pool prepared for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

from connpool import ConnectionPool, PoolState
from connpool.clock import Gate
from tests.stress.works import A, Caller, ResettingWorks, TellingClock, Works


class HelpfulClock(TellingClock):
    """When its thread would wait, *helper* first does what ends the wait."""

    overtake_delay = 0.0
    helper: Callable[[], object] | None = None

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        helper, self.helper = self.helper, None
        if helper is not None:
            helper()
        return super().wait(gate, timeout)


class Scene:
    """A pool of two places, ready for the deed; afterwards nothing may be missing."""

    size = 2

    def __init__(self) -> None:
        self.works = self.connector()
        self.clock = HelpfulClock()
        self.pool = ConnectionPool(
            A, connector=self.works, clock=self.clock, max_size=self.size, blacklist_initial=0,
            reap_interval=None, checkout_timeout=10, **self.settings(),
        )  # fmt: skip
        self.prepare()

    def connector(self) -> Works:
        return Works(prompt=True)

    def settings(self) -> dict[str, object]:
        return {}

    def prepare(self) -> None:
        pass

    def deed(self) -> None:
        self.pool.try_connect().release()

    def end(self) -> None:
        """What the test itself still holds."""


class IdleHit(Scene):
    def prepare(self):
        self.pool.try_connect().release()


class WithBlock(IdleHit):
    def deed(self):
        with self.pool.try_connect():
            pass


class StaleIdle(IdleHit):
    def prepare(self):
        super().prepare()
        self.clock.leap(1)


class StaleIdleApart(StaleIdle):
    def connector(self):
        return Works(prompt=False)


class DeadIdle(StaleIdle):
    def deed(self):
        self.works.looking = lambda part: part.number > 1
        super().deed()


class FirstDial(Scene):
    pass


class DialInCaller(Scene):
    def settings(self):
        return {"dial_in_caller": True}


class Waiting(Scene):
    """The wait ends by a release."""

    how = "release"

    def prepare(self):
        self.held = [self.pool.try_connect() for _ in range(self.size)]

    def deed(self):
        self.clock.helper = self.give_back
        super().deed()

    def give_back(self):
        """Another thread's doing, which strikes do not hit."""
        held = self.held.pop()
        thread = threading.Thread(target=getattr(held, self.how))
        thread.start()
        thread.join()

    def end(self):
        for held in self.held:
            held.release()


class WaitingForAPlace(Waiting):
    how = "terminate"


class Handing(Scene):
    """The release has somebody waiting for it."""

    size = 1

    def prepare(self):
        self.held = self.pool.try_connect()
        self.waiter = Caller(self.pool)
        self.clock.until_waiting()

    def deed(self):
        self.held.release()

    def end(self):
        self.held = None
        gc.collect()
        self.pool.sweep()
        self.waiter.loan().release()


class Terminating(Scene):
    def prepare(self):
        self.held = self.pool.try_connect()

    def deed(self):
        self.held.terminate()

    def end(self):
        self.held = None


class Detaching(Terminating):
    def deed(self):
        raw = self.held.detach()
        self.works.disown(raw)


class Resetting(IdleHit):
    def connector(self):
        return ResettingWorks(prompt=True)


class TerminatingApart(Terminating):
    def connector(self):
        return Works(prompt=False)


class UsedUp(Scene):
    def settings(self):
        return {"max_uses": 1}


class Sweeping(IdleHit):
    def prepare(self):
        super().prepare()
        self.clock.leap(5000)

    def deed(self):
        self.pool.sweep()


class Clearing(IdleHit):
    def deed(self):
        self.pool.clear()


class Resizing(Waiting):
    def prepare(self):
        super().prepare()
        while self.held:
            self.held.pop().release()

    def deed(self):
        self.pool.resize(max_size=1)

    def end(self):
        self.pool.resize(max_size=2)


class Rerouting(IdleHit):
    def deed(self):
        self.pool.route = "b:1"

    def end(self):
        self.pool.route = A


class ShuttingDown(IdleHit):
    def prepare(self):
        super().prepare()
        self.held = self.pool.try_connect()
        self.pool.try_connect().release()

    def deed(self):
        self.pool.shutdown()

    def end(self):
        self.held.release()
        self.pool.reopen()


class Resuming(StaleIdle):
    """Somebody waits for it."""

    def prepare(self):
        super().prepare()
        self.pool.pause()
        self.waiter = Caller(self.pool)
        self.clock.until_waiting()

    def deed(self):
        self.pool.resume()

    def end(self):
        gc.collect()
        if self.pool.stats().state is PoolState.PAUSED:
            self.pool.resume()
        self.pool.sweep()
        self.waiter.loan().release()


class Unblacklisting(Scene):
    """Somebody waits for it."""

    def settings(self):
        return {"fail_fast": False}

    def prepare(self):
        self.pool.blacklist(A)
        self.waiter = Caller(self.pool)
        self.clock.until_waiting()

    def deed(self):
        self.pool.unblacklist(A)

    def end(self):
        gc.collect()
        self.pool.unblacklist(A)
        self.pool.sweep()
        self.waiter.loan().release()


class Closing(IdleHit):
    def deed(self):
        self.pool.close()


class Taking(StaleIdle):
    def deed(self):
        self.works.disown(self.pool.take())


class Adopting(Scene):
    def prepare(self):
        self.part = self.works.open(A, None, None)

    def deed(self):
        self.pool.add_connection(self.part, A)

    def end(self):
        if self.pool.stats().size == 0:
            self.works.disown(self.part)


class Running(StaleIdle):
    def deed(self):
        self.pool.run(lambda conn: None)


class SharingIdle(IdleHit):
    def settings(self):
        return {"sharable": True}

    def deed(self):
        self.pool.share().release()


class SharingStale(SharingIdle):
    def prepare(self):
        super().prepare()
        self.clock.leap(1)


class SharingFromStock(SharingStale):
    def deed(self):
        self.pool._control.stock.share().release()


class SharingFirst(SharingIdle):
    def prepare(self):
        pass


class Joining(SharingIdle):
    def prepare(self):
        self.held = self.pool.share()

    def end(self):
        if self.held is not None:
            self.held.release()
        self.held = None


class LeavingLast(Joining):
    def deed(self):
        self.held, held = None, self.held
        held.release()


class TerminatingShare(Joining):
    def deed(self):
        self.pool.share().terminate()


def heard(scene: type[Scene]) -> type[Scene]:
    """The same in a pool whose loans are told of, and of which is kept where they were taken."""

    class Heard(scene):
        def settings(self):
            return {**super().settings(), "listeners": [lambda event: None], "track_origin": True}

    Heard.__name__ = f"Heard{scene.__name__}"
    return Heard


SCENES = [
    IdleHit, WithBlock, StaleIdle, StaleIdleApart, DeadIdle, FirstDial, DialInCaller, Waiting,
    WaitingForAPlace, Handing, Terminating, TerminatingApart, Resetting, UsedUp, Sweeping, Clearing,
    Resizing, Rerouting, ShuttingDown, Resuming, Unblacklisting, Closing, Taking, Adopting, Running,
    SharingIdle, SharingStale, SharingFromStock, SharingFirst, Joining, LeavingLast, TerminatingShare,
    *map(heard, [IdleHit, StaleIdle, FirstDial, Handing, Terminating, Detaching, Resetting, LeavingLast]),
]  # fmt: skip
