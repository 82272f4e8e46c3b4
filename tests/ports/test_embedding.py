import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertModel, CLIPModel, Dinov2Model, Siglip2Model, SiglipModel

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.embedding import EmbedderConfig, embedder_files, load_embedder
from tests.ports.toy_clip import words
from tests.ports.toy_encoders import GEMMA, LENGTH, PATCH, PIECES, SIDE, save_encoder

CPU = torch.device("cpu")
FAMILIES = {"clip": "clip", "siglip": "siglip2", "siglip2": "siglip2", "dinov2": "dinov2", "bert": "sentence"}
SEES = ("clip", "siglip", "siglip2", "dinov2")
READS = ("clip", "siglip", "siglip2", "bert")
TEXTS = ["a Red dog", "two blue cats", "x", "", "many more words than any of these models can hold in a row"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_encoder(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def load(folders, family, **changes):
    return load_embedder(EmbedderConfig(kind=FAMILIES[family], **changes), folders[family], CPU)


def pictures(height=40, width=52, count=5):
    random = numpy_draws(0, "pictures", height, width)
    patches = random.integers(0, 236, (count, 3, 4, 3)).repeat(21, 1).repeat(21, 2)[:, :height, :width]
    return (patches + random.integers(0, 20, (count, height, width, 3))).astype(np.uint8)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_of_unit_length_and_the_same_in_any_batch(folders, family):
    embedder = load(folders, family)
    small = load(folders, family, batch_size=2)
    calls = [("embed_images", pictures())] if family in SEES else []
    calls += [("embed_texts", TEXTS)] if family in READS else []
    for name, given in calls:
        found = getattr(embedder, name)(given)
        assert found.dtype == np.float32 and found.shape == (5, embedder.dim)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(getattr(small, name)(given), found, atol=2e-6)
        assert np.linalg.matrix_rank(found, tol=1e-3) == 5
        assert getattr(embedder, name)(given[:0]).shape == (0, embedder.dim)
        rough = getattr(load(folders, family, precision="bf16"), name)(given)
        assert rough.dtype == np.float32 and (rough * found).sum(1).min() > 0.98


def test_what_a_kind_cannot_embed_is_refused(folders):
    with pytest.raises(UserError, match="embedder dinov2: got texts, allowed: images"):
        load(folders, "dinov2").embed_texts(["a"])
    with pytest.raises(UserError, match="embedder sentence: got images, allowed: texts"):
        load(folders, "bert").embed_images(pictures())


# By Pillow and numpy, and the models' own weights: what each family's authors prepare.


def prepared(image, size, cut, mean, std, filter_):
    picture = Image.fromarray(image).resize((size[1], size[0]), filter_)
    top, left = (size[0] - cut[0]) // 2, (size[1] - cut[1]) // 2
    array = np.asarray(picture)[top : top + cut[0], left : left + cut[1]] / 255
    return torch.tensor(((array - mean) / std).transpose(2, 0, 1), dtype=torch.float32)[None]


@torch.no_grad()
def test_images_are_embedded_as_by_an_independent_computation(folders):
    images = pictures()
    clip_mean, clip_std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    square, bicubic = (SIDE, SIDE), Image.Resampling.BICUBIC
    wide = int(SIDE * 52 / 40)

    clip = CLIPModel.from_pretrained(folders["clip"]).eval()
    wanted = [
        clip.visual_projection(
            clip.vision_model(
                pixel_values=prepared(i, (SIDE, wide), square, clip_mean, clip_std, bicubic)
            ).pooler_output
        )[0]
        for i in images
    ]
    np.testing.assert_allclose(load(folders, "clip").embed_images(images), unit(wanted), atol=1e-4)

    dino = Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    wanted = []
    for image in images:
        seen = prepared(image, (32, int(32 * 52 / 40)), square, clip_mean, clip_std, bicubic)
        wanted.append(dino(pixel_values=seen).last_hidden_state[0, 0])
    np.testing.assert_allclose(load(folders, "dinov2").embed_images(images), unit(wanted), atol=1e-4)

    siglip = SiglipModel.from_pretrained(folders["siglip"]).eval()
    wanted = []
    for image in images:
        seen = prepared(image, square, square, 0.5, 0.5, bicubic)
        wanted.append(siglip.vision_model(pixel_values=seen).pooler_output[0])
    np.testing.assert_allclose(load(folders, "siglip").embed_images(images), unit(wanted), atol=1e-4)

    flex = Siglip2Model.from_pretrained(folders["siglip2"]).eval()
    wanted = []
    images, grid = pictures(30, 60), (3, 5)  # patches of 7 px, as many as 16 allow
    for image in images:
        seen = prepared(image, (21, 35), (21, 35), 0.5, 0.5, Image.Resampling.BILINEAR)[0]
        rows = seen.reshape(3, 3, PATCH, 5, PATCH).permute(1, 3, 2, 4, 0).reshape(15, -1)
        found = flex.vision_model(
            pixel_values=rows[None],
            pixel_attention_mask=torch.ones(1, 15, dtype=torch.int64),
            spatial_shapes=torch.tensor([grid]),
        )
        wanted.append(found.pooler_output[0])
    np.testing.assert_allclose(load(folders, "siglip2").embed_images(images), unit(wanted), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_reads_lower_case_and_its_padding(folders, family):
    kind = SiglipModel if family == "siglip" else Siglip2Model
    model = kind.from_pretrained(folders[family]).eval()
    letters = [GEMMA[each] for each in "a\u2581red\u2581dog"]
    ids = torch.tensor([[*letters, GEMMA["<eos>"], *([0] * (LENGTH - len(letters) - 1))]])
    wanted = model.text_model(input_ids=ids).pooler_output[0]
    embedder = load(folders, family)
    np.testing.assert_allclose(embedder.embed_texts(["a Red dog"])[0], unit(wanted), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_texts(["A RED DOG"])[0], unit(wanted), atol=1e-5)


@torch.no_grad()
def test_clip_reads_texts_without_padding(folders):
    model, known = CLIPModel.from_pretrained(folders["clip"]).eval(), words()
    letters = [known["a</w>"], known["r"], known["e"], known["d</w>"]]
    ids = torch.tensor([[known["<|startoftext|>"], *letters, known["<|endoftext|>"]]])
    wanted = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0]
    np.testing.assert_allclose(load(folders, "clip").embed_texts(["a red"])[0], unit(wanted), atol=1e-5)


@torch.no_grad()
def test_sentences_are_the_mean_of_their_tokens(folders, tmp_path):
    model = BertModel.from_pretrained(folders["bert"]).eval()
    ids = torch.tensor([[PIECES.index(each) for each in ("[CLS]", "a", "r", "##e", "##d", "[SEP]")]])
    hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    found = load(folders, "bert").embed_texts(["A red", "a much longer one beside it"])[0]
    np.testing.assert_allclose(found, unit(hidden.mean(0)), atol=1e-5)
    folder = save_encoder("bert", tmp_path)
    (folder / "1_Pooling").mkdir()
    modes = {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "word_embedding_dimension": 32,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    found = load({"bert": folder}, "bert").embed_texts(["A red", "a much longer one beside it"])[0]
    np.testing.assert_allclose(found, unit(hidden[0]), atol=1e-5)
    assert folder / "1_Pooling" / "config.json" in embedder_files(EmbedderConfig(kind="sentence"), folder)
    modes |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(UserError, match="says pooling_mode_max_tokens, allowed: mean or cls"):
        load({"bert": folder}, "bert")


def break_folder(folder, how):
    if how == "another":
        (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    elif how == "no json":
        (folder / "config.json").write_text("{")
    elif how == "a list":
        (folder / "config.json").write_text("[1]")
    elif how == "torn":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-40])
    elif how in ("missing weight", "other shape"):
        state = load_file(folder / "model.safetensors")
        name = sorted(name for name in state if "layer" in name and name.endswith("weight"))[0]
        tensor = state.pop(name)
        more = {} if how == "missing weight" else {name: tensor[..., :-1].contiguous()}
        save_file({**state, **more}, folder / "model.safetensors", {"format": "pt"})
    elif how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        (folder / how).unlink()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("config.json", "no config.json, allowed"),
        ("pickle", "no model.safetensors, allowed"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("another", "holds a 't5', allowed: "),
        ("no json", "embedder .*JSONDecodeError"),
        ("a list", "embedder .*AttributeError"),
        ("torn", "embedder "),
        ("missing weight", "1 weights missing or of another shape"),
        ("other shape", "1 weights missing or of another shape"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, family, how, told):
    save_encoder(family, tmp_path)
    if not (tmp_path / how).exists() and how.endswith(".json"):
        load({family: tmp_path}, family)  # a family without this file needs none
        return
    break_folder(tmp_path, how)
    with pytest.raises(UserError, match=told) as error:
        load({family: tmp_path}, family)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_another_kind_is_named(folders):
    config = EmbedderConfig(kind="siglip2")
    with pytest.raises(UserError, match="holds a 'clip', allowed: 'siglip' or 'siglip2'"):
        load_embedder(config, folders["clip"], CPU)
    with pytest.raises(UserError, match="no tokenizer.json|holds a 'dinov2'"):
        load_embedder(replace(config, kind="clip"), folders["dinov2"], CPU)


def test_words_that_the_model_does_not_know_are_refused(folders, tmp_path):
    save_encoder("bert", tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["zz"] = len(PIECES)
    path.write_text(json.dumps(tokenizer))
    embedder = load({"bert": tmp_path}, "bert")
    assert len(embedder.embed_texts(["a dog"])) == 1
    with pytest.raises(UserError, match=f"got word {len(PIECES)} of its tokenizer"):
        embedder.embed_texts(["a zz"])
