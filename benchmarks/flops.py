"""FLOPs of sampling and training, counted on the code that runs, on tensors without storage.

    python benchmarks/flops.py [--json] [--model paper|base|huge|nano] [--batch 16] [--whole]

Matrix products alone, 1 multiply-add = 2 FLOPs, in TFLOP per image; without text encoder and autoencoder.
Training: forward pass at the mean mask share of the released law (.867), dropout off.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from math import ceil
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightgen import recipes
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.masked import Masking, image_errors
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens, head_steps
from lightgen.sampling.draws import Draws
from lightgen.sampling.order import unknown_after
from lightgen.sampling.presets import PRESETS, preset

MASK_SHARE = 0.867
UNIT_PX = 16
# arXiv 2503.08619 as released, counted the same way: sampling 64 x 100, training forward
RELEASED = {"sample_256": 41.7, "sample_512": 171.4, "train_forward_256": 0.451, "train_forward_512": 1.77}


class Features(nn.Module):
    """Text encoder that costs nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Features without storage."""
        return SimpleNamespace(last_hidden_state=torch.empty(*input_ids.shape, self.width, device="meta"))


class Unnamed:
    """Stands in for the counter's tracker of modules, which costs far more than the counting."""

    parents = ("Global",)

    def __enter__(self) -> None:
        """Nothing to follow."""

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""


def new_counter() -> FlopCounterMode:
    """Counter of all FLOPs together."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Unnamed()  # pyright: ignore[reportAttributeAccessIssue]
    return counter


def build(shape: TransformerConfig) -> LightGenTransformer:
    """Transformer without storage."""
    with torch.device("meta"):
        return LightGenTransformer(**asdict(shape)).eval()


def sample_flops(shape: TransformerConfig, px: int, config: DecodeConfig, batch: int, whole: bool) -> float:
    """FLOPs per image of decoding, text aligner included.

    A head step costs the same each time. So, unless `whole`, decoding is counted with one step per iteration,
    and the others are added: a second step for all tokens, counted too, times how many there are.
    """
    if whole:
        return _decode_flops(shape, px, config, batch)
    one = replace(config, num_head_steps=1, last_head_steps=None)
    first = _decode_flops(shape, px, one, batch)
    short = [
        _decode_flops(shape, px, replace(one, num_iterations=1, num_head_steps=n), batch) for n in (1, 2)
    ]
    length = (px // UNIT_PX) ** 2
    schedule = [length, *unknown_after(length, config.num_iterations)]
    further = sum(
        (before - left) * (head_steps(config, i, len(schedule) - 1) - 1)
        for i, (before, left) in enumerate(pairwise(schedule))
    )
    return first + (short[1] - short[0]) * further / length


def _decode_flops(shape: TransformerConfig, px: int, config: DecodeConfig, batch: int) -> float:
    transformer, side = build(shape).requires_grad_(False), px // UNIT_PX
    length, channels = side * side, transformer.token_channels
    steps = config.num_head_steps if config.solver == "ancestral" else 0
    draws = Draws(
        order=torch.empty(batch, length, dtype=torch.int64, device="meta"),
        start=torch.empty(batch, length, channels, device="meta"),
        steps=torch.empty(steps, batch, length, channels, device="meta") if steps else None,
    )
    with new_counter() as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        mask = torch.ones(batch, shape.text_length, dtype=torch.bool, device="meta")
        features = torch.empty(batch, shape.text_length, shape.text_width, device="meta")
        texts = Texts(text=transformer.embed_text(features, mask), text_mask=mask)
        decode_tokens(transformer, texts, range(batch), (side, side), config, draws=draws)
    return counter.get_total_flops() / batch


def train_flops(shape: TransformerConfig, px: int, batch: int) -> float:
    """FLOPs per image of the masked objective's forward pass, four draws per token, no text dropped."""
    transformer, side = build(shape), px // UNIT_PX
    length, cells = side * side, side * shape.patch_size
    num = ceil(MASK_SHARE * length)
    time = torch.empty(4, batch, num, device="meta")
    masking = Masking(
        order=torch.empty(batch, length, dtype=torch.int64, device="meta"),
        time=time.long() if shape.prediction == "ddpm" else time,
        noise=torch.empty(4, batch, num, transformer.token_channels, device="meta"),
        kept=torch.arange(batch, device="meta"),
    )
    words = torch.empty(batch, shape.text_length, dtype=torch.int64, device="meta")
    latents = torch.empty(batch, shape.latent_channels, cells, cells, device="meta")
    given = {"latents": latents, "text_ids": words, "text_mask": words.bool()}
    student = Student(transformer, Features(shape.text_width), train_text_encoder=False)
    with new_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        image_errors(student, given, masking, variational=True)
    return counter.get_total_flops() / batch


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="paper", choices=list(recipes.describe("model")))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--whole", action="store_true", help="count every step of the head (long)")
    arguments = parser.parse_args()
    shape: TransformerConfig = recipes.find("model", arguments.model)
    sides = (128,) if arguments.model == "nano" else (256, 512)
    found: dict[str, float] = {}
    for px in sides:
        for name in PRESETS:
            config = preset(name, shape.prediction)
            suffix = "" if name == "exact" else f"_{name}"
            flops = sample_flops(shape, px, config, arguments.batch, arguments.whole)
            found[f"sample_{px}{suffix}_tflop"] = round(flops / 1e12, 4)
        found[f"train_forward_{px}_tflop"] = round(train_flops(shape, px, arguments.batch) / 1e12, 4)
    if arguments.json:
        sys.stdout.write(json.dumps({"model": arguments.model, "batch": arguments.batch, **found}) + "\n")
        return
    for name, value in found.items():
        released = RELEASED.get(name.removesuffix("_tflop")) if arguments.model == "paper" else None
        beside = f"   released {released:7.3f}, {released / value:.2f} times as much" if released else ""
        sys.stdout.write(f"{name:<32} {value:9.4f}{beside}\n")


if __name__ == "__main__":
    main()
