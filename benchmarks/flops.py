"""FLOPs of sampling and training, counted on the code that runs, on tensors without storage.

    python benchmarks/flops.py [--json] [--model paper|base|huge|nano] [--batch 16] [--whole]

Matrix products alone, 1 multiply-add = 2 FLOPs, in TFLOP per image; without text encoder and autoencoder.
Training: forward pass at the mean mask share of the released law (.867).
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import pairwise

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightgen import recipes
from lightgen.models.shape import TransformerConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens, head_steps
from lightgen.sampling.draws import Draws
from lightgen.sampling.order import unknown_after
from lightgen.sampling.presets import PRESETS, preset
from lightgen.stages.budget import build_transformer, forward_flops, mean_mask_share, new_counter

MASK_MIN = 0.7
UNIT_PX = 16
# arXiv 2503.08619 as released, counted the same way: sampling 64 x 100, training forward
RELEASED = {"sample_256": 41.7, "sample_512": 171.4, "train_forward_256": 0.451, "train_forward_512": 1.77}


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
    transformer, side = build_transformer(shape).requires_grad_(False), px // UNIT_PX
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
    share, side = mean_mask_share(MaskedConfig(mask_min=MASK_MIN)), px // UNIT_PX
    return forward_flops(shape, (side, side), share, draws=4, images=batch)


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
