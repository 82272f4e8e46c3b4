"""How far a set of images is from a reference set: Fréchet and kernel distances, precision and recall.

They tell what images are like as a set, and not whether each of them shows its prompt.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightgen.core.artifact import Workspace
from lightgen.core.errors import UserError
from lightgen.evals.fidelity import frechet, halves_distance, normal_interval
from lightgen.evals.kernel_distance import cmmd, kernel_distance
from lightgen.evals.prdc import prdc
from lightgen.evals.statistics import unanimous_interval
from lightgen.ports.features import FeaturesConfig
from lightgen.stages.engine import EngineConfig
from lightgen.stages.features import find_features, image_features
from lightgen.stages.fidelity_notes import notes_on_features, notes_on_images
from lightgen.stages.inputs import ImageInputs

Metric = Literal["fd", "fid", "kid", "cmmd", "prdc"]

_LEAST_TO_HALVE = 4


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Which distances are measured, each by which features; equal features are found once.

    Attributes:
        metrics: fd: Fréchet distance; fid: the same by Inception; kid: kernel distance; cmmd: mean
            discrepancy; prdc: precision, recall, density and coverage.
        fd, fid, kid, cmmd, prdc: extractor of each; only those of the metrics above are looked for.
        neighbors: k of prdc.
        subsets, subset_size: of kid: how many, and images of each side in one, at most.
        interval_coverage: share of what an interval holds.
        seed: of the subsets of kid, and of the halves of the reference.
    """

    metrics: tuple[Metric, ...] = ("fd", "kid", "prdc")
    fd: FeaturesConfig = field(default_factory=FeaturesConfig)
    fid: FeaturesConfig = field(default_factory=lambda: FeaturesConfig(kind="inception"))
    kid: FeaturesConfig = field(default_factory=FeaturesConfig)
    cmmd: FeaturesConfig = field(default_factory=lambda: FeaturesConfig(kind="clip"))
    prdc: FeaturesConfig = field(default_factory=FeaturesConfig)
    neighbors: int = 5
    subsets: int = 100
    subset_size: int = 1000
    interval_coverage: float = 0.95
    seed: int = 0

    def check(self) -> None:
        """Raises UserError: a number out of range, no metric, or one twice."""
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise UserError(
                f"metrics: got {', '.join(self.metrics) or 'none'}, allowed: one or more, each once"
            )
        if self.fid.kind != "inception":
            raise UserError(f"fid: got features {self.fid.kind}, allowed: inception (of others it is fd)")
        if self.neighbors < 1 or self.subsets < 1 or self.subset_size < 2:
            raise UserError(
                f"fidelity: got {self.neighbors} neighbors, {self.subsets} subsets of {self.subset_size}, "
                "allowed: whole numbers from 1, 1 and 2"
            )
        if not 0 < self.interval_coverage < 1:
            raise UserError(
                f"fidelity: got interval coverage {self.interval_coverage}, allowed: between 0 and 1"
            )

    def features(self, metric: Metric) -> FeaturesConfig:
        """Extractor of a metric."""
        return {"fd": self.fd, "fid": self.fid, "kid": self.kid, "cmmd": self.cmmd, "prdc": self.prdc}[metric]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number on two sets.

    Attributes:
        metric: fd, fid, kid, cmmd, precision, recall, density or coverage.
        extractor: kind of the features.
        value: the number.
        better: whether lower or higher is better.
        interval: of cmmd, what it would be without its floor; of precision and density, over the generated
            images, with the reference as it is. Others have none: the bias of fd by N would dwarf it, and
            recall and coverage are of the reference's images, whose number says nothing of the others. All
            are too narrow where several images are of one prompt.
        std: of kid, over its subsets, which is no error of the value.
        floor: what would be measured without any difference: of cmmd at as many images; of fd and fid the
            distance of two halves of the reference, hence at half as many or fewer.
    """

    metric: str
    extractor: str
    value: float
    better: Literal["lower", "higher"]
    interval: tuple[float, float] | None = None
    std: float | None = None
    floor: float | None = None

    @property
    def name(self) -> str:
        """Metric and extractor, as in fd_dinov2."""
        return f"{self.metric}_{self.extractor}"


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Distances of a set of images to a reference set.

    Attributes:
        measured: the numbers.
        images, reference: images of the set, and of the reference.
        extractors: identity of each extractor by its kind.
        notes: what to know before the numbers are compared with others.
    """

    measured: tuple[Measured, ...]
    images: int
    reference: int
    extractors: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Record of all of it, the numbers by name."""
        return {
            "metrics": {each.name: asdict(each) for each in self.measured},
            "images": self.images,
            "reference": self.reference,
            "extractors": self.extractors,
            "notes": list(self.notes),
        }


def measure_fidelity(
    config: FidelityConfig,
    engine: EngineConfig,
    workspace: Workspace,
    folder: str,
    subject: tuple[ImageInputs, str | Path],
    reference: tuple[ImageInputs, str | Path],
    cache: Path | None = None,
    name: str = "",
    reference_folder: str | None = None,
) -> Fidelity:
    """Distances of a set of images to a reference set, which are found alike by any engine.

    Args:
        config: which.
        engine: who runs the extractors.
        workspace: of the stage; features that an interrupted run has found are not found again.
        folder: name of the folder in it that keeps them.
        subject: the images, and the path that they were opened from.
        reference: those that they are compared with, likewise.
        cache: folder that keeps features of the reference for later runs; None keeps none.
        name: of the images, shown beside the progress.
        reference_folder: name of the folder that keeps those of the reference, which several sets may share;
            None = within the other.

    Raises:
        UserError: a config out of range, an extractor that is not here, too few images for a metric, or an
            image that cannot be read.
    """
    config.check()
    places = {each: find_features(each) for each in dict.fromkeys(map(config.features, config.metrics))}
    images, others = len(subject[0]), len(reference[0])
    check_counts(config, images, others)
    notes = notes_on_images(subject[0], reference[0])
    found: dict[Metric, list[Measured]] = {}
    extractors: dict[str, list[dict[str, Any]]] = {}
    for number, (features, place) in enumerate(places.items()):
        own, shared = f"{folder}/images-{number}", f"{reference_folder or folder}/reference-{number}"
        rows = image_features(engine, workspace, own, place, *subject, None, name)
        real = image_features(engine, workspace, shared, place, *reference, cache, "reference")
        identity = place.identity()
        extractors.setdefault(features.kind, []).append(identity)
        metrics: list[Metric] = [metric for metric in config.metrics if config.features(metric) == features]
        notes += notes_on_features(metrics, features.kind, identity, (images, others), rows.shape[1])
        for metric in metrics:
            found[metric] = _MEASURES[metric](config, metric, rows, real)
    measured = tuple(each for metric in config.metrics for each in found[metric])
    equal = [
        each.name for each in measured if each.metric == "cmmd" and each.interval and not each.interval[0]
    ]
    notes += [f"{each}: so many images cannot tell it from no difference" for each in equal]
    return Fidelity(
        measured=measured,
        images=images,
        reference=others,
        extractors=extractors,
        notes=tuple(notes),
    )


def _frechet(config: FidelityConfig, metric: Metric, rows: np.ndarray, real: np.ndarray) -> list[Measured]:
    floor = halves_distance(real, config.seed) if len(real) >= _LEAST_TO_HALVE else None
    return [_measured(config, metric, metric, frechet(rows, real), floor=floor)]


def _kid(config: FidelityConfig, metric: Metric, rows: np.ndarray, real: np.ndarray) -> list[Measured]:
    found = kernel_distance(rows, real, config.subsets, config.subset_size, config.seed)
    return [_measured(config, metric, metric, found.value, std=found.std)]


def _cmmd(config: FidelityConfig, metric: Metric, rows: np.ndarray, real: np.ndarray) -> list[Measured]:
    found = cmmd(rows, real)
    low, high = normal_interval(found.value - found.floor, found.standard_error, config.interval_coverage)
    interval = max(0.0, low), max(0.0, high)
    return [_measured(config, metric, metric, found.value, interval=interval, floor=found.floor)]


def _prdc(config: FidelityConfig, metric: Metric, rows: np.ndarray, real: np.ndarray) -> list[Measured]:
    found, num = prdc(real, rows, config.neighbors), len(rows)
    share = found.precision
    if share in (0.0, 1.0):
        precise = unanimous_interval(share, num, config.interval_coverage)
    else:
        low, high = normal_interval(share, math.sqrt(share * (1 - share) / num), config.interval_coverage)
        precise = max(0.0, low), min(1.0, high)
    error = float(found.balls.std() / config.neighbors / math.sqrt(num))
    low, high = normal_interval(found.density, error, config.interval_coverage)
    return [
        _measured(config, metric, "precision", share, interval=precise),
        _measured(config, metric, "recall", found.recall),
        _measured(config, metric, "density", found.density, interval=(max(0.0, low), high)),
        _measured(config, metric, "coverage", found.coverage),
    ]


_MEASURES: dict[Metric, Callable[[FidelityConfig, Metric, np.ndarray, np.ndarray], list[Measured]]] = {
    "fd": _frechet,
    "fid": _frechet,
    "kid": _kid,
    "cmmd": _cmmd,
    "prdc": _prdc,
}


def _measured(
    config: FidelityConfig,
    metric: Metric,
    name: str,
    value: float,
    *,
    interval: tuple[float, float] | None = None,
    std: float | None = None,
    floor: float | None = None,
) -> Measured:
    return Measured(
        metric=name,
        extractor=config.features(metric).kind,
        value=value,
        better="higher" if metric == "prdc" else "lower",
        interval=interval,
        std=std,
        floor=floor,
    )


def check_counts(config: FidelityConfig, images: int, reference: int) -> None:
    """Raises UserError: too few images of a side for a metric."""
    for metric in config.metrics:
        least = config.neighbors + 1 if metric == "prdc" else 2
        if min(images, reference) < least:
            raise UserError(
                f"{metric}: got {images} images and {reference} of the reference, allowed: {least} of each"
            )
