"""What every benchmark of single images has in common: a judge, its findings, and their making in shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightgen.core.artifact import Artifact, Workspace
from lightgen.core.prompt import Prompt
from lightgen.evals.tables import Mark, Overall
from lightgen.stages.engine import EngineConfig, Work, cut, write_shards
from lightgen.stages.inputs import ImageInputs

BATCH = 32
SHARD = 2 * BATCH  # whole batches, so that an image meets the judge in the same company however they are cut


@dataclass(frozen=True)
class Judged:
    """What was found in one image.

    Attributes:
        prompt: text of its prompt.
        mark: what it counts for.
        correct: whether all is right that was asked for.
        reason: a line per thing that is wrong; empty for a right image.
        broken: the rule behind each line.
        result: record of the image in the benchmark's own format of results, without its file's name.
    """

    prompt: str
    mark: Mark
    correct: bool
    reason: str
    broken: tuple[str, ...]
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Record of a report, from which `mark_of` finds the mark."""
        return {
            "prompt": self.prompt,
            "prompt_id": self.mark.prompt,
            "correct": self.correct,
            "score": self.mark.score,
            "parts": [list(part) for part in self.mark.parts],
            "reason": self.reason,
        }


def mark_of(record: dict[str, Any]) -> Mark:
    """Mark of a report's record of an image."""
    return Mark(record["prompt_id"], record["score"], tuple((task, value) for task, value in record["parts"]))


@dataclass(frozen=True)
class Scoring:
    """What the scores of a benchmark are.

    Attributes:
        name: of the benchmark.
        measure: what its scores are, as "share of right pictures".
        note: what a reader must know to take the scores for what they are; may be empty.
        overall, order: how marks become a table; see `score_table`.
    """

    name: str
    measure: str
    note: str
    overall: Overall
    order: tuple[str, ...]


class Judge(Protocol):
    """A benchmark that gives each image a mark."""

    @property
    def scoring(self) -> Scoring:
        """What its scores are."""
        ...

    @property
    def parents(self) -> Sequence[Artifact]:
        """Artifacts that it judges by."""
        ...

    def identity(self) -> dict[str, Any]:
        """Hashes of all that it judges by and that is no artifact."""
        ...

    def prompts(self) -> Sequence[Prompt]:
        """What checkpoints are asked to draw."""
        ...

    def check(self, images: ImageInputs) -> None:
        """Raises UserError: an image whose prompt cannot be judged."""
        ...

    def self_test(self) -> dict[str, float]:
        """What it made of pictures whose truth is known.

        Raises:
            UserError: it cannot be believed.
        """
        ...

    def work(self, images: str, *, test: bool) -> Work:
        """How shards of findings (a list of JSON records) on a directory of images are written.

        Args:
            images: the directory.
            test: whether every process tests itself before it judges.
        """
        ...

    def judged(self, images: ImageInputs, records: Sequence[Any]) -> list[Judged]:
        """Findings of the records of all images.

        Raises:
            UserError: an image whose prompt cannot be judged.
        """
        ...


def judge_images(
    engine: EngineConfig,
    workspace: Workspace,
    folder: str,
    judge: Judge,
    images: ImageInputs,
    place: str | Path,
    name: str,
    *,
    test: bool,
) -> list[Judged]:
    """Findings on each image; what an interrupted run has judged is not judged again.

    Args:
        engine: who judges; the findings do not depend on that.
        workspace: of the stage.
        folder: name of the folder in it that keeps the findings.
        judge: the benchmark.
        images: the images.
        place: directory that they were opened from.
        name: shown beside the progress.
        test: whether every process tests itself first.
    """
    shards = cut(len(images), SHARD)
    names = [f"{folder}/judged-{number:05d}.json" for number in range(len(shards))]
    # absolute: another process may work in another directory
    work = judge.work(str(Path(place).absolute()), test=test)
    write_shards(engine, workspace, f"judge {name}", names, [len(shard) for shard in shards], work)
    records = [record for each in names for record in json.loads((workspace.path / each).read_bytes())]
    return judge.judged(images, records)
