"""The transformer: equal to the trunk spelled out, free of the grid, and what may and may not count."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.transformer import LightGenTransformer
from tests.models.naive import LOOKS, PREFIXES, SMALL, TRUNKS, Naive, named

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-10}
FUSIONS = ["late", "interleaved", "joint"]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def inputs(grid, num_known, left=0, batch=2, num_text=4, seed=0, width=32):
    """Keyword arguments of a forward pass: text with padding, random positions, 8 channels per token."""
    length = grid[0] * grid[1]
    orders = [torch.randperm(length, generator=torch_draws(seed, "test-order", b)) for b in range(batch)]
    text_mask = torch.arange(num_text) < torch.tensor([num_text, 2, 1] * batch)[:batch, None]
    return {
        "known": randn(batch, num_known, 8, seed=seed + 1),
        "order": torch.stack(orders),
        "text": randn(batch, num_text, width, seed=seed + 2),
        "text_mask": text_mask,
        "grid": grid,
        "left": left,
    }


def double(given):
    return {n: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in given.items()}


def naive(transformer, given):
    """The same conditions, each image alone, all tokens through all blocks."""
    rows, length, num_known = [], given["grid"][0] * given["grid"][1], given["known"].shape[1]
    for b, order in enumerate(given["order"].tolist()):
        known = order[length - num_known :]
        tokens = given["known"].new_full((length, 8), torch.nan)
        tokens[known] = given["known"][b]
        trunk = Naive(transformer, given["text"][b], given["text_mask"][b], given["grid"])
        found = trunk.conditions(tokens, known)
        rows.append(found[order[given["left"] : length - num_known]])
    return torch.stack(rows)


@pytest.mark.parametrize("shape", TRUNKS + PREFIXES, ids=named)
@torch.no_grad()
def test_it_is_the_trunk_spelled_out(make_student, shape):
    transformer = make_student(**SMALL, **shape).transformer.double().eval()
    for grid, num_known, left in (((3, 2), 0, 0), ((3, 2), 4, 1), ((4, 6), 9, 11), ((4, 4), 15, 0)):
        given = double(inputs(grid, num_known, left, batch=3, width=16))
        torch.testing.assert_close(transformer(**given), naive(transformer, given), **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_one_block_of_each_kind_is_enough(make_student, fusion):
    """The decoder's first block is then its last one too."""
    sizes = {**SMALL, "encoder_layers": 1, "decoder_layers": 1}
    transformer = make_student(**sizes, fusion=fusion).transformer.double().eval()
    given = double(inputs((3, 2), 2, 1, width=16))
    torch.testing.assert_close(transformer(**given), naive(transformer, given), **EXACT)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2), (7, 4)])
@pytest.mark.parametrize("with_known", [True, False])
@pytest.mark.parametrize("look", LOOKS, ids=named)
def test_any_grid_gives_one_condition_per_predicted_token(make_student, grid, with_known, look):
    transformer = make_student(**look).transformer
    length = grid[0] * grid[1]
    num_known = min(3, length - 1) if with_known else 0
    for left in {0, length - num_known - 1}:
        cond = transformer(**inputs(grid, num_known, left))
        assert cond.shape == (2, length - num_known - left, 32)
        assert torch.isfinite(cond).all()


@pytest.mark.parametrize("look", LOOKS, ids=named)
def test_the_model_is_unchanged_by_what_it_was_called_with(make_student, look):
    transformer, fresh = make_student(**look).transformer, make_student(**look).transformer
    small, large = inputs((2, 3), 2), inputs((5, 4), 7, batch=3)
    first = transformer(**small)
    with_history = transformer(**large)
    assert torch.equal(transformer(**small), first)
    assert torch.equal(fresh(**large), with_history)


@pytest.mark.parametrize("look", LOOKS, ids=named)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_does_not_reach_the_output_unless_released(make_student, fusion, look):
    for text_masked in (True, False):
        shape = {"fusion": fusion, "text_masked": text_masked, "aligner_layers": 1, **look}
        transformer = make_student(**shape).transformer
        given = inputs((3, 3), 4)
        features, mask = randn(2, 4, 12), given["text_mask"]
        padding = ~mask
        noisy = torch.where(padding[..., None], 50 * randn(2, 4, 12, seed=9), features)

        def run(features, mask, transformer=transformer, given=given):
            text = transformer.embed_text(features, mask)
            return transformer(**{**given, "text": text, "text_mask": mask})

        cond = run(features, mask)
        change = (run(noisy, mask) - cond).abs().max()
        if not text_masked:
            assert change > 1e-2
            continue
        assert change < 1e-5
        longer = torch.cat([features, randn(2, 3, 12, seed=8)], dim=1)
        torch.testing.assert_close(run(longer, torch.cat([mask, mask[:, :3] & False], dim=1)), cond, **CLOSE)
        assert (run(noisy, torch.ones_like(mask)) - cond)[1].abs().max() > 1e-2


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("text_masked", [True, False])
def test_dropped_text_is_the_null_text_whatever_it_was(make_student, fusion, text_masked):
    student = make_student(fusion=fusion, text_masked=text_masked)
    given = inputs((3, 3), 4)
    features, others = randn(2, 4, 12), randn(2, 4, 12, seed=5)

    def run(features, kept):
        text, mask = student.embed_text(features, given["text_mask"], torch.tensor(kept, dtype=torch.long))
        return student.transformer(**{**given, "text": text, "text_mask": mask})

    both = run(features, [0, 1])
    torch.testing.assert_close(run(features, []), run(others, []), **CLOSE)
    mixed = run(features, [1])
    torch.testing.assert_close(mixed[0], run(others, [])[0], **CLOSE)
    torch.testing.assert_close(mixed[1], both[1], **CLOSE)
    assert (mixed - both)[0].abs().max() > 1e-2
    assert (run(others, [0, 1]) - both).abs().amax(dim=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("text_positions", ["none", "rotary"])
def test_text_tokens_are_a_set_unless_they_have_positions(make_student, text_positions):
    transformer = make_student(text_positions=text_positions).transformer
    given = inputs((3, 3), 4)
    turned = {name: given[name].flip(1) for name in ("text", "text_mask")}
    change = (transformer(**{**given, **turned}) - transformer(**given)).abs().amax(dim=(1, 2))
    assert (change > 1e-3).all() if text_positions == "rotary" else (change < 1e-5).all()


@pytest.mark.parametrize("text_masked", [True, False])
def test_registers_count_with_and_without_text(make_student, text_masked):
    transformer = make_student(registers=3, text_masked=text_masked).transformer
    given = inputs((3, 3), 4)
    null = transformer.null_text_of(2, 4)
    for text, mask in ((given["text"], given["text_mask"]), null):
        cond = transformer(**{**given, "text": text, "text_mask": mask})
        gradient = torch.autograd.grad(cond.square().sum(), transformer.register_tokens)[0]
        assert (gradient.abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("look", LOOKS, ids=named)
def test_known_tokens_are_a_set(make_student, look):
    transformer = make_student(**look).transformer
    given = inputs((4, 3), 6)
    cond = transformer(**given)
    turn = torch.tensor([3, 0, 5, 1, 4, 2])
    order = torch.cat([given["order"][:, :6], given["order"][:, 6:][:, turn]], dim=1)
    moved = {**given, "known": given["known"][:, turn], "order": order}
    torch.testing.assert_close(transformer(**moved), cond, **CLOSE)
    swapped = transformer(**{**given, "order": order})
    assert (swapped - cond).abs().max() > 1e-2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_prediction_does_not_depend_on_which_others_are_asked_for(make_student, fusion):
    transformer = make_student(fusion=fusion).transformer
    given = inputs((4, 3), 4)
    cond = transformer(**given)
    turn = torch.tensor([6, 1, 3, 0, 2, 4, 5, 7])
    order = torch.cat([given["order"][:, :8][:, turn], given["order"][:, 8:]], dim=1)
    for left in range(8):
        some = transformer(**{**given, "order": order, "left": left})
        torch.testing.assert_close(some, cond[:, turn[left:]], **CLOSE)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("look", LOOKS, ids=named)
def test_an_image_does_not_depend_on_its_batch(make_student, fusion, look):
    transformer = make_student(fusion=fusion, **look).transformer
    given = inputs((3, 4), 5, batch=3)
    together = transformer(**given)
    for b in range(3):
        alone = {name: value[b : b + 1] if torch.is_tensor(value) else value for name, value in given.items()}
        torch.testing.assert_close(transformer(**alone), together[b : b + 1], **CLOSE)


@pytest.mark.parametrize("look", LOOKS, ids=named)
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_rows_and_columns_are_not_mixed_up(make_student, fusion, look):
    """A picture and its transpose, under tables (or turns) whose axes are exchanged too."""
    upright, lying = (make_student(fusion=fusion, **look).transformer for _ in range(2))
    for name in lying.position_names:
        table = lying.get_parameter(name)
        table.copy_(table.view(4, 4, -1).transpose(0, 1).flatten(0, 1))
    if look["positions"] == "rotary":
        # rows turn the first half of each half of a head's channels, columns the second
        exchange = torch.arange(16).view(2, 2, 4).flip(1).flatten()
        for block in (*lying.encoder_blocks, *lying.decoder_blocks):
            block.attn.q.weight.copy_(block.attn.q.weight.view(2, 16, -1)[:, exchange].flatten(0, 1))
            k, v = block.attn.kv.weight.chunk(2)
            k = k.reshape(2, 16, -1)[:, exchange].flatten(0, 1)
            block.attn.kv.weight.copy_(torch.cat([k, v]))
            block.attn.scale_q.copy_(block.attn.scale_q[exchange])
    given = inputs((3, 5), 6)
    row, column = given["order"] // 5, given["order"] % 5
    turned = {**given, "order": column * 3 + row, "grid": (5, 3)}
    torch.testing.assert_close(lying(**turned), upright(**given), **CLOSE)
    assert (upright(**turned) - upright(**given)).abs().max() > 1e-2


@pytest.mark.parametrize("look", LOOKS, ids=named)
def test_a_stored_transformer_is_the_same(make_student, tmp_path, look):
    transformer = make_student(fusion="late", aligner_layers=1, prediction="ddpm", **look).transformer
    transformer.save_pretrained(tmp_path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    loaded = LightGenTransformer.from_pretrained(tmp_path, use_safetensors=True)
    given = inputs((3, 3), 4)
    assert torch.equal(loaded(**given), transformer(**given))
    assert loaded.shape == transformer.shape and loaded.shape.width == 32


@pytest.mark.parametrize("shape", TRUNKS, ids=named)
def test_it_runs_in_bf16_and_in_autocast(make_student, shape):
    student = make_student(**SMALL, **shape)
    transformer, given = student.transformer, inputs((3, 2), 3, width=16)
    wanted = transformer(**given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = transformer(**given)
    narrow = transformer.to(torch.bfloat16)(**given | {"text": given["text"].bfloat16()})
    assert narrow.dtype == torch.bfloat16
    for found in (mixed, narrow):
        assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("layers", ["plain", "gated"])
def test_a_new_transformer_draws_its_weights(layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {**SMALL, "latent_channels": 2, "text_width": 12, "head_width": 16, "position_grid": 4}
        look = {"fusion": "late", "cross_layers": 1, "aligner_layers": 1, "prediction": "ddpm"}
        transformer = LightGenTransformer(**sizes, **look, layers=layers, positions="learned")
        registers = LightGenTransformer(**sizes, registers=9, layers=layers).register_tokens
    zero = ("modulation", "token_out", "variance_out")
    for name, parameter in transformer.named_parameters():
        assert torch.isfinite(parameter).all(), name
        is_bias = name.endswith("norm.bias") or (layers == "plain" and name.endswith("bias"))
        is_zero = is_bias or any(each in name for each in zero)
        assert (parameter == 0).all() == is_zero, name
    tables = [transformer.get_parameter(name) for name in transformer.position_names]
    for vectors in (transformer.null_text, transformer.mask_token, registers, *tables):
        assert 0.01 < vectors.std() < 0.03
