"""What a pipeline does between its steps: ask the caller, and bring parts to their device."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from lightgen.core.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

StepCallback = Callable[[Any, int, int, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]


class Interruptible(Protocol):
    """A pipeline that can be told to end."""

    @property
    def interrupt(self) -> bool:
        """Whether decoding ends after the iteration at hand."""
        ...


def iteration_hook(
    pipeline: Interruptible, callback: StepCallback | None, names: Sequence[str]
) -> Callable[[int, torch.Tensor], bool]:
    """What is done with (iteration, tokens) after each iteration; True ends the decoding.

    Args:
        pipeline: that is decoding.
        callback: called with (pipeline, i, i, tensors); may return other tokens.
        names: of the tensors that it is given.

    Raises:
        UserError: an unknown name; later, tokens of another shape.
    """
    if not set(names) <= {"tokens"}:
        raise UserError(f"callback_on_step_end_tensor_inputs: got {list(names)}, allowed: 'tokens'")

    def on_iteration(iteration: int, tokens: torch.Tensor) -> bool:
        if callback is not None:
            given = {name: tokens for name in names}
            changed = (callback(pipeline, iteration, iteration, given) or {}).get("tokens", tokens)
            if changed.shape != tokens.shape:
                got, allowed = list(changed.shape), list(tokens.shape)
                raise UserError(f"callback_on_step_end: got tokens {got} back, allowed: {allowed}")
            if changed is not tokens:
                tokens.copy_(changed)
        return pipeline.interrupt

    return on_iteration


def counted(
    bar: "tqdm", on_iteration: Callable[[int, torch.Tensor], bool] | None
) -> Callable[[int, torch.Tensor], bool]:
    """The same after each iteration, with a step of a progress bar before it."""

    def count(iteration: int, tokens: torch.Tensor) -> bool:
        bar.update()
        return on_iteration is not None and on_iteration(iteration, tokens)

    return count


def wake(module: nn.Module) -> None:
    """Bring a part that rests elsewhere between its turns to its device, as its `forward` would.

    Of the transformer, `forward` is never called: text and tokens pass it by other doors.
    """
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        from accelerate.hooks import CpuOffload

        if isinstance(hook, CpuOffload):
            hook.pre_forward(module)
