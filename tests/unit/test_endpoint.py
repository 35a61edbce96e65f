"""Endpoints: what they accept, how they read and write themselves, what makes two equal."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from connpool.errors import ConfigError, RouteSyntaxError
from connpool.model.endpoint import Endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.test:80", Endpoint("a.test", 80)),
        ("  a.test:80\t", Endpoint("a.test", 80)),
        ("A.Test:080", Endpoint("a.test", 80)),
        ("under_score-1:1", Endpoint("under_score-1", 1)),
        ("bücher.test:65535", Endpoint("bücher.test", 65535)),
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("[::1]:80", Endpoint("::1", 80)),
        ("[FE80::1%Eth0]:80", Endpoint("fe80::1%Eth0", 80)),
        ("[::ffff:1.2.3.4]:80", Endpoint("::ffff:1.2.3.4", 80)),
        ("tcp://a.test:80", Endpoint("a.test", 80)),
        ("tls://a.test:443", Endpoint("a.test", 443, tls=True)),
        ("TLS://[::1]:443", Endpoint("::1", 443, True)),
        ("tcp://unix:80", Endpoint("unix", 80)),
        ("tls://callable:80", Endpoint("callable", 80, tls=True)),
        ("tcp:80", Endpoint("tcp", 80)),
        ("unix:/run/a.sock", Endpoint.unix("/run/a.sock")),
        ("unix:a.sock", Endpoint.unix("a.sock")),
        ("unix:80", Endpoint.unix("80")),
        ("Unix:/Run/A", Endpoint.unix("/Run/A")),
        ("unix:/a%20%2C%25b", Endpoint.unix("/a ,%b")),
        ("unix:/é", Endpoint.unix("/é")),
        ("unix:/%C3%A9", Endpoint.unix("/é")),
        ("unix:/%ff", Endpoint.unix("/\udcff")),
        ("callable:connect", Endpoint.callable("connect")),
    ],
)
def test_every_written_form_is_read(text, expected):
    assert Endpoint.parse(text) == expected


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint("A.test", 80), "a.test:80"),
        (Endpoint("a.test", 443, tls=True), "tls://a.test:443"),
        (Endpoint("::1", 80), "[::1]:80"),
        (Endpoint("::1", 80, tls=True), "tls://[::1]:80"),
        (Endpoint("unix", 80), "tcp://unix:80"),
        (Endpoint("callable", 80), "tcp://callable:80"),
        (Endpoint("callable", 80, tls=True), "tls://callable:80"),
        (Endpoint.unix("/a b,c;d&e|f(g)h%i"), "unix:/a%20b%2Cc%3Bd%26e%7Cf%28g%29h%25i"),
        (Endpoint.unix("/\udcff"), "unix:/%FF"),
        (Endpoint.callable("<lambda>"), "callable:<lambda>"),
        (Endpoint.callable("pkg.open db"), "callable:pkg.open%20db"),
    ],
)
def test_the_text_of_an_endpoint_reads_back_to_an_equal_one(endpoint, text):
    assert str(endpoint) == text
    assert Endpoint.parse(text) == endpoint
    assert eval(repr(endpoint), {"Endpoint": Endpoint}) == endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.test", Endpoint("a.test", 7)),
        ("[::1]", Endpoint("::1", 7)),
        ("tls://a.test", Endpoint("a.test", 7, tls=True)),
        ("a.test:80", Endpoint("a.test", 80)),
        ("unix:/a", Endpoint.unix("/a")),
    ],
)
def test_the_default_port_fills_in_only_where_none_is_written(text, expected):
    assert Endpoint.parse(text, 7) == expected


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        ("", 1, "an endpoint is missing"),
        ("   ", 1, "an endpoint is missing"),
        ("a.test", 7, "'a.test' has no port"),
        ("[::1]", 6, "has no port"),
        ("a.test:", 8, "'' is not a port"),
        ("a.test:0", 8, "'0' is not a port"),
        ("a.test:65536", 8, "'65536' is not a port"),
        ("a.test:http", 8, "'http' is not a port"),
        ("a.test:+80", 8, r"'\+80' is not a port"),
        ("a.test:8_0", 8, "'8_0' is not a port"),
        ("a.test:\u0668\u0660", 8, "is not a port"),
        ("a.test:" + "9" * 5000, 8, "is not a port"),
        (" a:x", 4, "'x' is not a port"),
        ("::1:80", 1, "brackets"),
        ("a.test:80:81", 1, "brackets"),
        (":80", 1, "the host is empty"),
        ("tls://", 7, "the host is empty"),
        ("[::1", 1, "never closed"),
        ("[::1]80", 6, "only ':port' may follow"),
        ("[a.test]:80", 1, "brackets are for IPv6"),
        ("[]:80", 1, "brackets are for IPv6"),
        ("[::g]:80", 2, "not an IPv6 address"),
        ("http://a.test:80", 1, "unknown scheme 'http'"),
        ("a.test:80 b.test:81", 10, "' ' cannot be part of one endpoint"),
        ("a b:80", 2, "' ' cannot be part of one endpoint"),
        ("a:80,b:80", 5, "',' cannot be part of one endpoint"),
        ("a:80&&b:80", 5, "'&' cannot be part of one endpoint"),
        ("a:80||b:80", 5, r"'\|' cannot be part of one endpoint"),
        ("(a:80)", 1, r"'\(' cannot be part of one endpoint"),
        ("a;b:80", 2, "';' cannot be part of one endpoint"),
        ("a/b:80", 2, "'/' cannot be part"),
        ("user@a.test:80", 5, "'@' cannot be part"),
        ("a\x07b:80", 2, r"'\\x07' cannot be part"),
        ("a\x00b:80", 2, r"'\\x00' cannot be part"),
        ("a%eth0:80", 2, "can only follow an IPv6"),
        ("unix:", 6, "path must be a text that is not empty"),
        ("unix:/a b", 8, "' ' cannot be part .* percent-encoded"),
        ("unix:/a\nb", 8, r"'\\n' cannot be part .* percent-encoded"),
        ("unix:/a\x07b", 8, r"'\\x07' must be percent-encoded"),
        ("unix:/\ud800", 7, "must be percent-encoded"),
        ("unix:/a;b", 8, "';' cannot be part .* percent-encoded"),
        ("unix:/100%", 10, "two hexadecimal digits"),
        ("unix:/%zz", 7, "two hexadecimal digits"),
        ("unix:/%00", 6, "NUL"),
        ("callable:", 10, "opener must be a text that is not empty"),
    ],
)
def test_a_text_that_is_no_endpoint_is_an_error_with_its_column(text, column, sentence):
    with pytest.raises(RouteSyntaxError, match=sentence) as caught:
        Endpoint.parse(text)
    assert caught.value.column == column
    assert f"column {column}" in str(caught.value)


def test_the_message_marks_the_place_and_stays_short_however_long_the_text():
    text = "x" * 10_000 + ":port"
    with pytest.raises(RouteSyntaxError, match="xxx:-->port") as caught:
        Endpoint.parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("port", [0, -1, 65536, True, 80.0, "80", None])
def test_a_port_out_of_range_is_refused_and_named(port):
    with pytest.raises(ConfigError, match="port") as caught:
        Endpoint("a.test", port)
    assert repr(port) in str(caught.value)
    if port is not None:
        with pytest.raises(ConfigError, match="port"):
            Endpoint.parse("a.test:80", default_port=port)  # though it is not needed


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "a,b", "a&b", "a|b", "(a)", "a/b", "a;b", "a\n", "a\x7f", "[::1]", "a:b", None, 7],
)
def test_a_host_that_could_not_be_written_is_refused_and_named(host):
    with pytest.raises(ConfigError, match="host") as caught:
        Endpoint(host, 80)
    assert type(caught.value) is ConfigError
    assert not host or repr(host) in str(caught.value)


@pytest.mark.parametrize("path", ["", "/a\0b", None, 7, b"/a", "/\ud800"])
def test_a_path_that_no_file_can_have_is_refused(path):
    with pytest.raises(ConfigError):
        Endpoint.unix(path)


def test_the_flag_for_tls_is_a_bool_and_nothing_like_one():
    with pytest.raises(ConfigError, match="tls must be True or False, got 1"):
        Endpoint("a.test", 80, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"host": "a.test", "port": 80, "path": "/a"},
        {"host": "", "port": 80, "path": "/a"},
        {"host": "", "port": 0, "tls": True, "path": "/a"},
        {"host": "a.test", "port": 80, "opener": "f"},
        {"host": "", "port": 0, "path": "/a", "opener": "f"},
    ],
)
def test_an_endpoint_is_of_one_kind_only(arguments):
    with pytest.raises(ConfigError):
        Endpoint(**arguments)


@pytest.mark.parametrize("value", [None, 7, b"a:1", ["a:1"]])
def test_what_is_no_text_cannot_be_parsed(value):
    with pytest.raises(ConfigError, match="must be a text"):
        Endpoint.parse(value)


def test_a_path_object_serves_as_well_as_its_text():
    assert Endpoint.unix(Path("/run/a.sock")) == Endpoint.unix("/run/a.sock")


def test_an_undecodable_path_comes_back_as_the_same_bytes():
    path = os.fsdecode(b"/tmp/\xff\xc3\xa9")
    endpoint = Endpoint.parse(str(Endpoint.unix(path)))
    assert os.fsencode(endpoint.path) == b"/tmp/\xff\xc3\xa9"


def test_a_host_is_compared_without_case_but_the_zone_with():
    assert Endpoint("A.TEST", 80) == Endpoint("a.test", 80)
    assert Endpoint("FE80::1%eth0", 80) == Endpoint("fe80::1%eth0", 80)
    assert Endpoint("fe80::1%eth0", 80) != Endpoint("fe80::1%ETH0", 80)


def test_name_port_tls_path_and_callable_all_tell_endpoints_apart():
    several = [
        Endpoint("localhost", 80),
        Endpoint("127.0.0.1", 80),  # the same machine, and yet another name
        Endpoint("localhost", 81),
        Endpoint("localhost", 80, tls=True),
        Endpoint.unix("/a"),
        Endpoint.unix("/b"),
        Endpoint.callable("/a"),
    ]
    assert len(set(several)) == len(several)


def test_an_endpoint_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Endpoint("a.test", 80).port = 81


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("a:1", "tcp"), ("tls://a:1", "tls"), ("unix:/a", "unix"), ("callable:f", "callable")],
)
def test_the_scheme_tells_the_kind(text, scheme):
    assert Endpoint.parse(text).scheme == scheme


def test_of_takes_an_endpoint_or_its_text():
    endpoint = Endpoint("a.test", 80)
    assert Endpoint.of(endpoint) is endpoint
    assert Endpoint.of("a.test:80") == endpoint
    with pytest.raises(ConfigError, match="must be a text or an Endpoint, got 80"):
        Endpoint.of(80)


def test_a_pickled_endpoint_is_found_in_another_process_where_texts_hash_differently():
    endpoint = Endpoint("a.test", 80)
    hash(endpoint)  # which keeps it; it must not travel along
    code = (
        "import pickle, sys; from connpool.model.endpoint import Endpoint;"
        "sys.exit(pickle.load(sys.stdin.buffer) not in {Endpoint('a.test', 80)})"
    )
    path = os.pathsep.join(filter(None, sys.path))
    for seed in "1", "2":
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", code], input=pickle.dumps(endpoint), env=env, check=True)


def test_a_copy_is_equal_and_hashes_alike():
    endpoint = Endpoint("a.test", 80, tls=True)
    twin = copy.deepcopy(endpoint)
    assert twin == endpoint
    assert hash(twin) == hash(endpoint)
