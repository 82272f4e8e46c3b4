"""Shapes as plain numbers: one set of defaults, bad ones refused in a line, old configs still read."""

import inspect
import json
from dataclasses import fields

import pytest

from lightgen.models.shape import TransformerConfig
from lightgen.models.transformer import LightGenTransformer

# the keys of the first published config, in which everything else had one choice
OLD = {
    "_class_name": "LightGenTransformer",
    "decoder_layers": 6,
    "encoder_layers": 4,
    "fusion": "joint",
    "head_layers": 3,
    "head_width": 256,
    "latent_channels": 16,
    "num_heads": 8,
    "patch_size": 2,
    "prediction": "flow",
    "text_width": 256,
    "width": 256,
}
BAD = [
    *({name: 0} for name in ("latent_channels", "patch_size", "sample_size", "width", "num_heads")),
    *({name: 0} for name in ("encoder_layers", "decoder_layers", "head_layers", "head_width")),
    *({name: -1} for name in ("text_width", "text_length", "position_grid", "aligner_layers")),
    *({name: "sideways"} for name in ("fusion", "cross_residual", "layers", "positions", "prediction")),
    *({name: "sideways"} for name in ("head_conditioning", "text_positions")),
    {"registers": -1},
    *({"position_step": step} for step in (0.0, -0.5)),
    {"position_step": 0.5, "positions": "learned"},
    {"registers": 2, "fusion": "late"},
    {"text_positions": "rotary", "positions": "learned"},
    {"text_positions": "rotary", "fusion": "late"},
    {"sample_size": 15},
    {"width": 24},
    {"width": 20, "num_heads": 8, "positions": "learned"},
    {"cross_layers": 1},
    {"fusion": "late"},
    {"fusion": "interleaved", "cross_layers": 5},
    *({"dropout": dropout} for dropout in (-0.1, 1.0)),
]


def test_the_transformer_and_its_config_have_the_same_defaults():
    signature = inspect.signature(LightGenTransformer.__init__).parameters
    defaults = {name: each.default for name, each in signature.items() if name != "self"}
    assert defaults == {each.name: each.default for each in fields(TransformerConfig)}
    assert [*defaults] == [each.name for each in fields(TransformerConfig)]


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_a_bad_shape_is_refused_in_one_line(changes):
    with pytest.raises(ValueError) as caught:
        TransformerConfig(**changes).check()
    message = str(caught.value)
    assert message.startswith("transformer: got ") and "allowed: " in message and "\n" not in message
    assert all(str(value) in message for value in changes.values() if value != "learned")
    with pytest.raises(ValueError, match="transformer: got "):
        LightGenTransformer(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 40, "num_heads": 8, "positions": "learned"},
        {"fusion": "late", "cross_layers": 3, "aligner_layers": 2},
        {"fusion": "interleaved", "cross_layers": 6},
        {"dropout": 0.5},
        {"text_positions": "rotary", "registers": 4, "prediction": "flow_x"},
        {"position_step": 0.5},
    ],
    ids=str,
)
def test_a_good_shape_is_not(changes):
    TransformerConfig(**changes).check()


def test_an_old_config_is_the_nano_model(tmp_path):
    transformer = LightGenTransformer.from_config(OLD)
    assert transformer.shape == TransformerConfig()
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 9_467_264
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    assert LightGenTransformer.load_config(tmp_path)["fusion"] == "joint"
