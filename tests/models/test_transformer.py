"""The transformer: layout of tokens, freedom of the grid, and what its output may and may not depend on."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.transformer import LightGenTransformer, patchify, unpatchify

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def inputs(grid, num_known, num_predicted, batch=2, num_text=4, seed=0):
    """Keyword arguments of a forward pass: text with padding, random positions, 8 channels per token."""
    length = grid[0] * grid[1]
    orders = [torch.randperm(length, generator=torch_draws(seed, "test-order", b)) for b in range(batch)]
    order = torch.stack(orders)
    text_mask = torch.arange(num_text) < torch.tensor([num_text, 2] * batch)[:batch, None]
    return {
        "known": randn(batch, num_known, 8, seed=seed + 1),
        "known_at": order[:, :num_known],
        "predicted_at": order[:, num_known : num_known + num_predicted],
        "text": randn(batch, num_text, 32, seed=seed + 2),
        "text_mask": text_mask,
        "grid": grid,
    }


def test_tokens_run_by_row_and_hold_channel_row_column():
    first = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])
    latents = torch.stack([first, first + 100])[None]
    assert patchify(latents, 2).tolist() == [
        [
            [0, 1, 4, 5, 100, 101, 104, 105],
            [2, 3, 6, 7, 102, 103, 106, 107],
            [8, 9, 12, 13, 108, 109, 112, 113],
            [10, 11, 14, 15, 110, 111, 114, 115],
        ]
    ]
    wide = torch.arange(8).view(1, 1, 2, 4)
    assert patchify(wide, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    assert patchify(wide, 1).tolist() == [[[i] for i in range(8)]]


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (5, 2), (3, 3)])
def test_unpatchify_is_the_inverse(patch, grid):
    latents = randn(2, 3, grid[0] * patch, grid[1] * patch)
    tokens = patchify(latents, patch)
    assert tokens.shape == (2, grid[0] * grid[1], 3 * patch**2)
    assert torch.equal(unpatchify(tokens, patch, grid), latents)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2), (7, 4)])
@pytest.mark.parametrize("with_known", [True, False])
def test_any_grid_gives_one_condition_per_predicted_token(make_student, grid, with_known):
    transformer = make_student().transformer
    length = grid[0] * grid[1]
    num_known = min(3, length - 1) if with_known else 0
    for num_predicted in {1, length - num_known}:
        cond = transformer(**inputs(grid, num_known, num_predicted))
        assert cond.shape == (2, num_predicted, 32)
        assert torch.isfinite(cond).all()
    velocity = transformer.head(
        randn(6, 8),
        torch.rand(6, generator=torch_draws(0, "test")),
        transformer.head.embed_cond(randn(6, 32)),
    )
    assert velocity.shape == (6, 8)


def test_the_model_is_unchanged_by_what_it_was_called_with(make_student):
    transformer, fresh = make_student().transformer, make_student().transformer
    small, large = inputs((2, 3), 2, 4), inputs((5, 4), 7, 5, batch=3)
    first = transformer(**small)
    with_history = transformer(**large)
    assert torch.equal(transformer(**small), first)
    assert torch.equal(fresh(**large), with_history)


def test_padding_does_not_reach_the_output(make_student):
    transformer = make_student().transformer
    given = inputs((3, 3), 4, 5)
    cond = transformer(**given)
    padding = ~given["text_mask"]
    noisy = torch.where(padding[..., None], 50 * randn(*given["text"].shape, seed=9), given["text"])
    assert not torch.equal(noisy, given["text"])
    torch.testing.assert_close(transformer(**{**given, "text": noisy}), cond, **CLOSE)
    longer = torch.cat([given["text"], randn(2, 3, 32, seed=8)], dim=1)
    mask = torch.cat([given["text_mask"], torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(transformer(**{**given, "text": longer, "text_mask": mask}), cond, **CLOSE)
    heard = transformer(**{**given, "text": noisy, "text_mask": torch.ones_like(padding)})
    assert (heard - cond)[1].abs().max() > 1e-2


def test_dropped_text_is_the_null_text_whatever_it_was(make_student):
    transformer = make_student().transformer
    given = inputs((3, 3), 4, 5)
    features, others = randn(2, 4, 12), randn(2, 4, 12, seed=5)

    def run(text, mask, dropped):
        embedded, embedded_mask = transformer.embed_text(text, mask, torch.tensor(dropped))
        return transformer(**{**given, "text": embedded, "text_mask": embedded_mask})

    one, full = given["text_mask"], torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(run(features, one, [True, True]), run(others, full, [True, True]), **CLOSE)
    mixed, kept = run(features, one, [True, False]), run(features, one, [False, False])
    torch.testing.assert_close(mixed[0], run(others, full, [True, True])[0], **CLOSE)
    torch.testing.assert_close(mixed[1], kept[1], **CLOSE)
    assert (mixed - kept)[0].abs().max() > 1e-2
    assert (run(others, one, [False, False]) - kept).abs().amax(dim=(1, 2)).min() > 1e-2


def test_known_tokens_are_a_set(make_student):
    transformer = make_student().transformer
    given = inputs((4, 3), 6, 6)
    cond = transformer(**given)
    turn = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {**given, "known": given["known"][:, turn], "known_at": given["known_at"][:, turn]}
    torch.testing.assert_close(transformer(**moved), cond, **CLOSE)
    swapped = transformer(**{**given, "known_at": given["known_at"][:, turn]})
    assert (swapped - cond).abs().max() > 1e-2


def test_a_prediction_does_not_depend_on_which_others_are_asked_for(make_student):
    transformer = make_student().transformer
    given = inputs((4, 3), 4, 8)
    cond = transformer(**given)
    turn = torch.tensor([6, 1, 3])
    some = transformer(**{**given, "predicted_at": given["predicted_at"][:, turn]})
    torch.testing.assert_close(some, cond[:, turn], **CLOSE)


def test_an_image_does_not_depend_on_its_batch(make_student):
    transformer = make_student().transformer
    given = inputs((3, 4), 5, 7, batch=3)
    alone = {name: value if name == "grid" else value[1:2] for name, value in given.items()}
    torch.testing.assert_close(transformer(**alone), transformer(**given)[1:2], **CLOSE)


def test_a_stored_transformer_is_the_same(make_student, tmp_path):
    transformer = make_student().transformer
    transformer.save_pretrained(tmp_path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    loaded = LightGenTransformer.from_pretrained(tmp_path, use_safetensors=True)
    given = inputs((3, 3), 4, 5)
    assert torch.equal(loaded(**given), transformer(**given))
    assert loaded.config["width"] == 32


@pytest.mark.parametrize("switch", ["fusion", "prediction"])
def test_an_unknown_switch_is_refused(make_student, switch):
    with pytest.raises(ValueError, match=f"{switch}='sideways'"):
        make_student(**{switch: "sideways"})
