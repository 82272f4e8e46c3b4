"""A count of bytes that is kept while code runs, on tensors with or without storage."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightgen.models.blocks import Attention


class Ledger(TorchDispatchMode):
    """Bytes of the tensors that operators made and that are alive: `now`, and at most: `peak`.

    Args:
        fused: whether to give the modules, at `begin`, the attention and dropout that run on CUDA, which keep
            less for the backward pass than those of a CPU.
    """

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._fused = fused
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def begin(self, modules: Sequence[nn.Module]) -> None:
        """Leave out what the modules hold."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._seen.add(tensor.untyped_storage())
            for part in module.modules() if self._fused else ():
                if isinstance(part, Attention):
                    part.__class__ = _FusedAttention
                elif isinstance(part, nn.Dropout):
                    part.__class__ = _FusedDropout

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (whatever the operator gives)
        """Note what the operator made."""
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    size = storage.nbytes()
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, size)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


class _FusedAttention(Attention):
    """Attention by the operators that CUDA takes, which tensors without storage would not choose."""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """As in `Attention`: flash attention, or the memory-efficient one under a mask or in fp32."""
        dropout, operators = self.drop.p if self.drop.training else 0.0, torch.ops.aten
        if mask is None and q.dtype != torch.float32:
            x = operators._scaled_dot_product_flash_attention(q, k, v, dropout)[0]
        else:
            bias = None
            if mask is not None:
                bias = torch.zeros_like(mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
            x = operators._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout)[0]
        return self.output(x.transpose(1, 2).flatten(2))


class _FusedDropout(nn.Dropout):
    """Dropout that keeps its mask in one byte per value, as on CUDA."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input with some values dropped."""
        return torch.native_dropout(input, self.p, True)[0] if self.training and self.p else input
