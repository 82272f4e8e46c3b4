import numpy as np
import torch
from safetensors.torch import load_file

from lightgen.stages import export as stage
from lightgen.stages.checkpoint import autoencoder_digest, load_detector, load_parts
from lightgen.stages.export import export_nano, export_student
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig

FAST = {"height": 64, "width": 64, "num_inference_steps": 3, "num_head_steps": 2, "output_type": "np"}


def test_export_is_small_half_precise_and_whole(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SHARD_BYTES", 50_000)
    fit = FitConfig(num_steps=1, global_batch_size=2, precision="fp32")
    student = train(
        TrainConfig(task=PretrainTask(), fit=fit), tmp_path / "s", [toy.latents.path], toy.student.path
    )
    assert "train_state/metrics.jsonl" in student.manifest["files"]
    shipped, detector = export_nano(student, toy.detector, tmp_path / "weights")
    assert (shipped.path.name, detector.path.name) == ("nano", "nano-detector")
    assert [parent["digest"] for parent in shipped.parents] == [student.digest]
    files = shipped.manifest["files"]
    assert not any(name.startswith("train_state") for name in files)
    shards = [name for name in files if name.startswith("transformer/") and name.endswith(".safetensors")]
    assert len(shards) > 1
    for name in files:
        if name.endswith(".safetensors"):
            assert {t.dtype for t in load_file(shipped.path / name).values()} == {torch.float16}, name
        elif name.endswith(".json"):
            assert str(tmp_path) not in (shipped.path / name).read_text(), name
    before, after = (
        LightGenPipeline.from_parts(load_parts(a.path))("a dog", **FAST).images for a in (student, shipped)
    )
    np.testing.assert_allclose(before, after, atol=0.02)
    assert load_detector(detector).detect((before * 255).astype(np.uint8), ["dog"]) is not None


def test_an_autoencoder_in_half_precision_keeps_its_files(toy, tmp_path):
    once = export_student(toy.student, tmp_path / "once")
    twice = export_student(once, tmp_path / "twice")
    assert autoencoder_digest(once) == autoencoder_digest(twice)
    assert autoencoder_digest(once) != autoencoder_digest(toy.student)
    assert export_student(toy.student, tmp_path / "once").digest == once.digest
