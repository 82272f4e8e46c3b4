"""Results of studies that never ran: arms whose pictures are right with a known probability."""

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.prompt import TAGS
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.student import StudentTeacherConfig
from lightgen.stages.study_config import Arm, ArmResult, Claim, StudyConfig

NAMES = ("base", "better", "alike")


def arm_result(
    name: str, seed: int, chance: float, loss: float | None = None, per_task: int = 20, spread: float = 0.0
) -> ArmResult:
    """Result of an arm; prompts are as hard for every arm, and a seed's chance is off by about `spread`."""
    random = numpy_draws(seed, f"pictures of {name}")
    hardness = numpy_draws(0, "hardness").normal(0, 0.15, len(TAGS) * per_task)
    chances = np.clip(chance + hardness + random.normal(0, spread), 0, 1)
    right = (random.random((len(chances), 2)) < chances[:, None]).astype(float)
    tasks = [tag for tag in TAGS for _ in range(per_task)]
    seconds = {"distill": 2.5, "train": 100.0 + seed, "draw": 30.0}
    return ArmResult(name, seed, right.tolist(), tasks, loss, 6.25, 0.5, seconds)


def study_config(
    names: tuple[str, ...] = NAMES,
    claims: tuple[Claim, ...] = (),
    places: tuple[float, ...] = (),
    tflop: float | None = None,
) -> StudyConfig:
    """Study of arms that draw from the start itself."""
    draws = StudentTeacherConfig()
    arms = tuple(
        Arm(
            name=name,
            phases=(),
            draws=draws,
            x=places[i] if places else None,
            series="line" if places else "",
        )
        for i, name in enumerate(names)
    )
    test = NanoPrompts(num=120, split="test")
    return StudyConfig(
        title="A <study>",
        question="Is it?",
        arms=arms,
        claims=claims,
        test=test,
        x_label="places",
        tflop=tflop,
    )


def claim(expected: str, second: str = "better", task: str = "overall") -> Claim:
    """Claim about an arm, compared with the first."""
    assert expected in ("higher", "lower", "same")
    return Claim(
        text=f"It is {expected}.",
        source="section 3",
        first="base",
        second=second,
        expected=expected,
        task=task,
    )
