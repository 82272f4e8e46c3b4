"""What is left of strangers' files, and which are refused by the number of their parts."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.lean_picture import lean_picture
from lightgen.data.picture import decode_image

PIXELS = numpy_draws(0, "test-lean").integers(0, 256, (24, 40, 3), dtype=np.uint8)
MANY = 20_000


def saved(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def riff(body):
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def scans(count):
    """A progressive JPEG whose first scan of one colour comes so many times more."""
    data = saved("JPEG", progressive=True)
    start = data.index(b"\xff\xda\x00\x08\x01")
    stop = data.index(b"\xff\xc4", start)
    return data[:start] + data[start:stop] * (count + 1) + data[stop:]


PNG, JPEG, WEBP = saved("PNG"), saved("JPEG"), saved("WEBP")


@pytest.mark.parametrize(
    "data",
    [
        saved("PNG", exif=Image.Exif(), icc_profile=bytes(999)),
        saved("JPEG", comment=b"x" * 99, icc_profile=bytes(999), progressive=True),
        saved("JPEG", quality=100, restart_marker_blocks=1),
        saved("WEBP", icc_profile=bytes(999), xmp=b"x" * 99),
        scans(20),
    ],
)
def test_what_is_left_makes_the_same_pixels_and_nothing_else(data):
    lean = lean_picture(data)
    assert (lean.height, lean.width, lean.orientation) == (24, 40, 1)
    assert (decode_image(lean.data) == decode_image(data)).all()
    for beside in (b"iCCP", b"eXIf", b"ICC", b"xxxx", bytes(999)):
        assert beside not in lean.data


HOSTILE = [
    ("scans", scans(MANY)),
    ("scans", scans(101)),
    ("parts", JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:]),
    ("parts", JPEG[:2] + b"\xff" * MANY + JPEG[2:]),
    ("parts", JPEG[:2] + b"a" * MANY + JPEG[2:]),
    ("fill", JPEG[:-2] + b"\xff" * MANY + JPEG[-2:]),
    ("parts", PNG[:33] + chunk(b"aaAa") * MANY + PNG[33:]),
    ("parts", PNG[:33] + chunk(b"IDAT") * MANY + PNG[33:]),
    ("parts", PNG[:-12] + chunk(b"tEXt", b"k\0") * MANY + PNG[-12:]),
    ("parts", riff(WEBP[12:] + b"JUNK\0\0\0\0" * MANY)),
]
DAMAGED = [
    b"\xff\xd8",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBP",
    PNG[:-1],
    PNG[:33] + PNG[8:],  # a second header, which might tell another size
    PNG[:8] + PNG[33:],
    JPEG[:-2],
    JPEG[:2] + JPEG[-2:],
    JPEG[:2] + b"\xff\xf0\0\4\xff\xd9" + JPEG[2:],  # a segment whose inside Pillow would walk through
    JPEG[:2] + b"\xff\xfe\0\0" + JPEG[2:],
    JPEG.replace(b"\xff\xc0", b"\xff\xc0" + JPEG.partition(b"\xff\xc0")[2][:17] + b"\xff\xc0"),
    WEBP[:-2],
    riff(b"JUNK\0\0\0\0" + WEBP[12:]),
]


@pytest.mark.parametrize(("told", "data"), HOSTILE, ids=range(len(HOSTILE)))
def test_files_of_very_many_parts_are_refused_at_once(told, data):
    began = time.process_time()
    with pytest.raises(UserError, match=f"more (bytes of )?{told} than pictures have"):
        lean_picture(data)
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files_are_refused(data):
    with pytest.raises(UserError, match="not a whole"):
        lean_picture(data)


def test_a_large_picture_in_small_pieces_is_no_attack():
    start = PNG.index(b"IDAT") - 4
    pixels = PNG[start + 8 : -16]
    pieces = b"".join(chunk(b"IDAT", pixels[at : at + 16]) for at in range(0, len(pixels), 16))
    assert lean_picture(PNG[:start] + pieces + PNG[-12:]).width == 40


def test_animations_are_refused():
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match="animated"):
            lean_picture(buffer.getvalue())


def test_a_broken_orientation_is_none():
    for exif in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        data = PNG[:33] + chunk(b"eXIf", exif) + PNG[33:]
        assert lean_picture(data).orientation == 1
