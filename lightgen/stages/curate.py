"""Curate: images become those that are worth keeping; each of the others is listed with its reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightgen.core.artifact import Artifact, Workspace, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.stages.curate_config import CurateConfig
from lightgen.stages.curate_decide import REASONS, TAKEN, Decision, Table, decide
from lightgen.stages.curate_judges import find_judges
from lightgen.stages.curate_measure import measure, number_of, read_measures
from lightgen.stages.curate_write import TakenWork, gather_from, load_decision, save_decision, write_rejected
from lightgen.stages.engine import LOCAL, EngineConfig, cut, write_shards
from lightgen.stages.inputs import ImageInputs, open_images

_DECISION, _REJECTED = "decision-{}.safetensors", "rejected.jsonl"


def curate(
    config: CurateConfig,
    out: str | Path,
    images: Sequence[str | Path],
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Artifact of the images that are taken, their files as they were, and of a list of all that are not.

    Every record, and every member of a shard that is in none, is either in an image shard or in a line of
    `rejected.jsonl`. What is measured lies beside the output in `measures-DIGEST`, an artifact of its own,
    which a run with other limits over the same images reads; it may be deleted.

    Args:
        config: which are taken.
        out: where the artifact will be.
        images: artifacts of images, or public sets of them.
        engine: who measures and writes; what comes out does not depend on that.

    Raises:
        UserError: inputs that are no images, a model that is not on this machine, limits that no image meets,
            or another process that is measuring the same.
    """
    config.check()
    inputs, judges = open_images(images), find_judges(config)
    settings = {"stage": "curate", **config_to_dict(config), **inputs.identity(), **judges.identity()}
    found = begin_artifact(out, "images", settings, inputs.artifacts)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        paths = tuple(str(Path(path).absolute()) for path in images)
        measures = measure(config, workspace.out.parent, paths, inputs, judges, engine)
        name = _DECISION.format(measures.path.name)
        decision = _decide(config, inputs, measures, workspace, name)
        work = TakenWork(config, paths, measures.path, workspace.path / name)
        shards = cut(len(decision.taken), config.shard_size)
        names = [f"images-{number:05d}.tar" for number in range(len(shards))]
        write_shards(engine, workspace, "curate", names, [len(shard) for shard in shards], work)
        if not workspace.has(_REJECTED):
            with workspace.file(_REJECTED) as path:
                write_rejected(path, config, inputs, decision, measures.path)
        workspace.remove(name)
        reasons = _counts(decision, inputs)
        counts = {"images": len(decision.taken), "rejected": sum(reasons.values())}
        counts |= {"records": sum(counts.values()), **{name: n for name, n in reasons.items() if n}}
        return workspace.commit(counts, rejected=reasons, safety=judges.safety_state())


def _decide(
    config: CurateConfig, inputs: ImageInputs, measures: Artifact, workspace: Workspace, name: str
) -> Decision:
    """Which are taken; an interrupted run goes on with what it had decided, in the file of that name.

    Raises:
        UserError: none is, or what was decided was of images that have changed since.
    """
    if workspace.has(name):
        return load_decision(workspace.path / name)
    if any(workspace.path.glob(_DECISION.format("*"))):
        raise UserError(
            f"{workspace.path}: was begun before the images changed, allowed: images as they were; "
            "delete the directory to begin anew"
        )
    table = read_table(config, measures.path, len(inputs))
    gather = gather_from(measures.path, config.shard_size, workspace.path)
    decision = decide(config, table, gather)
    if not len(decision.taken):
        why = ", ".join(f"{n:,} {name}" for name, n in _counts(decision, inputs).items() if n)
        raise UserError(
            f"curate: took none of {len(inputs):,} images ({why}), allowed: limits that some image meets; "
            f"{measures.path.name}/report.json tells how their numbers are spread"
        )
    if config.selection.num is not None and len(decision.taken) < config.selection.num:
        say(f"curate: {len(decision.taken):,} images are left, fewer than --selection.num; all are taken")
    save_decision(workspace.path / name, decision)
    return decision


def _counts(decision: Decision, inputs: ImageInputs) -> dict[str, int]:
    """How many are not taken, by reason, zeros too."""
    return decision.counts() | {REASONS[0]: sum(len(source.skipped) for source in inputs.sources)}


def read_table(config: CurateConfig, measures: Path, total: int) -> Table:
    """Measures of all records, with the columns that the config asks for, as arrays."""
    looks = {name: np.full(total, np.nan) for name in ("contrast", "entropy", "sharpness", "unsafe")}
    columns = {name: np.full(total, np.nan) for name in config.columns()}
    whole = {name: np.zeros(total, np.int32) for name in ("height", "width")}
    hashes, prompts = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
    problem, odd = np.full(total, TAKEN, np.uint8), np.zeros(total, bool)
    with Progress("curate: reading", total, "measures", lines=False) as progress:
        for i, line in enumerate(read_measures(measures, total, config.shard_size)):
            if "reason" in line:
                problem[i] = REASONS.index(line["reason"])
            else:
                odd[i] = "odd" in line
                hashes[i], prompts[i] = int(line["phash"], 16), int(line["prompt"], 16)
                for name, values in whole.items():
                    values[i] = line[name]
                for name, values in looks.items():
                    values[i] = line.get(name, np.nan)  # what a record says of itself is none of these
                for name, values in columns.items():
                    values[i] = number_of(line, name)
            progress.advance()
    return Table(problem=problem, odd=odd, hashes=hashes, prompts=prompts, columns=columns, **looks, **whole)
