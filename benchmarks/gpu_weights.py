"""Trains autoencoder and student of the shipped nano weights in minutes of one GPU, from nothing.

The teacher draws without pause on all cores, so that hardly a picture is seen twice; pictures, latents and
words stay in the GPU's memory, and masks and noise are drawn there. Model, objective, optimizer and average
are those of `lightgen train`; only the number of steps is set by the time that is given.

.venv/bin/python benchmarks/gpu_weights.py autoencoder --seconds 120 --out runs/gpu
.venv/bin/python benchmarks/gpu_weights.py student --seconds 480 --out runs/gpu
.venv/bin/python benchmarks/gpu_weights.py assemble --out runs/gpu   # -> runs/gpu/checkpoint
"""

import argparse
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import queue
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.draws import draw_key, numpy_draws
from lightgen.models.student import Student
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, Masking
from lightgen.objectives.reconstruction import ReconstructionObjective
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.autoencoder import build_nano_autoencoder
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import tokenize
from lightgen.recipes.model import nano
from lightgen.recipes.train_nano import nano_autoencoder, pretrain_nano
from lightgen.stages.checkpoint import cast, forget_origin
from lightgen.stages.student_jobs import new_transformer
from lightgen.stages.student_save import StudentWriter
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.learning import Learning
from lightgen.training.schedule import ScheduleConfig

SIDE, CHUNK, WORDS = 128, 250, 48
# As in the recipe `nano-weights`: the teacher errs now and then, as real ones do.
TEACHER = EmojiTeacherConfig(
    rotation_degrees=0.0,
    rotation_steps=1,
    errors=ErrorKnob(wrong_count=0.1, wrong_place=0.1, wrong_color=0.05, blur=0.05),
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("autoencoder", "student", "assemble"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--pool", type=int, default=0, help="pictures or latents that are kept at most")
    parser.add_argument("--drawers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "assemble":
        print(assemble(arguments.out).path)  # noqa: T201
        return
    with Scenes(arguments.drawers) as scenes:
        if arguments.what == "autoencoder":
            train_autoencoder(arguments, scenes)
        else:
            train_student(arguments, scenes)


def _draw(first: int, step: int, place: str, slots: int, free: Any, full: Any) -> None:  # noqa: ANN401
    """What a drawing process does: chunks first, first + step, ... of the teacher's training scenes."""
    torch.set_num_threads(1)
    teacher = EmojiTeacher(TEACHER)
    pictures = np.memmap(place, np.uint8, "r+", shape=(slots, CHUNK, SIDE, SIDE, 3))
    for chunk in itertools.count(first, step):
        numbers = range(chunk * CHUNK, (chunk + 1) * CHUNK)
        captions = [draw_prompt(0, number, "train").prompt for number in numbers]
        seeds = [draw_key(0, "image seed", number, 0) >> 31 for number in numbers]
        slot = free.get()
        pictures[slot] = teacher.generate(captions, seeds, SIDE, SIDE)
        full.put((slot, captions))


class Scenes:
    """Pictures of the teacher with their captions, as they are drawn."""

    def __init__(self, drawers: int) -> None:
        context, slots = multiprocessing.get_context("spawn"), 8 * drawers
        self._file = tempfile.NamedTemporaryFile(prefix="scenes-")  # noqa: SIM115  (closed by __exit__)
        self._file.truncate(slots * CHUNK * SIDE * SIDE * 3)
        self._free, self._full = context.Queue(), context.Queue()
        for slot in range(slots):
            self._free.put(slot)
        self._pictures = np.memmap(self._file.name, np.uint8, "r", shape=(slots, CHUNK, SIDE, SIDE, 3))
        common = (self._file.name, slots, self._free, self._full)
        self._drawers = [
            context.Process(target=_draw, args=(number, drawers, *common), daemon=True)
            for number in range(drawers)
        ]

    def __enter__(self) -> "Scenes":
        """Start drawing."""
        for each in self._drawers:
            each.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        for each in self._drawers:
            each.terminate()
        self._file.close()

    def take(self, wait: bool) -> tuple[torch.Tensor, list[str]] | None:
        """(Pictures uint8 [N, 3, H, W] on the device, captions), or None where none is ready."""
        try:
            slot, captions = self._full.get(timeout=60) if wait else self._full.get_nowait()
        except queue.Empty:
            if wait:
                raise
            return None
        pixels = torch.from_numpy(self._pictures[slot].copy()).to(DEVICE).permute(0, 3, 1, 2)
        self._free.put(slot)
        return pixels.contiguous(), captions


class Clock:
    """Steps that fit into the time: the schedule is laid once a few steps have been timed."""

    def __init__(self, learning: Learning, seconds: float, decayed: float) -> None:
        self.learning, self.decayed, self.began = learning, decayed, time.monotonic()
        self.ends, self.num_steps, self._mark = self.began + seconds, 10**9, (0, 0.0)

    def lay(self, step: int) -> None:
        """Time the steps up to here, and set how many there will be."""
        if step == 60:
            self._mark = (step, time.monotonic())
        # twice: the second time with drawing and encoding under way
        if step in (160, 800):
            now = time.monotonic()
            rate = (step - self._mark[0]) / (now - self._mark[1])
            self.num_steps = step + max(10, int(0.97 * rate * (self.ends - now)))
            self._mark = (step, now)
            schedule = ScheduleConfig(warmup_steps=100, decay_steps=int(self.decayed * self.num_steps))
            self.learning.config = dataclasses.replace(
                self.learning.config, num_steps=self.num_steps, schedule=schedule
            )
            say(f"{rate:.1f} steps/s, {self.num_steps} steps in all")

    def is_over(self, step: int) -> bool:
        """Whether the time or the steps are used up."""
        return step >= self.num_steps or time.monotonic() > self.ends


def train_autoencoder(arguments: argparse.Namespace, scenes: Scenes) -> None:
    """`vae/` of a new autoencoder, in fp16."""
    recipe, batch_size, pool_size = nano_autoencoder(), arguments.batch or 128, arguments.pool or 60_000
    vae = build_nano_autoencoder(0).to(DEVICE)
    fit = dataclasses.replace(recipe.fit, num_steps=10**9, ema_decay=0.998)
    objective = ReconstructionObjective(recipe.task.objective)  # pyright: ignore[reportAttributeAccessIssue]
    learning = Learning(open_ended(fit), RunConfig(), vae, objective)  # pyright: ignore[reportArgumentType]
    pool = torch.empty(pool_size, 3, SIDE, SIDE, dtype=torch.uint8, device=DEVICE)
    random = torch.Generator(DEVICE).manual_seed(0)
    count, clock = 0, Clock(learning, arguments.seconds, 0.4)
    for step in itertools.count():
        while found := scenes.take(wait=count < 8 * batch_size):
            rows = torch.arange(count, count + CHUNK) % pool_size
            pool[rows] = found[0]
            count += CHUNK
            if count >= 8 * batch_size:
                break
        clock.lay(step)
        if clock.is_over(step):
            break
        chosen = torch.randint(min(count, pool_size), (batch_size,), generator=random, device=DEVICE)
        noise = torch.randn(batch_size, 16, SIDE // 8, SIDE // 8, generator=random, device=DEVICE)
        batch = {"pixels": pool[chosen], "ids": [step], "noise": noise}
        outcome = learning.step([(batch, batch_size)], step, batch_size)
        if step % 200 == 0:
            note(arguments.out, "autoencoder", step, outcome.sums, count)
    learning.finish()
    cast(vae, torch.float16)
    vae.to("cpu").save_pretrained(arguments.out / "vae")


def train_student(arguments: argparse.Namespace, scenes: Scenes) -> None:
    """`stable-N` before the rate falls, and `student-N` at the end: weights in fp16, in two files each."""
    batch_size, pool_size = arguments.batch or 1024, arguments.pool or 1_600_000
    recipe, autoencoder = pretrain_nano(), load_autoencoder(arguments.out / "vae")
    autoencoder.vae.to(DEVICE)
    text = build_nano_text_encoder(0)
    student = new_student(autoencoder.channels).to(DEVICE).train()
    rates = dataclasses.replace(recipe.fit.optimizer, lr=arguments.lr, muon_lr=arguments.muon_lr)
    fit = dataclasses.replace(recipe.fit, optimizer=rates, num_steps=10**9, ema_decay=0.999)
    objective = MaskedObjective(MaskedConfig())
    learning = Learning(open_ended(fit), RunConfig(), student, objective)  # pyright: ignore[reportArgumentType]
    shape = (pool_size, autoencoder.channels, SIDE // 8, SIDE // 8)
    latents = torch.empty(shape, dtype=torch.float16, device=DEVICE)
    words = torch.zeros(pool_size, WORDS, dtype=torch.int16, device=DEVICE)
    lengths = torch.zeros(pool_size, dtype=torch.int64, device=DEVICE)
    random = torch.Generator(DEVICE).manual_seed(0)
    count, clock, is_stable_saved = 0, Clock(learning, arguments.seconds, 0.4), False
    for step in itertools.count():
        while found := scenes.take(wait=count < 20 * batch_size):
            rows = torch.arange(count, count + CHUNK) % pool_size
            latents[rows] = autoencoder.encode(found[0].float().div(127.5).sub(1))[0].half()
            ids, mask = tokenize(text.tokenizer, found[1], WORDS, WORDS)
            words[rows], lengths[rows] = ids.short().to(DEVICE), mask.sum(1).to(DEVICE)
            count += CHUNK
            if count >= 20 * batch_size:
                break
        clock.lay(step)
        if clock.is_over(step):
            break
        if not is_stable_saved and step >= 0.6 * clock.num_steps:
            is_stable_saved = True
            save_weights(learning.ema.tensors, arguments.out, "stable")
        chosen = torch.randint(min(count, pool_size), (batch_size,), generator=random, device=DEVICE)
        long = lengths[chosen]
        reach = torch.arange(WORDS, device=DEVICE)
        batch = {
            "latents": latents[chosen].float(),
            "text_ids": words[chosen].long(),
            "text_mask": reach[None] < long[:, None],
            "masking": draw_masking(MaskedConfig(), step, batch_size, random),
            "ids": [step],
        }
        outcome = learning.step([(batch, batch_size)], step, batch_size)
        if step % 200 == 0:
            note(arguments.out, "student", step, outcome.sums, count)
    learning.finish()
    save_weights(learning.ema.tensors, arguments.out, "student")
    say(f"{step} steps of {batch_size}, {count} scenes")


def draw_masking(config: MaskedConfig, step: int, batch: int, random: torch.Generator) -> Masking:
    """As `lightgen.objectives.masked.draw_masking`, but drawn for all samples at once, on the device."""
    length, channels = (SIDE // 16) ** 2, 64
    share = 1 - abs(float(numpy_draws(config.seed, "mask-ratio", step).normal(0.0, config.mask_spread)))
    hidden = max(1, math.ceil(max(share, 0.0) * length))
    like: Any = {"generator": random, "device": DEVICE}
    shape = (config.draws_per_token, batch, hidden)
    return Masking(
        order=torch.rand(batch, length, **like).argsort(dim=1),
        time=torch.sigmoid(config.time_mean + config.time_std * torch.randn(shape, **like)),
        noise=torch.randn(*shape, channels, **like),
        kept=torch.nonzero(torch.rand(batch, **like) >= config.text_drop)[:, 0],
    )


def new_student(channels: int) -> Student:
    """The student of the recipe `pretrain-nano`, untrained."""
    text = build_nano_text_encoder(0)
    return Student(new_transformer(nano(), channels, text, 0), text.encoder, True)


def open_ended(fit: FitConfig) -> FitConfig:
    """The numbers with a rate that does not fall yet."""
    return dataclasses.replace(fit, schedule=ScheduleConfig(kind="constant", warmup_steps=100))


def save_weights(tensors: dict[str, torch.Tensor], out: Path, name: str) -> None:
    """Two files of about the same size."""
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    sizes = [0, 0]
    for key, tensor in sorted(tensors.items(), key=lambda each: -each[1].numel()):
        place = sizes.index(min(sizes))
        halves[place][key] = tensor.detach().half().cpu().contiguous()
        sizes[place] += tensor.numel()
    for number, half in enumerate(halves):
        save_file(half, out / f"{name}-{number}.safetensors")


def assemble(out: Path, name: str = "student") -> Artifact:
    """Checkpoint artifact of the autoencoder and the student's weights."""
    found = begin_artifact(out / "start", "checkpoint", {"stage": "gpu-weights", "part": "vae"}, [])
    if not isinstance(found, Artifact):
        with found as workspace:
            autoencoder = load_autoencoder(out / "vae").vae
            autoencoder.to(torch.float16).save_pretrained(workspace.path / "vae")  # pyright: ignore[reportArgumentType]
            forget_origin(workspace.path)
            found = workspace.commit({})
    start = found
    parts = [load_file(out / f"{name}-{number}.safetensors") for number in range(2)]
    weights = {key: tensor.float() for part in parts for key, tensor in part.items()}
    log = [json.loads(line) for line in (out / "student.jsonl").read_text().splitlines()]
    settings = {"stage": "gpu-weights", "weights": name, "last": log[-1]}
    made = begin_artifact(out / "checkpoint", "checkpoint", settings, [start])
    if isinstance(made, Artifact):
        return made
    with made as workspace:
        student = new_student(load_autoencoder(out / "vae").channels)
        writer = StudentWriter(
            start, dict(student.transformer.config), build_nano_text_encoder(0), new_text=0, trains_text=True
        )
        writer.write(workspace.path, weights)
        return workspace.commit({})


def note(out: Path, name: str, step: int, sums: dict[str, tuple[float, float]], scenes: int) -> None:
    """A line of the log, and on the screen."""
    means = {key: round(total / count, 4) for key, (total, count) in sums.items() if count}
    row = {"step": step, "scenes": scenes, **means}
    with (out / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    if step % 1_000 == 0 or step <= 600:
        say(json.dumps(row))


def say(text: str) -> None:
    """A line at once."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)  # noqa: T201


_BEGAN = time.monotonic()

if __name__ == "__main__":
    main()
