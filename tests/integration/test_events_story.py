"""One scripted story; what is told of it is compared word by word."""

from __future__ import annotations

import pytest

from connpool import CloseReason, ConnectionPool, NoEndpointError, PoolExhaustedError
from connpool.testing import ScriptedServer
from tests.stress.stage import Ears, check_lives, make_stage, plain  # noqa: F401 - make_stage is a fixture
from tests.stress.works import A, B, Caller

OF_THE_POOL = (
    "PoolOpened PoolPaused PoolResumed PoolCleared PoolClosed EndpointDown EndpointUp GroupSwitched".split()
)
OF_CONNECTIONS = (
    "ConnectionOpening ConnectionOpened ConnectionClosed CheckoutStarted CheckedOut CheckoutFailed CheckedIn"
).split()


def settled_order(story):
    """Put the end of each failed dial behind its beginning.

    It is told by the thread that dialled, while another may go on already.
    """
    opened = {event[1] for event in story if event[0] == "ConnectionOpened"}
    failed = {event[1]: event for event in story if event[0] == "ConnectionClosed" and event[1] not in opened}
    order = []
    for event in story:
        if event not in failed.values():
            order.append(event)
        if event[0] == "ConnectionOpening" and event[1] in failed:
            order.append(failed[event[1]])
    return order


@pytest.mark.parametrize("in_caller", [False, True], ids=["apart", "in_caller"])
def test_a_story_is_told_as_it_happened(stage, in_caller):
    s = stage("a:1 || b:1", max_size=1, blacklist_initial=60, dial_in_caller=in_caller)
    s.dial_time = 0.5

    def settled(n):  # a thread of the pool may still be telling
        s.ears.until("ConnectionClosed", n)

    first = s.pool.try_connect()  # opened
    with pytest.raises(PoolExhaustedError):
        s.pool.try_connect(timeout=0)
    waiter = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    s.clock.advance(2)
    first.release()  # handed over
    waiter.loan().release()
    with s.pool.try_connect():  # reused
        s.pool.clear()
    settled(1)  # stale
    s.down.add(A)
    s.pool.try_connect().release()  # failover
    s.ears.until("GroupSwitched")
    s.down.add(B)
    with pytest.raises(ZeroDivisionError), s.pool.try_connect(B):
        raise ZeroDivisionError
    settled(3)
    with pytest.raises(NoEndpointError):
        s.pool.try_connect()
    settled(4)
    s.ears.until("GroupSwitched", 2)
    s.down.clear()
    s.clock.advance(100)
    s.pool.try_connect().release()  # fail-back
    s.ears.until("GroupSwitched", 3)
    s.pool.pause()
    s.pool.resume()
    s.pool.close()
    settled(5)

    down_a, down_b = s.ears.of("EndpointDown")
    assert "a:1 is down" in str(down_a.error)
    assert "b:1 is down" in str(down_b.error)
    up = s.ears.only("EndpointUp")
    assert up.seconds == up.at - down_a.at
    assert settled_order(s.story(*OF_CONNECTIONS)) == [
        ("CheckoutStarted",),
        ("ConnectionOpening", 1, "a:1"),
        ("ConnectionOpened", 1, "a:1", 0.5),
        ("CheckedOut", 1, "a:1", 0.5),
        ("CheckoutStarted",),
        ("CheckoutFailed", "EXHAUSTED", 0.0, "PoolExhaustedError"),
        ("CheckoutStarted",),
        ("CheckedIn", 1, 2.0),
        ("CheckedOut", 1, "a:1", 2.0),
        ("CheckedIn", 1, 0.0),
        ("CheckoutStarted",),
        ("CheckedOut", 1, "a:1", 0.0),
        ("CheckedIn", 1, 0.0),
        ("ConnectionClosed", 1, "a:1", "STALE"),
        ("CheckoutStarted",),
        ("ConnectionOpening", 2, "a:1"),
        ("ConnectionClosed", 2, "a:1", "BROKEN"),
        ("ConnectionOpening", 3, "b:1"),
        ("ConnectionOpened", 3, "b:1", 0.5),
        ("CheckedOut", 3, "b:1", 1.0),
        ("CheckedIn", 3, 0.0),
        ("CheckoutStarted",),
        ("CheckedOut", 3, "b:1", 0.0),
        ("CheckedIn", 3, 0.0),
        ("ConnectionClosed", 3, "b:1", "TERMINATED"),
        ("CheckoutStarted",),
        ("ConnectionOpening", 4, "b:1"),
        ("ConnectionClosed", 4, "b:1", "BROKEN"),
        ("CheckoutFailed", "CONNECT", 0.5, "NoEndpointError"),
        ("CheckoutStarted",),
        ("ConnectionOpening", 5, "a:1"),
        ("ConnectionOpened", 5, "a:1", 0.5),
        ("CheckedOut", 5, "a:1", 0.5),
        ("CheckedIn", 5, 0.0),
        ("ConnectionClosed", 5, "a:1", "POOL_CLOSED"),
    ]
    assert s.story(*OF_THE_POOL)[1:] == [
        ("PoolCleared", None, False),
        ("EndpointDown", "a:1", type(down_a.error).__name__, down_a.until),
        ("GroupSwitched", 0, 1),
        ("EndpointDown", "b:1", type(down_b.error).__name__, down_b.until),
        ("GroupSwitched", 1, None),
        ("EndpointUp", "a:1", up.seconds),
        ("GroupSwitched", None, 0),
        ("PoolPaused",),
        ("PoolResumed",),
        ("PoolClosed",),
    ]


def test_a_story_with_real_servers_is_told_as_it_happened():
    ears = Ears()
    settings = {"max_size": 1, "look_after_idle": 0, "reap_interval": None, "blacklist_initial": 60}
    with ScriptedServer() as one, ScriptedServer() as other:
        pool = ConnectionPool(f"{one.endpoint} || {other.endpoint}", listeners=[ears], **settings)
        names = {str(one.endpoint): "one", str(other.endpoint): "other"}
        with pool:
            with pool.try_connect() as conn:
                conn.sendall(b"x", timeout=5)
                assert conn.recv_exactly(1, timeout=5) == b"x"
            pool.try_connect().release()
            one.stop()
            pool.try_connect().release()
            ears.until("GroupSwitched")
            pool.clear()
            ears.until("ConnectionClosed", 3)
            one.start()
            pool.unblacklist(one.endpoint)
            pool.try_connect().release()
        one.until_open(0)
        other.until_open(0)

    def told(event):
        name, *values = event
        words = {**names, **{reason: reason for reason in CloseReason.__members__}}
        return (name, *(words[value] for value in values if isinstance(value, str) and value in words))

    story = settled_order([plain(event) for event in ears.of(*OF_CONNECTIONS)])
    assert [told(event) for event in story] == [
        ("CheckoutStarted",),
        ("ConnectionOpening", "one"),
        ("ConnectionOpened", "one"),
        ("CheckedOut", "one"),
        ("CheckedIn",),
        ("CheckoutStarted",),
        ("CheckedOut", "one"),
        ("CheckedIn",),
        ("CheckoutStarted",),
        ("ConnectionClosed", "one", "BROKEN"),
        ("ConnectionOpening", "one"),
        ("ConnectionClosed", "one", "BROKEN"),
        ("ConnectionOpening", "other"),
        ("ConnectionOpened", "other"),
        ("CheckedOut", "other"),
        ("CheckedIn",),
        ("ConnectionClosed", "other", "STALE"),
        ("CheckoutStarted",),
        ("ConnectionOpening", "one"),
        ("ConnectionOpened", "one"),
        ("CheckedOut", "one"),
        ("CheckedIn",),
        ("ConnectionClosed", "one", "POOL_CLOSED"),
    ]
    assert [told(plain(event)) for event in ears.of(*OF_THE_POOL)] == [
        ("PoolOpened",),
        ("EndpointDown", "one"),
        ("GroupSwitched",),
        ("PoolCleared",),
        ("EndpointUp", "one"),
        ("GroupSwitched",),
        ("PoolClosed",),
    ]
    check_lives(ears.heard)
    assert (one.accepts, other.accepts) == (2, 1)
