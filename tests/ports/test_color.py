import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import COLORS
from lightgen.ports.color import CLIPColorClassifier, ColorConfig, color_crop, color_files, load_colors
from lightgen.ports.embedding import EmbedderConfig, load_embedder
from lightgen.ports.known import known_colors
from lightgen.ports.nano.world import COLORS as RGB
from lightgen.ports.protocols import Detection
from tests.ports.toy_clip import save_clip, save_processor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CLIP that reads ten times as many letters: the sentences are longer than the tiny one's."""
    folder = save_clip(tmp_path_factory.mktemp("clip"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 80
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    name = "text_model.embeddings.position_embedding.weight"
    rows = numpy_draws(0, "positions").standard_normal((80, state[name].shape[1])) * 0.4
    save_file({**state, name: torch.tensor(rows).float()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def load(folder, **changes) -> CLIPColorClassifier:
    return load_colors(ColorConfig(**changes), folder, CPU)


def noise(height=40, width=60):
    return numpy_draws(0, "noise", height, width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def found_at(*box, mask=None):
    return Detection("cup", 1.0, tuple(float(each) for each in box), mask)


def some_detections(image):
    mask = np.zeros(image.shape[:2], bool)
    mask[5:30, 10:50] = True
    return [
        found_at(0, 0, 60, 40),
        found_at(3.4, 2.6, 31.5, 30.5),
        found_at(10, 5, 50, 30, mask=mask),
        found_at(40, 0, 60, 12),
    ]


@torch.no_grad()
def reference(folder, image, detections, name):
    """Likeness [detections, 10] by Pillow and the model itself, each crop and each text alone."""
    model = CLIPModel.from_pretrained(folder).eval()
    words = CLIPTokenizer.from_pretrained(folder)
    pictures = CLIPImageProcessorPil.from_pretrained(folder)
    columns = []
    for color in COLORS:
        rows = []
        for text in (f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}"):
            rows.append(model.get_text_features(**words(text, return_tensors="pt")).pooler_output[0])
        other = words(f"a photo of a {color} object", return_tensors="pt")
        rows.append(model.get_text_features(**other).pooler_output[0])
        mean = torch.stack([row / row.norm() for row in rows]).mean(0)
        columns.append(mean / mean.norm())
    found = []
    for detection in detections:
        shown = Image.fromarray(image)
        if detection.mask is not None:
            grey = Image.new("RGB", shown.size, "#999999")
            shown = Image.composite(shown, grey, Image.fromarray(detection.mask))
        pixels = pictures(shown.crop(detection.box), return_tensors="pt")
        row = model.get_image_features(**pixels).pooler_output[0]
        found.append(torch.stack(columns) @ row / row.norm())
    return torch.stack(found).numpy()


def test_colors_are_those_of_genevals_steps(folder):
    image = noise()
    detections = some_detections(image)
    classifier = load(folder)
    likeness = reference(folder, image, detections, "tv remote")
    wanted = [COLORS[index] for index in likeness.argmax(1)]
    assert classifier.classify(image, detections, "tv remote") == wanted
    crops = [color_crop(image, detection) for detection in detections]
    rows = load_embedder(EmbedderConfig(kind="clip"), folder, CPU).embed_images(crops)
    assert np.abs(likeness - likeness.mean(1, keepdims=True)).max() > 0.01
    np.testing.assert_allclose(rows @ classifier.color_rows("tv remote").T, likeness, atol=1e-4)


def test_an_answer_is_the_same_alone_and_in_any_batch(folder):
    image = noise()
    detections = some_detections(image) * 3
    found = load(folder).classify(image, detections, "cup")
    assert len(found) == 12 and set(found) <= set(COLORS)
    assert load(folder, batch_size=5).classify(image, detections, "cup") == found
    alone = load(folder)
    assert [alone.classify(image, [each], "cup")[0] for each in detections] == found
    assert load(folder).classify(image, [], "cup") == []


class ByColor:
    """Embeds a crop by the colour of its brighter pixels, a text by the one that it names; keeps texts."""

    dim = len(COLORS)

    def __init__(self):
        self.texts = []

    def embed_texts(self, texts):
        self.texts += texts
        named = [next(word for word in text.replace("-", " ").split() if word in COLORS) for text in texts]
        return np.eye(len(COLORS), dtype=np.float32)[[COLORS.index(name) for name in named]]

    def embed_images(self, images):
        found = []
        for image in images:
            pixels = image.reshape(-1, 3)[(image != 0x99).any(2).ravel()]
            away = np.square(np.percentile(pixels, 80, 0) - np.array([RGB[name] for name in COLORS])).sum(1)
            found.append(np.eye(len(COLORS), dtype=np.float32)[away.argmin()])
        return np.stack(found)


def test_balls_are_named_by_their_colors_and_texts_made_once():
    embedder = ByColor()
    classifier = CLIPColorClassifier(embedder)
    for known in known_colors():
        assert classifier.classify(known.image, [known.ball], "sports ball") == [known.color]
    assert len(embedder.texts) == 30
    assert embedder.texts[:3] == [
        "a photo of a red sports ball",
        "a photo of a red-colored sports ball",
        "a photo of a red object",
    ]
    classifier.classify(noise(), [found_at(0, 0, 5, 5)], "orange")
    assert len(embedder.texts) == 60 and "a photo of a blue-colored orange" in embedder.texts


def test_what_is_looked_at():
    image = noise(20, 30)
    mask = np.zeros((20, 30), bool)
    mask[4:10, 6:9] = True
    crop = color_crop(image, found_at(5, 3, 12, 11, mask=mask))
    assert crop.shape == (8, 7, 3) and crop.dtype == np.uint8
    assert (crop[1:7, 1:4] == image[4:10, 6:9]).all()
    outside = np.ones((8, 7), bool)
    outside[1:7, 1:4] = False
    assert (crop[outside] == 0x99).all()
    assert (color_crop(image, found_at(5, 3, 12, 11)) == image[3:11, 5:12]).all()
    # half to even, as Pillow rounds
    assert (color_crop(image, found_at(4.5, 3.5, 11.5, 10.5)) == image[4:10, 4:12]).all()
    for box in ((3.2, 2.5, 17.5, 15.5), (0.4, 0.6, 29.6, 19.4)):
        wanted = np.asarray(Image.fromarray(image).crop(box))
        assert (color_crop(image, found_at(*box)) == wanted).all()


@pytest.mark.parametrize(
    ("box", "pixel"),
    [
        ((7.1, 3, 7.3, 4), (3, 7)),
        ((6.6, 3, 7.4, 4), (3, 7)),
        ((29.8, 19.9, 30, 20), (19, 29)),
        ((30, 20, 30, 20), (19, 29)),
        ((0, 0, 0, 0), (0, 0)),
        ((-3, -2, -0.2, -0.1), (0, 0)),
    ],
)
def test_a_box_without_a_pixel_shows_the_nearest_one(box, pixel):
    image = noise(20, 30)
    assert (color_crop(image, found_at(*box)) == image[pixel]).all()
    assert color_crop(image, found_at(*box)).shape == (1, 1, 3)


def test_of_a_sliver_the_middle_is_looked_at():
    image = noise(300, 40)
    crop = color_crop(image, found_at(7, 0, 8, 300))
    assert crop.shape == (8, 1, 3) and (crop == image[146:154, 7:8]).all()
    crop = color_crop(image.swapaxes(0, 1).copy(), found_at(0, 7, 299, 9))
    assert crop.shape == (2, 17, 3) and (crop == image.swapaxes(0, 1)[7:9, 141:158]).all()
    assert color_crop(image, found_at(0, 0, 40, 300)).shape == (300, 40, 3)


def test_a_sliver_is_named_as_the_whole_of_it(folder):
    """The middle square of the enlarged crop is all that CLIP sees."""
    image = np.repeat(noise(75, 10), 4, 0)  # 300 x 10
    embedder = load_embedder(EmbedderConfig(kind="clip"), folder, CPU)
    whole, middle = image[:, 2:7], color_crop(image, found_at(2, 0, 7, 300))
    assert len(middle) == 40
    rows = embedder.embed_images([whole, middle])
    assert float(rows[0] @ rows[1]) > 0.99


def test_bf16_is_near_fp32(folder):
    image = noise()
    exact, rough = load(folder), load(folder, precision="bf16")
    np.testing.assert_allclose(rough.color_rows("cup"), exact.color_rows("cup"), atol=0.05)
    assert len(rough.classify(image, some_detections(image), "cup")) == 4


def test_the_activation_of_the_config_is_used(folder, tmp_path):
    """OpenAI's weights want quick-GELU, others the plain one; the weights do not tell."""
    rows = {}
    for name in ("gelu", "quick_gelu"):
        config = json.loads((folder / "config.json").read_text())
        for part in ("text_config", "vision_config"):
            config[part]["hidden_act"] = name
        target = tmp_path / name
        target.mkdir()
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        (target / "config.json").write_text(json.dumps(config))
        rows[name] = load(target).color_rows("cup")
    np.testing.assert_array_equal(rows["gelu"], load(folder).color_rows("cup"))
    assert np.abs(rows["gelu"] - rows["quick_gelu"]).max() > 1e-3


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("another", "holds a 't5', allowed: 'clip'"),
        ("other side", "colors .*14"),
        ("missing weight", "1 weights missing or of another shape"),
    ],
)
def test_a_bad_folder_is_one_line(folder, tmp_path, how, told):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if how == "another":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    elif how == "other side":
        save_processor(tmp_path, side=14)
    elif how == "missing weight":
        state = load_file(tmp_path / "model.safetensors")
        save_file(
            {n: t for n, t in state.items() if n != "visual_projection.weight"},
            tmp_path / "model.safetensors",
            {"format": "pt"},
        )
    else:
        (tmp_path / how).unlink()
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_what_a_classifier_is_read_from(folder):
    names = {path.name for path in color_files(ColorConfig(), folder)}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"} <= names
