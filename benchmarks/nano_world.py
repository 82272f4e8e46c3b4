"""Measures what the shipped nano world promises, and prints one JSON object.

    .venv/bin/python benchmarks/nano_world.py [--scenes 600] [--pictures 16]

`scenes` held-out test prompts are drawn rightly and wrongly; the detector judges them, and their round trips
through the autoencoder. `pictures` are sampled with the default settings, one by one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from lightgen import LightGenPipeline
from lightgen.core.prompt import Prompt
from lightgen.core.provenance import code_commit, library_versions
from lightgen.evals.quality import psnr
from lightgen.evals.scores import evaluate_images, score_table
from lightgen.evals.statistics import BootstrapConfig
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.nano.detector import load_nano_detector
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.language import draw_prompt
from lightgen.stages.checkpoint import NANO, load_parts, open_checkpoint, open_detector

SIDE = 128
ALWAYS_WRONG = ErrorKnob(wrong_count=1, wrong_place=1, wrong_color=1, wrong_class=1)


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--pictures", type=int, default=16)
    arguments = parser.parse_args()
    result = {
        "commit": code_commit(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "teacher_scenes_per_s": teacher_speed(),
        **judge(arguments.scenes),
        **generate_times(arguments.pictures),
        "help_s": min(seconds(["--help"]) for _ in range(5)),
        "cold_generate_s": cold_generate(),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def teacher_speed() -> dict[str, float]:
    """Scenes per second on one core at 128 px, caches warm: plain style, and the styles."""
    teacher = EmojiTeacher(EmojiTeacherConfig())
    prompts = [draw_prompt(0, i, "train").prompt for i in range(6000)]
    styled = [p for p in prompts if any(word in p for word in ("sketch", "drawing", "pixel", "night"))][:300]
    flat = [p for p in prompts if p not in set(styled)][:2000]
    return {"flat": rate(teacher, flat), "styled": rate(teacher, styled)}


def rate(teacher: EmojiTeacher, prompts: list[str]) -> float:
    """Scenes per second in the second pass over the prompts."""
    for _ in range(2):
        began = time.perf_counter()
        for i, prompt in enumerate(prompts):
            teacher.generate([prompt], [i], SIDE, SIDE)
        took = time.perf_counter() - began
    return round(len(prompts) / took, 1)


def judge(num: int) -> dict[str, object]:
    """Autoencoder and detector on scenes of test prompts."""
    detector = load_nano_detector(open_detector(None).path / "detector")
    autoencoder = load_parts(open_checkpoint(NANO).path).autoencoder
    prompts = [draw_prompt(7, i, "test") for i in range(num)]
    right = EmojiTeacher(EmojiTeacherConfig())
    perfect = right.generate([p.prompt for p in prompts], list(range(num)), SIDE, SIDE)
    trips = np.concatenate(
        [round_trip(autoencoder.encode, autoencoder.decode, perfect[i : i + 32]) for i in range(0, num, 32)]
    )
    wrong = EmojiTeacher(EmojiTeacherConfig(errors=ALWAYS_WRONG))
    drawn = [(p, wrong.draw(p.prompt, 10**6 + i, SIDE, SIDE)) for i, p in enumerate(prompts)]
    mistaken = [(p, r.image) for p, r in drawn if r.errors]

    def score(asked: list[Prompt], images: list[np.ndarray]) -> dict[str, float]:
        verdicts = evaluate_images(asked, images, detector, None, VerdictConfig())
        table = score_table(verdicts, BootstrapConfig(resamples=1000)).to_json()
        return {"overall": table["overall"], **table["tasks"]}

    return {
        "autoencoder_psnr_db": float(psnr(trips, perfect).mean()),
        "detector_on_perfect": score(prompts, list(perfect)),
        "detector_on_round_trips": score(prompts, list(trips)),
        "detector_on_wrong": score([p for p, _ in mistaken], [image for _, image in mistaken]),
        "scenes": {"perfect": num, "wrong": len(mistaken)},
    }


def round_trip(
    encode: Callable[..., object], decode: Callable[..., torch.Tensor], images: np.ndarray
) -> np.ndarray:
    """Images uint8 [B, H, W, 3] after encoding and decoding."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    mean, _ = encode(pixels)  # pyright: ignore[reportGeneralTypeIssues]
    return decode(mean).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def generate_times(num: int) -> dict[str, float]:
    """Seconds per picture after loading, one at a time, default settings."""
    pipeline = LightGenPipeline.from_pretrained(NANO)
    pipeline("a photo of a dog", seeds=[0])
    times = []
    for seed in range(num):
        began = time.perf_counter()
        pipeline("a photo of a red apple left of a blue car", seeds=[seed])
        times.append(time.perf_counter() - began)
    return {"generate_median_s": float(np.median(times))}


def cold_generate() -> float:
    """Wall seconds of `lightgen generate`, from nothing to the file."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(["generate", "a photo of a dog", "--out", f"{folder}/dog.png"])


def seconds(arguments: list[str]) -> float:
    """Wall seconds of a whole lightgen command."""
    began = time.perf_counter()
    code = "import sys; from lightgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return round(time.perf_counter() - began, 3)


if __name__ == "__main__":
    main()
