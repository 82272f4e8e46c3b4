"""How a checkpoint decodes: a preset of its kind, and what a person wants otherwise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import torch

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError
from lightgen.models.diffusion import Spacing
from lightgen.models.head import Prediction
from lightgen.sampling.decode import DecodeConfig
from lightgen.sampling.presets import PRESETS, preset
from lightgen.sampling.solver import Solver

_OF_A_FLOW = tuple(each for each in get_args(Solver) if each != "ancestral")
SOLVERS = {"ddpm": get_args(Solver), "flow": _OF_A_FLOW, "flow_x": _OF_A_FLOW}
MAX_SIDE_PX = 4096
_WHOLE = {
    "num_iterations": (1, 4096),
    "num_head_steps": (1, 1000),
    "last_head_steps": (1, 1000),
    "refresh_every": (1, 4096),
}
_REAL = {"guidance_scale": (0.0, 100.0), "guidance_rise": (0.0, 1.0), "temperature": (0.0, 10.0)}
_SEEDS = (-(2**63), 2**64 - 1)


@dataclass(frozen=True, kw_only=True)
class DecodeOverrides:
    """What differs from the preset, in the words of DecodeConfig; None = what the preset says."""

    num_iterations: int | None = None
    num_head_steps: int | None = None
    last_head_steps: int | None = None
    solver: Solver | None = None
    guidance_scale: float | None = None
    guidance_rise: float | None = None
    guidance_interval: tuple[float, float] | None = None
    temperature: float | None = None
    refresh_every: int | None = None
    spacing: Spacing | None = None

    @classmethod
    def of(cls, config: DecodeConfig) -> "DecodeOverrides":
        """Overrides that make any preset this config."""
        values = {field.name: vars(config)[field.name] for field in fields(cls)}
        return cls(**{**values, "last_head_steps": config.last_head_steps or config.num_head_steps})

    def chosen(self) -> dict[str, Any]:
        """The values that differ from the preset, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_settings(name: str | None, overrides: DecodeOverrides) -> None:
    """Check what does not depend on the checkpoint.

    Raises:
        UserError: an unknown preset or solver, or a number that is not finite or out of range.
    """
    found = overrides.chosen()
    _check_word("preset", name, PRESETS)
    _check_word("solver", found.get("solver"), get_args(Solver))
    _check_word("spacing", found.get("spacing"), get_args(Spacing))
    for key, (low, high) in _WHOLE.items():
        check_whole(key, found.get(key, low), low, high)
    for key, (low, high) in _REAL.items():
        check_real(key, found.get(key, low), low, high)
    interval = found.get("guidance_interval", (0.0, 1.0))
    ends = tuple(interval) if isinstance(interval, Sequence) else ()
    if not (len(ends) == 2 and all(map(_is_real, ends)) and 0 <= ends[0] <= ends[1] <= 1):
        raise UserError(f"guidance_interval: got {_short(interval)}, allowed: (from, to) in 0 to 1")


def resolve(prediction: Prediction, name: str | None, overrides: DecodeOverrides) -> DecodeConfig:
    """Every setting of the decoder.

    Args:
        prediction: of the checkpoint.
        name: of a preset; None = `exact`.
        overrides: what differs from it. Where only `num_head_steps` is given, a preset that anneals the steps
            ends at no more than that.

    Raises:
        UserError: as `check_settings`, or a solver that the checkpoint's prediction has not.
    """
    check_settings(name, overrides)
    found = overrides.chosen()
    config = preset(name or "exact", prediction)  # pyright: ignore[reportArgumentType]
    if "num_head_steps" in found and "last_head_steps" not in found and config.last_head_steps is not None:
        found["last_head_steps"] = min(config.last_head_steps, found["num_head_steps"])
    if "guidance_interval" in found:
        found["guidance_interval"] = tuple(map(float, found["guidance_interval"]))
    config = replace(config, **found)
    least = 2 if prediction == "ddpm" else 1  # the first step of a ddpm chain alone is all but clean
    if min(config.num_head_steps, config.last_head_steps or config.num_head_steps) < least:
        got = f"{config.num_head_steps} num_head_steps, {config.last_head_steps} last_head_steps"
        raise UserError(f"steps: got {got} for a {prediction} checkpoint, allowed: from {least}")
    if config.solver not in SOLVERS[prediction]:
        allowed = " or ".join(map(repr, SOLVERS[prediction]))
        raise UserError(f"solver: got {config.solver!r} for a {prediction} checkpoint, allowed: {allowed}")
    return config


def check_sides(height: int, width: int, unit: int) -> tuple[int, int]:
    """(Rows, columns) of the token grid of a picture.

    Args:
        height: px.
        width: px.
        unit: px that a token covers on each side.

    Raises:
        UserError: a side is no multiple of the unit, or out of range.
    """
    limit = MAX_SIDE_PX // unit * unit
    for side in (height, width):
        if not _is_whole(side) or not unit <= side <= limit or side % unit:
            raise UserError(
                f"size: got {_short(width)}x{_short(height)} px (width x height), "
                f"allowed: sides in multiples of {unit} px from {unit} to {limit}"
            )
    return int(height) // unit, int(width) // unit


def pick_seeds(
    count: int, generator: torch.Generator | Sequence[torch.Generator] | None, seeds: Sequence[int] | None
) -> list[int]:
    """One seed per image: the given ones, or those of the generators, or 0, 1, 2 and so on.

    Raises:
        UserError: there are more or fewer than images, of both kinds, or of a wrong type.
    """
    if generator is not None and seeds is not None:
        raise UserError("pipeline: got generator and seeds, allowed: one of them")
    if isinstance(generator, torch.Generator):
        return [generator.initial_seed() + k for k in range(count)]
    what = "seeds"
    if generator is not None:
        each = list(generator) if isinstance(generator, Sequence) else [generator]
        if not all(isinstance(one, torch.Generator) for one in each):
            raise UserError(f"generator: got {type(each[0]).__name__}, allowed: torch.Generator, one or many")
        what, seeds = "generators", [one.initial_seed() for one in each]
    found = list(range(count)) if seeds is None else list(seeds)
    if len(found) != count:
        raise UserError(f"pipeline: got {len(found)} {what} for {count} images, allowed: one per image")
    for seed in found:
        check_whole("seeds", seed, *_SEEDS)
    return [int(seed) for seed in found]


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Check that a value is a whole number in a range.

    Raises:
        UserError: it is not.
    """
    if not _is_whole(value) or not low <= value <= high:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"{name}: got {_short(value)}, allowed: a whole number from {low} to {high}")


def check_real(name: str, value: object, low: float, high: float) -> None:
    """Check that a value is a finite number in a range.

    Raises:
        UserError: it is not.
    """
    if not _is_real(value) or not low <= value <= high:  # pyright: ignore[reportOperatorIssue]
        raise UserError(f"{name}: got {_short(value)}, allowed: a number from {low:g} to {high:g}")


def pipeline_arguments(config: DecodeConfig) -> Mapping[str, Any]:
    """Arguments that make a pipeline decode exactly so."""
    values = DecodeOverrides.of(config).chosen()
    return {"num_inference_steps": values.pop("num_iterations"), **values}


def _check_word(name: str, value: object, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        hint = suggestion(str(value), allowed) or f", allowed: {', '.join(allowed)}"
        raise UserError(f"{name}: got {_short(value)}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float | np.floating) and math.isfinite(value))


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
