"""The studies ask what they say they ask, with numbers that can be."""

import pytest

from lightgen import recipes
from lightgen.models.shape import TransformerConfig
from lightgen.recipes.small_world import TEST, WORLD
from lightgen.recipes.study_design import BASELINE, HALF, RELEASED
from lightgen.stages.budget import build_transformer
from lightgen.stages.decoding import resolve
from lightgen.stages.distill import nano_prompts
from lightgen.stages.study_cost import shapes_of, within_budget

NAMES = ("data-scale", "design", "diversity", "flip", "iterations", "preferences", "resolution", "sampler")


def test_there_are_the_studies_of_the_paper_and_no_others():
    assert tuple(sorted(recipes.describe("study"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_study_can_be_run(name):
    config = recipes.find("study", name)
    config.check()
    assert all(claim.source.startswith("arXiv ") for claim in config.claims)
    for arm in config.arms:
        for shape in shapes_of(arm.phases, TransformerConfig())[1:]:
            shape.check()
            resolve(shape.prediction, arm.draws.preset, arm.draws.overrides)


def test_a_study_is_small_enough_for_its_claims_to_need_no_test_word_in_training():
    test = nano_prompts(TEST)
    assert len(test) == 120
    named = {requirement.name for prompt in test for requirement in prompt.include}
    assert named <= set(WORLD.classes)
    training = nano_prompts(WORLD)
    assert len({prompt.prompt for prompt in training}) == WORLD.num
    several = {prompt.prompt for prompt in test if prompt.tag != "single_object"}
    assert not several & {prompt.prompt for prompt in training}


def test_the_arms_of_the_design_differ_from_the_baseline_and_are_about_as_large():
    config = recipes.find("study", "design")
    sizes = {}
    for arm in config.arms:
        task = arm.phases[0].train.task
        sizes[arm.name] = sum(p.numel() for p in build_transformer(task.model).parameters())
    trains = {str(arm.phases) for arm in config.arms}
    assert len(trains) == len(config.arms), "no switch is without effect"
    fused = [name for name in sizes if "fusion" in name]
    assert fused
    for name in fused:
        assert sizes[name] == pytest.approx(sizes[BASELINE], rel=0.02)


def test_as_released_has_the_switches_of_the_paper_and_half_costs_half():
    config = recipes.find("study", "design")
    arm, switches = config.arm(RELEASED), recipes.find("model", "paper")
    shape = arm.phases[0].train.task.model
    names = ("fusion", "cross_residual", "text_masked", "positions", "layers", "dropout", "prediction")
    for name in (*names, "head_conditioning"):
        assert getattr(shape, name) == getattr(switches, name), name
    assert arm.phases[0].train.task.objective.mask_min == 0.7
    whole, half = (within_budget(config.arm(name), 40.0, shape) for name in (BASELINE, HALF))
    assert half[0].train.fit.num_steps == pytest.approx(whole[0].train.fit.num_steps / 2, abs=1)
