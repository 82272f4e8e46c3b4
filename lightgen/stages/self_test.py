"""Whether a detector can be believed: its verdicts on pictures whose truth is known."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.evals.scores import evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.protocols import Detector

_ALWAYS_WRONG = ErrorKnob(wrong_count=1, wrong_place=1, wrong_color=1, wrong_class=1)


@dataclass(frozen=True, kw_only=True)
class SelfTestConfig:
    """How a detector is tested before it judges.

    Attributes:
        num_prompts: test prompts that are drawn, once right and once wrong.
        least_right: share of right renders that it must call right.
        most_wrong: share of wrong renders that it may call right.
    """

    num_prompts: int = 60
    seed: int = 1
    least_right: float = 0.9
    most_wrong: float = 0.1


def render_share(
    detector: Detector,
    verdict: VerdictConfig,
    num_prompts: int,
    seed: int,
    wrong: bool,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> float:
    """Share in [0, 1] of the emoji teacher's renders that the detector's verdict calls right.

    Args:
        detector: finds the objects.
        verdict: numbers of the verdict.
        num_prompts: renders of test prompts, cycling through the six tasks.
        seed: of prompts and renders.
        wrong: whether the teacher draws another class (and count, place and colour) than asked.
        change: of images uint8 [B, 128, 128, 3] before they are judged, such as an autoencoder's round trip.
    """
    teacher = EmojiTeacher(EmojiTeacherConfig(errors=_ALWAYS_WRONG if wrong else ErrorKnob()))
    prompts = [draw_prompt(seed, index, "test") for index in range(num_prompts)]
    seeds = [draw_key(seed, "self test", index) for index in range(num_prompts)]
    images = teacher.generate([prompt.prompt for prompt in prompts], seeds, 128, 128)
    if change is not None:
        images = change(images)
    verdicts = evaluate_images(prompts, images, detector, None, verdict)
    return sum(each.correct for each in verdicts) / num_prompts


def self_test(detector: Detector, verdict: VerdictConfig, config: SelfTestConfig) -> dict[str, float]:
    """Shares `right_renders` and `wrong_renders` that the detector calls right.

    Raises:
        UserError: a share is out of bounds, so that no score would mean anything; or there is no font.
    """
    shares = {
        name: render_share(detector, verdict, config.num_prompts, config.seed, wrong)
        for name, wrong in (("right_renders", False), ("wrong_renders", True))
    }
    if shares["right_renders"] < config.least_right or shares["wrong_renders"] > config.most_wrong:
        got = ", ".join(f"{share:.2f} of {name.replace('_', ' ')}" for name, share in shares.items())
        raise UserError(
            f"detector: its self-test calls {got} right, allowed: at least {config.least_right} and "
            f"at most {config.most_wrong}; train it longer or name another --detector"
        )
    return shares
