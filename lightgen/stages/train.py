"""Train: data and a start become a checkpoint, by one loop whatever the task."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, Workspace, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.stages.checkpoint import NANO, open_checkpoint
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, DPOTask, Job, PretrainTask, Task, prepare
from lightgen.training.fit import FitConfig, fit

STATE = "train_state"
_FITTED = f"{STATE}/fitted.json"
_SAVED = f"{STATE}/saved.json"
_KINDS = {PretrainTask: "pretrain", DPOTask: "dpo", AutoencoderTask: "autoencoder", DetectorTask: "detector"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, how long, and with which numbers."""

    task: Task
    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=1000))


def train(
    config: TrainConfig, out: str | Path, inputs: Sequence[str | Path], start: str | Path | None = None
) -> Artifact:
    """Checkpoint artifact with the trained parts; a killed run continues from its last saved state.

    Args:
        inputs: one artifact of latents, or images for an autoencoder or detector.
        start: checkpoint to begin from; unnamed, it is `nano` where the task needs one.

    Raises:
        UserError: inputs or a start that the task cannot use, or a loss that stays non-finite.
    """
    if config.fit.num_steps < 1 or config.fit.global_batch_size < 1:
        got = f"num_steps {config.fit.num_steps}, global_batch_size {config.fit.global_batch_size}"
        raise UserError(f"fit: got {got}, allowed: whole numbers from 1")
    if start is None and isinstance(config.task, PretrainTask | DPOTask):
        start = NANO
    checkpoint = open_checkpoint(start) if start is not None else None
    job = prepare(config.task, config.fit, inputs, checkpoint)
    parents = [*job.inputs, *([checkpoint] if checkpoint else [])]
    settings = {"stage": "train", **config_to_dict(config), **job.identity}
    found = begin_artifact(out, "checkpoint", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        if not workspace.has(_SAVED):
            workspace.write_json(_SAVED, _fit_and_save(config, job, workspace))
        summary = json.loads((workspace.path / _SAVED).read_text())
        # only now, when the parts are whole: a run killed before this line still has its state
        shutil.rmtree(workspace.path / STATE / "state", ignore_errors=True)
        parameters = sum(p.numel() for p in job.learner.parameters())
        return workspace.commit({"steps": summary["steps"], "parameters": parameters}, **job.facts)


def _fit_and_save(config: TrainConfig, job: Job, workspace: Workspace) -> dict[str, Any]:
    """Summary of the run, when the trained parts lie in the workspace."""
    wanted, folder = config.fit, workspace.path / STATE
    if workspace.has(_FITTED):
        # the run was over when it was killed; no step is left, and the loop only brings back the average
        wanted = replace(wanted, num_steps=json.loads((workspace.path / _FITTED).read_text())["steps"])
    description = f"train {_KINDS[type(config.task)]}"
    steps = fit(wanted, job.learner, job.objective, job.batches, folder, description)
    workspace.write_json(_FITTED, {"steps": steps})
    job.save(workspace.path)
    return {"steps": steps}
