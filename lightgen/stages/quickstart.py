"""Quickstart: a teacher draws, a student learns, preferences repair it, a benchmark measures it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lightgen.core.artifact import Artifact
from lightgen.core.device import multiplies_bf16
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.metrics import read_metrics
from lightgen.core.progress import duration, say
from lightgen.stages.checkpoint import NANO, open_checkpoint, open_detector, pick_device
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.evaluate import evaluate
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.journal import Journal
from lightgen.stages.quickstart_page import quickstart_page
from lightgen.stages.rank import RankConfig, rank
from lightgen.stages.tasks import TrainConfig
from lightgen.stages.train import prepare, train
from lightgen.training.fit import fit

_TIMED_STEPS = 6
_FEWEST_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Every stage of the story, in order.

    Attributes:
        teacher: scenes to learn from.
        encode: of scenes and of samples.
        pretrain, prefer: the two trainings; their `num_steps` gives way to what fits into the minutes.
        pretrain_minutes, prefer_minutes: of optimizer steps.
        sample: the student's own pictures, several per prompt.
        rank: how they are scored.
        test: pictures of test prompts, drawn before and after preferences.
        evaluate: how those are judged.
        expected_s: seconds that each stage is expected to take on two cores, by name.
    """

    teacher: DistillConfig
    encode: EncodeConfig
    pretrain: TrainConfig
    pretrain_minutes: float
    sample: DistillConfig
    rank: RankConfig
    prefer: TrainConfig
    prefer_minutes: float
    test: DistillConfig
    evaluate: EvaluateConfig
    expected_s: Mapping[str, float]


def quickstart(
    config: QuickstartConfig,
    out: str | Path,
    start: str | Path = NANO,
    detector: str | Path | None = None,
) -> Path:
    """Path of the report, when all stages are done; each is an artifact in `out`, so a killed run continues.

    Args:
        config: all stages.
        out: directory of the artifacts and the report.
        start: checkpoint to begin from.
        detector: checkpoint of the detector; the shipped one unless named.

    Raises:
        UserError: a part is missing (weights, emoji font), or `out` holds the work of another config.
    """
    open_checkpoint(start)
    open_detector(detector)
    story = _Story(config, Path(out), start, detector)
    stages = story.stages()
    for number, (name, (what, make)) in enumerate(stages.items()):
        left = sum(config.expected_s.get(each, 0.0) for each in list(stages)[number:])
        say(f"[{number + 1}/{len(stages)}] {what} (about {duration(left)} left)")
        with story.journal.stage(name):
            make()
    page = quickstart_page(config.pretrain, Path(out), story.journal)
    with whole_file(Path(out) / "report.html") as temporary:
        temporary.write_bytes(page.encode())
    return Path(out) / "report.html"


class _Story:
    """The stages, each bound to its place in the directory."""

    def __init__(
        self, config: QuickstartConfig, out: Path, start: str | Path, detector: str | Path | None
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.out, self.start, self.detector = config, out, start, detector
        self.journal = Journal(out / "journal.jsonl")

    def stages(self) -> dict[str, tuple[str, Callable[[], Artifact]]]:
        """What each stage does in words, and the stage, by the name of its artifact."""
        config, at = self.config, lambda name: self.out / name
        return {
            "teacher": (
                "a teacher that makes mistakes draws scenes",
                lambda: distill(config.teacher, at("teacher")),
            ),
            "teacher-latents": (
                "the autoencoder encodes them",
                lambda: encode(config.encode, at("teacher-latents"), [at("teacher")], self.start),
            ),
            "student": (
                "a student learns from them",
                lambda: self._train(
                    "student", "teacher-latents", self.start, config.pretrain, config.pretrain_minutes
                ),
            ),
            "samples": (
                "the student draws several pictures of each prompt",
                lambda: distill(config.sample, at("samples"), start=at("student")),
            ),
            "ranked": (
                "a detector judges them",
                lambda: rank(config.rank, at("ranked"), [at("samples")], self.detector),
            ),
            "ranked-latents": (
                "the autoencoder encodes them",
                lambda: encode(config.encode, at("ranked-latents"), [at("ranked")], at("student")),
            ),
            "preferred": (
                "the student learns to prefer its right pictures to its wrong ones",
                lambda: self._train(
                    "preferred", "ranked-latents", at("student"), config.prefer, config.prefer_minutes
                ),
            ),
            "before": (
                "the student from before draws prompts that nobody trained on",
                lambda: distill(config.test, at("before"), start=at("student")),
            ),
            "after": (
                "the student from after draws the same",
                lambda: distill(config.test, at("after"), start=at("preferred")),
            ),
            "scores": (
                "the benchmark compares them",
                lambda: evaluate(
                    config.evaluate, at("scores"), [at("before"), at("after")], detector=self.detector
                ),
            ),
        }

    def _train(
        self, name: str, latents: str, start: str | Path, config: TrainConfig, minutes: float
    ) -> Artifact:
        """Training of as many steps as fit into the minutes here; noted, so that a rerun agrees."""
        if not multiplies_bf16(pick_device()):
            config = replace(config, fit=replace(config.fit, precision="fp32"))
        plan = self.out / f"plan-{name}.json"
        found = json.loads(plan.read_text()) if plan.is_file() else {}
        if found.get("minutes") != minutes:
            seconds = self._seconds_per_step(config, latents, start)
            steps = max(_FEWEST_STEPS, round(60 * minutes / seconds))
            found = {"minutes": minutes, "seconds_per_step": seconds, "num_steps": steps}
            with whole_file(plan) as temporary:
                temporary.write_bytes(json_bytes(found))
        wanted = replace(config, fit=replace(config.fit, num_steps=found["num_steps"]))
        return train(wanted, self.out / name, [self.out / latents], start)

    def _seconds_per_step(self, config: TrainConfig, latents: str, start: str | Path) -> float:
        """Seconds of an optimizer step here, measured on a learner that is thrown away."""
        job, _ = prepare(config, [self.out / latents], start)
        folder = self.out / ".timing"
        shutil.rmtree(folder, ignore_errors=True)
        timed = replace(config.fit, num_steps=_TIMED_STEPS)
        run = replace(config.run, log_every=1, save_every=_TIMED_STEPS)
        try:
            fit(timed, job.training(folder), folder, run, "time a few steps")
            times = [record["elapsed_s"] for record in read_metrics(folder / "metrics.jsonl")]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        # the first steps also pay for the set-up of threads and kernels
        return max(1e-4, (times[-1] - times[1]) / (len(times) - 2))
