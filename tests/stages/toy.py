"""A toy world: pictures of 64 px and small untrained parts, made once per run of the tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.nano.autoencoder import build_nano_autoencoder
from lightgen.ports.nano.detector import build_nano_detector
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.stages.checkpoint import Parts, save_detector
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.distill import DistillConfig, NanoPrompts, distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.student import StudentTeacherConfig

SIDE = 64


@dataclass(frozen=True)
class Toy:
    """Finished artifacts: 12 pictures, their latents, an untrained student and detector."""

    images: Artifact
    latents: Artifact
    student: Artifact
    detector: Artifact


def toy_parts(seed: int = 0) -> Parts:
    text = build_nano_text_encoder(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = LightGenTransformer(
            latent_channels=16,
            width=32,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
            head_width=32,
            head_layers=1,
        )
        # its last layer starts at zero, which would make every picture the same whatever the text
        torch.nn.init.normal_(transformer.head.token_out.weight, std=0.2)
        torch.nn.init.normal_(transformer.head.modulation.weight, std=0.2)
    return Parts(transformer.eval(), build_nano_autoencoder(seed).eval(), text.encoder, text.tokenizer)


def write_student(path: Path, seed: int = 0) -> Artifact:
    workspace = begin_artifact(path, "checkpoint", {"toy": seed}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        LightGenPipeline.from_parts(toy_parts(seed)).save_pretrained(workspace.path)
        return workspace.commit({})


def write_detector(path: Path) -> Artifact:
    workspace = begin_artifact(path, "checkpoint", {"toy": "detector"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        save_detector(build_nano_detector(0), workspace.path / "detector")
        return workspace.commit({})


def toy_distill(num: int = 12, **changes) -> DistillConfig:
    settings = {"prompts": NanoPrompts(num=num), "height": SIDE, "width": SIDE, "shard_size": 5, **changes}
    return DistillConfig(**settings)


def toy_student() -> StudentTeacherConfig:
    return StudentTeacherConfig(
        overrides=DecodeOverrides(num_iterations=3, num_head_steps=2), precision="fp32"
    )


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    root = tmp_path_factory.mktemp("toy")
    images = distill(toy_distill(), root / "images")
    student = write_student(root / "student")
    latents = encode(EncodeConfig(shard_size=5, batch_size=4), root / "latents", [images.path], student.path)
    return Toy(images, latents, student, write_detector(root / "detector"))
