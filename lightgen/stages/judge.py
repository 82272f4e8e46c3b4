"""Verdicts on images, shard by shard."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightgen.core.artifact import Workspace, open_artifact
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.prompt import Prompt
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.stages.checkpoint import load_detector
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards
from lightgen.stages.inputs import ImageInputs, open_images

BATCH = 32
_SHARD = (
    8 * BATCH
)  # whole batches, so that an image meets the detector in the same company however they are cut


@dataclass(frozen=True)
class JudgeWork:
    """Shards of verdicts.

    Attributes:
        config: numbers of the verdict.
        images: directory of the images, whose records hold their prompts.
        detector: folder of the checkpoint that finds objects.
        labels: classes asked of it.
    """

    config: VerdictConfig
    images: str
    detector: Path
    labels: tuple[str, ...]

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images([self.images], verify=False)
        detector = load_detector(open_artifact(self.detector, "checkpoint", verify=False))
        shards = cut(len(inputs), _SHARD)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            verdicts = []
            for start in range(0, len(shards[number]), BATCH):
                batch = shards[number][start : start + BATCH]
                prompts = [Prompt.from_json(inputs.meta(i)) for i in batch]
                pixels = (inputs[i].image for i in batch)
                verdicts += evaluate_images(
                    prompts, pixels, detector, None, self.config, self.labels, batch_size=BATCH
                )
                advance(len(batch))
            with whole_file(path) as temporary:
                temporary.write_bytes(json_bytes([verdict.to_json() for verdict in verdicts]))

        return write


def judge(
    engine: EngineConfig,
    workspace: Workspace,
    folder: str,
    config: VerdictConfig,
    images: ImageInputs,
    place: str | Path,
    detector: Path,
    name: str,
) -> list[ImageVerdict]:
    """Verdict on each image; what an interrupted run has judged is not judged again.

    Args:
        engine: who judges; the verdicts do not depend on that.
        workspace: of the stage.
        folder: name of the folder in it that keeps the verdicts.
        config: numbers of the verdict.
        images: the images.
        place: directory that they were opened from.
        detector: folder of the checkpoint that finds objects.
        name: shown beside the progress.
    """
    prompts = [Prompt.from_json(images.meta(i)) for i in range(len(images))]
    labels = sorted({r.name for prompt in prompts for r in (*prompt.include, *prompt.exclude)})
    shards = cut(len(images), _SHARD)
    names = [f"{folder}/verdicts-{number:05d}.json" for number in range(len(shards))]
    # absolute: another process may work in another directory
    work = JudgeWork(config, str(Path(place).absolute()), detector.absolute(), tuple(labels))
    write_shards(engine, workspace, f"judge {name}", names, [len(shard) for shard in shards], work)
    records = [record for each in names for record in json.loads((workspace.path / each).read_bytes())]
    return [ImageVerdict.from_json(prompt, record) for prompt, record in zip(prompts, records, strict=True)]
