"""Checkpoints of a run under way: what its averaged weights can do so far, for anybody to use and to see."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightgen.core.artifact import Artifact, begin_artifact, open_artifact
from lightgen.core.directory import json_bytes
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.core.ranks import outside_ranks
from lightgen.stages.tasks import Job
from lightgen.training.config import RunConfig
from lightgen.training.state import State

SAMPLES = (
    "a photo of a dog",
    "a photo of two cars",
    "a photo of a red apple",
    "a photo of a cat left of a bus",
)


def steps_folder(out: Path) -> Path:
    """Where the checkpoints of a run lie that will end in `out`."""
    return out.with_name(f"{out.name}-steps")


class Snapshots:
    """Writes `OUT-steps/step-N`, an artifact like the run's last, whenever a state is saved.

    Every `sample_every` steps two grids of pictures, of the averaged weights and of those as trained, are
    drawn into `OUT-steps/samples-N` by another process; the next state is saved only when they are there.

    Args:
        job: knows how to write its parts.
        out: where the run's artifact will be.
        settings, parents: of the run, for the manifests.
        run: how often there are pictures.

    Raises:
        UserError: the folder holds checkpoints of another run.
    """

    def __init__(
        self,
        job: Job,
        out: Path,
        settings: Mapping[str, Any],
        parents: Sequence[Artifact],
        run: RunConfig,
    ) -> None:
        self._job, self._settings, self._parents = job, settings, parents
        self._folder, self._every = steps_folder(out), run.sample_every
        self._refuse_others()

    def __call__(self, state: State, kept: Sequence[int]) -> None:
        """Write the checkpoint of a state, and remove those whose states are gone."""
        self._folder.mkdir(exist_ok=True)
        made = self._write(state, "ema", f"step-{state.step:08d}")
        for path in self._folder.glob("step-" + 8 * "[0-9]"):
            if path.is_dir() and int(path.name.removeprefix("step-")) not in kept:
                shutil.rmtree(path, ignore_errors=True)
        if self._every is not None and state.step // self._every > self._last_drawn() // self._every:
            self._draw(state, made)

    def _refuse_others(self) -> None:
        own = (json.loads(json_bytes(self._settings)), [parent.digest for parent in self._parents])
        for path in self._folder.glob("step-" + 8 * "[0-9]"):
            if not (path / "manifest.json").is_file():  # what a killed run left of one that it removed
                shutil.rmtree(path, ignore_errors=True)
                continue
            found = open_artifact(path, "checkpoint", verify=False)
            config = {n: v for n, v in found.config.items() if n not in ("step", "weights")}
            if own != (config, [parent["digest"] for parent in found.parents]):
                raise UserError(
                    f"{self._folder}: holds checkpoints of another run, allowed: of this one; move it away, "
                    "or name another --out"
                )

    def _last_drawn(self) -> int:
        """Step of the newest pictures; 0 without any."""
        found = self._folder.glob("samples-*")
        return max((int(path.name.removeprefix("samples-")) for path in found), default=0)

    def _draw(self, state: State, averaged: Path) -> None:
        """Grids of pictures, here in the saving thread, by a process that is nice to the training."""
        out = self._folder / f"samples-{state.step:08d}"
        raw = self._write(state, "weights", f".raw-{state.step:08d}")
        try:
            for name, model in (("average", averaged), ("raw", raw)):
                arguments = ["generate", *SAMPLES, "--num", "2", "--model", str(model)]
                _run_aside([*arguments, "--out", f"{out / name}/", "--grid", str(out / f"{name}.png")])
        finally:
            shutil.rmtree(raw, ignore_errors=True)

    def _write(self, state: State, part: str, name: str) -> Path:
        settings = {**self._settings, "step": state.step, "weights": part}
        found = begin_artifact(self._folder / name, "checkpoint", settings, self._parents)
        if isinstance(found, Artifact):
            return found.path
        with found as workspace:
            tensors: dict[str, torch.Tensor] = {n: state.full(f"{part}/{n}") for n in state.names(part)}
            self._job.save(workspace.path, tensors)
            return workspace.commit({"steps": state.step}).path


def _run_aside(arguments: Sequence[str]) -> None:
    """Run a command of lightgen in another process, of no rank and with little claim to the processors."""
    program = "import os, sys; os.nice(10); from lightgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=outside_ranks(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        say(f"samples: not drawn, {done.stderr.strip().splitlines()[-1:]}")
