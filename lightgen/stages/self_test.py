"""Whether a detector can be believed: what it makes of pictures whose truth is known."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightgen.core.errors import UserError
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.detector import Kind
from lightgen.ports.known import KnownPicture, known_colors, known_pictures
from lightgen.ports.protocols import ColorClassifier, Detection, Detector
from lightgen.stages.known_renders import mixed_wrong_renders, right_renders


@dataclass(frozen=True, kw_only=True)
class SelfTestConfig:
    """How a detector is tested before it judges, and what it must show.

    Attributes:
        num_prompts: test prompts of the nano world that are drawn, once right and once with one error; a
            detector of photographs sees its own 26 pictures.
        seed: of the renders.
        least_right: share of right pictures that it must call right.
        most_wrong: share of wrong pictures that it may call right.
        least_overlap: mean overlap (intersection over union) of what it finds with what is there.
        least_colors: share of ten balls whose colour must be named, by what names colours for it.
    """

    num_prompts: int = 120
    seed: int = 1
    least_right: float = 0.95
    most_wrong: float = 0.1
    least_overlap: float = 0.7
    least_colors: float = 0.8

    def __post_init__(self) -> None:
        """Refuse a test of nothing.

        Raises:
            UserError: fewer than one prompt.
        """
        if self.num_prompts < 1:
            raise UserError(f"self_test.num_prompts is {self.num_prompts}, allowed: a whole number from 1")


def self_test(
    detector: Detector,
    colors: ColorClassifier | None,
    verdict: VerdictConfig,
    config: SelfTestConfig,
    kind: Kind,
) -> dict[str, float]:
    """What the detector made of known pictures: `right`, `wrong` (and by kind of error), `overlap`, `colors`.

    Args:
        detector: finds the objects.
        colors: names their colours; None where the detector does.
        verdict: GenEval's rules.
        config: how many pictures, and the bounds.
        kind: of the detector: nano sees renders of its own world, the others photographs.

    Raises:
        UserError: a share is out of its bounds, so that no score would mean anything; what the detector
            answers fits no picture; or there is no font to draw with.
    """
    if kind == "nano":
        pictures = right_renders(config.num_prompts, config.seed)
        pictures += mixed_wrong_renders(config.num_prompts, config.seed)
    else:
        pictures = known_pictures()
    try:
        found = _shares(pictures, judge_known(detector, pictures, verdict))
        if colors is not None:
            balls = known_colors()
            named = [colors.classify(ball.image, [ball.ball], ball.ball.label) for ball in balls]
            found["colors"] = sum(n == [b.color] for n, b in zip(named, balls, strict=True)) / len(balls)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"detector {kind}: its self-test fails ({error}), allowed: one that fits") from error
    _refuse(found, config, kind)
    return found


def judge_known(
    detector: Detector,
    pictures: Sequence[KnownPicture],
    verdict: VerdictConfig,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[ImageVerdict]:
    """Verdicts of the detector on known pictures, in order.

    Args:
        detector: finds the objects.
        pictures: with prompts that ask for no colour, or for a detector that judges colours itself.
        verdict: GenEval's rules.
        change: of images uint8 [B, H, W, 3], all of one size, before they are judged: an autoencoder's round
            trip, say.
    """
    images = np.stack([picture.image for picture in pictures])
    if change is not None:
        images = change(images)
    return evaluate_images([picture.prompt for picture in pictures], images, detector, None, verdict)


def share_right(verdicts: Sequence[ImageVerdict]) -> float:
    """Share in [0, 1] of the verdicts that call their picture right."""
    return sum(answer.correct for answer in verdicts) / len(verdicts)


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union in [0, 1] of two boxes (x0, y0, x1, y1)."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    both = max(across, 0.0) * max(down, 0.0)
    areas = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return both / (areas - both) if areas > both else 0.0


def _shares(pictures: Sequence[KnownPicture], verdicts: Sequence[ImageVerdict]) -> dict[str, float]:
    called: dict[str, list[bool]] = defaultdict(list)
    overlaps = []
    for picture, answer in zip(pictures, verdicts, strict=True):
        if picture.right or picture.kind != "right":  # the truth of a render may fail GenEval's own rules
            called["right" if picture.right else "wrong"].append(answer.correct)
        if not picture.right and picture.kind != "right":
            called[f"wrong: {picture.kind}"].append(answer.correct)
        if picture.right:
            overlaps += [_best_overlap(each, answer.detections) for each in picture.objects]
    shares = {name: sum(answers) / len(answers) for name, answers in called.items()}
    return {**shares, "overlap": sum(overlaps) / len(overlaps)}


def _best_overlap(truth: Detection, found: Sequence[Detection]) -> float:
    """Overlap of the best that was found of a class with one that is there."""
    return max((overlap(truth.box, each.box) for each in found if each.label == truth.label), default=0.0)


def _refuse(found: dict[str, float], config: SelfTestConfig, kind: Kind) -> None:
    faults = []
    if found["right"] < config.least_right:
        faults.append(f"{found['right']:.2f} of right pictures called right, at least {config.least_right}")
    if found["wrong"] > config.most_wrong:
        faults.append(f"{found['wrong']:.2f} of wrong pictures called right, at most {config.most_wrong}")
    if found["overlap"] < config.least_overlap:
        faults.append(f"{found['overlap']:.2f} overlap of boxes, at least {config.least_overlap}")
    if found.get("colors", 1.0) < config.least_colors:
        faults.append(f"{found['colors']:.2f} of colours named, at least {config.least_colors}")
    if faults:
        got, allowed = zip(*(fault.rsplit(", ", 1) for fault in faults), strict=True)
        raise UserError(
            f"detector {kind}: its self-test gives {', '.join(got)}; allowed: {', '.join(allowed)}; it is "
            "broken, mis-sized or another, so it gives no score"
        )
