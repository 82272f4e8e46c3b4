"""Small random weights under the released names."""

import torch

from lightgen.core.draws import torch_draws
from lightgen.ports.released import RELEASED_CHOICES, released_shapes

TINY = {
    **RELEASED_CHOICES,
    **{"latent_channels": 4, "sample_size": 64, "width": 24, "num_heads": 2, "dropout": 0.1},
    **{"aligner_layers": 1, "encoder_layers": 2, "decoder_layers": 1, "cross_layers": 2},
    **{"text_width": 20, "text_length": 128, "head_width": 40, "head_layers": 3},
}


def released_weights(seed=0, **changes):
    shapes = released_shapes({**TINY, **changes})
    return {
        name: torch.randn(shape, generator=torch_draws(seed, "released", i))
        for i, (name, shape) in enumerate(shapes.items())
    }
