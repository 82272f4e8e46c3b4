"""Ways round blocks of the decoder: equal to blocks spelled out, and unseen by those who stay."""

import pytest
import torch

from lightgen.models.route import Route
from tests.models.naive import SMALL, named
from tests.models.test_transformer import inputs

SHAPES = [
    {"fusion": fusion, "layers": layers, "positions": positions, "text_masked": masked}
    for fusion in ("late", "interleaved", "joint")
    for layers, positions, masked in (("plain", "learned", False), ("gated", "rotary", True))
]


def by_hand(transformer, given, stay, first, end):
    """Conditions where only the tokens at `stay` pass the blocks from `first` on before `end`."""
    unknown, length = given["order"].shape[1] - given["known"].shape[1], given["order"].shape[1]
    layout = transformer.lay_out(given["order"], given["grid"])
    context = transformer.context(given["text"], given["text_mask"])
    encoded = transformer.encode(transformer.enter(given["known"], layout, unknown), layout, unknown, context)
    num_text = context.num_text
    x = transformer.decoder_embed(encoded)
    if layout.tables:
        places = torch.nn.functional.pad(layout.table(1, unknown, length), (0, 0, 0, num_text))
        x = x + places
    x = torch.cat([layout.unknown_at(0, unknown).x, x], dim=1)
    rotation, mask = layout.rotation(0, length, x.dtype, context.angles), context.attendable(length)
    for i, block in enumerate(transformer.decoder_blocks):
        at = torch.tensor(stay if first <= i < end else range(length + num_text))
        turned = None if rotation is None else tuple(each[:, :, at] for each in rotation)
        some = block(x[:, at], None if mask is None else mask[..., at], turned)
        if transformer.shape.fusion == "interleaved":
            some = transformer.cross_blocks[i](some, context.memories[i])
        x = x.index_copy(1, at, some)
    return transformer.fuse(transformer.decoder_norm(x[:, :unknown]), layout, 0, context)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize(("first", "end"), [(1, 2), (1, 3), (2, 3)])
@torch.no_grad()
def test_it_is_the_blocks_spelled_out(make_student, shape, first, end):
    transformer = make_student(**{**SMALL, "decoder_layers": 4}, **shape).transformer.double().eval()
    for num_known in (8, 0, 11):
        given = inputs((3, 4), num_known, width=16)
        given = {
            n: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in given.items()
        }
        unknown = 12 - num_known
        skips = [*range(unknown // 2), *range(unknown, unknown + num_known // 2)]
        words = 4 if shape["fusion"] == "joint" else 0
        stay = [i for i in range(12 + words) if i not in skips]
        found = transformer(**given, route=Route(0.5, first, end))
        wanted = by_hand(transformer, given, stay, first, end)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
        assert (found - transformer(**given)).abs().max() > 1e-3
        none = transformer(**given, route=Route(0.0, first, end))
        torch.testing.assert_close(none, transformer(**given), rtol=1e-12, atol=1e-12)


def test_a_route_ends_before_the_last_block():
    assert Route(0.5, 1, 5).fits(6) and Route(0.0, 1, 2).fits(3)
    for route, blocks in (((0.5, 1, 6), 6), ((0.5, 0, 2), 6), ((0.5, 3, 3), 6), ((1.0, 1, 2), 6)):
        assert not Route(*route).fits(blocks)
