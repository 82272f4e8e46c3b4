import dataclasses

import pytest

from lightgen import recipes
from lightgen.core.config import config_from_dict, config_to_dict

ALL = [(stage, name) for stage in recipes.STAGES for name in recipes.describe(stage)]


def test_there_are_the_recipes_that_the_documents_name():
    assert {
        ("distill", "nano-teacher"),
        ("distill", "nano-teacher-imperfect"),
        ("caption", "nano"),
        ("caption", "grammar"),
        ("curate", "nano"),
        ("curate", "public"),
        ("distill", "pipeline"),
        ("distill", "endpoint"),
        ("encode", "nano"),
        ("encode", "paper"),
        ("train", "nano-autoencoder"),
        ("train", "nano-detector"),
        ("train", "nano-language"),
        ("train", "pretrain-nano"),
        ("train", "finetune-nano"),
        ("train", "dpo-nano"),
        ("train", "nano-weights"),
        ("rank", "verdict"),
        ("rank", "source"),
        ("rank", "clip-score"),
        ("rank", "pick-score"),
        ("rank", "hps-v2"),
        ("evaluate", "nano-geneval"),
        ("quickstart", "quickstart"),
    } <= set(ALL)


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_every_recipe_builds_and_round_trips(stage, name):
    config = recipes.find(stage, name)
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)
    assert config_from_dict(type(config), config_to_dict(config)) == config


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_every_recipe_says_what_it_needs(stage, name):
    doc = recipes.describe(stage)[name]
    assert len(doc.splitlines()[0]) <= 110
    assert "Hardware:" in doc
    assert "Time:" in doc or "Expected:" in doc


def test_what_does_not_exist_is_named_with_a_suggestion():
    with pytest.raises(
        ValueError, match="train: unknown recipe 'pretrain-nan', did you mean 'pretrain-nano'"
    ):
        recipes.find("train", "pretrain-nan")
    with pytest.raises(ValueError, match="encode: unknown recipe 'xyz', allowed: nano"):
        recipes.find("encode", "xyz")
    with pytest.raises(ValueError, match="unknown stage 'distil', did you mean 'distill'"):
        recipes.find("distil", "nano")


def test_the_quickstart_expects_every_stage_to_fit_a_quarter_of_an_hour():
    config = recipes.find("quickstart", "quickstart")
    assert sum(config.expected_s.values()) <= 15 * 60
    assert config.expected_s["student"] >= 60 * config.pretrain_minutes
    assert config.expected_s["preferred"] >= 60 * config.prefer_minutes
