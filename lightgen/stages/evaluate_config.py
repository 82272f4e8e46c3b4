"""Numbers of an evaluation: what is drawn, how it is judged, and how sure the scores are."""

from dataclasses import dataclass, field

from lightgen.core.errors import UserError
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.scorer import ScorerConfig
from lightgen.stages.distill import DistillConfig, NanoPrompts
from lightgen.stages.fidelity import FidelityConfig
from lightgen.stages.object_judge import ObjectJudgeConfig
from lightgen.stages.question_judge import NanoQuestions, QuestionJudgeConfig
from lightgen.stages.student import StudentTeacherConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is asked of a checkpoint, and how its pictures are judged.

    Attributes:
        prompts: built-in prompts, used where no file is handed in; None = GenEval's own 553 where a detector
            judges, else a file is needed.
        images_per_prompt, height, width, batch_size, seed, student: how a checkpoint draws.
        judge: by objects that a detector finds (GenEval), or by questions (GenEval 2, DPG-Bench); None = no
            picture is judged by itself.
        fidelity: distances to reference images; None = none.
        scorer: mean score of image and prompt, such as CLIPScore; None = none.
        bootstrap: of intervals and tests.
        pictures: most pictures of all subjects on the page.
    """

    prompts: NanoPrompts | NanoQuestions | None = field(
        default_factory=lambda: NanoPrompts(num=60, split="test")
    )
    images_per_prompt: int = 2
    height: int = 128
    width: int = 128
    batch_size: int = 50
    seed: int = 0
    student: StudentTeacherConfig = field(default_factory=StudentTeacherConfig)
    judge: ObjectJudgeConfig | QuestionJudgeConfig | None = field(default_factory=ObjectJudgeConfig)
    fidelity: FidelityConfig | None = None
    scorer: ScorerConfig | None = None
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    pictures: int = 2_400

    def check(self) -> None:
        """Raises UserError: a number out of range, or nothing to find out."""
        self.drawing().check()
        if self.pictures < 0:
            raise UserError(f"--pictures: got {self.pictures}, allowed: a whole number from 0")
        if self.judge is None and self.fidelity is None and self.scorer is None:
            raise UserError("evaluate: got nothing to find out, allowed: a judge, fidelity or a scorer")
        if self.fidelity is not None:
            self.fidelity.check()

    def drawing(self) -> DistillConfig:
        """How a checkpoint's pictures are made: by the stage that makes all pictures."""
        return DistillConfig(
            teacher=self.student,
            images_per_prompt=self.images_per_prompt,
            height=self.height,
            width=self.width,
            shard_size=self.batch_size,
            batch_size=self.batch_size,
            seed=self.seed,
        )
