import json

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Dinov2Model

from lightgen.core.draws import draw_key, torch_draws
from lightgen.core.errors import UserError
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.patches import load_patches, nano_patches
from lightgen.stages.checkpoint import load_detector, open_detector
from tests.ports.toy_encoders import save_encoder

CPU = torch.device("cpu")
DINOV2 = FeaturesConfig(kind="dinov2")


@pytest.fixture(scope="module")
def nano():
    return nano_patches(load_detector(open_detector(None)), CPU)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return save_encoder("dinov2", tmp_path_factory.mktemp("dinov2") / "model")


def renders(num):
    prompts = [draw_prompt(1, i, "train").prompt for i in range(num)]
    images = EmojiTeacher().generate(prompts, [draw_key(1, "x", i) for i in range(num)], 128, 128)
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def alike(one, other):
    return functional.cosine_similarity(one, other, dim=2)


def test_nano_features_are_the_same_in_any_batch_and_size(nano):
    pixels = renders(3)
    found = nano.patches(pixels, (8, 8))
    assert found.shape == (3, 64, nano.dim) == (3, 64, 128) and found.dtype == torch.float32
    torch.testing.assert_close(nano.patches(pixels[1:2], (8, 8)), found[1:2], atol=1e-4, rtol=1e-4)
    twice = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(alike(nano.patches(twice, (8, 8)), found).min()) > 0.95
    assert nano.patches(twice[:, :, :, :192], (16, 12)).shape == (3, 192, 128)


def test_nano_features_lie_where_the_picture_has_them(nano):
    plain = torch.zeros(1, 3, 128, 128)
    marked = plain.clone()
    marked[:, :, 100:124, 4:28] = 1  # in the rows 6 and 7, the columns 0 and 1
    change = (nano.patches(marked, (8, 8)) - nano.patches(plain, (8, 8))).norm(dim=2).view(8, 8)
    near = change[5:, :3].mean()
    assert near > 3 * change[:4].mean() and near > 3 * change[:, 5:].mean()


def test_nano_features_do_not_all_point_one_way(nano):
    rows = functional.normalize(nano.patches(renders(12), (8, 8)).flatten(0, 1), dim=1)
    assert abs(float((rows @ rows.T).mean())) < 0.2, "a constant would be paid for"


@torch.no_grad()
def test_dinov2_gives_its_patch_tokens_row_by_row(dinov2):
    model = Dinov2Model.from_pretrained(dinov2).eval()
    pixels = torch.rand(2, 3, 28, 28, generator=torch_draws(0, "pixels")) * 2 - 1
    extractor = load_patches(DINOV2, dinov2, CPU)
    found = extractor.patches(pixels, (4, 4))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = ((pixels + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    wanted = model(pixel_values=seen).last_hidden_state[:, 1:]
    assert found.shape == (2, 16, extractor.dim) == (2, 16, 32)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert extractor.patches(torch.zeros(1, 3, 64, 96), (4, 6)).shape == (1, 24, 32)


def test_another_model_is_refused(dinov2, tmp_path):
    other = save_encoder("clip", tmp_path / "clip")
    with pytest.raises(UserError, match="holds a 'clip', allowed: 'dinov2'"):
        load_patches(DINOV2, other, CPU)
    torn = save_encoder("dinov2", tmp_path / "torn")
    config = json.loads((torn / "config.json").read_text())
    (torn / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    with pytest.raises(UserError, match="features .*torn: .*weights missing or of another shape"):
        load_patches(DINOV2, torn, CPU)
