"""Checkpoints and pictures that a run leaves on its way."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lightgen.cli.main import main
from lightgen.core.artifact import open_artifact
from lightgen.core.errors import UserError
from lightgen.stages import snapshots
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig, RunConfig

CONFIG = TrainConfig(
    task=PretrainTask(),
    fit=FitConfig(num_steps=6, global_batch_size=4, precision="fp32"),
    run=RunConfig(save_every=1, keep_last=2, keep_every=2, log_every=1),
)


def weights(path):
    return load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_checkpoints_of_its_average(toy, tmp_path):
    made = train(CONFIG, tmp_path / "student", [toy.latents.path], toy.student.path)
    steps = sorted(path.name for path in (tmp_path / "student-steps").iterdir())
    assert steps == ["step-00000002", "step-00000004", "step-00000005", "step-00000006"]
    last, before = (
        open_artifact(tmp_path / "student-steps" / name, "checkpoint") for name in (steps[-1], steps[-2])
    )
    assert last.counts == {"steps": 6} and last.config["step"] == 6 and last.config["weights"] == "ema"
    assert all(torch.equal(tensor, weights(made.path)[name]) for name, tensor in weights(last.path).items())
    assert any(
        not torch.equal(tensor, weights(made.path)[name]) for name, tensor in weights(before.path).items()
    )
    picture = LightGenPipeline.from_pretrained(before.path)("a dog", 64, 64, 2, 2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_pictures_are_drawn_of_both_weights(toy, tmp_path, monkeypatch):
    """With the command that another process would run, here."""
    drawn = []

    def here(arguments):
        drawn.append(arguments[arguments.index("--model") + 1])
        short = [*arguments, "--size", "64", "--steps", "1", "--head-steps", "1"]
        assert main(short) == 0

    monkeypatch.setattr(snapshots, "_run_aside", here)
    config = replace(CONFIG, run=replace(CONFIG.run, save_every=2, sample_every=3))
    train(config, tmp_path / "student", [toy.latents.path], toy.student.path)
    folder = tmp_path / "student-steps"
    assert sorted(path.name for path in folder.glob("samples-*")) == ["samples-00000004", "samples-00000006"]
    for name in ("average", "raw"):
        assert (folder / "samples-00000004" / f"{name}.png").is_file()
    assert len(drawn) == 4 and drawn[0].endswith("step-00000004") and ".raw-" in drawn[1]
    assert not list(folder.glob(".raw-*"))
    average, raw = (weights(folder / name) for name in ("step-00000006", "step-00000004"))
    assert average.keys() == raw.keys()


def test_another_runs_checkpoints_are_in_the_way(toy, tmp_path):
    train(CONFIG, tmp_path / "student", [toy.latents.path], toy.student.path)
    (tmp_path / "student").rename(tmp_path / "elsewhere")
    other = replace(CONFIG, fit=replace(CONFIG.fit, seed=1))
    with pytest.raises(UserError, match="student-steps"):
        train(other, tmp_path / "student", [toy.latents.path], toy.student.path)
