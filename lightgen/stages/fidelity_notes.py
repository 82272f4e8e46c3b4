"""What to know before distances of images are compared with others."""

from collections.abc import Sequence
from typing import Any

from lightgen.ports.inception import WEIGHTS, WEIGHTS_SHA256
from lightgen.stages.inputs import ImageInputs

_FEW = 2000  # images of a side below which published numbers are not to be compared with
_PUBLISHED = {"fd": "dinov2", "kid": "inception", "cmmd": "clip"}


def notes_on_images(subject: ImageInputs, reference: ImageInputs) -> list[str]:
    """Lines on how many images there are, and on their sizes."""
    notes = []
    if min(len(subject), len(reference)) < _FEW:
        notes.append(
            f"{len(subject):,} images and {len(reference):,} of the reference: below {_FEW:,}, numbers "
            "compare only with those of as many images; published ones take 10,000 to 50,000"
        )
    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (subject[0].image, reference[0].image)]
    if sizes[0] != sizes[1]:
        notes.append(
            f"the first image is of {sizes[0]} px, that of the reference of {sizes[1]} px: extractors scale "
            "both to their own size, and what that does to sharpness and shape counts as a difference"
        )
    return notes


def notes_on_features(
    metrics: Sequence[str], kind: str, identity: dict[str, Any], counts: tuple[int, int], dim: int
) -> list[str]:
    """Lines on what the features of an extractor are good for.

    Args:
        metrics: those that take them.
        kind: of the extractor.
        identity: of the extractor.
        counts: images of the set and of the reference.
        dim: width of the features.
    """
    notes = []
    for metric in metrics:
        if metric in ("fd", "fid"):
            notes.append(
                f"{metric}_{kind} is too large by a bias that shrinks with the number of images: compare it "
                f"only with that of {counts[0]:,} images against {counts[1]:,}"
            )
            if min(counts) <= dim:
                notes.append(
                    f"{metric}_{kind}: {min(counts):,} images do not fill the covariance of {dim:,} features"
                )
        if kind != _PUBLISHED.get(metric, kind):
            notes.append(
                f"{metric}_{kind} is not the published number, which is of {_PUBLISHED[metric]} features"
            )
    if kind == "inception" and WEIGHTS_SHA256 not in identity.values():
        notes.append(f"inception: the weights are not those of {WEIGHTS}: no number of them is FID or KID")
    return notes
