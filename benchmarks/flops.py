"""FLOPs of sampling and training, counted on the code that runs, on tensors without storage.

    python benchmarks/flops.py [--json] [--model paper|base|huge|nano] [--batch 16] [--whole]

Matrix products alone, 1 multiply-add = 2 FLOPs, in TFLOP per image; without text encoder and autoencoder.
Training: forward pass at the mean mask share of the released law (.867).
"""

import argparse
import json
import sys

from lightgen import recipes
from lightgen.models.shape import TransformerConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.sampling.presets import PRESETS, preset
from lightgen.stages.budget import forward_flops, mean_mask_share
from lightgen.stages.sampling_cost import sample_flops

MASK_MIN = 0.7
UNIT_PX = 16
# arXiv 2503.08619 as released, counted the same way: sampling 64 x 100, training forward
RELEASED = {"sample_256": 41.7, "sample_512": 171.4, "train_forward_256": 0.451, "train_forward_512": 1.77}


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
            flops = sample_flops(
                shape, (px // UNIT_PX, px // UNIT_PX), config, arguments.batch, whole=arguments.whole
            )
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
