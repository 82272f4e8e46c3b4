import sys

import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.ports.nano.text import MAX_LENGTH, build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder, outline_text_encoder

TEXTS = ["a dog", "a photo of two cats left of a red car", ""]


@pytest.fixture
def folder(tmp_path):
    text = build_nano_text_encoder(0)
    text.encoder.save_pretrained(tmp_path / "text_encoder")
    text.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def parts(folder):
    return folder / "text_encoder", folder / "tokenizer"


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
