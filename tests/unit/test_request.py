"""Requests: what may be asked, and what is no request."""

from __future__ import annotations

import math
import threading

import attrs
import pytest

from connpool.errors import ConfigError, RouteSyntaxError
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request


def test_the_default_asks_for_any_connection_exclusively():
    assert attrs.asdict(Request()) == {
        "endpoint": None,
        "shared": False,
        "timeout": None,
        "where": None,
        "cancel": None,
    }


def test_an_endpoint_may_be_given_as_text():
    assert Request("tls://a:1").endpoint == Endpoint("a", 1, tls=True)
    with pytest.raises(RouteSyntaxError):
        Request("a")


@pytest.mark.parametrize("timeout", [None, 0, 0.0, 0.5, 30])
def test_a_timeout_may_be_nothing_zero_or_any_number_of_seconds(timeout):
    assert Request(timeout=timeout).timeout == timeout


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", 80),
        ("shared", 1),
        ("shared", None),
        ("timeout", -0.001),
        ("timeout", math.nan),
        ("timeout", math.inf),
        ("timeout", True),
        ("timeout", "5"),
        ("timeout", threading.TIMEOUT_MAX * 2),
        ("where", "idle"),
        ("cancel", True),
        ("cancel", object()),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(field, value):
    with pytest.raises(ConfigError) as caught:
        Request(**{field: value})
    assert repr(value) in str(caught.value)
    assert field == "endpoint" or field in str(caught.value)


def test_a_filter_and_a_cancel_flag_are_taken_as_they_are():
    event = threading.Event()
    request = Request(where=callable, cancel=event)
    assert request.where is callable
    assert request.cancel is event


def test_of_takes_nothing_an_endpoint_a_text_or_a_request():
    request = Request("a:1", timeout=1)
    assert Request.of(None) == Request()
    assert Request.of(request) is request
    assert Request.of("a:1") == Request.of(Endpoint("a", 1)) == Request("a:1")
    with pytest.raises(ConfigError):
        Request.of(80)


def test_a_request_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Request().shared = True
