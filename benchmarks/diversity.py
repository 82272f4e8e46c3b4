"""Diversity against volume at equal compute, and chosen captions against random ones, on nano.

    python benchmarks/diversity.py --out runs/diversity --json results.json --figure docs/diversity.svg
    python benchmarks/diversity.py --out runs/diversity --only grid-48-1-0 select-random-0

The shipped student loses its language: it gets a new text encoder, and learns again what words mean, from C
distinct captions with K pictures each, in the same number of steps for every set. Scores are nano-GenEval on
captions whose combinations no set holds.

grid-C-K-SEED     C of 48, 192, 768; K of 1, 4, 16; sets of one seed are parts of one another
select-HOW-SEED   48 of 2,000 captions in which few objects and simple scenes prevail, chosen at random or as
                  the most diverse by `lightgen.data.select`; 16 pictures each

Without `--only` all are run, found ones are kept, and the JSON document and the figure are written: scores
with intervals of 95 % (a bootstrap that draws seeds and prompts again), the gain of four times the captions
at as many pictures of each, that of four times the pictures of as many captions, that of four times the
captions in exchange for a quarter of the pictures, and each selector's gain over chance.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diversity_figure import figure

from lightgen import recipes
from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.draws import numpy_draws
from lightgen.core.prompt import TAGS as TASKS
from lightgen.core.prompt import Prompt
from lightgen.core.provenance import code_commit, library_versions
from lightgen.data.latents import LatentShards, write_latent_shard
from lightgen.data.prompts import write_prompts
from lightgen.data.select import How, select
from lightgen.objectives.masked import MaskedConfig
from lightgen.ports.embedding import EmbedderConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.ports.nano.language import describe, draw_prompt, prompt_of
from lightgen.ports.nano.split import is_held_out, scene_combinations
from lightgen.ports.nano.world import RELATIONS, Scene, SceneObject
from lightgen.recipes.align import DRAWS
from lightgen.stages.checkpoint import quiet_libraries
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.embedder import find_embedder
from lightgen.stages.encode import encode
from lightgen.stages.evaluate import evaluate
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

CAPTIONS, PICTURES = (48, 192, 768), (1, 4, 16)
SELECTORS: tuple[How, ...] = ("random", "balanced", "k-center", "facility")
CHOSEN, POOL, SELECTED_PICTURES = 48, 2_000, 16
CLASSES = (
    *("dog", "cat", "car", "apple", "banana", "chair"),
    *("clock", "umbrella", "bird", "boat", "pizza", "book"),
)
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
EVEN = (0.1, 0.18, 0.18, 0.18, 0.18, 0.18)
# of a pool as it comes from the web: most captions name one object, and a few objects are named most often
SKEWED = (0.6, 0.1, 0.05, 0.15, 0.05, 0.05)
SKEW = 2.0
TEACHER = EmojiTeacherConfig(rotation_degrees=0.0, rotation_steps=1)
TEST_PER_TASK, TEST_PICTURES = 20, 2
STEPS, BATCH = 140, 32
GRID = {(c, k): f"grid-{c}-{k}" for c in CAPTIONS for k in PICTURES}
CHOICES: dict[How, str] = {how: f"select-{how}" for how in SELECTORS}
RESAMPLES = 1_000


def draw_captions(num: int, seed: int, shares: Sequence[float], skew: float) -> list[Prompt]:
    """Distinct captions of a small world, none of a combination that belongs to the tests.

    Args:
        num: how many.
        seed: of all draws.
        shares: of the tasks.
        skew: how much more often the first class is named than the k-th: k to this power.
    """
    weights = np.arange(1, len(CLASSES) + 1, dtype=np.float64) ** -skew
    found: dict[str, Prompt] = {}
    number = 0
    while len(found) < num:
        random = numpy_draws(seed, "caption of the benchmark", number)
        number += 1
        tag = TASKS[int(random.choice(len(TASKS), p=list(shares)))]
        pair = tag in ("two_object", "position", "color_attr")
        chosen = random.choice(len(CLASSES), 2 if pair else 1, replace=False, p=weights / weights.sum())
        colors = [COLORS[i] for i in random.choice(len(COLORS), 2, replace=False)]
        count = int(random.integers(2, 5)) if tag == "counting" else 1
        objects = tuple(
            SceneObject(name=CLASSES[i], count=count, color=color if "color" in tag else None)
            for i, color in zip(chosen, colors, strict=False)
        )
        scene = Scene(objects=objects, relation=RELATIONS[number % 4] if tag == "position" else None)
        if not any(is_held_out(combination) for combination in scene_combinations(scene)):
            prompt = prompt_of(scene, describe(scene, random), tag)
            found.setdefault(prompt.prompt, prompt)
    return list(found.values())


def test_prompts() -> list[Prompt]:
    """Test prompts of the nano world that name only these classes and colours, at most 20 of a task."""
    found: dict[str, Prompt] = {}
    for number in range(60_000):
        prompt = draw_prompt(11, number, "test")
        known = all(r.name in CLASSES and r.color in (None, *COLORS) for r in prompt.include)
        if known and sum(p.tag == prompt.tag for p in found.values()) < TEST_PER_TASK:
            found.setdefault(prompt.prompt, prompt)
    return list(found.values())


def latents_of(prompts: Sequence[Prompt], pictures: int, seed: int, folder: Path) -> Artifact:
    """Latents of a perfect teacher's pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / "prompts.jsonl", prompts)
    config = DistillConfig(teacher=TEACHER, images_per_prompt=pictures, shard_size=2_000, seed=seed)
    images = distill(config, folder / "images", [folder / "prompts.jsonl"])
    return encode(recipes.find("encode", "nano"), folder / "latents", [images.path])


def part_of(whole: Artifact, captions: int, pictures: int, out: Path) -> Artifact:
    """Latents of the first captions, with the first pictures of each."""
    settings = {"part": [captions, pictures]}
    found = begin_artifact(out, "latents", settings, [whole])
    if isinstance(found, Artifact):
        return found
    shards = LatentShards(whole.path)
    places = [tuple(map(int, row["key"].split("-"))) for row in shards.rows()]
    rows = [i for i, (caption, picture) in enumerate(places) if caption < captions and picture < pictures]
    mean, std, table = shards.gather(rows)
    with found as workspace:
        write_latent_shard(workspace.path / "latents-00000.safetensors", mean, std, table)
        facts = {name: whole.manifest[name] for name in ("autoencoder", "text_encoder")}
        return workspace.commit({"rows": len(rows), "skipped": 0}, **facts)


def learn(latents: Artifact, seed: int, out: Path) -> Artifact:
    """The shipped student with a new language, learned from the latents."""
    config = TrainConfig(
        task=PretrainTask(objective=MaskedConfig(), text_encoder="new", train_text_encoder=True, seed=seed),
        fit=FitConfig(
            num_steps=STEPS,
            seed=seed,
            global_batch_size=BATCH,
            optimizer=OptimizerConfig(name="muon", lr=5e-4, muon_lr=1e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=30, decay_steps=60),
            max_grad_norm=2.0,
            ema_decay=0.98,
        ),
        run=RunConfig(save_every=10_000),
    )
    return train(config, out, [latents.path], "nano")


def run(name: str, out: Path) -> None:
    """Make, train and judge what a name stands for; what is there is kept."""
    folder = out / name
    kind, *rest, number = name.rsplit("-", 3 if name.startswith("grid") else 1)
    seed = int(number)
    if name.startswith("grid"):
        captions, pictures = map(int, rest)
        prompts = draw_captions(max(CAPTIONS), seed, EVEN, 0.0)
        whole = latents_of(prompts, max(PICTURES), seed, out / f"whole-{seed}")
        latents = part_of(whole, captions, pictures, folder / "latents")
    else:
        chosen = choose(next(how for how in SELECTORS if CHOICES[how] == kind), seed)
        latents = latents_of(chosen, SELECTED_PICTURES, seed, folder / "data")
    student = learn(latents, seed, folder / "student")
    write_prompts(out / "test.jsonl", test_prompts())
    config = DistillConfig(
        teacher=DRAWS, images_per_prompt=TEST_PICTURES, shard_size=120, batch_size=60, seed=3
    )
    images = distill(config, folder / "test", [out / "test.jsonl"], student.path)
    evaluate(recipes.find("evaluate", "nano-geneval"), folder / "scores", [images.path])


def choose(how: How, seed: int) -> list[Prompt]:
    """Captions out of the skewed pool."""
    pool = draw_captions(POOL, 100 + seed, SKEWED, SKEW)
    embedder = find_embedder(EmbedderConfig(kind="nano")).load()
    rows = select(embedder.embed_texts([p.prompt for p in pool]), CHOSEN, how, seed)
    return [pool[i] for i in rows]


class Results:
    """Right pictures [prompts, pictures] of each set and seed."""

    def __init__(self, out: Path, seeds: int) -> None:
        self.tasks = np.array([str(prompt.tag) for prompt in test_prompts()])
        self.right: dict[str, list[np.ndarray]] = {}
        for name in (*GRID.values(), *CHOICES.values()):
            for seed in range(seeds):
                report = json.loads((out / f"{name}-{seed}" / "scores" / "report.json").read_text())
                images = report["subjects"][0]["images"]
                right = np.array([image["correct"] for image in images], np.float64)
                self.right.setdefault(name, []).append(right.reshape(-1, TEST_PICTURES))

    def score(self, name: str, number: int | None = None) -> float:
        """Mean over tasks; with a number, of that resample of seeds and prompts, the same for every set."""
        runs, found = self.right[name], []
        random = None if number is None else numpy_draws(number, "resample of diversity")
        if random is not None:
            runs = [runs[i] for i in random.integers(0, len(runs), len(runs))]
        mean = np.mean([run.mean(1) for run in runs], axis=0)
        for task in TASKS:
            rows = np.flatnonzero(self.tasks == task)
            found.append(mean[rows if random is None else random.choice(rows, len(rows))].mean())
        return float(np.mean(found))

    def summary(self, pairs: Sequence[tuple[str | None, str]]) -> dict[str, Any]:
        """Mean gain of the second set of each pair over the first (None: its score), with its interval."""

        def value(number: int | None) -> float:
            gains = [self.score(b, number) - (0 if a is None else self.score(a, number)) for a, b in pairs]
            return float(np.mean(gains))

        low, high = np.percentile([value(number) for number in range(RESAMPLES)], [2.5, 97.5])
        return {"value": round(value(None), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def collect(out: Path, seeds: int) -> dict[str, Any]:
    """Scores of all sets, and what was asked of them."""
    results = Results(out, seeds)
    steps = {
        "four_times_the_captions": [(cell, (4 * cell[0], cell[1])) for cell in GRID],
        "four_times_the_pictures": [(cell, (cell[0], 4 * cell[1])) for cell in GRID],
        "captions_for_pictures_at_one_size": [(cell, (4 * cell[0], cell[1] // 4)) for cell in GRID],
    }
    gains = {
        question: results.summary([(GRID[a], GRID[b]) for a, b in pairs if b in GRID])
        for question, pairs in steps.items()
    }
    for how in SELECTORS[1:]:
        gains[f"{how}_over_random"] = results.summary([(CHOICES["random"], CHOICES[how])])
    return {
        "sets": {name: results.summary([(None, name)]) for name in results.right},
        "by_seed": {
            name: [
                round(float(np.mean([run[results.tasks == task].mean() for task in TASKS])), 4)
                for run in runs
            ]
            for name, runs in results.right.items()
        },
        "gains": gains,
        "seeds": seeds,
        "prompts": len(results.tasks),
        "images_per_prompt": TEST_PICTURES,
        "steps": STEPS,
        "batch_size": BATCH,
        "versions": library_versions(),
        "commit": code_commit(),
    }


def main() -> None:
    """Run what is asked for; without that, run all, and write and print the answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="where the document goes")
    parser.add_argument("--figure", type=Path, help="where the figure goes, as SVG")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME-SEED")
    found = parser.parse_args()
    quiet_libraries()
    found.out.mkdir(parents=True, exist_ok=True)
    names = (*GRID.values(), *CHOICES.values())
    for name in found.only or [f"{name}-{seed}" for seed in range(found.seeds) for name in names]:
        if not (found.out / name / "scores" / "manifest.json").is_file():
            run(name, found.out)
    if found.only:
        return
    answers = collect(found.out, found.seeds)
    drawn = figure(answers["sets"], GRID, CHOICES, f"{CHOSEN} of {POOL:,} skewed captions, chosen")
    for path, data in ((found.json, json_bytes(answers)), (found.figure, drawn.encode())):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                temporary.write_bytes(data)
    for group in ("sets", "gains"):
        for name, row in answers[group].items():
            low, high = row["interval"]
            sys.stdout.write(f"{name:36s} {row['value']:+.3f} ({low:+.3f} to {high:+.3f})\n")


if __name__ == "__main__":
    main()
