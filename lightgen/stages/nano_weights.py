"""The chain that makes the shipped files: scenes, stand-ins, student, export, measurement."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lightgen.core.artifact import Artifact
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.progress import say
from lightgen.evals.quality import psnr
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.stages.checkpoint import load_detector
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.export import export_nano
from lightgen.stages.journal import Journal
from lightgen.stages.known_renders import mixed_wrong_renders, right_renders
from lightgen.stages.pixels import to_uint8
from lightgen.stages.self_test import judge_known, share_right
from lightgen.stages.tasks import TrainConfig
from lightgen.stages.train import train

_MEASURED_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class NanoWeightsConfig:
    """The chain's stages.

    Attributes:
        scenes: what student and autoencoder learn from.
        judged_scenes: what the detector learns from. It is a measuring instrument: it must know every
            combination, those of test prompts too, and see no errors.
        autoencoder, language, detector, student: the four trainings. The text encoder, which learns to read
            beside the autoencoder's files, is the student's.
        encode: of the scenes, by the new autoencoder.
        measured_prompts: test prompts on which autoencoder and detector are measured at the end.
    """

    scenes: DistillConfig
    judged_scenes: DistillConfig
    autoencoder: TrainConfig
    language: TrainConfig
    detector: TrainConfig
    encode: EncodeConfig
    student: TrainConfig
    measured_prompts: int = 300


def nano_weights(config: NanoWeightsConfig, out: str | Path) -> Path:
    """Path of the folder to copy over the package's `weights`; a killed run continues.

    Beside it `quality.json` says how good autoencoder and detector are on prompts that they never met.

    Raises:
        UserError: the emoji font is missing, or `out` holds the work of another config.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "journal.jsonl")
    say("[1/7] the teacher draws scenes")
    with journal.stage("scenes"):
        distill(config.scenes, out / "scenes")
        distill(config.judged_scenes, out / "judged-scenes")
    say("[2/7] the autoencoder learns")
    with journal.stage("autoencoder"):
        autoencoder = train(config.autoencoder, out / "autoencoder", [out / "scenes"])
    say("[3/7] the text encoder learns to read")
    with journal.stage("language"):
        start = train(config.language, out / "language", [], autoencoder.path)
    say("[4/7] the detector learns")
    with journal.stage("detector"):
        detector = train(config.detector, out / "detector", [out / "judged-scenes"])
    say("[5/7] the autoencoder encodes the scenes")
    with journal.stage("latents"):
        encode(config.encode, out / "latents", [out / "scenes"], start.path)
    say("[6/7] the student learns")
    with journal.stage("student"):
        student = train(config.student, out / "student", [out / "latents"], start.path)
    say("[7/7] export and measurement")
    with journal.stage("export"):
        shipped = export_nano(student, detector, out / "weights")
        quality = measure_parts(shipped[0], shipped[1], config.measured_prompts)
    with whole_file(out / "quality.json") as temporary:
        temporary.write_bytes(json_bytes(quality))
    say(", ".join(f"{name} {value:.3f}" for name, value in quality.items()))
    return out / "weights"


def measure_parts(student: Artifact, detector: Artifact, num_prompts: int, seed: int = 2) -> dict[str, float]:
    """Quality of the stand-ins on renders of test prompts.

    `psnr_db` is the mean over pictures of the autoencoder's round trip; the others are shares that the
    detector calls right: of right renders, of their round trips, and of wrong renders.
    """
    autoencoder = load_autoencoder(student.path / "vae")
    finder, verdict = load_detector(detector), VerdictConfig()

    def round_trip(images: np.ndarray) -> np.ndarray:
        return _round_trip(autoencoder, images)

    right = [picture for picture in right_renders(num_prompts, seed) if picture.right]
    wrong = mixed_wrong_renders(num_prompts, seed)
    images = np.stack([picture.image for picture in right])
    return {
        "psnr_db": float(np.mean(psnr(round_trip(images), images))),
        "right_renders": share_right(judge_known(finder, right, verdict)),
        "round_trips": share_right(judge_known(finder, right, verdict, round_trip)),
        "wrong_renders": share_right(judge_known(finder, wrong, verdict)),
    }


@torch.inference_mode()
def _round_trip(autoencoder: DiffusersAutoencoder, images: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(images), _MEASURED_BATCH):
        part = torch.from_numpy(images[start : start + _MEASURED_BATCH]).permute(0, 3, 1, 2)
        mean, _ = autoencoder.encode(part.float().div(127.5).sub(1))
        parts.append(to_uint8(autoencoder.decode(mean)))
    return np.concatenate(parts)
