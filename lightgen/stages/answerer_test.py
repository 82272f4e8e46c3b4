"""Whether an answerer can be believed: what it says of pictures whose content is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.known import KnownPicture, known_pictures
from lightgen.ports.nano.language import with_article
from lightgen.ports.nano.world import CLASSES
from lightgen.ports.protocols import Answerer
from lightgen.stages.known_renders import right_renders

_SURE = ("cat", "cup", "person", "dog")  # of each known photograph it is known whether it shows these


@dataclass(frozen=True, kw_only=True)
class AnswererTestConfig:
    """How an answerer is tested before it judges, and what it must show.

    Attributes:
        num_prompts: renders of the nano world that it sees; of photographs there are twelve.
        seed: of the renders.
        least_yes: share of questions on what is there that it must answer yes.
        least_no: share of questions on what is not there that it must answer no.
    """

    num_prompts: int = 60
    seed: int = 1
    least_yes: float = 0.9
    least_no: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a test of nothing.

        Raises:
            UserError: fewer than one prompt.
        """
        if self.num_prompts < 1:
            raise UserError(f"self_test.num_prompts is {self.num_prompts}, allowed: a whole number from 1")


def answerer_test(
    answerer: Answerer, config: AnswererTestConfig, kind: Literal["nano", "model"]
) -> dict[str, float]:
    """Shares of known questions that it answers rightly: `yes` to what is there, `no` to what is not.

    Raises:
        UserError: a share is below its bound, so that no score would mean anything; or there is no font.
    """
    if kind == "nano":
        pictures = [each for each in right_renders(config.num_prompts, config.seed) if each.right]
        names = [_one_absent(config.seed, number, each) for number, each in enumerate(pictures)]
    else:
        pictures = [each for each in known_pictures() if each.right]
        names = [_SURE] * len(pictures)
    told: dict[bool, list[bool]] = {True: [], False: []}
    for picture, asked in zip(pictures, names, strict=True):
        questions = [f"Is there {with_article(name)} in the image?" for name in asked]
        images = np.broadcast_to(picture.image, (len(questions), *picture.image.shape))
        shown = {each.label for each in picture.objects}
        for name, (yes, no) in zip(
            asked, answerer.answer(images, questions, [("yes", "no")] * len(questions)), strict=True
        ):
            told[name in shown].append(bool(yes > no) == (name in shown))
    found = {word: sum(told[there]) / len(told[there]) for word, there in (("yes", True), ("no", False))}
    if found["yes"] < config.least_yes or found["no"] < config.least_no:
        raise UserError(
            f"answerer {kind}: its self-test says yes to {found['yes']:.2f} of what is there and no to "
            f"{found['no']:.2f} of what is not, allowed: at least {config.least_yes} and {config.least_no}; "
            "the model is broken or cannot see, so it gives no score"
        )
    return found


def _one_absent(seed: int, number: int, picture: KnownPicture) -> Sequence[str]:
    """Classes of a render, and one that is not in it."""
    shown = dict.fromkeys(each.label for each in picture.objects)
    absent = [name for name in CLASSES if name not in shown]
    return (*shown, absent[int(numpy_draws(seed, "absent class", number).integers(len(absent)))])
