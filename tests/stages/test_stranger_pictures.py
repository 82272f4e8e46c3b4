"""Bytes of strangers: a picture and what of it is transparent, or one line that says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.picture import decode_image
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
        (saved(Image.fromarray(PIXELS))[:20], "image: not a whole"),
        (saved(Image.new("RGB", (65, 2))), "image: got 65x2 px, allowed: up to 64 px"),
        (saved(Image.new("1", (5000, 5000))), "image: got 5000x5000 px, allowed: up to 64 px"),
        (
            saved(Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (20, 12))]),
            "image: got animated",
        ),
    ],
)
def test_what_is_no_picture_is_refused(data, told):
    with pytest.raises(UserError, match=told):
        stranger_picture("image", data, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_viewers_do(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(PIXELS)
    data = saved(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    found, _ = stranger_picture("image", data, 64)
    assert (found == decode_image(data)).all()
    assert found.shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))


def test_a_size_may_be_refused_before_anything_is_decoded():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(PIXELS), exif=exif)
    told = []

    def check(height, width):
        told.append((height, width))
        raise UserError("size: refused")

    at = data.index(b"IDAT") + 4
    with pytest.raises(UserError, match="^size: refused"):
        stranger_picture("image", data[:at] + bytes(8) + data[at + 8 :], 64, check)
    assert told == [(20, 12)]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16", "CMYK"])
def test_pictures_of_other_modes_are_what_the_house_reads(mode):
    base = Image.fromarray(PIXELS[..., 0]) if mode == "I;16" else Image.fromarray(PIXELS)
    picture = (
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257) if mode == "I;16" else base.convert(mode)
    )
    data = saved(picture, "JPEG" if mode == "CMYK" else "PNG")
    assert (stranger_picture("image", data, 64)[0] == decode_image(data)).all()
