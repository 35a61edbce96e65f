"""A text protocol over real servers: which channel is called, what is refused, looked at and changed."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from connpool import (
    CallPool,
    ChannelClosedError,
    ChannelInfo,
    ChannelState,
    ConnectionPool,
    FilteredOutError,
    MethodNotSupportedError,
    NoResourceError,
    UnknownChannelError,
    UsageError,
)
from connpool.testing import ScriptedServer
from tests.helpers.channels import RESOURCE, BadArgumentError, TextChannel, text_server
from tests.helpers.switchboard import until
from tests.helpers.together import together


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with text_server() as running:
        yield running


@pytest.fixture
def sockets(server: ScriptedServer) -> Iterator[ConnectionPool]:
    with ConnectionPool(server.endpoint, max_size=10) as made:
        yield made
        assert made.close(5) == 0


@pytest.fixture
def pool(sockets: ConnectionPool) -> Iterator[CallPool]:
    with CallPool("texts") as made:
        yield made


def test_a_known_method_of_a_known_resource_is_answered(pool, sockets):
    pool.init(TextChannel(sockets))
    assert pool.call(RESOURCE, "GET") == "0"
    assert pool.call(RESOURCE, "INC") == "1"
    assert pool.call(RESOURCE, "INC", 4, timeout=5) == "5"
    assert pool.call(RESOURCE, "GET", timeout=5) == "5"


def test_a_bad_argument_is_the_channels_own_error_and_leaves_it_as_it_was(pool, sockets, server):
    pool.init(TextChannel(sockets))
    with pytest.raises(BadArgumentError, match="badarg"):
        pool.call(RESOURCE, "INC", "many")
    assert pool.call(RESOURCE, "INC") == "1"
    assert server.accepts == 1


def test_a_stop_is_answered_and_then_there_is_no_such_resource(pool, sockets, server):
    id = pool.init(TextChannel(sockets))
    assert pool.call(RESOURCE, "STOP") == "ok"
    with pytest.raises(NoResourceError):
        pool.call(RESOURCE, "GET")
    assert pool.resources() == []
    assert pool.is_empty(RESOURCE)
    with pytest.raises(UnknownChannelError):
        pool.info(id)
    until(lambda: sockets.stats().size == 0, "the connection closed and its place free")


def test_the_three_refusals_come_in_their_order(pool, sockets):
    def nobody(info: ChannelInfo) -> bool:
        return False

    with pytest.raises(NoResourceError, match=f"pool {pool.name!r}: no channel offers {RESOURCE!r}"):
        pool.call(RESOURCE, "DEC", where=nobody)
    pool.init(TextChannel(sockets))
    with pytest.raises(NoResourceError, match="no channel offers 'another'"):
        pool.call("another", "DEC", where=nobody)
    with pytest.raises(MethodNotSupportedError, match=f"no channel of {RESOURCE!r} supports 'DEC'"):
        pool.call(RESOURCE, "DEC", where=nobody)
    with pytest.raises(FilteredOutError):
        pool.call(RESOURCE, "GET", where=nobody)
    with pytest.raises(BadArgumentError):
        pool.call(RESOURCE, "INC", "many", where=lambda info: True)


def test_a_refusal_is_a_lookup_error_where_nothing_was_found(pool):
    with pytest.raises(LookupError):
        pool.call(RESOURCE, "GET")
    with pytest.raises(KeyError, match="has no channel 17"):
        pool.info(17)


def test_a_filter_chooses_among_the_channels(pool, sockets, server):
    ids = [pool.init(TextChannel(sockets), extra=name) for name in "ab"]
    for _ in range(3):
        assert pool.call(RESOURCE, "INC", where=lambda info: info.extra == "b").isdigit()
    assert pool.info(ids[0]).stats == {}
    assert pool.info(ids[1]).stats["INC"].count == 3


def test_what_is_attached_comes_back_when_it_is_replaced(pool, sockets):
    id = pool.init(TextChannel(sockets), extra="old")
    assert pool.extra(id, "new") == "old"
    assert pool.info(id).extra == "new"
    with pytest.raises(UnknownChannelError):
        pool.extra(id + 1, "new")


def test_the_methods_are_asked_for_once_and_kept(pool, sockets):
    asked = []

    class Asking(TextChannel):
        def methods(self):
            asked.append(self.call("GET", None))
            return {"GET"}

    id = pool.init(Asking(sockets))
    assert pool.info(id).methods == {"GET"}
    with pytest.raises(MethodNotSupportedError):
        pool.call(RESOURCE, "INC")
    assert asked == ["0"]


def test_a_channel_is_taken_out_changed_and_put_back_under_another_id(pool, sockets, server):
    id = pool.init(TextChannel(sockets))
    pool.call(RESOURCE, "INC")
    info = pool.pop(id)
    assert (info.id, info.channel.resource, info.state) == (id, RESOURCE, ChannelState.IDLE)
    with pytest.raises(NoResourceError):
        pool.call(RESOURCE, "GET")
    with pytest.raises(UnknownChannelError):
        pool.pop(id)
    assert info.channel.call("GET", None) == "1"  # it is open, and its connection the same
    again = pool.put(attrs.evolve(info, ttl=50.0))
    assert again > id > 0
    assert pool.info(again).ttl == 50.0
    assert pool.call(RESOURCE, "GET") == "1"
    assert server.accepts == 1


def test_what_is_taken_out_by_a_filter_leaves_the_others(pool, sockets):
    ids = [pool.init(TextChannel(sockets), extra=n) for n in range(3)]
    popped = pool.pop(resource=RESOURCE, where=lambda info: info.extra != 1)
    assert [info.id for info in popped] == [ids[0], ids[2]]
    assert not pool.is_empty(RESOURCE)
    popped += pool.pop(resource=RESOURCE)
    assert popped[2].id == ids[1]
    assert pool.is_empty(RESOURCE)
    assert pool.pop(resource=RESOURCE) == []
    for info in popped:
        info.channel.close()


def test_every_channel_of_a_resource_can_be_mapped_and_updated(pool, sockets):
    for n in range(3):
        pool.init(TextChannel(sockets), extra=n)
    pool.init(TextChannel(sockets, "other"), extra=17)
    assert pool.map(RESOURCE, lambda info: info.extra) == [0, 1, 2]
    pool.update(RESOURCE, lambda info: attrs.evolve(info, extra=info.extra * 10))
    pool.update(RESOURCE, lambda info: attrs.evolve(info, extra="last"), where=lambda info: info.extra == 20)
    assert pool.map(RESOURCE, lambda info: info.extra) == [0, 10, "last"]
    assert pool.call(RESOURCE, "GET", where=lambda info: info.extra == "last") == "0"
    with pytest.raises(FilteredOutError):
        pool.call(RESOURCE, "GET", where=lambda info: info.extra == 2)
    pool.update("nowhere", lambda info: info)
    assert set(pool.resources()) == {RESOURCE, "other"}


def test_an_update_may_not_change_what_a_channel_is(pool, sockets):
    id = pool.init(TextChannel(sockets), extra=1)
    with pytest.raises(UsageError, match="cannot change id, resource"):
        pool.update(RESOURCE, lambda info: attrs.evolve(info, id=5, resource="x", extra=2))
    with pytest.raises(UsageError, match="needs a ChannelInfo"):
        pool.update(RESOURCE, lambda info: None)
    assert pool.info(id).extra == 1


def test_updates_at_once_lose_none_of_each_other(pool, sockets):
    id = pool.init(TextChannel(sockets), extra=0)

    def count() -> None:
        for _ in range(200):
            pool.update(RESOURCE, lambda info: attrs.evolve(info, extra=info.extra + 1))

    together(*[count] * 8)
    assert pool.info(id).extra == 1600


def test_a_methods_change_is_seen_by_the_next_call(pool, sockets):
    pool.init(TextChannel(sockets))
    pool.update(RESOURCE, lambda info: attrs.evolve(info, methods={"INC"}))
    with pytest.raises(MethodNotSupportedError):
        pool.call(RESOURCE, "GET")
    assert pool.call(RESOURCE, "INC") == "1"


def test_a_server_that_leaves_closes_the_channel_and_the_next_call_finds_none(pool, sockets, server):
    pool.init(TextChannel(sockets))
    pool.call(RESOURCE, "GET")
    server.kill()
    with pytest.raises(ChannelClosedError) as caught:
        pool.call(RESOURCE, "GET")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(NoResourceError):
        pool.call(RESOURCE, "GET")
    until(lambda: sockets.stats().size == 0)


def test_an_open_that_fails_raises_what_it_raises_and_adds_nothing(pool, sockets, server):
    server.stop()
    with pytest.raises(ConnectionError) as caught:
        pool.init(TextChannel(sockets))
    assert caught.value.__traceback__ is not None
    assert pool.resources() == []
