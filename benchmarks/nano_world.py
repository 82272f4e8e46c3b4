"""Measures what the shipped nano world promises, and prints one JSON object.

.venv/bin/python benchmarks/nano_world.py [--scenes 600] [--pictures 16]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import torch

from lightgen import LightGenPipeline
from lightgen.core.provenance import code_commit, library_versions
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.language import draw_prompt, parse
from lightgen.stages.checkpoint import NANO, open_checkpoint, open_detector
from lightgen.stages.nano_weights import measure_parts

PROMPT = "a photo of a red apple left of a blue car"


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=600, help="test prompts, drawn rightly and wrongly")
    parser.add_argument("--pictures", type=int, default=16, help="sampled one by one")
    arguments = parser.parse_args()
    result = {
        "commit": code_commit(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "teacher_scenes_per_s": teacher_speed(),
        "parts": measure_parts(open_checkpoint(NANO), open_detector(None), arguments.scenes),
        "generate_median_s": generate_time(arguments.pictures),
        "cold_generate_s": cold_generate_time(),
        "help_s": min(command_time(["--help"]) for _ in range(5)),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def teacher_speed() -> dict[str, float]:
    """Scenes per second in one thread at 128 px, caches warm: in the plain style, and in the others."""
    prompts = [draw_prompt(0, i, "train").prompt for i in range(4000)]
    flat = [p for p in prompts if parse(p).style == "flat"][:2000]
    styled = [p for p in prompts if parse(p).style != "flat"][:200]
    return {"flat": rate(flat), "styled": rate(styled)}


def rate(prompts: Sequence[str]) -> float:
    """Scenes per second in the second pass over the prompts."""
    teacher, took = EmojiTeacher(), 0.0
    for _ in range(2):
        began = time.perf_counter()
        for seed, prompt in enumerate(prompts):
            teacher.generate([prompt], [seed], 128, 128)
        took = time.perf_counter() - began
    return round(len(prompts) / took, 1)


def generate_time(num: int) -> float:
    """Median seconds of a picture after loading, one at a time, default settings."""
    pipeline = LightGenPipeline.from_pretrained(NANO)
    times = []
    for seed in range(num + 1):
        began = time.perf_counter()
        pipeline(PROMPT, seeds=[seed])
        times.append(time.perf_counter() - began)
    return round(float(np.median(times[1:])), 3)


def cold_generate_time() -> float:
    """Wall seconds of `lightgen generate`, from nothing to the file."""
    with tempfile.TemporaryDirectory() as folder:
        return command_time(["generate", PROMPT, "--out", f"{folder}/picture.png"])


def command_time(arguments: Sequence[str]) -> float:
    """Wall seconds of a whole lightgen command."""
    began = time.perf_counter()
    code = "import sys; from lightgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return round(time.perf_counter() - began, 3)


if __name__ == "__main__":
    main()
