"""Whether the nano detector can be believed: its verdicts against the renderer's truth.

    python benchmarks/nano_detector.py [--prompts 2000] [--detector DIR] [--out FILE] [--seed 3]

For prompts of both splits: agreement of its verdict with that of GenEval's rules on the renderer's own
objects, on clean renders, round trips through the nano autoencoder, JPEG files, blur and noise; the share of
deliberately wrong renders that it catches, by the kind of their single error; classes taken for another;
boxes; and what its scores are worth. A render that the rules call wrong for its true objects counts as wrong,
and a change that they cannot see is left out. Writes JSON to FILE and tables of Markdown to the terminal,
with Wilson's 95 % intervals.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detector_measures import (
    NOTHING,
    Seen,
    agreement,
    best_thresholds,
    box_quality,
    by_class,
    calibration,
    caught,
    confusion,
)
from PIL import Image, ImageFilter

from lightgen.core.draws import numpy_draws
from lightgen.core.progress import say
from lightgen.core.provenance import code_commit, library_versions
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.known import KnownPicture
from lightgen.ports.nano.world import CLASSES
from lightgen.ports.protocols import Detector
from lightgen.stages.checkpoint import NANO, load_detector, open_checkpoint, open_detector, quiet_libraries
from lightgen.stages.known_renders import WRONG_KINDS, Split, right_renders, wrong_renders
from lightgen.stages.pixels import to_uint8

SPLITS: tuple[Split, ...] = ("test", "train")
CLEAN, TRIP = "clean", "round trip"
JPEG_QUALITY, BLUR_PX, NOISE_LEVELS = 80, 1.0, 8.0
BATCH = 32
WRONG_TRIPS = 400  # wrong renders of a kind, at most, that go through the autoencoder
Change = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--detector", help="checkpoint with a detector (default: the shipped one)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nano-detector.json"))
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    quiet_libraries()
    began, artifact = time.perf_counter(), open_detector(arguments.detector)
    looks = look(load_detector(artifact), arguments.prompts, arguments.seed)
    report = {
        "prompts": arguments.prompts,
        "seed": arguments.seed,
        "detector": artifact.digest,
        **summary(looks),
        "commit": code_commit(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "took_s": round(time.perf_counter() - began),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(markdown(report) + "\n")


@dataclass(frozen=True)
class Looks:
    """What was seen: right[split, change] and wrong[split, kind, change]."""

    right: dict[tuple[str, str], list[Seen]]
    wrong: dict[tuple[str, str, str], list[Seen]]


def look(detector: Detector, num: int, seed: int) -> Looks:
    """Detections in all pictures."""
    trip = round_trip(load_autoencoder(open_checkpoint(NANO).path / "vae"))
    changes: dict[str, Change] = {CLEAN: lambda images: images, TRIP: trip, "JPEG 80": jpeg, "blur": blur}
    changes["noise"] = lambda images: noise(images, seed)
    looks = Looks({}, {})
    for split in SPLITS:
        pictures = right_renders(num, seed, split)
        for name, change in changes.items():
            looks.right[split, name] = seen(detector, pictures, change)
            say(f"{split} prompts, {name}: {len(pictures)} pictures")
        for kind in WRONG_KINDS:
            pictures = wrong_renders(kind, num, seed, split)
            looks.wrong[split, kind, CLEAN] = seen(detector, pictures, changes[CLEAN])
            looks.wrong[split, kind, TRIP] = seen(detector, pictures[:WRONG_TRIPS], trip)
            say(f"{split} prompts, {kind}: {len(pictures)} pictures")
    return looks


def seen(detector: Detector, pictures: Sequence[KnownPicture], change: Change) -> list[Seen]:
    """What the detector finds in the pictures after a change."""
    rows = []
    for start in range(0, len(pictures), BATCH):
        part = pictures[start : start + BATCH]
        found = detector.detect(change(np.stack([each.image for each in part])), CLASSES)
        rows += [Seen(p.prompt, p.objects, f) for p, f in zip(part, found, strict=True)]
    return rows


def round_trip(autoencoder: DiffusersAutoencoder) -> Change:
    """What the autoencoder makes of images uint8 [B, 128, 128, 3]."""

    @torch.inference_mode()
    def change(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return to_uint8(autoencoder.decode(autoencoder.encode(pixels)[0]))

    return change


def jpeg(images: np.ndarray) -> np.ndarray:
    """Images after a JPEG file of quality 80."""
    changed = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
        changed.append(np.asarray(Image.open(file)))
    return np.stack(changed)


def blur(images: np.ndarray) -> np.ndarray:
    """Images under a Gaussian of a pixel."""
    kernel = ImageFilter.GaussianBlur(BLUR_PX)
    return np.stack([np.asarray(Image.fromarray(image).filter(kernel)) for image in images])


def noise(images: np.ndarray, seed: int) -> np.ndarray:
    """Images with normal noise of 8 of 255 levels."""
    draws = numpy_draws(seed, "benchmark noise", int(images.sum(dtype=np.int64))).standard_normal(
        images.shape
    )
    return np.clip(images + NOISE_LEVELS * draws, 0, 255).astype(np.uint8)


def summary(looks: Looks) -> dict[str, Any]:
    """All measures of the looks."""
    config = VerdictConfig()
    plain = [each for (_, name), rows in looks.right.items() if name in (CLEAN, TRIP) for each in rows]
    wrong = [each for (_, _, name), rows in looks.wrong.items() if name == CLEAN for each in rows]
    counts = {
        level: confusion([*plain, *wrong], level) for level in (config.threshold, config.counting_threshold)
    }
    return {
        "agreement": {f"{s}, {name}": agreement(rows, config) for (s, name), rows in looks.right.items()},
        "caught": {", ".join(key): caught(rows, config) for key, rows in looks.wrong.items()},
        "confusion": {
            str(level): {k: dict(v) for k, v in found.items() if v} for level, found in counts.items()
        },
        "classes": {str(level): by_class(found) for level, found in counts.items()},
        "boxes": {name: box_quality(looks.right["test", name]) for name in (CLEAN, TRIP)},
        "calibration": calibration([*plain, *wrong]),
        "thresholds": best_thresholds([*plain, *wrong], config),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    return "\n".join([*verdict_lines(report), *class_lines(report), *score_lines(report["calibration"])])


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """Agreement, wrong renders, and the thresholds."""
    lines = [
        "| verdicts that agree with the truth's | share | 95 % | pictures | truth wrong |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["agreement"].items():
        lines.append(f"| {name} | {cells(row)} | {row['num']} | {row['truth_is_wrong']} |")
    lines += [
        "",
        "| wrong renders that are caught | share | 95 % | by the right rule | pictures |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["caught"].items():
        lines.append(f"| {name} | {cells(row)} | {row['same_rules']['value']} | {row['num']} |")
    for name, row in report["thresholds"].items():
        best, agrees = row["best"], row["agreement"]
        own, most = (agrees[str(value)]["value"] for value in (row["own"], best[0]))
        verb = "within noise" if row["within_noise"] else "more than noise"
        lines += [
            "",
            f"{name}: {row['own']} agrees on {own}, the best ({best[0]} to {best[1]}) on {most}: {verb}.",
        ]
    return lines


def class_lines(report: dict[str, Any]) -> list[str]:
    """Classes that are missed or taken for others, and boxes."""
    lines = [""]
    for level, rows in report["classes"].items():
        values = {
            name: [row[side]["value"] for side in ("recall", "precision")] for name, row in rows.items()
        }
        worst = sorted(values, key=lambda name: min(values[name]))[:6]
        shares = (f"{name} {values[name][0]:.3f}/{values[name][1]:.3f}" for name in worst)
        lines += [f"Lowest recall/precision at {level}: {', '.join(shares)}.", ""]
        lines += [f"Taken for another at {level}: {', '.join(worst_pairs(report['confusion'][level]))}.", ""]
    for name, row in report["boxes"].items():
        iou = f"mean IoU {row['mean_iou']:.3f}, lowest hundredth {row['iou_quantile_0.01']:.3f}"
        color = f"colours right {row['colors_right']:.4f} of {row['num_colored']}"
        lines += [f"Boxes, {name}: {iou}; {color}.", ""]
    return lines


def score_lines(found: dict[str, Any]) -> list[str]:
    """What scores are worth, and detections over thresholds."""
    lines = ["| score | detections | mean score | right | 95 % |", "|---|---|---|---|---|"]
    for row in found["reliability"]:
        span = f"{row['from']}-{row['to']}"
        lines.append(f"| {span} | {row['right']['num']} | {row['mean_score']:.3f} | {cells(row['right'])} |")
    lines += ["", f"Expected calibration error {found['expected_error']:.4f}.", ""]
    lines += ["| threshold | precision | recall | F1 |", "|---|---|---|---|"]
    for row in found["curve"]:
        lines.append("| {threshold} | {precision:.4f} | {recall:.4f} | {f1:.4f} |".format(**row))
    return lines


def cells(row: dict[str, Any]) -> str:
    """A share and its interval as two cells of a table."""
    return " - | - " if row["value"] is None else f"{row['value']:.4f} | {row['low']:.4f}-{row['high']:.4f}"


def worst_pairs(counts: dict[str, dict[str, int]], num: int = 8) -> list[str]:
    """The commonest confusions in words, missed and imagined objects among them."""
    wrong = [(n, truth, found) for truth, row in counts.items() for found, n in row.items() if truth != found]
    phrases = {True: "imagined {1}", False: "{0} as {1}"}
    words = [
        f"{phrases[truth == NOTHING].format(truth, found)} {n}" for n, truth, found in sorted(wrong)[::-1]
    ]
    return words[:num] or ["none"]


if __name__ == "__main__":
    main()
