"""PoolConfig: every default, every limit, and names that do not exist."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import threading

import attrs
import pytest

from connpool.errors import ConfigError
from connpool.model.config import PoolConfig

DEFAULTS = {
    "max_size": 10,
    "max_per_endpoint": None,
    "min_idle": 0,
    "checkout_timeout": 30,
    "connect_timeout": 5,
    "max_waiters": None,
    "max_connecting": 2,
    "idle_timeout": 600,
    "max_lifetime": 3600,
    "lifetime_jitter": 0.1,
    "max_uses": None,
    "revive": False,
    "look_after_idle": 0.5,
    "keepalive_interval": None,
    "blacklist_initial": 1,
    "blacklist_max": 60,
    "reconnect": True,
    "fail_fast": True,
    "sharable": False,
    "max_sharers": None,
    "reap_interval": 1,
    "warn_after": None,
    "track_origin": False,
    "dial_in_caller": False,
    "required_permissions": frozenset(),
}
OR_NONE = {
    "max_per_endpoint",
    "checkout_timeout",
    "max_waiters",
    "idle_timeout",
    "max_lifetime",
    "max_uses",
    "look_after_idle",
    "keepalive_interval",
    "max_sharers",
    "reap_interval",
    "warn_after",
}
COUNTS = {
    "max_size",
    "max_per_endpoint",
    "min_idle",
    "max_waiters",
    "max_connecting",
    "max_uses",
    "max_sharers",
}
COUNTS_FROM_0 = {"min_idle", "max_waiters"}
SECONDS = {
    "checkout_timeout",
    "connect_timeout",
    "idle_timeout",
    "max_lifetime",
    "look_after_idle",
    "keepalive_interval",
    "blacklist_initial",
    "blacklist_max",
    "reap_interval",
    "warn_after",
}
SECONDS_FROM_0 = {"checkout_timeout", "look_after_idle", "blacklist_initial"}
FLAGS = {"reconnect", "fail_fast", "sharable", "track_origin", "dial_in_caller"}
FIELDS = tuple(field.name for field in attrs.fields(PoolConfig))


def refused(**settings: object) -> str:
    """Check that each setting is refused by name and value; return the sentence."""
    with pytest.raises(ConfigError) as caught:
        PoolConfig(**settings)
    for name, value in settings.items():
        assert name in str(caught.value)
        assert repr(value) in str(caught.value)
    return str(caught.value)


def test_the_fields_and_their_defaults_are_the_documented_ones():
    config = PoolConfig()
    assert {name: getattr(config, name) for name in FIELDS} == DEFAULTS


def test_every_field_is_documented():
    for name in FIELDS:
        assert f"\n    {name}:" in inspect.cleandoc(PoolConfig.__doc__)


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_taken_exactly_where_it_means_something(name):
    if name in OR_NONE:
        assert getattr(PoolConfig(**{name: None}), name) is None
    else:
        refused(**{name: None})


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_are_whole_numbers_from_their_least_on(name):
    least = 0 if name in COUNTS_FROM_0 else 1
    for value in least, least + 1:
        assert getattr(PoolConfig(**{name: value}), name) == value
    for value in least - 1, 2.0, math.inf, True, "2":
        refused(**{name: value})


@pytest.mark.parametrize("name", sorted(SECONDS))
def test_durations_are_positive_numbers_that_can_be_waited_for(name):
    for value in 2, 2.5:
        assert getattr(PoolConfig(**{name: value}), name) == value
    for value in -1, math.nan, math.inf, threading.TIMEOUT_MAX * 2, True, False, "2":
        refused(**{name: value})


@pytest.mark.parametrize("name", sorted(SECONDS))
def test_a_duration_of_zero_is_taken_exactly_where_it_means_something(name):
    if name in SECONDS_FROM_0:
        assert getattr(PoolConfig(**{name: 0}), name) == 0
    elif name == "blacklist_max":
        assert PoolConfig(blacklist_initial=0, blacklist_max=0).blacklist_max == 0
    else:
        refused(**{name: 0})


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flags_are_bools_and_nothing_like_them(name):
    for value in True, False:
        assert getattr(PoolConfig(**{name: value}), name) is value
    for value in 0, 1, "yes":
        refused(**{name: value})


def test_the_jitter_is_a_part_of_the_whole():
    for value in 0, 0.5, 1:
        assert PoolConfig(lifetime_jitter=value).lifetime_jitter == value
    for value in -0.1, 1.1, math.nan, True, "0.1":
        refused(lifetime_jitter=value)


def test_revive_is_a_bool_or_force():
    for value in False, True, "force":
        assert PoolConfig(revive=value).revive == value
    for value in 1, "yes", "":
        refused(revive=value)


def test_permissions_are_several_texts_and_not_the_letters_of_one():
    assert PoolConfig(required_permissions=["read", "write"]).required_permissions == {"read", "write"}
    for value in "read", 7:
        refused(required_permissions=value)
    for value in ["read", 7], [["read"]]:
        with pytest.raises(ConfigError, match="required_permissions"):
            PoolConfig(required_permissions=value)


def test_no_more_can_be_kept_idle_than_may_exist():
    assert PoolConfig(min_idle=10, max_size=10).min_idle == 10
    refused(min_idle=11, max_size=10)


def test_the_blacklist_grows_and_does_not_shrink():
    assert PoolConfig(blacklist_initial=5, blacklist_max=5).blacklist_max == 5
    assert "2 s" in refused(blacklist_initial=5, blacklist_max=2)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("max_sise", "max_size"), ("idletimeout", "idle_timeout"), ("sharable_", "sharable"), ("qqq", "")],
)
def test_an_unknown_name_is_an_error_that_tells_the_nearest_known_one(unknown, nearest):
    sentence = f"unknown setting '{unknown}' .*nearest .*'{nearest}"
    for make in PoolConfig, PoolConfig.from_settings, PoolConfig().evolve:
        with pytest.raises(ConfigError, match=sentence):
            make(**{unknown: 1})


def test_settings_are_given_by_name_only():
    with pytest.raises(TypeError):
        PoolConfig(10)


def test_from_settings_leaves_the_rest_at_its_default():
    assert PoolConfig.from_settings(max_size=3) == PoolConfig(max_size=3)
    assert PoolConfig.from_settings() == PoolConfig()


def test_evolve_gives_a_checked_copy_and_changes_nothing():
    config = PoolConfig(max_size=3, warn_after=5)
    assert config.evolve(max_size=4) == PoolConfig(max_size=4, warn_after=5)
    with pytest.raises(ConfigError, match="min_idle"):
        config.evolve(min_idle=4)
    assert config == PoolConfig(max_size=3, warn_after=5)


def test_changed_tells_what_differs_from_the_defaults():
    assert PoolConfig().changed() == {}
    assert PoolConfig(sharable=True, max_size=3, min_idle=0).changed() == {"max_size": 3, "sharable": True}


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))]
)
def test_a_configuration_survives_copying_and_pickling(clone):
    config = PoolConfig(max_size=3, required_permissions=["read"])
    assert clone(config) == config
    assert hash(clone(config)) == hash(config)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PoolConfig().max_size = 3
