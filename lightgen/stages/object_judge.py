"""The benchmark GenEval, and nano-GenEval: a detector finds objects, and rules decide what they show."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig, confidence_threshold, keep_objects
from lightgen.ports.color import ColorConfig
from lightgen.ports.detector import DetectorConfig
from lightgen.stages.detector import ColorPlace, DetectorPlace, find_colors, find_detector
from lightgen.stages.engine import Work, Writer, cut
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.judge import BATCH, SHARD, Judged, Scoring
from lightgen.stages.self_test import SelfTestConfig, self_test

# Others' scores are of this one's kind alone.
_NAMES = {"nano": "nano-GenEval", "mask2former": "GenEval"}
_NANO_NOTE = "A nano score is no GenEval score: the world, the detector and the prompts are its own."
_NOTE = (
    "Judged by {kind} of transformers in place of mmdet's detector, which judged published scores; the two "
    "were not compared image by image here, so take differences of a few hundredths for nothing."
)


@dataclass(frozen=True, kw_only=True)
class ObjectJudgeConfig:
    """Who finds objects and colours, and by which rules they are judged.

    Attributes:
        detector: finds the objects.
        color: names their colours, where the detector does not.
        verdict: GenEval's rules.
        self_test: what detector and colours must show before they judge.
    """

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    self_test: SelfTestConfig = field(default_factory=SelfTestConfig)


class ObjectJudge:
    """See `Judge`.

    Args:
        config: of the judge.
        asked: prompts that checkpoints are to draw, and that tell what images of the same words must show.
        named: folder, checkpoint or repository of the detector in place of the config's.

    Raises:
        UserError: a detector that is not here, or a prompt without a task.
    """

    def __init__(
        self, config: ObjectJudgeConfig, asked: Sequence[Prompt], named: str | Path | None = None
    ) -> None:
        untagged = next((prompt for prompt in asked if prompt.tag is None), None)
        if untagged is not None:
            raise UserError(
                f"prompt {untagged.prompt[:60]!r}: has no tag, allowed: GenEval's fields in every prompt"
            )
        is_nano = config.detector.kind == "nano"
        self._config, self._asked = config, asked
        self._detector = find_detector(config.detector, named)
        self._colors = None if is_nano else find_colors(config.color)
        self.scoring = Scoring(
            name=_NAMES.get(config.detector.kind, f"GenEval by {config.detector.kind}"),
            measure="share of right pictures",
            note=_NANO_NOTE if is_nano else _NOTE.format(kind=config.detector.kind),
            overall="tasks",
            order=TAGS,
        )
        artifact = self._detector.artifact
        self.parents: tuple[Artifact, ...] = () if artifact is None else (artifact,)

    def identity(self) -> dict[str, Any]:
        """Hashes of the detector's and the colour classifier's files, where they are no artifacts."""
        colors = {} if self._colors is None else {"color_files": self._colors.identity()}
        return {"detector_files": self._detector.identity(), **colors}

    def prompts(self) -> Sequence[Prompt]:
        """The prompts that it was made with."""
        return self._asked

    def check(self, images: ImageInputs) -> None:
        """Raises UserError: an image that does not say what it must show, or shows what has no task."""
        asked = {prompt.prompt: prompt for prompt in self._asked}
        for i in range(len(images)):
            prompt_of(images.meta(i), asked)

    def self_test(self) -> dict[str, float]:
        """Shares of known pictures; see `self_test`."""
        colors = None if self._colors is None else self._colors.load()
        config = self._config
        return self_test(
            self._detector.load(), colors, config.verdict, config.self_test, config.detector.kind
        )

    def work(self, images: str, *, test: bool) -> Work:
        """Shards of verdicts; see `Judge`."""
        inputs = open_images([images], verify=False)
        asked = {prompt.prompt: prompt for prompt in self._asked}
        prompts = [prompt_of(inputs.meta(i), asked) for i in range(len(inputs))]
        labels = sorted({r.name for prompt in prompts for r in (*prompt.include, *prompt.exclude)})
        return _ObjectWork(self._config, images, self._detector, self._colors, asked, tuple(labels), test)

    def judged(self, images: ImageInputs, records: Sequence[Any]) -> list[Judged]:
        """Findings of all images; see `Judge`."""
        asked = {prompt.prompt: prompt for prompt in self._asked}
        verdicts = [
            ImageVerdict.from_json(prompt_of(images.meta(i), asked), record)
            for i, record in enumerate(records)
        ]
        return [
            Judged(v.prompt.prompt, v.mark(), v.correct, v.reason, v.broken, self._result(v))
            for v in verdicts
        ]

    def _result(self, verdict: ImageVerdict) -> dict[str, Any]:
        """GenEval's own record of a result: what was found above the threshold, by class."""
        config = self._config.verdict
        threshold = confidence_threshold(verdict.prompt.tag, config)
        kept = keep_objects(verdict.detections, threshold, config.max_objects)
        return {
            "tag": verdict.prompt.tag,
            "prompt": verdict.prompt.prompt,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "metadata": json.dumps(verdict.prompt.to_json()),
            "details": json.dumps({name: [[*d.box, d.score] for d in found] for name, found in kept.items()}),
        }


def prompt_of(meta: Mapping[str, Any], asked: Mapping[str, Prompt]) -> Prompt:
    """Prompt of an image's record; what must be shown, where it does not say so, is taken from the asked.

    Raises:
        UserError: neither says what must be shown.
    """
    prompt = Prompt.from_json(meta)
    if prompt.tag is not None and (prompt.include or prompt.exclude):
        return prompt
    if prompt.prompt not in asked:
        raise UserError(
            f"prompt {prompt.prompt[:60]!r}: has no tag or nothing to include, allowed: GenEval's fields in "
            "the image's record, or --prompts FILE with this prompt"
        )
    return asked[prompt.prompt]


@dataclass(frozen=True)
class _ObjectWork:
    """Shards of verdicts.

    Attributes:
        config: of the judge.
        images: directory of the images.
        detector, colors: where they are.
        asked: prompts by their text.
        labels: classes asked of the detector.
        test: whether the process tests itself first.
    """

    config: ObjectJudgeConfig
    images: str
    detector: DetectorPlace
    colors: ColorPlace | None
    asked: Mapping[str, Prompt]
    labels: tuple[str, ...]
    test: bool

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images([self.images], verify=False)
        config, detector = self.config, self.detector.load()
        colors = None if self.colors is None else self.colors.load()
        if self.test:
            self_test(detector, colors, config.verdict, config.self_test, config.detector.kind)
        shards = cut(len(inputs), SHARD)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            verdicts: list[ImageVerdict] = []
            for start in range(0, len(shards[number]), BATCH):
                batch = shards[number][start : start + BATCH]
                prompts = [prompt_of(inputs.meta(i), self.asked) for i in batch]
                pixels = (inputs[i].image for i in batch)
                verdicts += evaluate_images(
                    prompts, pixels, detector, colors, config.verdict, self.labels, batch_size=BATCH
                )
                advance(len(batch))
            with whole_file(path) as temporary:
                temporary.write_bytes(json_bytes([verdict.to_json() for verdict in verdicts]))

        return write
