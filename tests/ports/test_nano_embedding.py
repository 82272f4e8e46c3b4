import io

import numpy as np
import pytest
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.ports.nano.embedding import DIM, NanoEmbedder
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.stages.checkpoint import load_detector, open_detector

PROMPTS = ["a red dog", "two blue cats", "a chair left of a cake", "three apples", "a zebra above a bus"]


@pytest.fixture(scope="module")
def embedder():
    return NanoEmbedder(load_detector(open_detector(None)), batch_size=4)


@pytest.fixture(scope="module")
def scenes():
    """Two pictures of each prompt."""
    return EmojiTeacher().generate(PROMPTS * 2, list(range(10)), 128, 128)


def test_texts_are_as_near_as_the_words_they_share():
    embedder = NanoEmbedder(None)
    texts = ["a red dog on grass", "A red  DOG, on grass!", "a red cat on grass", "the blue bus", ""]
    found = embedder.embed_texts(texts)
    assert found.dtype == np.float32 and found.shape == (5, DIM) and embedder.dim == DIM
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near = found @ found.T
    assert near[0, 1] == pytest.approx(1, abs=1e-6)
    assert 0.3 < near[0, 2] < 0.9 and abs(near[0, 3]) < 0.25 and abs(near[0, 4]) < 0.25
    assert (found[2:3] == embedder.embed_texts(texts[2:3])).all()
    assert embedder.embed_texts([]).shape == (0, DIM)
    order = embedder.embed_texts(["a dog left of a cat", "a cat left of a dog"])
    assert 0.6 < order[0] @ order[1] < 0.97  # pairs of words keep the order


def test_pictures_are_near_where_they_show_the_same(embedder, scenes):
    found = embedder.embed_images(scenes)
    assert found.dtype == np.float32 and found.shape == (10, DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near = found @ found.T
    same = near[np.arange(5), np.arange(5, 10)]
    others = near[:5, 5:][~np.eye(5, dtype=bool)]
    assert same.min() > 0.6 and others.max() < 0.6 and (near[:5, 5:].argmax(1) == np.arange(5)).all()


def test_a_twin_is_nearer_than_another_picture_of_the_prompt(embedder, scenes):
    twins = []
    for image in scenes:
        buffer = io.BytesIO()
        Image.fromarray(image).resize((100, 100)).save(buffer, "JPEG", quality=85)
        twins.append(np.asarray(Image.open(buffer)))
    found, again = embedder.embed_images(scenes), embedder.embed_images(np.stack(twins))
    assert (found * again).sum(1).min() > 0.985
    assert (found[:5] * found[5:]).sum(1).max() < 0.985


def test_any_batch_and_size(embedder, scenes):
    found = embedder.embed_images(scenes)
    one = np.concatenate([embedder.embed_images(each[None]) for each in scenes])
    np.testing.assert_allclose(one, found, atol=1e-5)
    assert embedder.embed_images(np.zeros((2, 40, 300, 3), np.uint8)).shape == (2, DIM)
    assert embedder.embed_images(scenes[:0]).shape == (0, DIM)


def test_without_a_detector_there_are_no_pictures():
    with pytest.raises(UserError, match="got images and no detector, allowed: texts"):
        NanoEmbedder(None).embed_images(np.zeros((1, 8, 8, 3), np.uint8))
