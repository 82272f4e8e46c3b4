"""What distances of sets of images cost by the number of images, and how they order known damage on nano.

    python benchmarks/fidelity.py [--sizes 1000 10000 25000 50000] [--dim 1024] [--limit 180] [--images 1000]
        [--only cost|order] [--out benchmarks/results/fidelity.json]

cost: seconds and peak memory of each metric on two sets of N chance features of width D, float32 as an
extractor gives them. Each case runs in a process of its own, so that memory is its own: the peak of the
process, less what it held before the work (libraries and both sets). A case that would take longer than the
limit is left out, by what one of fewer images took and the ratio of both (squared where pairs are looked at).

order: perfect renders of the nano world against as many others, and the same pictures after damage of growing
strength: blur in pixels, noise in levels of 255, JPEG by quality, round trips through the shipped
autoencoder, pictures of fewer classes (how many are left; what remains of the pictures is repeated to as
many), and a teacher that draws the wrong class (how often). All numbers are of nano features. The last kind
is no damage to them: wrong pictures are of the same distribution as right ones, and no prompt is looked at.
Perfect renders are drawn four times; what is farther off than all of them is told apart.
"""

import argparse
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from lightgen.core.device import peak_memory
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.draws import draw_key, numpy_draws
from lightgen.core.provenance import code_commit, library_versions
from lightgen.evals.fidelity import frechet, halves_distance
from lightgen.evals.kernel_distance import cmmd, kernel_distance
from lightgen.evals.prdc import prdc
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.world import CLASSES
from lightgen.stages.checkpoint import open_checkpoint, quiet_libraries
from lightgen.stages.features import find_features
from lightgen.stages.pixels import to_uint8

OUT = Path(__file__).parent / "results" / "fidelity.json"
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "frechet": frechet,
    "kid": kernel_distance,
    "cmmd": cmmd,
    "prdc": prdc,
}
BY_PAIRS = ("cmmd", "prdc")
SIDE, BATCH = 128, 50
OTHER_DRAWS = (3, 4, 5)


def main() -> None:
    """Write and print what is asked for; what else the document holds is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 25_000, 50_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--limit", type=float, default=180, help="seconds of a case")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--only", choices=("cost", "order"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--case", nargs=3, metavar=("METRIC", "N", "D"), help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.case:
        metric, num, dim = found.case
        sys.stdout.write(json.dumps(measure(metric, int(num), int(dim))) + "\n")
        return
    quiet_libraries()
    report = json.loads(found.out.read_text()) if found.out.is_file() else {}
    if found.only != "order":
        report["cost"] = {"dim": found.dim, "cases": costs(sorted(found.sizes), found.dim, found.limit)}
    if found.only != "cost":
        report["order"] = order(found.images)
    report |= {"machine": platform.machine(), "commit": code_commit(), "versions": library_versions()}
    found.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(found.out) as temporary:
        temporary.write_bytes(json_bytes(report))


def costs(sizes: list[int], dim: int, limit: float) -> list[dict[str, Any]]:
    """A row for each metric and number of images."""
    rows = []
    for metric in METRICS:
        last: dict[str, Any] = {}
        for num in sizes:
            ratio = num / last["images"] if last else 0
            expected = last["seconds"] * ratio ** (2 if metric in BY_PAIRS else 1) if last else 0
            if expected > limit:
                row = {"metric": metric, "images": num, "left_out": f"about {round(expected)} s"}
            else:
                command = [sys.executable, __file__, "--case", metric, str(num), str(dim)]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                last = row
            rows.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    return rows


def measure(metric: str, num: int, dim: int) -> dict[str, Any]:
    """Seconds and peak bytes of one metric on two sets."""
    a, b = np.empty((2, num, dim), np.float32)
    for side, rows in enumerate((a, b)):  # in place, so that the peak before the work is that of the sets
        numpy_draws(0, "benchmark features", side).standard_normal(dtype=np.float32, out=rows)
        rows += np.float32(0.1 * side)
        rows *= np.linspace(1, 0.05, dim, dtype=np.float32)
    before, start = peak_bytes(), time.perf_counter()
    METRICS[metric](a, b)
    seconds = time.perf_counter() - start
    return {
        "metric": metric,
        "images": num,
        "seconds": round(seconds, 2),
        "peak_mib": round((peak_bytes() - before) / 2**20),
        "threads": torch.get_num_threads(),
    }


def peak_bytes() -> int:
    """Most bytes held by this process; Linux counts those of its parent, too, unless asked in this way."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return peak_memory("cpu")


def order(num: int) -> dict[str, Any]:
    """Rows of each kind of damage by strength, and whether each number is ordered by them."""
    extractor = find_features(FeaturesConfig()).load()
    reference, images = extractor.features(renders(1, num)), renders(2, num)
    perfect = [numbers(extractor.features(images), reference)]
    perfect += [numbers(extractor.features(renders(seed, num)), reference) for seed in OTHER_DRAWS]
    sys.stdout.write("".join(f"{'perfect':24s} {json.dumps(row)}\n" for row in perfect))
    halves = round(halves_distance(reference), 4)
    found: dict[str, Any] = {"images": num, "perfect": perfect, "fd_of_halves": halves, "damage": {}}
    for kind, strengths in damage(images, num):
        rows = []
        for strength, damaged in strengths:
            row = {"strength": strength, **numbers(extractor.features(damaged), reference)}
            row["told_apart"] = row["fd"] > max(each["fd"] for each in perfect)
            rows.append(row)
            sys.stdout.write(f"{kind:14s} {strength:<9g} {json.dumps(row)}\n")
            sys.stdout.flush()
        ordered = {
            name: is_ordered([perfect[0][name], *(row[name] for row in rows)]) for name in ("fd", "kid")
        }
        found["damage"][kind] = {"rows": rows, "ordered": ordered}
    return found


def is_ordered(values: list[float]) -> bool:
    """Whether they rise all the way."""
    return bool((np.diff(values) > 0).all())


def numbers(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Distances of features to those of the reference."""
    near = prdc(reference, rows)
    return {
        "fd": round(frechet(rows, reference), 4),
        "kid": round(kernel_distance(rows, reference).value, 5),
        **{name: round(vars(near)[name], 4) for name in ("precision", "recall", "density", "coverage")},
    }


def renders(seed: int, num: int, wrong: float = 0.0) -> np.ndarray:
    """Pictures uint8 [N, 128, 128, 3] of chance prompts."""
    teacher = EmojiTeacher(EmojiTeacherConfig(errors=ErrorKnob(wrong_class=wrong)))
    seeds = [draw_key(seed, "picture of the benchmark", i) for i in range(num)]
    return teacher.generate([draw_prompt(seed, i, "train").prompt for i in range(num)], seeds, SIDE, SIDE)


def damage(images: np.ndarray, num: int):  # noqa: ANN201  (pairs of a kind and its pictures by strength)
    """Each kind of damage with its strengths, the least first, and the pictures after it."""
    yield (
        "blur_px",
        (
            (s, each_picture(images, lambda p, s=s: p.filter(ImageFilter.GaussianBlur(s))))
            for s in (0.5, 1, 2, 4)
        ),
    )
    yield "noise_levels", ((s, noisy(images, s)) for s in (2, 4, 8, 16, 32))
    yield "jpeg_quality", ((s, each_picture(images, lambda p, s=s: recoded(p, s))) for s in (95, 50, 20))
    yield "round_trips", round_trips(images, (1, 2, 4))
    yield "classes_left", ((s, of_few_classes(images, s)) for s in (48, 32, 16))
    yield "wrong_class", ((s, renders(2, num, wrong=s)) for s in (0.25, 0.5, 1.0))


def each_picture(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Each picture changed."""
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """Pictures with normal noise."""
    noise = numpy_draws(0, "noise of the benchmark").standard_normal(images.shape, np.float32)
    return np.clip(images + deviation * noise + 0.5, 0, 255).astype(np.uint8)


def recoded(picture: Image.Image, quality: int) -> Image.Image:
    """A picture through JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def round_trips(images: np.ndarray, counts: tuple[int, ...]):  # noqa: ANN201  (pairs of a count and pictures)
    """Pictures after passes through the shipped autoencoder."""
    autoencoder, done = load_autoencoder(open_checkpoint("nano").path / "vae"), 0
    for count in counts:
        while done < count:
            images, done = round_trip(autoencoder, images), done + 1
        yield count, images


@torch.inference_mode()
def round_trip(autoencoder: DiffusersAutoencoder, images: np.ndarray) -> np.ndarray:
    """Pictures after one pass."""
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        parts.append(to_uint8(autoencoder.decode(autoencoder.encode(pixels)[0])))
    return np.concatenate(parts)


def of_few_classes(images: np.ndarray, left: int) -> np.ndarray:
    """Pictures whose prompts name only the first classes, repeated to as many."""
    known = set(list(CLASSES)[:left])
    named = [{r.name for r in draw_prompt(2, i, "train").include} for i in range(len(images))]
    rows = [i for i, names in enumerate(named) if names <= known]
    return images[np.resize(rows, len(images))]


if __name__ == "__main__":
    main()
