import sys

import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.ports.nano.text import MAX_LENGTH, build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder, outline_text_encoder

# What each head prefers to read at first, as places from the word that reads; None = all on that side.
PREFERRED = ([-1], [1], [-2], [2], None, None, [-3], [3])
TEXTS = ["a dog", "a photo of two cats left of a red car", ""]


@pytest.fixture
def folder(tmp_path):
    text = build_nano_text_encoder(0)
    text.encoder.save_pretrained(tmp_path / "text_encoder")
    text.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def parts(folder):
    return folder / "text_encoder", folder / "tokenizer"


def test_each_head_begins_with_the_places_that_it_prefers():
    attention = build_nano_text_encoder(0).encoder.get_submodule("encoder.block.0.layer.0.SelfAttention")
    bias = attention.compute_bias(9, 9)[0]  # [heads, reading, read]
    for head, places in enumerate(PREFERRED):
        sides = {4: range(-4, 0), 5: range(1, 5)}
        wanted = {4 + place for place in (places or sides[head])}
        assert {i for i, value in enumerate(bias[head, 4].tolist()) if value > 1.5} == wanted, head


def test_an_untrained_encoder_tells_swapped_words_apart():
    features, mask = build_nano_text_encoder(0).encode(
        ["a red dog and a blue car", "a blue dog and a red car"]
    )
    assert mask.all()
    one, other = features[:, 2]  # of the dog
    assert (one - other).norm() > 0.3 * one.norm()


def test_the_outline_has_shape_and_tokenizer_and_no_weights(folder):
    outline, loaded = outline_text_encoder(*parts(folder)), load_text_encoder(*parts(folder))
    assert (outline.dim, outline.max_length) == (loaded.dim, loaded.max_length) == (256, MAX_LENGTH)
    assert {p.device.type for p in outline.encoder.parameters()} == {"meta"}
    assert outline.encoder.config.to_diff_dict() == loaded.encoder.config.to_diff_dict()
    assert outline.lengths(TEXTS) == [3, 11, 1]
    with pytest.raises(UserError, match="no config.json"):
        outline_text_encoder(folder / "none", folder / "tokenizer")


def test_weights_that_come_layer_by_layer_give_the_same_features(folder):
    plain, offloaded = load_text_encoder(*parts(folder)), load_text_encoder(*parts(folder))
    offloaded.offload(torch.device("cpu"))
    assert {p.device.type for p in offloaded.encoder.parameters()} == {"meta"}
    for padded_to in (None, 30):
        expected, mask = plain.encode(TEXTS, padded_to)
        features, other = offloaded.encode(TEXTS, padded_to)
        assert torch.equal(features, expected) and torch.equal(mask, other)
        assert features.shape[1] == (padded_to or 16)
    assert {p.device.type for p in offloaded.encoder.parameters()} == {"meta"}, "nothing stays"


def test_offload_needs_accelerate(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"pip install 'lightgen\[teacher\]'"):
        load_text_encoder(*parts(folder)).offload(torch.device("cpu"))


def test_lengths_are_those_before_the_cut(folder):
    loaded = load_text_encoder(*parts(folder))
    short = T5TextEncoder(loaded.encoder, loaded.tokenizer, 4)
    assert short.lengths([60 * "dog ", "a dog"]) == [61, 3]
    assert short.encode(["a photo of two cats"])[1].sum() == 4
