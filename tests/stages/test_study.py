"""A study: arms of equal cost on shared data, resumed after a kill, with what cannot be refused early."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.artifact import open_artifact
from lightgen.core.errors import UserError
from lightgen.data.images import ImageShards
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.recipes import find
from lightgen.stages import study as stage
from lightgen.stages import study_data as data_stage
from lightgen.stages.checkpoint import transformer_shape
from lightgen.stages.distill import NanoPrompts, distill
from lightgen.stages.evaluate import evaluate
from lightgen.stages.study import study
from lightgen.stages.study_config import Arm, Claim, Phase, StudyConfig, StudyData, seeded
from lightgen.stages.study_cost import shapes_of, step_tflop, train_tflop, within_budget
from lightgen.stages.study_data import mirrored
from lightgen.stages.tasks import AutoencoderTask, PretrainTask, TrainConfig
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.schedule import ScheduleConfig
from tests.stages.test_evaluate import CONFIG as EVALUATE
from tests.stages.toy import SIDE, toy_distill, toy_student

DATA = StudyData(prompts=NanoPrompts(num=8), teacher=EmojiTeacherConfig(), size=SIDE)
TRAIN = TrainConfig(
    task=PretrainTask(),
    fit=FitConfig(num_steps=2, global_batch_size=2, precision="fp32", held_out=2),
    run=RunConfig(save_every=10, held_out_every=10),
)
LONGER = replace(TRAIN, fit=replace(TRAIN.fit, num_steps=3))


def arm(name, train=TRAIN, **changes):
    return Arm(
        **{"name": name, "phases": (Phase(data=DATA, train=train),), "draws": toy_student(), **changes}
    )


CONFIG = StudyConfig(
    title="Toy",
    question="Does more help?",
    arms=(arm("two steps"), arm("three steps", LONGER)),
    claims=(
        Claim(text="it does", source="a paper", first="two steps", second="three steps", expected="same"),
    ),
    test=NanoPrompts(num=6, split="test"),
    seeds=1,
    test_images=1,
    test_size=SIDE,
    x_label="steps",
)


@pytest.fixture
def runs(toy, monkeypatch):
    """Names of the stages in the order in which they ran, with an untrained detector as the judge."""
    found = []

    def noted(name, module, function):
        def run(*arguments, **named):
            found.append(name)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, run)

    noted("distill", data_stage, distill)
    noted("train", stage, stage.train)
    monkeypatch.setattr(
        stage,
        "evaluate",
        lambda config, out, images: evaluate(
            replace(config, judge=EVALUATE.judge), out, images, detector=toy.detector.path
        ),
    )
    return found


def test_a_killed_study_goes_on_where_it_stopped(toy, runs, tmp_path, monkeypatch):
    config, out = replace(CONFIG, start=str(toy.student.path)), tmp_path / "out"
    run = stage.train

    def killed(given, *rest):
        if given.fit.num_steps == 3:
            raise KeyboardInterrupt
        return run(given, *rest)

    monkeypatch.setattr(stage, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study(config, out)
    first = (out / "two-steps-0" / "result.json").read_bytes()
    assert not (out / "three-steps-0" / "result.json").exists()
    assert runs == ["distill", "train"]

    monkeypatch.setattr(stage, "train", run)
    runs.clear()
    made = study(config, out, "lightgen study toy")
    assert runs == ["train"], "neither the finished arm nor the data of both is made again"
    assert (out / "two-steps-0" / "result.json").read_bytes() == first
    assert len(list((out / "data").iterdir())) == 1, "both learn from the same latents"
    assert made.kind == "report" and made.counts["pictures"] == 12
    assert "lightgen study toy" in (made.path / "report.html").read_text()
    assert {"report.html", "report.json"} == set(made.manifest["files"])
    record = json.loads((out / "three-steps-0" / "result.json").read_bytes())
    assert len(record["right"]) == len(record["tasks"]) == 6
    assert record["loss"] > 0 and record["seconds"].keys() >= {"distill", "encode", "train", "draw", "judge"}
    _, shape = shapes_of(CONFIG.arms[1].phases, transformer_shape(toy.student))
    assert record["train_tflop"] == pytest.approx(3 * step_tflop(LONGER, shape, SIDE))

    runs.clear()
    assert study(config, out).digest == made.digest
    assert not runs
    more = study(replace(config, arms=(*config.arms, arm("again"))), out)
    assert runs == ["train"]
    assert len(list((out / "phases").iterdir())) == 2, "equal phases are trained once"
    assert more.counts["arms"] == 3
    assert open_artifact(out / "report").digest == more.digest

    with pytest.raises(UserError, match="other numbers"):
        study(replace(config, test_images=2), out)


def test_an_arm_without_phases_draws_with_the_start(toy, runs, tmp_path):
    arms = (arm("one", phases=()), arm("two", phases=(), x=1.0))
    config = replace(CONFIG, arms=arms, claims=(), start=str(toy.student.path), x_is="draw_tflop")
    made = study(config, tmp_path / "out")
    assert not runs
    one, two = (json.loads((tmp_path / f"out/{n}-0/result.json").read_bytes()) for n in ("one", "two"))
    assert one["right"] == two["right"], "the same pictures of the same seeds"
    assert one["train_tflop"] == 0 and one["draw_tflop"] > 0 and one["loss"] is None
    assert [each["x"] for each in made.config["arms"]] == [one["draw_tflop"]] * 2


def test_a_budget_buys_every_arm_as_many_flops(toy):
    shape = transformer_shape(toy.student)
    schedule = ScheduleConfig(warmup_steps=10, decay_steps=40)
    few = replace(TRAIN, fit=replace(TRAIN.fit, num_steps=100, schedule=schedule))
    wide = replace(few, task=PretrainTask(model=replace(shape, width=64), text_encoder="new"))
    halves = tuple(Phase(data=DATA, train=few, share=0.5) for _ in range(2))
    arms = [arm("few", few), arm("wide", wide), arm("halves", phases=halves)]
    budget = 1_000 * step_tflop(few, shapes_of(arms[0].phases, shape)[1], SIDE)
    found = [within_budget(each, budget, shape) for each in arms]
    for phases in found:
        assert train_tflop(phases, shape) == pytest.approx(budget, rel=2e-3)
    steps = [[phase.train.fit.num_steps for phase in phases] for phases in found]
    assert steps[0] == [1_000] and steps[1][0] < 900 and steps[2] == [500, 500]
    assert (found[0][0].train.fit.schedule.warmup_steps, found[0][0].train.fit.schedule.decay_steps) == (
        100,
        400,
    )
    kept = arm("kept", few, tflop=False)
    assert within_budget(kept, budget, shape) == within_budget(kept, None, shape) == kept.phases
    with pytest.raises(UserError, match="one step"):
        within_budget(arms[0], budget / 10_000, shape)


def test_a_seed_changes_what_is_drawn_at_random_alone():
    phase = CONFIG.arms[0].phases[0]
    assert seeded(phase, 0) == phase
    first, second = seeded(phase, 1), seeded(phase, 2)
    assert first.data.prompts.seed != second.data.prompts.seed
    assert first.train.fit.seed != second.train.fit.seed
    assert first.train.task.seed != second.train.task.seed
    assert first.train.task.objective.seed != second.train.task.objective.seed
    assert replace(second.train.fit, seed=0) == phase.train.fit


def test_mirrored_pictures(toy, tmp_path):
    images = distill(toy_distill(12), tmp_path / "images")
    made = mirrored(images, 1, tmp_path / "mirrored")
    flipped = 0
    for before, after in zip(ImageShards(images.path), ImageShards(made.path), strict=True):
        assert after.meta["prompt"] == before.meta["prompt"] and "objects" not in after.meta
        flipped += after.meta["mirrored"]
        expected = before.image[:, ::-1] if after.meta["mirrored"] else before.image
        assert np.array_equal(after.image, expected)
    assert 0 < flipped < 12
    assert mirrored(images, 1, tmp_path / "mirrored").digest == made.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (CONFIG.arms[0], CONFIG.arms[0])}, "each of its own name"),
        ({"arms": (arm("a b"), arm("a-b")), "claims": ()}, "letters or digits"),
        ({"arms": (arm("!"),), "claims": ()}, "letters or digits"),
        ({"arms": ()}, "at least one"),
        ({"claims": (replace(CONFIG.claims[0], second="four steps"),)}, "claim about arm 'four steps'"),
        ({"claims": (replace(CONFIG.claims[0], second="two steps"),)}, "with itself"),
        ({"claims": (replace(CONFIG.claims[0], task="speed"),)}, "claim about 'speed'"),
        ({"claims": (replace(CONFIG.claims[0], expected="other"),)}, "higher, lower, same"),
        ({"seeds": 0}, "--seeds: got 0"),
        ({"tflop": 0.0}, "--tflop"),
        ({"test_images": 0}, "--test-images"),
        (
            {"arms": (arm("a", phases=(Phase(data=DATA, train=TRAIN, share=0.7),) * 2),), "claims": ()},
            "shares",
        ),
        ({"arms": (arm("a", replace(TRAIN, task=AutoencoderTask())),), "claims": ()}, "AutoencoderTask"),
        (
            {"arms": (arm("a", replace(TRAIN, fit=replace(TRAIN.fit, num_steps=0))),), "claims": ()},
            "num_steps",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        study(replace(CONFIG, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_grid_has_is_refused_early(toy, tmp_path):
    with pytest.raises(UserError, match="multiples of 16 px"):
        study(replace(CONFIG, start=str(toy.student.path), test_size=72), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_some_arms_are_run_and_claims_about_others_are_left_out():
    config = find("study", "design")
    chosen = replace(config, only=("as shipped", "AdamW, rate 1e-3")).chosen()
    assert [arm.name for arm in chosen.arms] == ["as shipped", "AdamW, rate 1e-3"]
    assert [claim.first for claim in chosen.claims] == ["AdamW, rate 1e-3"]
    assert config.chosen() is config
    with pytest.raises(UserError, match="--only: got 'no such arm', allowed: as shipped, "):
        replace(config, only=("no such arm",)).chosen()
