"""PSNR against its closed form."""

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.evals.quality import psnr


def test_psnr_per_image() -> None:
    reference = np.full((3, 4, 6, 3), 100, dtype=np.uint8)
    images = reference.copy()
    images[1] += 5
    images[2] = 90
    result = psnr(images, reference)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, [np.inf, 20 * np.log10(255 / 5), 20 * np.log10(255 / 10)])


def test_psnr_does_not_wrap_around() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(black, white).tolist() == [0.0]
    assert psnr(white, black).tolist() == [0.0]


def test_psnr_refuses_other_inputs() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(UserError, match="float64"):
        psnr(image.astype(float), image)
    with pytest.raises(UserError, match=r"\(2, 2, 3\)"):
        psnr(image[0], image[0])
    with pytest.raises(UserError, match="but their references are"):
        psnr(image, np.zeros((2, 2, 2, 3), np.uint8))
