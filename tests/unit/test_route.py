"""Routes: the three operators, what counts once, and where a text is wrong."""

from __future__ import annotations

import pytest

from connpool.errors import ConfigError, RouteSyntaxError
from connpool.model.endpoint import Endpoint
from connpool.model.route import Group, Member, Route

A, B, C, D = (Endpoint(host, 1) for host in "abcd")


def shape(route: Route) -> list[list[list[str]]]:
    """Give the hosts of a route as lists: groups of members of endpoints."""
    return [[[e.host for e in member.endpoints] for member in group.members] for group in route.groups]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:1", [[["a"]]]),
        ("a:1,b:1", [[["a", "b"]]]),
        ("a:1&&b:1", [[["a"], ["b"]]]),
        ("a:1||b:1", [[["a"]], [["b"]]]),
        ("a:1, b:1 && c:1 || d:1", [[["a", "b"], ["c"]], [["d"]]]),
        ("a:1 || b:1 && c:1, d:1", [[["a"]], [["b"], ["c", "d"]]]),
        ("a:1 && b:1 || c:1 && d:1", [[["a"], ["b"]], [["c"], ["d"]]]),
        ("a:1,b:1,c:1&&d:1", [[["a", "b", "c"], ["d"]]]),
        ("  a:1\n  && b:1\n\t|| c:1  ", [[["a"], ["b"]], [["c"]]]),
    ],
)
def test_the_comma_binds_tightest_then_and_then_else(text, expected):
    route = Route.parse(text)
    assert shape(route) == expected
    assert route.text == text
    assert Route.parse(str(route)) == route


@pytest.mark.parametrize("text", ["a:1,b:1&&c:1||d:1", " a:1 ,b:1&& c:1\n||  d:1 "])
def test_spaces_make_no_difference(text):
    route = Route.parse(text)
    assert route == Route.parse("a:1, b:1 && c:1 || d:1")
    assert hash(route) == hash(Route.parse("a:1, b:1 && c:1 || d:1"))
    assert str(route) == "a:1, b:1 && c:1 || d:1"
    assert eval(repr(route), {"Route": Route}) == route


def test_endpoints_of_every_kind_can_stand_in_a_route():
    text = "a, b:81, [::1] && tls://c:443 || unix:/tmp/x%20y && callable:f"
    route = Route.parse(text, default_port=80)
    assert route.endpoints == (
        Endpoint("a", 80),
        Endpoint("b", 81),
        Endpoint("::1", 80),
        Endpoint("c", 443, tls=True),
        Endpoint.unix("/tmp/x y"),
        Endpoint.callable("f"),
    )
    assert Route.parse(str(route)) == route


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:1 && a:1", [[["a"]]]),
        ("a:1, A:1, b:1, a:1", [[["a", "b"]]]),
        ("a:1, b:1 && a:1", [[["a", "b"]]]),
        ("a:1, b:1 && b:1, c:1", [[["a", "b"], ["c"]]]),
        ("a:1 && tls://a:1", [[["a"], ["a"]]]),
        ("a:1 || a:1 && b:1", [[["a"]], [["a"], ["b"]]]),
    ],
)
def test_an_endpoint_repeated_in_a_group_counts_once_where_it_stands_first(text, expected):
    route = Route.parse(text)
    assert shape(route) == expected
    assert Route.parse(str(route)) == route
    assert route.text == text


def test_a_group_is_its_members_and_a_member_is_its_endpoints():
    first, second = Route.parse("a:1, b:1 && c:1 || d:1").groups
    assert [list(member) for member in first] == [[A, B], [C]]
    assert (len(first), [len(member) for member in first], len(second)) == (2, [2, 1], 1)


def test_the_flat_lists_keep_the_order_and_hold_each_endpoint_once():
    route = Route.parse("c:1, a:1 && b:1 || a:1 && d:1")
    assert [group.endpoints for group in route.groups] == [(C, A, B), (A, D)]
    assert route.endpoints == (C, A, B, D)


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        ("", 1, "missing in an empty route"),
        ("  ", 3, "missing in an empty route"),
        ("|| a:1", 1, r"missing before '\|\|'"),
        ("&& a:1", 1, "missing before '&&'"),
        (", a:1", 1, "missing before ','"),
        ("a:1 ||", 7, r"missing after '\|\|'"),
        ("a:1 && ", 8, "missing after '&&'"),
        ("a:1,", 5, "missing after ','"),
        ("a:1 || || b:1", 8, r"missing before '\|\|'"),
        ("a:1 && , b:1", 8, "missing before ','"),
        ("a:1,,b:1", 5, "missing before ','"),
        ("a:1 b:1", 5, "an operator .* is missing"),
        ("a:1 & b:1", 5, "'&' stands alone"),
        ("a:1 | b:1", 5, r"'\|' stands alone"),
        ("a:1 &&& b:1", 7, "'&' stands alone"),
        ("a:1 ||| b:1", 7, r"'\|' stands alone"),
        ("a:1; b:1", 4, "';' joins nothing"),
        ("(a:1 || b:1) && c:1", 1, "no parentheses"),
        ("a:1 && b:1)", 11, "no parentheses"),
        ("a:1 && b:x", 10, "'x' is not a port"),
        ("a:1 && b", 9, "'b' has no port"),
        ("a:1, ::1:80", 6, "brackets"),
        ("a:1 && b/c:1", 9, "'/' cannot be part"),
        ("a:1 || http://b:1", 8, "unknown scheme 'http'"),
        ("a:1 || [::1", 8, "never closed"),
        ("a:1 || unix:", 13, "not empty"),
        ("a:1 || b\x00:1", 9, r"'\\x00' cannot be part"),
    ],
)
def test_a_text_that_is_no_route_is_an_error_with_its_column(text, column, sentence):
    with pytest.raises(RouteSyntaxError, match=sentence) as caught:
        Route.parse(text)
    assert caught.value.column == column
    before, mark, after = str(caught.value).rpartition("-->")
    assert mark
    assert before.endswith(text[: column - 1].lstrip("\n")[-5:])
    assert after[:-1] == repr(text[column - 1 :])[1:-1]


@pytest.mark.parametrize("port", [0, 65536, True, "80"])
def test_a_default_port_out_of_range_is_refused(port):
    with pytest.raises(ConfigError, match="port"):
        Route.parse("a", default_port=port)


def test_of_makes_one_list_any_one_of_which_will_do():
    route = Route.of(A, "b:1", A)
    assert shape(route) == [[["a", "b"]]]
    assert route.text == str(route) == "a:1, b:1"
    assert route == Route.parse("a:1,b:1")


@pytest.mark.parametrize(
    "value",
    ["a:1, b:1", Route.of(A, B), [A, B], (A, "b:1"), iter(["a:1", "b:1"])],
    ids=lambda v: type(v).__name__,
)
def test_coerce_takes_whatever_spells_a_route(value):
    assert Route.coerce(value) == Route.of(A, B)


def test_coerce_takes_a_single_endpoint_and_leaves_a_route_as_it_is():
    route = Route.parse("a:1")
    assert Route.coerce(A) == route
    assert Route.coerce(route) is route


@pytest.mark.parametrize("value", [None, 7, [], [7], b"a:1"])
def test_coerce_refuses_what_spells_none(value):
    with pytest.raises(ConfigError):
        Route.coerce(value)


@pytest.mark.parametrize("groups", [(), (Group(()),), (Group((Member(()),)),)])
def test_a_route_leads_somewhere(groups):
    with pytest.raises(ConfigError, match="at least one endpoint"):
        Route(groups)


@pytest.mark.parametrize("value", [None, 7, b"a:1", ["a:1"]])
def test_what_is_no_text_cannot_be_parsed(value):
    with pytest.raises(ConfigError, match="must be a text"):
        Route.parse(value)
