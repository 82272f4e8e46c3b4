"""Scores of a set of images, such as CLIPScore: one of each image by shards, and their mean."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.artifact import Workspace
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.errors import UserError
from lightgen.evals.statistics import BootstrapConfig, Shares, interval, resampled_shares
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.scorer import ScorerPlace

_SHARD = 512  # images at least, in whole batches: an image meets the model in the same company


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """Mean score of a set of images; higher is better.

    Attributes:
        name: kind of the scorer, as in clip-score.
        value: mean over images.
        interval: over prompts drawn again, each with all its images.
        images, prompts: how many.
    """

    name: str
    value: float
    interval: tuple[float, float]
    images: int
    prompts: int

    def to_json(self) -> dict[str, Any]:
        """Record of these numbers."""
        return asdict(self)


def image_scores(
    engine: EngineConfig,
    workspace: Workspace,
    folder: str,
    place: ScorerPlace,
    images: ImageInputs,
    path: str | Path,
    name: str = "",
) -> np.ndarray:
    """Scores float64 [N] of all images with their prompts, in order.

    Args:
        engine: who runs the scorer; the scores do not depend on that.
        workspace: of the stage; what an interrupted run has scored is not scored again.
        folder: name of the folder in it that keeps the scores.
        place: of the scorer.
        images: the images.
        path: that they were opened from.
        name: shown beside the progress.

    Raises:
        UserError: an image that cannot be read, or a score that is not finite.
    """
    shards = cut(len(images), _shard_size(place))
    names = [f"{folder}/scores-{number:05d}.json" for number in range(len(shards))]
    # absolute: another process may work in another directory
    work = ScoreWork(place, str(Path(path).absolute()))
    task = f"{place.config.kind} {name}".strip()
    write_shards(engine, workspace, task, names, [len(shard) for shard in shards], work)
    return np.array([score for each in names for score in json.loads((workspace.path / each).read_bytes())])


def mean_score(
    kind: str, scores: np.ndarray, prompts: Sequence[str], config: BootstrapConfig | None = None
) -> MeanScore:
    """Mean of scores [N] of images of N prompts, equal ones together, with its bootstrap interval.

    Raises:
        UserError: there are no scores.
    """
    assert len(scores) == len(prompts), (len(scores), len(prompts))
    if not len(scores):
        raise UserError(f"{kind}: got no images, allowed: one or more")
    config = config or BootstrapConfig()
    known = {prompt: number for number, prompt in enumerate(sorted(set(prompts)))}
    rows = np.array([known[prompt] for prompt in prompts])
    sums, counts = np.bincount(rows, scores, len(known)), np.bincount(rows, minlength=len(known))
    # scores may leave [0, 1], which the resampling does not mind
    drawn = resampled_shares(Shares(sums, counts), config, kind)
    return MeanScore(
        name=kind,
        value=float(scores.mean()),
        interval=interval(drawn, config.coverage),
        images=len(scores),
        prompts=len(known),
    )


@dataclass(frozen=True)
class ScoreWork:
    """Shards of scores.

    Attributes:
        place: of the scorer.
        images: path of the images, whose records hold their prompts.
    """

    place: ScorerPlace
    images: str

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images([self.images], verify=False)
        scorer, batch_size = self.place.load(), self.place.config.batch_size
        shards = cut(len(inputs), _shard_size(self.place))

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            scores: list[float] = []
            read = ((i, inputs[i]) for i in shards[number])
            for _, same_size in itertools.groupby(read, key=lambda item: item[1].image.shape):
                while batch := list(itertools.islice(same_size, batch_size)):
                    pixels = np.stack([record.image for _, record in batch])
                    found = scorer.score(pixels, [record.meta["prompt"] for _, record in batch])
                    odd = np.flatnonzero(~np.isfinite(found))
                    if len(odd):
                        raise UserError(
                            f"record {inputs.key(batch[int(odd[0])][0])!r}: its score is not finite, "
                            "allowed: finite; --scorer.precision fp32 may help"
                        )
                    scores += found.astype(np.float64).tolist()
                    advance(len(batch))
            with whole_file(path) as temporary:
                temporary.write_bytes(json_bytes(scores))

        return write


def _shard_size(place: ScorerPlace) -> int:
    return -(-_SHARD // place.config.batch_size) * place.config.batch_size
