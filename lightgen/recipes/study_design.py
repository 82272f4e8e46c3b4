"""Recipe of study: the design of model and training, one switch at a time."""

from dataclasses import replace
from typing import Any

from lightgen.recipes.small_world import PAPER, RUN, TEST, from_nothing, learned, world
from lightgen.stages.study_config import Arm, Claim, StudyConfig
from lightgen.stages.tasks import PretrainTask, TrainConfig

BASELINE, HALF, RELEASED = "as shipped", "as shipped, half the training", "as released"
# Stages of the released order with as many parameters as the baseline.
_LATE = {"fusion": "late", "encoder_layers": 3, "decoder_layers": 4, "cross_layers": 3}
_INTERLEAVED = {"fusion": "interleaved", "encoder_layers": 4, "decoder_layers": 3, "cross_layers": 3}
# What differs from the shipped shape, by name of the arm; each group is a series of the figure.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "fusion": {
        "late fusion": _LATE,
        "late fusion, residual as released": {**_LATE, "cross_residual": "normed"},
        "interleaved fusion": _INTERLEAVED,
        "padding of text seen": {"text_masked": False},
    },
    "text": {
        "text in order": {"text_positions": "rotary"},
        "4 registers": {"registers": 4},
    },
    "head": {
        "additive conditioning": {"head_conditioning": "additive"},
        "head of width 128": {"head_width": 128},
        "head of width 512": {"head_width": 512},
        "ddpm head": {"prediction": "ddpm"},
        "x-prediction": {"prediction": "flow_x"},
    },
    "layers": {
        "learned positions": {"positions": "learned"},
        "plain layers": {"layers": "plain"},
    },
}
# Arms of the shape that the released model has all at once.
_RELEASED_SHAPE = (
    ("fusion", "late fusion, residual as released"),
    ("fusion", "padding of text seen"),
    ("head", "ddpm head"),
    ("layers", "learned positions"),
    ("layers", "plain layers"),
)
MASKINGS: dict[str, dict[str, dict[str, Any]]] = {
    "masks": {
        "at least .7 hidden": {"mask_min": 0.7},
        "spread of masks .5": {"mask_spread": 0.5},
        "cosine law of masks": {"mask_law": "cosine"},
        "half the tokens on a route": {"route_share": 0.5, "route": (1, 5)},
        "no text dropped": {"text_drop": 0.0},
        "text dropped .2": {"text_drop": 0.2},
        "1 draw a token": {"draws_per_token": 1},
        "one time an image": {"per_image_time": True},
    },
}
FITS: dict[str, dict[str, dict[str, Any]]] = {
    "training": {
        "average .99": {"ema_decay": 0.99},
        "average .998": {"ema_decay": 0.998},
    },
}
OPTIMIZERS: dict[str, dict[str, dict[str, Any]]] = {
    "training": {
        "AdamW, rate 1e-3": {"name": "adamw", "lr": 1e-3},
        "AdamW, rate 2e-3": {"name": "adamw", "lr": 2e-3},
    },
}


def design() -> StudyConfig:
    """Which switches of model and training make a better student of the same cost?

    The shape and training of the shipped student from nothing, in 40 TFLOP (200 steps of 32), one switch at a
    time from there, and all of the released model's together; `--tflop` gives more. Losses compare arms of
    one head and one law of masks alone.
    Source: arXiv 2503.08619 as released for late fusion, padding that is seen, ddpm head, learned positions,
    plain layers, masks from .7 and AdamW; `TransformerConfig` and `MaskedConfig` name others where there are
    any. Hardware: one core. Time: 15 minutes an arm, six hours a seed; the paper's scores need far more.
    """
    base = from_nothing()
    named = [(BASELINE, "", base), *_shapes(base), *_rest(base), (RELEASED, "together", _as_released(base))]
    arms = [_arm(*each) for each in named]
    half = replace(arms[0], name=HALF, series="together")
    half = replace(half, phases=tuple(replace(phase, share=0.5) for phase in half.phases))
    return StudyConfig(
        title="Design",
        question="At equal training compute, which switches of model and training make a better student?",
        arms=(*arms, half),
        claims=(
            Claim(
                text="Muon learns faster than AdamW",
                source="arXiv 2502.16982",
                first="AdamW, rate 1e-3",
                second=BASELINE,
                expected="lower",
                task="loss",
            ),
            Claim(
                text="several draws of noise for each token help",
                source="arXiv 2406.11838, section 3.2",
                first="1 draw a token",
                second=BASELINE,
                expected="lower",
                task="loss",
            ),
            Claim(
                text="the shipped design is better than the released one",
                source=f"{PAPER}, as released",
                first=RELEASED,
                second=BASELINE,
                expected="higher",
            ),
            Claim(
                text="and so it is with half the training",
                source=f"{PAPER}, as released",
                first=RELEASED,
                second=HALF,
                expected="higher",
            ),
        ),
        tflop=40.0,
        test=TEST,
        x_label="switch",
    )


def _arm(name: str, series: str, train: TrainConfig) -> Arm:
    return learned(name, world(2_048), replace(train, run=RUN), series=series)


def _shapes(base: TrainConfig) -> list[tuple[str, str, TrainConfig]]:
    """(Name, series, training) of every switch of the shape."""
    task = _task(base)
    assert task.model is not None
    return [
        (name, series, replace(base, task=replace(task, model=replace(task.model, **changes))))
        for series, group in SHAPES.items()
        for name, changes in group.items()
    ]


def _rest(base: TrainConfig) -> list[tuple[str, str, TrainConfig]]:
    """(Name, series, training) of every switch of the objective, the loop and the optimizer."""
    task, fit = _task(base), base.fit
    masked = {
        (name, series): replace(base, task=replace(task, objective=replace(task.objective, **changes)))
        for series, group in MASKINGS.items()
        for name, changes in group.items()
    }
    fitted = {
        (name, series): replace(base, fit=replace(fit, **changes))
        for series, group in FITS.items()
        for name, changes in group.items()
    }
    optimized = {
        (name, series): replace(base, fit=replace(fit, optimizer=replace(fit.optimizer, **changes)))
        for series, group in OPTIMIZERS.items()
        for name, changes in group.items()
    }
    return [(*names, train) for names, train in {**masked, **fitted, **optimized}.items()]


def _as_released(base: TrainConfig) -> TrainConfig:
    """The released switches all together, at the rate that AdamW takes on nano."""
    task = _task(base)
    assert task.model is not None
    shape = replace(task.model, dropout=0.1)
    for series, name in _RELEASED_SHAPE:
        shape = replace(shape, **SHAPES[series][name])
    return replace(
        base,
        task=replace(
            task,
            model=shape,
            objective=replace(task.objective, **MASKINGS["masks"]["at least .7 hidden"]),
        ),
        fit=replace(
            base.fit, optimizer=replace(base.fit.optimizer, **OPTIMIZERS["training"]["AdamW, rate 1e-3"])
        ),
    )


def _task(config: TrainConfig) -> PretrainTask:
    assert isinstance(config.task, PretrainTask)
    return config.task
