"""Bytes of strangers: a picture and what of it is transparent, or one line that says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.stages.stranger_pictures import stranger_mask, stranger_picture

PIXELS = numpy_draws(0, "test-stranger").integers(0, 256, (12, 20, 3), dtype=np.uint8)
ALPHA = np.linspace(0, 255, 20, dtype=np.uint8)[None].repeat(12, 0)


def saved(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def see_through():
    picture = Image.fromarray(PIXELS)
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_transparent_nowhere(kind):
    picture, clear = stranger_picture("image", saved(Image.fromarray(PIXELS), kind), 64)
    assert picture.shape == (12, 20, 3) and picture.dtype == np.uint8 and clear is None
    assert kind != "PNG" or (picture == PIXELS).all()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_what_is_half_transparent_or_more_is_found_whatever_its_colour(kind, options):
    _, clear = stranger_picture("image", saved(see_through(), kind, **options), 64)
    assert (clear == (ALPHA <= 127)).all()


def test_a_mask_is_what_is_transparent_or_else_what_is_white():
    assert (stranger_mask("mask", saved(see_through()), 64) == (ALPHA <= 127)).all()
    grey = Image.fromarray(ALPHA)
    assert (stranger_mask("mask", saved(grey), 64) == (ALPHA >= 128)).all()
    opaque = Image.fromarray(PIXELS)
    opaque.putalpha(255)
    assert stranger_picture("image", saved(opaque), 64)[1] is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "image: got no picture"),
        (b"GIF89a", "image: got no picture"),
        (saved(Image.fromarray(PIXELS))[:60], "image: not a whole"),
        (saved(Image.fromarray(PIXELS))[:20], "image: got damaged"),
        (saved(Image.new("RGB", (65, 2))), "image: got 65x2 px, allowed: up to 64 px"),
        (saved(Image.new("1", (5000, 5000))), "image: got bomb"),
        (
            saved(Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (20, 12))]),
            "image: got animated",
        ),
    ],
)
def test_what_is_no_picture_is_refused(data, told):
    with pytest.raises(UserError, match=told):
        stranger_picture("image", data, 64)
