"""Picture files from strangers: every kind that is read, and every kind that is refused, by its header."""

import io
import os
import random
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.picture import MAX_FILE_BYTES, bucket_of, fit, picture_size, read_mask, read_picture


def _image(height: int = 20, width: int = 30) -> np.ndarray:
    return numpy_draws(0, "test-picture-file").integers(0, 256, (height, width, 3), dtype=np.uint8)


def _saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(width: int, height: int, fill: bool = False) -> bytes:
    """A one-bit PNG of a size, with all its rows or none."""
    rows = zlib.compress((b"\0" + bytes(-(-width // 8))) * height if fill else b"", 9)
    chunks = b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def _webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def _jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = bytearray(_saved(Image.fromarray(_image()), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter("error")
        read_picture(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ") and "\n" not in told
    return told


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_pictures_come_as_they_are(kind: str, tmp_path: Path) -> None:
    image = _image()
    options = {} if kind == "PNG" else {"lossless": True} if kind == "WEBP" else {"quality": 100}
    smooth = image if kind != "JPEG" else np.full_like(image, 77)
    (tmp_path / "x").write_bytes(_saved(Image.fromarray(smooth), kind, **options))
    assert np.array_equal(read_picture(tmp_path / "x"), smooth)


def test_odd_modes_and_turned_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (4, 3), (9, 9, 9, 0))
    for number, (data, shape, value) in enumerate(
        [
            (_saved(Image.new("RGB", (8, 4), (50, 50, 50)), "JPEG", exif=exif), (8, 4, 3), 50),
            (_saved(Image.new("RGB", (8, 4), (50, 50, 50)), "PNG", exif=exif), (8, 4, 3), 50),
            (_saved(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), (8, 8, 3), 0),
            (_saved(Image.fromarray(np.full((3, 4), 51 * 257, np.uint16)), "PNG"), (3, 4, 3), 51),
            (_saved(Image.fromarray(np.ones((3, 4), bool)), "PNG"), (3, 4, 3), 255),
            (_saved(clear, "PNG"), (3, 4, 3), 255),
            (_saved(clear, "WEBP", lossless=True, exact=True), (3, 4, 3), 255),
        ]
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        image = read_picture(path)
        assert image.shape == shape
        assert np.abs(image.astype(int) - value).max() <= 1


def test_masks_are_white_where_to_paint(tmp_path: Path) -> None:
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    wanted = [[False, False, True, True]]
    strokes = np.zeros((1, 4, 4), np.uint8)
    strokes[0, 2:] = 255  # a painted layer: white on nothing
    palette = Image.fromarray(levels)
    palette.putpalette([value for i in range(256) for value in (i, i, i)])
    for picture in (
        Image.fromarray(levels),
        Image.fromarray(levels).convert("RGB"),
        Image.fromarray(levels > 127),
        Image.fromarray(levels.astype(np.uint16) * 257),
        Image.fromarray(strokes),
        palette,
    ):
        (tmp_path / "m.png").write_bytes(_saved(picture, "PNG"))
        assert read_mask(tmp_path / "m.png").tolist() == wanted


def test_size_is_known_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "x"
    bomb = _png(13_000, 13_000, fill=True)
    assert len(bomb) < 100_000, "169 megapixels in a small file"
    extended = struct.pack("<I", 0) + (16_382).to_bytes(3, "little") * 2
    cases = (
        (bomb, "got 13000x13000 px, allowed: up to 4096 px on a side"),
        (_png(4097, 1, fill=True), "got 4097x1 px"),
        (_png(10**9, 10**9), "got 1000000000x1000000000 px"),
        (_jpeg(65_000, 65_000), "got 65000x65000 px"),
        (_webp(b"VP8X", extended), "image of 268402689 pixels"),
        (_webp(b"VP8L", b"\x2f" + b"\xff" * 40), "image of 268435456 pixels"),
        (_webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(40)), "image of 268402689 pixels"),
        (bytes(MAX_FILE_BYTES + 1), "got 10485761 bytes, allowed: up to 10485760"),
    )
    tracemalloc.start()
    for data, told in cases:
        tracemalloc.reset_peak()
        assert told in _refusal(path, data)
        assert tracemalloc.get_traced_memory()[1] < len(data) * 3 + (1 << 21)
    tracemalloc.stop()
    path.write_bytes(_png(4096, 2, fill=True))
    assert read_picture(path).shape == (2, 4096, 3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_bomb_leaves_memory_flat(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for number in range(5):
        _refusal(tmp_path / str(number), _png(13_000, 13_000))
    assert resident() - before < 8 << 20


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    for kind in ("PNG", "WEBP"):
        data = _saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert "got an animation of 3 frames, allowed: a still picture" in _refusal(tmp_path / "x", data)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for kind in ("GIF", "TIFF", "BMP", "PPM"):
        assert "not a whole PNG, JPEG or WebP image" in _refusal(
            path, _saved(Image.fromarray(_image()), kind)
        )
    for data in (
        b"",
        b"hello",
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        bytes(99),
    ):
        assert "not a whole PNG, JPEG or WebP image" in _refusal(path, data)
    os.mkfifo(tmp_path / "pipe")
    for missing in (tmp_path / "none.png", tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="no such file, allowed: a PNG, JPEG or WebP picture"):
            read_picture(missing)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_cut_and_damaged_files(kind: str, tmp_path: Path) -> None:
    whole, path, draws = _saved(Image.fromarray(_image()), kind), tmp_path / "x", random.Random(0)
    for size in range(0, len(whole) - 20, max(1, len(whole) // 60)):
        assert "not a whole" in _refusal(path, whole[:size])
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draws.randrange(1, 4)):
            data[draws.randrange(min(len(data), 200))] = draws.randrange(256)
        path.write_bytes(data)
        try:
            assert read_picture(path).ndim == 3
        except UserError as error:
            assert "\n" not in str(error) and " at 0x" not in str(error)


@pytest.mark.parametrize(
    ("sides", "bucket"),
    [
        ((5, 5), (256, 256)),
        ((3, 4), (224, 288)),
        ((4, 3), (288, 224)),
        ((1, 9), (192, 352)),
        ((9, 1), (352, 192)),
    ],
)
def test_a_bucket_is_near_in_proportions_and_area(sides, bucket):
    assert bucket_of(*sides, 256) == bucket
    assert 0.87 < bucket[0] * bucket[1] / 256**2 < 1.13


def test_fitting_keeps_the_middle():
    image = np.zeros((60, 100, 3), dtype=np.uint8)
    image[20:40] = 200
    assert fit(image, 60, 100) is image
    assert fit(image, 20, 100).min() == 200  # the middle third of the rows
    small = fit(image, 30, 50)
    assert small.shape == (30, 50, 3) and small[15, 25, 0] == 200 and small[2, 25, 0] == 0


def test_the_size_of_a_file_is_that_of_its_upright_picture():
    for kind in ("PNG", "JPEG", "WEBP"):
        assert picture_size(_saved(Image.new("RGB", (30, 20)), kind)) == (20, 30)
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert picture_size(_saved(turned, "JPEG", exif=exif)) == (30, 20)
    with pytest.raises(UserError):
        picture_size(b"no picture")
