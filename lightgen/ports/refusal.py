"""A teacher that will not draw a prompt, which is no reason to stop drawing the others."""

from collections.abc import Iterable

import numpy as np

from lightgen.core.errors import UserError


class RefusedPrompt(UserError):
    """One prompt that a teacher's own rules forbid; the others are not affected."""


def all_drawn(drawn: Iterable[np.ndarray | RefusedPrompt], height: int, width: int) -> np.ndarray:
    """Images uint8 [B, height, width, 3], none of them refused.

    Raises:
        RefusedPrompt: one of them is.
    """
    images = []
    for each in drawn:
        if isinstance(each, RefusedPrompt):
            raise each
        images.append(each)
    return np.stack(images) if images else np.empty((0, height, width, 3), np.uint8)
