"""What the presets keep of the exact sampler's quality, on the shipped nano model.

    python benchmarks/presets.py --out runs/presets [--prompts 240] [--presets exact balanced fast]

Draws test prompts with each preset, and with `exact` once more from other seeds (what chance alone does);
scores all by nano-GenEval in one report with paired tests (runs/presets/report), and prints for each the
Fréchet distance of its pictures' features to those of `exact`. Features: the nano detector's last layer,
averaged over the picture.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lightgen import recipes
from lightgen.core.artifact import Artifact
from lightgen.data.images import ImageShards
from lightgen.sampling.presets import PRESETS
from lightgen.stages.checkpoint import NANO, load_detector, open_detector, quiet_libraries
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.evaluate import evaluate
from lightgen.stages.student import StudentTeacherConfig


def main() -> None:
    """Print one JSON line for each preset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    arguments = parser.parse_args()
    quiet_libraries()
    score = recipes.find("evaluate", "nano-geneval")
    prompts = replace(score.prompts, num=arguments.prompts)
    made: dict[str, Artifact] = {}
    for name in [*arguments.presets, "other-seeds"]:
        preset, seed = ("exact", 1) if name == "other-seeds" else (name, 0)
        config = DistillConfig(
            teacher=StudentTeacherConfig(preset=preset),
            prompts=prompts,
            images_per_prompt=score.images_per_prompt,
            shard_size=60,
            seed=seed,
        )
        made[name] = distill(config, arguments.out / name, start=NANO)
    report = evaluate(score, arguments.out / "report", [each.path for each in made.values()])
    scores = json.loads((report.path / "report.json").read_text())
    features = {name: image_features(artifact) for name, artifact in made.items()}
    for name, subject in zip(made, scores["subjects"], strict=True):
        distance = frechet_distance(features[name], features[arguments.presets[0]])
        row = {"preset": name, "overall": subject["overall"], "interval": subject["intervals"]["overall"]}
        sys.stdout.write(json.dumps({**row, "frechet_to_first": round(distance, 4)}) + "\n")
    sys.stdout.write(json.dumps({"report": str(report.path / "report.html")}) + "\n")


@torch.no_grad()
def image_features(images: Artifact) -> np.ndarray:
    """Features float64 [N, F] of an artifact's images."""
    network = load_detector(open_detector(None)).network
    shards = ImageShards(images.path)
    rows: list[torch.Tensor] = []
    handle = network.body.register_forward_hook(lambda module, given, out: rows.append(out.mean((2, 3))))
    for i in range(len(shards)):
        pixels = torch.from_numpy(shards[i].image).permute(2, 0, 1)[None].float() / 127.5 - 1
        network(pixels)
    handle.remove()
    return torch.cat(rows).double().numpy()


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of features, taken as normal. Source: arXiv 1706.08500, eq. 6."""
    means = [each.mean(axis=0) for each in (first, second)]
    covariances = [np.cov(each, rowvar=False) for each in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * cross)


if __name__ == "__main__":
    main()
