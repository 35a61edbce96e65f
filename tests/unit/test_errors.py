"""The exception tree: who is whose kind, and what survives copying."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from connpool import errors
from connpool.errors import ConnectError, ConnPoolError, NoEndpointError, RouteSyntaxError, UnknownPoolError
from connpool.model.endpoint import Endpoint

BASES = {
    "ConnPoolError": (Exception,),
    "ConfigError": (errors.ConnPoolError, ValueError),
    "RouteSyntaxError": (errors.ConfigError,),
    "UsageError": (errors.ConnPoolError, RuntimeError),
    "UnknownEndpointError": (errors.UsageError, LookupError),
    "NotSharableError": (errors.UsageError,),
    "PoolClosedError": (errors.ConnPoolError,),
    "PoolPausedError": (errors.ConnPoolError,),
    "PoolExhaustedError": (errors.ConnPoolError,),
    "CheckoutTimeoutError": (errors.ConnPoolError, TimeoutError),
    "CancelledError": (errors.ConnPoolError,),
    "ConnectError": (errors.ConnPoolError, ConnectionError),
    "ConnectTimeoutError": (errors.ConnectError, TimeoutError),
    "HandshakeError": (errors.ConnectError,),
    "PermissionDeniedError": (errors.ConnectError,),
    "NoEndpointError": (errors.ConnPoolError, ConnectionError),
    "FramingError": (errors.ConnPoolError, ValueError),
    "SpoolError": (errors.ConnPoolError,),
    "SpoolFullError": (errors.SpoolError,),
    "SpoolCorruptError": (errors.SpoolError,),
    "CallError": (errors.ConnPoolError,),
    "NoResourceError": (errors.CallError, LookupError),
    "MethodNotSupportedError": (errors.CallError,),
    "FilteredOutError": (errors.CallError,),
    "ChannelClosedError": (errors.CallError,),
    "CallTimeoutError": (errors.CallError, TimeoutError),
    "UnknownChannelError": (errors.CallError, KeyError),
    "RepositoryError": (errors.ConnPoolError,),
    "UnknownPoolError": (errors.RepositoryError, KeyError),
    "DuplicatePoolError": (errors.RepositoryError, ValueError),
}
CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
SAMPLES: dict[str, object] = {
    "pool": "orders",
    "column": 7,
    "endpoint": Endpoint("a.test", 80),
    "local": True,
    "causes": ((Endpoint("a.test", 80), ConnectError("refused")),),
    "retry_at": 12.5,
}


def make(kind: type[ConnPoolError]) -> ConnPoolError:
    """Give an error with every attribute set to something other than its default."""
    keywords = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return kind("pool 'orders': no", **{name: SAMPLES[name] for name in keywords})


def described(error: ConnPoolError) -> dict[str, object]:
    return {name: str(value) for name, value in vars(error).items()} | {"message": str(error)}


def test_the_tree_is_exactly_the_documented_one():
    assert {name: kind.__bases__ for name, kind in CLASSES.items()} == BASES


@pytest.mark.parametrize("name", BASES)
def test_every_error_names_the_pool_and_takes_nothing_but_its_message_by_position(name):
    error = make(CLASSES[name])
    assert vars(error) == {attribute: SAMPLES[attribute] for attribute in vars(error)}
    assert error.pool == "orders"
    assert error.args == ("pool 'orders': no",)
    with pytest.raises(TypeError):
        CLASSES[name]("message", "orders")


@pytest.mark.parametrize("name", BASES)
def test_every_error_says_its_message_and_nothing_else(name):
    assert str(make(CLASSES[name])) == "pool 'orders': no"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("name", BASES)
def test_every_error_survives_copying_and_pickling_with_its_attributes(name, clone):
    error = make(CLASSES[name])
    twin = clone(error)
    assert type(twin) is type(error)
    assert twin is not error
    assert described(twin) == described(error)


@pytest.mark.parametrize("name", BASES)
def test_every_attribute_has_a_default(name):
    assert CLASSES[name]("message").pool is None


def test_a_syntax_error_knows_its_column():
    assert RouteSyntaxError("bad", column=4).column == 4
    assert RouteSyntaxError("bad").column == 1


def test_a_connect_error_blames_its_endpoint_unless_told_otherwise():
    endpoint = Endpoint("a.test", 80)
    error = ConnectError("refused", endpoint=endpoint)
    assert (error.endpoint, error.local) == (endpoint, False)


def test_no_endpoint_error_lists_causes_and_when_to_come_back():
    cause = (Endpoint("a.test", 80), ConnectError("refused"))
    error = NoEndpointError("all down", causes=(cause,), retry_at=3.0)
    assert (error.causes, error.retry_at) == ((cause,), 3.0)
    assert NoEndpointError("all down").causes == ()


def test_an_unknown_pool_is_reported_in_plain_words_though_it_is_a_key_error():
    assert str(UnknownPoolError("no pool named 'a'")) == "no pool named 'a'"
