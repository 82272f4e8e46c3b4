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
from lightgen.stages.picture_jobs import autoencoder_job, detector_job
from lightgen.stages.student_jobs import dpo_job, pretrain_job
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, DPOTask, Job, PretrainTask, Task
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
        config: the task and the loop's numbers.
        out: where the artifact will be.
        inputs: one artifact of latents, or images for an autoencoder or detector.
        start: checkpoint to begin from; unnamed, it is `nano` where the task needs one.

    Raises:
        UserError: inputs or a start that the task cannot use, or a loss that stays non-finite.
    """
    if config.fit.num_steps < 1 or config.fit.global_batch_size < 1:
        got = f"num_steps {config.fit.num_steps}, global_batch_size {config.fit.global_batch_size}"
        raise UserError(f"fit: got {got}, allowed: whole numbers from 1")
    job, parents = prepare(config, inputs, start)
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


def prepare(
    config: TrainConfig, inputs: Sequence[str | Path], start: str | Path | None
) -> tuple[Job, list[Artifact]]:
    """(The task made ready, the parents of what it makes).

    Raises:
        UserError: see `train`.
    """
    task = config.task
    if start is None and isinstance(task, PretrainTask | DPOTask):
        start = NANO
    checkpoint = None if start is None else open_checkpoint(start)
    if isinstance(task, AutoencoderTask):
        job = autoencoder_job(task, config.fit, inputs, checkpoint)
    elif isinstance(task, DetectorTask):
        job = detector_job(task, config.fit, inputs, checkpoint)
    else:
        assert checkpoint is not None
        if isinstance(task, PretrainTask):
            job = pretrain_job(task, config.fit, inputs, checkpoint)
        else:
            job = dpo_job(task, config.fit, inputs, checkpoint)
    return job, [*job.inputs, *([checkpoint] if checkpoint else [])]


def _fit_and_save(config: TrainConfig, job: Job, workspace: Workspace) -> dict[str, Any]:
    """Summary of the run, when the trained parts lie in the workspace."""
    wanted, folder = config.fit, workspace.path / STATE
    if workspace.has(_FITTED):
        # the run was over when it was killed; no step is left, and the loop only brings back the average
        wanted = replace(wanted, num_steps=json.loads((workspace.path / _FITTED).read_text())["steps"])
    description = f"train {_KINDS[type(config.task)]}"
    steps = fit(wanted, job.learner, job.objective, job.batches, folder, description)
    workspace.write_json(_FITTED, {"steps": steps})
    for torn in workspace.path.iterdir():
        if torn.is_dir() and torn.name != STATE:
            shutil.rmtree(torn)
    job.save(workspace.path)
    return {"steps": steps}
