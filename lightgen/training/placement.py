"""How a learner's weights lie: in which precision, and on which rank."""

import warnings
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lightgen.core.errors import UserError
from lightgen.core.ranks import num_ranks

Layers = Sequence[tuple[nn.Module, tuple[str, ...]]]


def trained(learner: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {n: p for n, p in learner.named_parameters() if p.requires_grad}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, sharing its memory, without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cast(learner: nn.Module, frozen: torch.dtype) -> None:
    """Turn what is trained to fp32, and what is frozen to the type that the learner computes in."""
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)


class WorkingCopy:
    """The learner's own parameters as a copy in bf16 of fp32 weights, which may lie on another device.

    Batch normalisation stays as it is: its statistics need fp32. A gradient of the copy is added to a sum in
    fp32 as soon as it is known, and forgotten.

    Attributes:
        weights: fp32, by name.
    """

    def __init__(self, learner: nn.Module, device: torch.device) -> None:
        self._copies = trained(learner)
        self._sums: dict[str, torch.Tensor] = {}
        kept = {id(p) for m in learner.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        self.weights: dict[str, nn.Parameter] = {}
        for name, copy in self._copies.items():
            self.weights[name] = nn.Parameter(copy.detach().to(device, copy=True))
            if id(copy) not in kept:
                copy.data = copy.data.to(torch.bfloat16)

            def fold(copy: torch.Tensor, name: str = name) -> None:
                assert copy.grad is not None
                gradient, copy.grad = copy.grad.float(), None
                self._sums[name] = self._sums[name].add_(gradient) if name in self._sums else gradient

            copy.register_post_accumulate_grad_hook(fold)

    def collect(self) -> None:
        """Make the sums the gradients of the weights."""
        for name, gradient in self._sums.items():
            self.weights[name].grad = gradient.to(self.weights[name].device)
        self._sums.clear()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the weights to the learner."""
        values: list[torch.Tensor] = [self.weights[name] for name in self._copies]
        torch._foreach_copy_(list(self._copies.values()), values)  # pyright: ignore[reportPrivateImportUsage]

    def widen(self) -> None:
        """Leave the weights in the learner, in fp32."""
        for name, copy in self._copies.items():
            copy.data = self.weights[name].detach().to(copy.device, copy=True)


def shard(
    whole: nn.Module, learner: nn.Module, layers: Layers, precision: str, shards: int, timeout_s: float
) -> None:
    """Spread a learner over the ranks, which wait for each other's answers so long and no longer.

    Raises:
        UserError: a number of shards that does not divide the ranks, or a learner for one rank alone.
    """
    if num_ranks() % shards:
        got = f"shards {shards} on {num_ranks()} ranks"
        raise UserError(f"training: got {got}, allowed: a divisor of the ranks")
    if any(isinstance(module, nn.BatchNorm2d) for module in learner.modules()):
        raise UserError(f"training: got batch normalisation on {num_ranks()} ranks, allowed: one rank")
    device = next(learner.parameters()).device
    sizes, names = (num_ranks() // shards, shards), ("replicate", "shard")
    if shards == num_ranks():
        sizes, names = sizes[1:], names[1:]
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    for group in mesh.get_all_groups():  # a mesh's own groups would wait for half an hour
        group.set_timeout(timedelta(seconds=timeout_s))
    low = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    frozen = {parameter for parameter in learner.parameters() if not parameter.requires_grad}
    # A layer that hands out views of what it computed: nothing here writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for layer, methods in layers:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=frozen)
            for method in methods:
                register_fsdp_forward_method(layer, method)
    fully_shard(whole, mesh=mesh, mp_policy=policy, ignored_params=frozen)
