"""Pictures that are not shown: a classifier of the user's says which."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightgen.ports.safety import SafetyConfig, load_safety
from lightgen.stages.checkpoint import pick_device

LIMIT = 0.5


def open_picture_check(folder: str | Path) -> Callable[[np.ndarray], bool]:
    """Function that says whether an image, uint8 [H, W, 3], may be shown; from any thread.

    Args:
        folder: of a ViT classifier in transformers' layout, with a class `nsfw`; an image may be shown that
            it finds less probable than not.

    Raises:
        UserError: there is no such model.
    """
    checker, lock = (
        load_safety(SafetyConfig(model=str(folder)), Path(folder), pick_device()),
        threading.Lock(),
    )

    def may_be_shown(image: np.ndarray) -> bool:
        with lock:
            return float(checker.unsafe(image[None])[0]) < LIMIT

    return may_be_shown
