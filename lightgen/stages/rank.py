"""Rank: images get a score, by a verdict on what they show, by where they come from, or by a scorer."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.core.together import begin_together, commit_together
from lightgen.data.images import EncodedRecord, ImageShards, write_encoded_shard
from lightgen.data.pairs import pair_up
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.protocols import Detector, Scorer
from lightgen.ports.scorer import COLUMNS, ScorerConfig
from lightgen.stages.checkpoint import load_detector, open_detector
from lightgen.stages.engine import LOCAL, EngineConfig, Writer, cut, write_shards
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.scorer import ScorerPlace, find_scorer

# Entries of a record by which it is scored, beside `score`, which the last rank wrote.
RANKED = ("verdict_score", "correct", "source_index", *COLUMNS.values())

_Score = Callable[[range], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What the score of an image is.

    Every way also writes an entry of its own, so that several `rank` in a row keep what all of them found.

    Attributes:
        by: verdict: 1 for an image that shows what its prompt asks for, else 0, plus `confidence_weight`
            times the mean confidence in the objects asked for (0 for one that is missing), which parts ties
            (entries verdict_score, correct, reason); source: the earlier its directory is named, the higher
            (source_index, from 0); scorer: what the scorer says (clip_score, pick_score, hps_v2, aesthetic).
        confidence_weight: below the margin of a later `train`, ties stay ties there.
        shard_size: images per shard, the unit of work that a killed run does not repeat.
    """

    by: Literal["verdict", "source", "scorer"] = "verdict"
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    confidence_weight: float = 0.1
    shard_size: int = 500


def rank(
    config: RankConfig,
    out: str | Path,
    images: Sequence[str | Path],
    detector: str | Path | None = None,
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Artifact of all images of all directories, their files as they were, each with a `score` in its JSON.

    Args:
        config: how they are scored.
        out: where the artifact will be.
        images: directories of images of the same prompts.
        detector: checkpoint of the detector behind verdicts; the shipped one unless named.
        engine: who runs it; the scores do not depend on that.

    Raises:
        UserError: inputs that are no images, of different prompts, or whose prompts cannot be judged; or a
            scorer that is not on this machine.
    """
    if config.shard_size < 1:
        raise UserError(f"--shard-size: got {config.shard_size}, allowed: a whole number from 1")
    inputs = open_images(images)
    _check_prompts(inputs)
    judge = open_detector(detector) if config.by == "verdict" else None
    place = find_scorer(config.scorer) if config.by == "scorer" else None
    parents = [*inputs.artifacts, *([judge] if judge else [])]
    settings = {"stage": "rank", **config_to_dict(config), **inputs.identity()}
    if place is not None:
        settings["scorer_files"] = place.identity()
    found = begin_together(out, "images", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        shards = cut(len(inputs), config.shard_size)
        names = [f"images-{number:05d}.tar" for number in range(len(shards))]
        # absolute: another process may work in another directory
        places = tuple(str(Path(path).absolute()) for path in images)
        work = RankWork(config, places, None if judge is None else judge.path.absolute(), place)
        write_shards(engine, workspace, "rank", names, [len(shard) for shard in shards], work)
        return commit_together(workspace, _counts(workspace.path, len(inputs.sources)))


@dataclass(frozen=True)
class RankWork:
    """Shards of scored images.

    Attributes:
        config: how they are scored.
        images: directories of all of them.
        detector: folder of the checkpoint behind verdicts, where those score.
        place: of the scorer, where one scores.
    """

    config: RankConfig
    images: tuple[str, ...]
    detector: Path | None
    place: ScorerPlace | None

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images(self.images, verify=False)
        if self.detector is not None:
            judge = load_detector(open_artifact(self.detector, "checkpoint", verify=False))
            score = _by_verdict(self.config, inputs, judge)
        elif self.place is not None:
            score = _by_scorer(self.config.scorer, inputs, self.place.load())
        else:
            score = _by_source(inputs)
        shards = cut(len(inputs), self.config.shard_size)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            shard = shards[number]
            write_encoded_shard(path, _records(inputs, shard, score(shard), advance))

        return write


def _counts(folder: Path, sources: int) -> dict[str, int]:
    """What the manifest counts; a prompt is tied if its best and its worst image score the same."""
    shards = ImageShards(folder)
    metas = (shards.meta(i) for i in range(len(shards)))
    _, counts = pair_up([{"caption": meta["prompt"], "score": meta["score"]} for meta in metas])
    found = {"images": len(shards), "sources": sources, "prompts": counts.prompts}
    return {**found, "prompts_paired": counts.pairs, "prompts_tied": counts.ties}


def score_of(verdict: ImageVerdict, confidence_weight: float) -> float:
    """Score of an image: 1 if it is right, else 0, plus weight times mean confidence in its objects."""
    confidences = []
    for requirement in verdict.prompt.include:
        scores = sorted((d.score for d in verdict.detections if d.label == requirement.name), reverse=True)
        scores = scores[: requirement.count]
        confidences += scores + [0.0] * (requirement.count - len(scores))
    mean = sum(confidences) / len(confidences) if confidences else 0.0
    return float(verdict.correct) + confidence_weight * mean


def _by_verdict(config: RankConfig, inputs: ImageInputs, detector: Detector) -> _Score:
    def entries(shard: range) -> list[dict[str, Any]]:
        prompts = [Prompt.from_json(inputs.meta(i)) for i in shard]
        images = (inputs[i].image for i in shard)
        verdicts = evaluate_images(prompts, images, detector, None, config.verdict)
        scores = [score_of(verdict, config.confidence_weight) for verdict in verdicts]
        return [
            {"score": score, "verdict_score": score, "correct": verdict.correct, "reason": verdict.reason}
            for score, verdict in zip(scores, verdicts, strict=True)
        ]

    return entries


def _by_source(inputs: ImageInputs) -> _Score:
    def entries(shard: range) -> list[dict[str, Any]]:
        places = [inputs.locate(i)[0] for i in shard]
        return [{"score": float(len(inputs.sources) - place), "source_index": place} for place in places]

    return entries


def _by_scorer(config: ScorerConfig, inputs: ImageInputs, scorer: Scorer) -> _Score:
    def entries(shard: range) -> list[dict[str, Any]]:
        scores: list[float] = []
        read = ((inputs[i].image, inputs.meta(i)["prompt"]) for i in shard)
        for _, same_size in itertools.groupby(read, key=lambda item: item[0].shape):
            while batch := list(itertools.islice(same_size, config.batch_size)):
                images, prompts = zip(*batch, strict=True)
                scores += scorer.score(np.stack(images), prompts).tolist()
        odd = next((i for i, score in zip(shard, scores, strict=True) if not math.isfinite(score)), None)
        if odd is not None:
            raise UserError(
                f"record {inputs.key(odd)!r}: the scorer's answer is not finite, allowed: finite; "
                "--scorer.precision fp32 may help"
            )
        return [{"score": score, COLUMNS[config.kind]: score} for score in scores]

    return entries


def _records(
    inputs: ImageInputs, shard: range, scored: Sequence[dict[str, Any]], advance: Callable[[int], None]
) -> Iterator[EncodedRecord]:
    for i, entries in zip(shard, scored, strict=True):
        record = inputs.encoded(i)
        advance(1)
        yield EncodedRecord(inputs.key(i), record.data, record.suffix, {**record.meta, **entries})


def _check_prompts(inputs: ImageInputs) -> None:
    """Refuse directories that do not hold the same prompts."""
    texts = [{source.meta(i)["prompt"] for i in range(len(source))} for source in inputs.sources]
    for number, each in enumerate(texts[1:], 1):
        for odd in sorted(each ^ texts[0])[:1]:
            raise UserError(
                f"rank: inputs 0 and {number} differ in prompt {odd[:60]!r}, allowed: the same prompts in all"
            )
