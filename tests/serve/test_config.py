"""Configs of the server: what is in range, and what the defaults promise."""

import dataclasses

import pytest

from lightgen.core.config import config_from_dict, config_to_dict
from lightgen.core.errors import UserError
from lightgen.serve.config import ConnectionConfig, JobConfig, LimitConfig, QueueConfig, ServeConfig

PARTS = (QueueConfig, LimitConfig, ConnectionConfig, JobConfig)


def test_the_defaults_are_closed_to_others():
    config = ServeConfig()
    assert config.host == "127.0.0.1"
    assert not config.insecure_no_keys
    assert (config.allowed_hosts, config.cors_origins) == ((), ())
    assert config.limits.max_pictures <= config.queue.max_per_key <= config.queue.max_waiting


def test_configs_go_through_json():
    config = ServeConfig(port=1, queue=QueueConfig(max_running=3), allowed_hosts=("draw.example",))
    assert config_from_dict(ServeConfig, config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("part", "name"), [(part, field.name) for part in PARTS for field in dataclasses.fields(part)]
)
def test_every_number_has_a_range_and_a_name_in_its_refusal(part, name):
    for value in (-1, 10**13, float("nan"), float("inf"), "8", True, None):
        with pytest.raises(UserError, match=rf"^{name}: got .*, allowed: "):
            part(**{name: value})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"port": 65536}, "port: got 65536"),
        ({"drain_s": -0.1}, "drain_s: got -0.1"),
        ({"preset": "fst"}, "did you mean 'fast'"),
        ({"preset": "zzz"}, "allowed: exact, balanced, fast"),
        ({"c2pa_key": "key.pem"}, "allowed: both or none"),
        ({"queue": QueueConfig(max_per_key=7)}, "max_pictures: got 8, allowed: at most 7"),
        ({"queue": QueueConfig(max_waiting=5)}, "max_pictures: got 8, allowed: at most 5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(values, told):
    with pytest.raises(UserError, match=told) as refusal:
        ServeConfig(**values)
    assert "\n" not in str(refusal.value)
