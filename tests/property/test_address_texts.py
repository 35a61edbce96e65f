"""Whatever an endpoint or a route is made of, its text reads back to an equal one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from connpool.errors import ConfigError, RouteSyntaxError
from connpool.model.endpoint import Endpoint
from connpool.model.route import Group, Member, Route

few = settings(max_examples=150, deadline=None)

ports = st.integers(1, 65535)
words = st.sampled_from(["unix", "callable", "tcp", "tls", "Localhost", "127.0.0.1", "a.test.", "80"])
names = words | st.text(st.characters(codec="utf-8"), min_size=1)
zones = st.sampled_from(["", "%eth0", "%Wlan0.100", "%1"])
v6_hosts = st.builds(
    lambda address, zone: str(ipaddress.IPv6Address(address)) + zone, st.integers(0, 2**128 - 1), zones
)
# Also what no encoding of a file system would give: half characters, and bytes no text has.
odd_texts = st.text(st.characters(exclude_characters="\0"), min_size=1) | st.text(
    st.sampled_from("/a ,;&|()%25\udcff\udcc3\udca9é\n[]:#?\\"), min_size=1
)


@st.composite
def accepted(draw: st.DrawFn) -> Endpoint:
    """Draw any endpoint that its constructor accepts."""
    kind = draw(st.sampled_from(["name", "v6", "unix", "callable"]))
    try:
        if kind == "unix":
            return Endpoint.unix(draw(odd_texts))
        if kind == "callable":
            return Endpoint.callable(draw(odd_texts))
        return Endpoint(draw(names if kind == "name" else v6_hosts), draw(ports), draw(st.booleans()))
    except ConfigError:
        assume(False)
        raise


endpoints = accepted()
members = st.builds(Member, st.lists(endpoints, min_size=1, max_size=3).map(tuple))
groups = st.builds(Group, st.lists(members, min_size=1, max_size=3).map(tuple))
routes = st.builds(Route, st.lists(groups, min_size=1, max_size=3).map(tuple))


@few
@given(endpoints)
@example(Endpoint("unix", 80))
@example(Endpoint("callable", 80, tls=True))
@example(Endpoint.unix("\udcc3\udca9"))
def test_the_text_of_any_endpoint_reads_back_to_an_equal_one(endpoint):
    back = Endpoint.parse(str(endpoint))
    assert back == endpoint
    assert hash(back) == hash(endpoint)
    assert str(back) == str(endpoint)


@few
@given(endpoints)
def test_the_text_of_any_endpoint_is_one_word_of_a_route(endpoint):
    text = str(endpoint)
    assert Route.parse(f"{text} || x:1").groups[0] == Group((Member((endpoint,)),))


@few
@given(routes)
def test_the_text_of_any_route_reads_back_to_an_equal_one(route):
    back = Route.parse(str(route))
    assert back == route
    assert str(back) == str(route)


@few
@given(routes)
def test_no_group_holds_an_endpoint_twice(route):
    for group in route.groups:
        assert len(set(group.endpoints)) == len(group.endpoints)
    assert len(set(route.endpoints)) == len(route.endpoints)


scraps = st.lists(
    st.sampled_from(["a", "b:1", ":80", "[::1]", "[", "]", "%", "unix:/x", "tls://", "/", "\0"])
    | st.sampled_from([" ", ",", "&&", "||", "&", "|", "(", ")", ";"])
)


@few
@given(st.text() | scraps.map("".join))
def test_a_text_that_is_no_route_is_wrong_at_a_column_inside_it(text):
    try:
        route = Route.parse(text)
    except RouteSyntaxError as error:
        column = error.column
    else:
        assert Route.parse(str(route)) == route
        assert route.text == text
        return
    assert 1 <= column <= len(text) + 1


@few
@given(st.text() | scraps.map("".join))
def test_what_reads_as_one_endpoint_reads_as_a_route_of_it_and_the_other_way_round(text):
    try:
        endpoint = Endpoint.parse(text, 80)
    except RouteSyntaxError:
        try:
            route = Route.parse(text, 80)
        except RouteSyntaxError:
            return
        assert len(route.endpoints) > 1 or any(operator in text for operator in (",", "&&", "||"))
    else:
        assert Route.parse(text, 80) == Route.of(endpoint)


@given(st.integers() | st.floats() | st.booleans() | st.text())
@settings(max_examples=60, deadline=None)
def test_no_port_but_a_whole_number_in_range_is_taken(port):
    if isinstance(port, int) and not isinstance(port, bool) and 1 <= port <= 65535:
        assert Endpoint("a", port).port == port
    else:
        with pytest.raises(ConfigError):
            Endpoint("a", port)
