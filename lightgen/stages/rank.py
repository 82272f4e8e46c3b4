"""Rank: images get a score, by a verdict on what they show or by where they come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress
from lightgen.core.prompt import Prompt
from lightgen.data.images import EncodedRecord, write_encoded_shard
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.protocols import Detector
from lightgen.stages.checkpoint import load_detector, open_detector
from lightgen.stages.inputs import ImageInputs, open_images


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What the score of an image is.

    Attributes:
        by: verdict: 1 for an image that shows what its prompt asks for, else 0, plus `confidence_weight`
            times the mean confidence in the objects asked for (0 for one that is missing), which parts ties;
            source: the earlier its directory is named, the higher.
        confidence_weight: below the margin of a later `train`, ties stay ties there.
        shard_size: images per shard, the unit of work that a killed run does not repeat.
    """

    by: Literal["verdict", "source"] = "verdict"
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    confidence_weight: float = 0.1
    shard_size: int = 500


def rank(
    config: RankConfig, out: str | Path, images: Sequence[str | Path], detector: str | Path | None = None
) -> Artifact:
    """Artifact of all images of all directories, their files as they were, each with a `score` in its JSON.

    Args:
        config: how they are scored.
        out: where the artifact will be.
        images: directories of images of the same prompts.
        detector: checkpoint of the detector behind verdicts; the shipped one unless named.

    Raises:
        UserError: inputs that are no images, of different prompts, or whose prompts cannot be judged.
    """
    inputs = open_images(images)
    _check_prompts(inputs)
    judge = open_detector(detector) if config.by == "verdict" else None
    parents = [*inputs.artifacts, *([judge] if judge else [])]
    settings = {"stage": "rank", **config_to_dict(config), **inputs.identity()}
    found = begin_artifact(out, "images", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        finder = load_detector(judge) if judge else None
        total = len(inputs)
        shards = [range(s, min(s + config.shard_size, total)) for s in range(0, total, config.shard_size)]
        names = [f"images-{number:05d}.tar" for number in range(len(shards))]
        done = sum(len(shard) for name, shard in zip(names, shards, strict=True) if workspace.has(name))
        with Progress("rank", total, "images", done) as progress:
            for name, shard in zip(names, shards, strict=True):
                if not workspace.has(name):
                    scored = (
                        _by_source(inputs, shard)
                        if finder is None
                        else _by_verdict(config, inputs, shard, finder)
                    )
                    write_encoded_shard(workspace.path / name, _records(inputs, shard, scored, progress))
        return workspace.commit({"images": total, "sources": len(inputs.sources)})


def score_of(verdict: ImageVerdict, confidence_weight: float) -> float:
    """Score of an image: 1 if it is right, else 0, plus weight times mean confidence in its objects."""
    confidences = []
    for requirement in verdict.prompt.include:
        scores = sorted((d.score for d in verdict.detections if d.label == requirement.name), reverse=True)
        scores = scores[: requirement.count]
        confidences += scores + [0.0] * (requirement.count - len(scores))
    mean = sum(confidences) / len(confidences) if confidences else 0.0
    return float(verdict.correct) + confidence_weight * mean


def _by_verdict(
    config: RankConfig, inputs: ImageInputs, shard: range, detector: Detector
) -> list[dict[str, Any]]:
    prompts = [Prompt.from_json(inputs.meta(i)) for i in shard]
    images = (inputs[i].image for i in shard)
    verdicts = evaluate_images(prompts, images, detector, None, config.verdict)
    return [
        {"score": score_of(v, config.confidence_weight), "correct": v.correct, "reason": v.reason}
        for v in verdicts
    ]


def _by_source(inputs: ImageInputs, shard: range) -> list[dict[str, Any]]:
    count = len(inputs.sources)
    return [{"score": float(count - inputs.locate(i)[0])} for i in shard]


def _records(
    inputs: ImageInputs, shard: range, scored: Sequence[dict[str, Any]], progress: Progress
) -> Iterator[EncodedRecord]:
    for i, entries in zip(shard, scored, strict=True):
        record = inputs.encoded(i)
        progress.advance()
        yield EncodedRecord(inputs.key(i), record.data, record.suffix, {**record.meta, **entries})


def _check_prompts(inputs: ImageInputs) -> None:
    """Refuse directories that do not hold the same prompts."""
    texts = [{source.meta(i)["prompt"] for i in range(len(source))} for source in inputs.sources]
    for number, each in enumerate(texts[1:], 1):
        for odd in sorted(each ^ texts[0])[:1]:
            raise UserError(
                f"rank: inputs 0 and {number} differ in prompt {odd[:60]!r}, allowed: the same prompts in all"
            )
