"""What the nano detector finds in two looks: at the whole picture, and half as near again for small objects.

The detector learned pictures of up to four objects, and of smaller copies of one of them. A look at the
picture in 192 px instead of 128 shows small objects in sizes that it knows best, but large ones too large.
So each look is asked for what it sees well, in the pixels of a picture of 128: the first for objects above
46 px, the second for those below 62 px. Of two such that the centre of one lies in the box of the other, the
more certain one stays. What that brings: docs/log.md, 2026-11-27.
"""

from collections.abc import Sequence

import numpy as np

from lightgen.ports.nano.detector import SIDE, NanoDetector
from lightgen.ports.nano.world import CLASSES
from lightgen.ports.protocols import Detection

NEAR_SIDE = 192
MIN_SCORE = 0.05
# Longer sides of boxes, as shares of the picture's shorter side.
_LEAST_FAR = 46 / SIDE
_MOST_NEAR = 62 / SIDE


def find_objects(detector: NanoDetector, images: np.ndarray) -> list[list[Detection]]:
    """Objects of all classes in each of images uint8 [B, H, W, 3], best first, with colours."""
    side = min(images.shape[1:3])
    found = []
    far_and_near = (detector.detect(images, CLASSES, each) for each in (SIDE, NEAR_SIDE))
    for far, near in zip(*far_and_near, strict=True):
        looks = [(each, True) for each in far if _length(each) > _LEAST_FAR * side]
        looks += [(each, False) for each in near if _length(each) < _MOST_NEAR * side]
        found.append(_merge(looks))
    return found


def _merge(looks: Sequence[tuple[Detection, bool]]) -> list[Detection]:
    """Detections of both looks, best first, without those that the other look is more certain of."""
    kept: list[tuple[Detection, bool]] = []
    for one, is_far in sorted(looks, key=lambda look: -look[0].score):
        others = (other for other, other_is_far in kept if other_is_far != is_far)
        if not any(_is_in(one, other) or _is_in(other, one) for other in others):
            kept.append((one, is_far))
    return [each for each, _ in kept]


def _length(detection: Detection) -> float:
    x0, y0, x1, y1 = detection.box
    return max(x1 - x0, y1 - y0)


def _is_in(one: Detection, other: Detection) -> bool:
    """Whether the centre of one lies in the box of the other."""
    x, y = (one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2
    return other.box[0] <= x <= other.box[2] and other.box[1] <= y <= other.box[3]
