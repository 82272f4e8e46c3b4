"""Train: data and a start become a checkpoint, by one loop whatever the task, on any number of ranks."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightgen.core.artifact import Artifact, Workspace, begin_artifact, open_artifact, workspace_of
from lightgen.core.config import config_to_dict
from lightgen.core.device import multiplies_bf16
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.core.ranks import answers_expected, from_first, join_ranks, num_ranks, rank
from lightgen.stages.checkpoint import NANO, open_checkpoint, pick_device
from lightgen.stages.language_job import language_job
from lightgen.stages.picture_jobs import autoencoder_job, detector_job
from lightgen.stages.preference_job import dpo_job
from lightgen.stages.snapshots import Snapshots
from lightgen.stages.student_jobs import pretrain_job
from lightgen.stages.tasks import (
    AutoencoderTask,
    DetectorTask,
    DPOTask,
    Job,
    LanguageTask,
    PretrainTask,
    TrainConfig,
)
from lightgen.training.fit import STATES, fit
from lightgen.training.state import State, newest_step, open_state

STATE = "train_state"
_SAVED = f"{STATE}/saved.json"
_KINDS = {
    PretrainTask: "pretrain",
    DPOTask: "dpo",
    AutoencoderTask: "autoencoder",
    DetectorTask: "detector",
    LanguageTask: "language",
}


def train(
    config: TrainConfig,
    out: str | Path,
    inputs: Sequence[str | Path],
    start: str | Path | None = None,
    reference: str | Path | None = None,
) -> Artifact:
    """Checkpoint artifact with the trained parts; a killed run continues from its last saved state.

    Under torchrun all ranks call it; the first alone writes the artifact, on a file system that all see. On
    its way a run of a student leaves a checkpoint of the averaged weights at each saved state,
    `OUT-steps/step-N`.

    Args:
        config: the task, the loop's numbers, and how these machines run it.
        out: where the artifact will be.
        inputs: one artifact of latents, or images; none where captions are drawn.
        start: checkpoint to begin from; unnamed, it is `nano` where the task needs one.
        reference: checkpoint that preferences compare the student with; unnamed, it is the start.

    Raises:
        UserError: inputs, a start or a reference that the task cannot use, or a loss that stays non-finite.
    """
    config.fit.check()
    config.run.check()
    join_ranks(config.run.timeout_s)
    job, parents = prepare(config, inputs, start, reference, Path(out).parent)
    if rank() == 0 and config.fit.precision == "bf16" and not multiplies_bf16(pick_device()):
        say("this processor does not multiply bf16 itself: --fit.precision fp32 is several times as fast")
    identity = {"task": config_to_dict(config.task), "fit": config_to_dict(config.fit)}
    settings = {"stage": "train", **identity, **job.identity}
    with answers_expected(lambda: "the beginning or the end", config.run.timeout_s):
        return _train(config, job, Path(out), settings, parents)


def _train(
    config: TrainConfig, job: Job, out: Path, settings: Mapping[str, Any], parents: Sequence[Artifact]
) -> Artifact:
    found = begin_artifact(out, "checkpoint", settings, parents) if rank() == 0 else None
    is_saved = isinstance(found, Workspace) and found.has(_SAVED)
    left = from_first(0 if isinstance(found, Artifact) else 1 if is_saved else 2)
    if left:
        if isinstance(found, Workspace):
            with found as workspace:
                _fit_and_commit(config, job, workspace, Snapshots(job, out, settings, parents, config.run))
        elif left == 2:
            _fit(config, job, workspace_of(out) / STATE, None)
        from_first(0)  # the others wait until the artifact is whole
    return found if isinstance(found, Artifact) else open_artifact(out, "checkpoint", verify=False)


def prepare(
    config: TrainConfig,
    inputs: Sequence[str | Path],
    start: str | Path | None,
    reference: str | Path | None = None,
    beside: Path = Path(),
) -> tuple[Job, list[Artifact]]:
    """(The task made ready, the parents of what it makes).

    Args:
        config: see `train`, as for the next three.
        inputs: one artifact of latents, or images.
        start: checkpoint to begin from.
        reference: checkpoint that preferences compare with.
        beside: folder of what several runs share.

    Raises:
        UserError: see `train`.
    """
    task = config.task
    if start is None and isinstance(task, PretrainTask | DPOTask):
        start = NANO
    if reference is not None and not isinstance(task, DPOTask):
        raise UserError("--reference: got one, allowed: only where preferences are trained")
    checkpoint = None if start is None else open_checkpoint(start, verify=rank() == 0)
    if isinstance(task, AutoencoderTask):
        job = autoencoder_job(config, task, inputs, checkpoint)
    elif isinstance(task, DetectorTask):
        job = detector_job(config, task, inputs, checkpoint)
    elif isinstance(task, LanguageTask):
        job = language_job(config, task, inputs, checkpoint)
    else:
        assert checkpoint is not None
        if isinstance(task, PretrainTask):
            job = pretrain_job(config, task, inputs, checkpoint)
        else:
            compared = None if reference is None else open_checkpoint(reference, verify=rank() == 0)
            job = dpo_job(config, task, inputs, checkpoint, compared, beside)
    return job, [*job.inputs, *([checkpoint] if checkpoint else [])]


def averaged(state: State) -> dict[str, torch.Tensor]:
    """Averaged weights of a state, whole, by the learner's names."""
    return {name: state.full(f"ema/{name}") for name in state.names("ema")}


def _fit(config: TrainConfig, job: Job, folder: Path, snapshots: Snapshots | None) -> int:
    description = f"train {_KINDS[type(config.task)]}"
    exports = snapshots if job.exports else None
    return fit(config.fit, job.training(folder), folder, config.run, description, exports)


def _fit_and_commit(config: TrainConfig, job: Job, workspace: Workspace, snapshots: Snapshots) -> Artifact:
    """The artifact, on the first rank."""
    folder = workspace.path / STATE
    if not workspace.has(_SAVED):
        done, step = _fit(config, job, folder, snapshots), newest_step(folder / STATES)
        if step != done:
            raise UserError(
                f"{folder / STATES}: the state of step {done} is damaged, run the same command again"
            )
        for torn in workspace.path.iterdir():
            if torn.is_dir() and torn.name != STATE:
                shutil.rmtree(torn)
        job.save(workspace.path, averaged(open_state(folder / STATES, step)))
        workspace.write_json(_SAVED, {"steps": step})
    steps: int = json.loads((workspace.path / _SAVED).read_text())["steps"]
    # only now, when the parts are whole: a run killed before this line still has its states
    shutil.rmtree(folder / STATES, ignore_errors=True)
    parameters = sum(p.numel() for p in job.learner.parameters())
    run: Mapping[str, Any] = {**config_to_dict(config.run), "ranks": num_ranks()}
    return workspace.commit({"steps": steps, "parameters": parameters}, run=run, **job.facts)
