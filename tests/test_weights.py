"""The shipped files are whole, small, and as good as the README says."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from lightgen.recipes.evaluate import nano_geneval
from lightgen.stages.checkpoint import NANO, SHIPPED, open_checkpoint, open_detector
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.evaluate import evaluate
from lightgen.stages.generate import GenerateConfig, generate
from lightgen.stages.nano_weights import measure_parts

MIB = 2**20


def test_files_are_whole_and_small():
    assert open_checkpoint(NANO).kind == open_detector(None).kind == "checkpoint"
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) <= 60 * MIB and max(sizes) <= 16 * MIB


def test_autoencoder_and_detector_on_a_few_scenes():
    parts = measure_parts(open_checkpoint(NANO), open_detector(None), 48)
    assert parts["psnr_db"] >= 28
    assert parts["right_renders"] >= 0.95 and parts["round_trips"] >= 0.9 and parts["wrong_renders"] <= 0.05


def test_a_picture_without_network_or_font(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTGEN_EMOJI_FONT", str(tmp_path / "none.ttf"))
    one, two = (
        generate(
            GenerateConfig(seed=seed), "a photo of a red apple left of a blue car", tmp_path / f"{seed}.png"
        )
        for seed in (0, 1)
    )
    first, second = (np.asarray(Image.open(path[0])) for path in (one, two))
    assert first.shape == (128, 128, 3) and first.std() > 10 and (first != second).mean() > 0.5


@pytest.mark.slow
def test_autoencoder_and_detector_on_many_scenes():
    parts = measure_parts(open_checkpoint(NANO), open_detector(None), 600)
    assert parts["psnr_db"] >= 28
    assert parts["right_renders"] >= 0.99 and parts["round_trips"] >= 0.97 and parts["wrong_renders"] <= 0.02


@pytest.mark.slow
def test_the_student_reaches_its_scores(tmp_path):
    config = dataclasses.replace(
        nano_geneval(), prompts=NanoPrompts(num=240, split="test"), images_per_prompt=2
    )
    report = evaluate(config, tmp_path / "score", [NANO])
    scores = json.loads((report.path / "report.json").read_text())
    assert scores["tasks"]["single_object"] >= 0.75 and scores["tasks"]["colors"] >= 0.6
    assert scores["overall"] >= 0.4
