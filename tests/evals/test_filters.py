import numpy as np
import pytest
from PIL import Image, ImageFilter

from lightgen.core.draws import numpy_draws
from lightgen.evals.filters import Looks, contrast, entropy, looks, sharpness


def grey(luma):
    return np.repeat(np.asarray(luma, np.uint8)[..., None], 3, axis=2)


def noise(height=40, width=30):
    return numpy_draws(0, "filters").integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_one_grey_is_blank_in_every_number():
    found = looks(np.full((20, 30, 3), 77, np.uint8))
    assert found == Looks(20, 30, 0.0, 0.0, 0.0)
    assert np.copysign(1, found.entropy) == 1


def test_closed_forms():
    halves = grey([[0] * 8, [255] * 8] * 4)
    found = looks(halves)
    assert found.contrast == 127.5 and found.entropy == 1.0
    ramp = looks(grey(np.arange(256).reshape(16, 16)))
    assert ramp.entropy == 8.0
    assert ramp.contrast == pytest.approx(np.sqrt((256**2 - 1) / 12))


def test_sharpness_is_the_variance_of_the_laplacian():
    luma = np.zeros((5, 5), np.uint8)
    luma[2, 2] = 100
    inside = np.array([0, 100, 0, 100, -400, 100, 0, 100, 0])  # the nine places inside the border
    assert sharpness(luma) == pytest.approx(inside.var())
    plane = np.add.outer(3 * np.arange(20), 2 * np.arange(30)).astype(np.uint8)
    assert sharpness(plane) == 0.0, "a slope has no edge"
    checks = np.indices((9, 9)).sum(0) % 2 * 255
    assert sharpness(checks.astype(np.uint8)) == pytest.approx((8 * 127.5) ** 2, rel=0.01)


def test_blur_lowers_the_sharpness_and_little_else():
    image = Image.fromarray(noise()).resize((300, 400), Image.Resampling.NEAREST)
    sharp, soft = looks(np.asarray(image)), looks(np.asarray(image.filter(ImageFilter.GaussianBlur(4))))
    assert soft.sharpness < sharp.sharpness / 20
    assert soft.contrast > sharp.contrast / 3


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 2), (3, 3)])
def test_the_smallest_pictures_have_looks(shape):
    found = looks(noise(*shape))
    assert (found.height, found.width) == shape
    assert found.sharpness >= 0 and np.isfinite([found.contrast, found.entropy, found.sharpness]).all()


def test_looks_are_plain_numbers_and_do_not_depend_on_layout():
    image = noise()
    turned = np.asfortranarray(image)
    assert looks(image) == looks(turned)
    assert {type(each) for each in vars(looks(image)).values()} == {int, float}
    counts = np.bincount([3, 3, 9], minlength=256)
    assert entropy(counts) == pytest.approx(-(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3)))
    assert contrast(counts) == pytest.approx(np.std([3, 3, 9]))
