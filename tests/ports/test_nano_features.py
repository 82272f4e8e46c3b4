import numpy as np
import pytest
from PIL import Image, ImageFilter

from lightgen.core.draws import draw_key, numpy_draws
from lightgen.evals.fidelity import frechet
from lightgen.ports.nano.detector import NanoDetector, build_nano_detector
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.features import NanoFeatures
from lightgen.ports.nano.language import draw_prompt
from lightgen.stages.checkpoint import load_detector, open_detector


@pytest.fixture(scope="module")
def extractor():
    return NanoFeatures(load_detector(open_detector(None)))


def renders(seed, num):
    prompts = [draw_prompt(seed, i, "train").prompt for i in range(num)]
    return EmojiTeacher().generate(prompts, [draw_key(seed, "x", i) for i in range(num)], 128, 128)


def blurred(images, radius):
    return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(radius))) for i in images])


def noisy(images, deviation):
    noise = numpy_draws(0, "noise").standard_normal(images.shape) * deviation
    return np.clip(images + noise + 0.5, 0, 255).astype(np.uint8)


def test_features_of_any_batch_and_size(extractor):
    images = renders(1, 5)
    found = extractor.features(images)
    assert found.shape == (5, 210) == (5, extractor.dim) and found.dtype == np.float32
    one = np.concatenate([extractor.features(each[None]) for each in images])
    np.testing.assert_allclose(one, found, atol=1e-5)
    few = NanoFeatures(load_detector(open_detector(None)), batch_size=2)
    np.testing.assert_allclose(few.features(images), found, atol=1e-5)
    assert extractor.features(np.zeros((2, 40, 300, 3), np.uint8)).shape == (2, 210)
    assert extractor.features(images[:0]).shape == (0, 210)
    assert NanoFeatures(NanoDetector(build_nano_detector(0))).features(images).shape == (5, 210)


def test_the_scale_is_that_of_the_kernel(extractor):
    lengths = (extractor.features(renders(1, 20)).astype(np.float64) ** 2).sum(1) / 210
    assert 0.5 < lengths.mean() < 2


def test_the_distance_grows_with_blur_noise_and_repetition(extractor):
    reference, images = extractor.features(renders(1, 32)), renders(2, 32)
    rows = extractor.features(images)
    perfect = frechet(rows, reference)
    for change, strengths in ((blurred, (1, 3)), (noisy, (2, 16))):
        found = [frechet(extractor.features(change(images, each)), reference) for each in strengths]
        assert perfect < found[0] < found[1], (change, perfect, found)
    assert frechet(np.tile(rows[:4], (8, 1)), reference) > 1.2 * perfect
