"""What a new transformer's weights start from."""

from collections.abc import Sequence

from torch import nn

_ZERO = ("modulation", "token_out", "variance_out")  # see `lightgen.models.head.Head`


def draw_weights(transformer: nn.Module, vectors: Sequence[str], plain: bool) -> None:
    """Draw normal vectors and tables, and Xavier matrices: in gated layers, those of blocks alone.

    Args:
        transformer: whose weights are drawn in place.
        vectors: names of its vectors and tables.
        plain: whether its layers are plain.
    """
    for name in vectors:
        nn.init.normal_(transformer.get_parameter(name), std=0.02)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (plain or "block" in name) and not name.endswith(_ZERO):
            nn.init.xavier_uniform_(module.weight)
            if plain:
                nn.init.zeros_(module.bias)
    if plain:
        for name in ("time_in", "time_out"):
            nn.init.normal_(transformer.get_parameter(f"head.{name}.weight"), std=0.02)
