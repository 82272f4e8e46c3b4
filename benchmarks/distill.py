"""Speed of distill on the nano teacher, the shipped student and tiny random pipelines, and where time goes.

    python benchmarks/distill.py --images 400 --json benchmarks/results/distill.json
    python benchmarks/distill.py --only emoji SanaPipeline

Each case runs the whole stage in a process of its own, over shards of 100, after one image that warms up.
`share` is the part of the stage's time in drawing, in turning pixels into files, in writing shards, and the
rest (prompts, keys, hashes, manifest). `peak_mb` is the most memory of the process.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PIPELINES = tuple(
    f"{name}Pipeline" for name in ("StableDiffusion", "StableDiffusion3", "Flux", "PixArtSigma", "Sana")
)
CASES = ("emoji", "student", *PIPELINES)
PX = {"emoji": 128, "student": 128}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path, help="where the document goes")
    found = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = {}
    for case in found.only:
        with context.Pool(1) as pool:
            rows[case] = pool.apply(measure, (case, found.images))
        sys.stdout.write(json.dumps({case: rows[case]}) + "\n")
        sys.stdout.flush()
    if found.json is not None:
        from lightgen.core.directory import json_bytes, whole_file
        from lightgen.core.provenance import code_commit, library_versions

        document = {"cases": rows, "versions": library_versions(), "commit": code_commit()}
        with whole_file(found.json) as temporary:
            temporary.write_bytes(json_bytes(document))


def measure(case: str, images: int) -> dict[str, Any]:
    """Speed, shares and memory of one case."""
    from lightgen.data import images as files
    from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig
    from lightgen.ports.teacher import DiffusersTeacher, DiffusersTeacherConfig
    from lightgen.recipes.align import DRAWS
    from lightgen.stages import distill as stage
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.student import StudentGenerator

    quiet_libraries()
    spent = {"draw": 0.0, "encode": 0.0, "write": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        if case in PIPELINES:
            from tests.ports.toy_pipelines import OPTIONS, save_pipeline

            teacher: Any = DiffusersTeacherConfig(
                model=str(save_pipeline(case, Path(folder) / "pipeline")),
                num_inference_steps=4,
                options=OPTIONS.get(case, {}),
                batch_size=8,
                dtype="fp32",
            )
        else:
            teacher = EmojiTeacherConfig() if case == "emoji" else DRAWS
        px = PX.get(case, 64)
        config = stage.DistillConfig(
            teacher=teacher, prompts=stage.NanoPrompts(num=1), height=px, width=px, shard_size=100
        )
        stage.distill(config, Path(folder) / "warm")
        with (
            timed(EmojiTeacher, "draw", spent, "draw"),
            timed(StudentGenerator, "generate", spent, "draw"),
            timed_steps(DiffusersTeacher, "draw", spent, "draw"),
            timed(files, "encode_image", spent, "encode"),
            timed(stage, "write_image_shard", spent, "write"),
        ):
            began = time.perf_counter()
            stage.distill(replace(config, prompts=stage.NanoPrompts(num=images)), Path(folder) / "images")
            seconds = time.perf_counter() - began
    spent["write"] -= spent["draw"] + spent["encode"]  # both happen inside it
    shares = {name: round(value / seconds, 4) for name, value in spent.items()}
    return {
        "images": images,
        "px": px,
        "images_per_s": round(images / seconds, 2),
        "share": {**shares, "rest": round(1 - sum(shares.values()), 4)},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


@contextmanager
def timed(owner: object, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Context in which the seconds of a function are added up."""
    inner = getattr(owner, name)

    def outer(*arguments: object, **named: object) -> object:
        began = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - began

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner)


@contextmanager
def timed_steps(owner: object, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """As `timed`, of a generator: the seconds until each of its items."""
    inner = getattr(owner, name)

    def outer(*arguments: object, **named: object) -> Iterator[object]:
        steps = iter(inner(*arguments, **named))
        while True:
            began = time.perf_counter()
            try:
                item = next(steps)
            except StopIteration:
                return
            finally:
                spent[part] += time.perf_counter() - began
            yield item

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner)


if __name__ == "__main__":
    main()
