from math import prod

import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.released import (
    from_released,
    released_config,
    released_shapes,
    require_released,
    to_released,
)
from tests.ports.released_weights import TINY, released_weights

PAPER = {
    **TINY,
    **{"latent_channels": 16, "width": 1024, "num_heads": 16, "text_width": 4096, "aligner_layers": 6},
    **{"encoder_layers": 16, "decoder_layers": 16, "cross_layers": 16, "head_width": 1536, "head_layers": 8},
}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("changes", [{}, {"head_layers": 1, "aligner_layers": 2, "cross_layers": 1}])
def test_our_names_and_shapes_are_those_of_the_transformer(changes):
    with torch.device("meta"):
        state = LightGenTransformer(**{**TINY, **changes}).state_dict()
    ours = from_released(released_weights(**changes))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in state.items()}


def test_the_papers_weights_are_counted_right():
    assert sum(prod(shape) for shape in released_shapes(PAPER).values()) == 792_244_352


def test_there_and_back_is_bit_equal():
    tensors = released_weights()
    tensors["mask_token"][0, 0, :3] = torch.tensor([-0.0, float("inf"), 1e-45])
    ours = from_released(tensors)
    again = to_released(ours)
    assert same(again, tensors)
    assert torch.signbit(again["mask_token"][0, 0, 0])
    assert same(from_released(again), ours)
    assert all(tensor.is_contiguous() for tensor in [*ours.values(), *again.values()])


def test_rows_go_where_they_belong():
    tensors = released_weights()
    ours = from_released(tensors)
    d, m, c = TINY["width"], TINY["head_width"], 4 * TINY["latent_channels"]
    qkv = tensors["encoder_blocks.1.attn.qkv.weight"]
    assert torch.equal(ours["encoder_blocks.1.attn.q.weight"], qkv[:d])
    assert torch.equal(ours["encoder_blocks.1.attn.kv.weight"], qkv[d:])
    final = "diffloss.net.final_layer"
    assert torch.equal(ours["head.token_out.bias"], tensors[f"{final}.linear.bias"][:c])
    assert torch.equal(ours["head.variance_out.bias"], tensors[f"{final}.linear.bias"][c:])
    second = tensors["diffloss.net.res_blocks.1.adaLN_modulation.1.weight"]
    assert torch.equal(ours["head.modulation.weight"][3 * m : 6 * m], second)
    assert torch.equal(ours["head.modulation.weight"][9 * m :], tensors[f"{final}.adaLN_modulation.1.weight"])
    assert torch.equal(ours["cross_positions"], tensors["last_pos_embed_learned"][0])
    assert torch.equal(ours["null_text"], tensors["fake_latent"][0, 0])
    query = tensors["cross_attn_blocks.0.attn.query_linear.bias"]
    assert torch.equal(ours["cross_blocks.0.attn.q.bias"], query)


@pytest.mark.parametrize("convert", [from_released, to_released])
def test_other_names_are_refused(convert):
    start = released_weights()
    tensors = {**(start if convert is from_released else from_released(start)), "strange": torch.ones(1)}
    del tensors["mask_token"]
    with pytest.raises(UserError, match="missing: 'mask_token'; unknown: 'strange'; allowed"):
        convert(tensors)


def test_shapes_tell_the_config():
    assert released_config(released_weights(), num_heads=2) == TINY
    other = {"width": 32, "num_heads": 4, "text_width": 7, "head_width": 48, "latent_channels": 3}
    other |= {"aligner_layers": 3, "decoder_layers": 4, "head_layers": 1, "cross_layers": 1}
    found = released_config(released_weights(**other), 4, text_length=9, sample_size=32)
    assert found == {**TINY, **other, "text_length": 9, "sample_size": 32}


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_released_sizes_need_no_heads(width, heads):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in _shapes(width).items()}
    assert released_config(tensors)["num_heads"] == heads
    assert released_config(tensors, num_heads=4)["num_heads"] == 4


def _shapes(width):
    return released_shapes({**TINY, "width": width})


@pytest.mark.parametrize(
    ("heads", "told"), [(None, "got no heads"), (0, "got 0 heads"), (-2, "got -2 heads"), (5, "got 5 heads")]
)
def test_heads_must_divide_the_width(heads, told):
    with pytest.raises(UserError, match=f"x.pth: {told}, allowed: a divisor of width 24"):
        released_config(released_weights(), heads, where="x.pth")


def test_weights_of_something_else():
    with pytest.raises(UserError, match="got 'a.weight', 'b.weight', allowed: names of the released"):
        released_config({"b.weight": torch.ones(2, 2), "a.weight": torch.ones(3)})


def test_every_fault_is_listed_at_once():
    tensors = released_weights()
    for name in ("z_proj.weight", "decoder_norm.bias", "encoder_blocks.0.attn.qkv.weight"):
        del tensors[name]
    tensors["fake_latent"] = torch.ones(1, 2, TINY["width"])
    tensors["cross_norm.weight"] = torch.ones(())
    tensors["last_embed.bias"] = torch.ones(TINY["width"], dtype=torch.int64)
    tensors["\x1b[31m\nevil"] = torch.ones(2)
    with pytest.raises(UserError) as caught:
        require_released(tensors, released_config(tensors, 2), "x.pth")
    told = str(caught.value)
    assert told.count("\n") == 0
    assert "\x1b" not in told
    for part in (
        "x.pth: missing: 'z_proj.weight', 'encoder_blocks.0.attn.qkv.weight', 'decoder_norm.bias'; ",
        "unknown: '\\x1b[31m\\nevil'",
        "wrong-shaped: 'cross_norm.weight' [], not [24], 'fake_latent' [1, 2, 24], not [1, 1, 24]",
        "not of floats: 'last_embed.bias'",
    ):
        assert part in told


def test_long_lists_are_cut():
    tensors = released_weights()
    gone = [name for name in tensors if name.startswith("decoder_blocks")]
    tensors = {name: t for name, t in tensors.items() if name not in gone}
    with pytest.raises(UserError, match=f" and {len(gone) - 10} more; allowed") as caught:
        require_released(tensors, released_config(tensors, 2))
    assert len(str(caught.value)) < 1000
    many = {
        **released_weights(),
        "encoder_blocks.999.x": torch.ones(1),
        "encoder_blocks.9999999.x": torch.ones(1),
    }
    with pytest.raises(UserError, match=f"missing: .* and {998 * 12 - 10} more; unknown: .*999.*9999999"):
        require_released(many, released_config(many, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_in_fp32_is_refused(value):
    tensors = released_weights()
    tensors["z_proj.bias"] = tensors["z_proj.bias"].double()
    tensors["z_proj.bias"][0] = value
    with pytest.raises(UserError, match="weights: not finite in fp32: 'z_proj.bias'; allowed"):
        require_released(tensors, TINY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_any_float_becomes_fp32_in_memory_of_its_own(dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in released_weights().items()}
    cast = require_released(tensors, TINY)
    assert same(cast, {name: tensor.float() for name, tensor in tensors.items()})
    assert all(cast[name].data_ptr() != tensors[name].data_ptr() for name in tensors)
