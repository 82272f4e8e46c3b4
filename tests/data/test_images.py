"""Image shards: round trips, every picture mode, and tars from strangers."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.images import (
    CorruptRecord,
    EncodedRecord,
    Format,
    ImageRecord,
    ImageShards,
    encode_image,
    write_encoded_shard,
    write_image_shard,
)
from lightgen.data.picture import decode_image, oddity, picture_size

META = json.dumps({"prompt": "a"}).encode()


def _image(key: int, height: int = 5, width: int = 7) -> np.ndarray:
    return numpy_draws(0, "test", key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _records(first: int, count: int) -> list[ImageRecord]:
    return [
        ImageRecord(f"{i:06d}", _image(i), {"prompt": f"p{i} \u732b", "seed": i})
        for i in range(first, first + count)
    ]


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401  (Pillow's own options)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _tar(
    path: Path, members: Iterable[tuple[tarfile.TarInfo | str, bytes]], kind: int = tarfile.PAX_FORMAT
) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data.ljust(info.size, b"\0")))


def _record(key: str) -> list[tuple[tarfile.TarInfo | str, bytes]]:
    return [(f"{key}.png", encode_image(_image(1))), (f"{key}.json", META)]


def _reasons(shards: ImageShards) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in shards.skipped}


def test_records_come_back_as_written(tmp_path: Path) -> None:
    assert write_image_shard(tmp_path / "b.tar", _records(3, 2)) == 2
    write_image_shard(tmp_path / "a.tar", iter(_records(0, 3)))
    shards = ImageShards(tmp_path)
    assert len(shards) == 5 and not shards.skipped
    for got, expected in zip(shards, _records(0, 5), strict=True):
        assert got.key == expected.key and got.meta == expected.meta
        assert got.image.dtype == np.uint8 and np.array_equal(got.image, expected.image)
    assert [shards.meta(i)["seed"] for i in (4, 0, 2)] == [4, 0, 2] and shards.key(4) == "000004"
    for i in (-1, 5):
        for read in (shards.__getitem__, shards.meta, shards.key, shards.encoded):
            with pytest.raises(IndexError):
                read(i)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_same_records_same_bytes(tmp_path: Path, kind: Format) -> None:
    for name in ("a.tar", "b.tar"):
        write_image_shard(tmp_path / name, _records(0, 3), kind)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [m.name for m in tar][:2] == [f"000000.{kind}", "000000.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_copying_keeps_the_stored_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_image_shard(tmp_path / "a" / "a.tar", _records(0, 2), "jpg")
    shards = ImageShards(tmp_path / "a")
    scored = [
        EncodedRecord(r.key, r.data, r.suffix, {**r.meta, "score": 0.5})
        for r in map(shards.encoded, range(2))
    ]
    write_encoded_shard(tmp_path / "a.tar", scored)
    copy = ImageShards(tmp_path)
    assert [copy.encoded(i).data for i in range(2)] == [shards.encoded(i).data for i in range(2)]
    assert copy.encoded(0).suffix == "jpg" and copy.meta(1) == {**shards.meta(1), "score": 0.5}


def test_a_shard_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tar: got two records of key '000000'"):
        write_image_shard(tmp_path / "a.tar", _records(0, 1) * 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "error"), [("png", 0), ("jpg", 6), ("webp", 6)])
def test_codecs_keep_smooth_pictures(kind: Format, error: int) -> None:
    ramp = np.linspace(0, 255, 64)[:, None, None]
    image = np.broadcast_to(ramp, (64, 48, 3)).astype(np.uint8)
    assert np.abs(decode_image(encode_image(image, kind)).astype(int) - image).max() <= error


def test_every_mode_becomes_rgb() -> None:
    grey = np.array([[0, 128, 255]], dtype=np.uint8)
    triple = np.repeat(grey[..., None], 3, axis=2)
    clear = Image.fromarray(np.concatenate([triple, np.array([[[0], [255], [0]]], dtype=np.uint8)], axis=2))
    palette = Image.fromarray(grey)
    palette.putpalette([value for i in range(256) for value in (i, i, i)])
    shown = np.array([[255, 128, 255]], dtype=np.uint8)  # transparent pixels show the white behind
    for data, expected in (
        (_saved(Image.fromarray(grey), "PNG"), grey),
        (_saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), grey),
        (_saved(Image.fromarray(grey > 200), "PNG"), np.array([[0, 0, 255]])),
        (_saved(palette, "PNG"), grey),
        (_saved(palette, "PNG", transparency=0), np.array([[255, 128, 255]])),
        (_saved(clear, "PNG"), shown),
        (_saved(clear, "WEBP", lossless=True), shown),
        (_saved(clear.convert("LA"), "PNG"), shown),
        (_saved(Image.fromarray(triple).convert("CMYK"), "JPEG", quality=100), grey),
    ):
        image = decode_image(data)
        assert image.dtype == np.uint8 and image.shape == (1, 3, 3)
        assert np.abs(image.astype(int) - expected[..., None]).max() <= 2


def test_rotated_pictures_come_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row of the file is the right column of the picture
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[:8] = 255
    upright = decode_image(_saved(Image.fromarray(image), "JPEG", exif=exif))
    assert upright.shape == (32, 16, 3) and upright[:, 9:].min() > 200 and upright[:, :7].max() < 50


def _png16(rows: np.ndarray, color: int, clear: bytes = b"") -> bytes:
    """PNG of 16 bits a channel, of rows [H, W, C] of a colour type, with one transparent colour or none."""
    height, width = rows.shape[:2]
    pixels = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = b""
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        *([(b"tRNS", clear)] if clear else []),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_sixteen_bits_keep_their_high_byte() -> None:
    rgb = np.array([[[65535, 0, 128 * 257], [51 * 257] * 3]], np.uint16)
    grey, white = np.array([[[0], [30_000], [65_535]]], np.uint16), [255, 255, 255]
    for data, expected in (
        (_png16(rgb, 2), [[255, 0, 128], [51, 51, 51]]),
        (_png16(rgb, 2, struct.pack(">HHH", *[51 * 257] * 3)), [[255, 0, 128], white]),
        (_png16(grey, 0), [[0] * 3, [117] * 3, white]),
        (_png16(grey, 0, struct.pack(">H", 30_000)), [[0] * 3, white, white]),
        (_png16(grey, 0, struct.pack(">H", 30_001)), [[0] * 3, [117] * 3, white]),
        (_png16(np.array([[[0, 65_535], [0, 0]]]), 4), [[0] * 3, white]),
        (_png16(np.array([[[0, 0, 0, 65_535], [0, 0, 0, 0]]]), 6), [[0] * 3, white]),
    ):
        assert decode_image(data).tolist() == [expected] and oddity(data) == "16 bits"


def test_inverted_cmyk_is_read_as_cameras_write_it() -> None:
    data = _saved(Image.new("RGB", (16, 8), (200, 50, 20)).convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data and oddity(data) == "CMYK"  # Pillow writes the inverted kind, as all do
    assert np.abs(decode_image(data).astype(int) - [200, 50, 20]).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(10))
def test_all_orientations_come_upright(kind: str, turn: int) -> None:
    levels = np.array([[0, 40, 80], [120, 160, 200]], dtype=np.uint8)
    stored = np.repeat(np.kron(levels, np.ones((16, 16), np.uint8))[..., None], 3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = _saved(Image.fromarray(stored), kind, exif=exif, quality=100)
    upright = {
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.T,
        6: levels[::-1].T,
        7: levels[::-1, ::-1].T,
        8: levels.T[::-1],
    }.get(turn, levels)
    image = decode_image(data)
    assert np.abs(image[8::16, 8::16, 0].astype(int) - upright).max() <= 3
    assert picture_size(data) == image.shape[:2] and oddity(data) == ("rotated" if 2 <= turn <= 8 else None)


def test_what_is_odd_is_told_by_the_header() -> None:
    plain, frames = Image.fromarray(_image(0)), [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("PNG", "JPEG", "WEBP"):
        assert oddity(_saved(plain, kind)) is None
    for kind in ("PNG", "WEBP"):
        assert oddity(_saved(frames[0], kind, save_all=True, append_images=frames[1:])) == "animated"
    for side in (4097, 100_000):
        assert oddity(_bomb(side)) == "bomb"
    for kind in ("GIF", "TIFF", "BMP", "EPS", "PPM"):
        assert oddity(_saved(plain, kind)) == "no picture"
    for data in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", _saved(plain, "JPEG")[:40]):
        assert oddity(data) == "damaged"
    assert oddity(b"") == "no picture"
    # EXIF behind the pixels is found, but nothing of the size of a bomb is decoded to look for it
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    end = struct.pack(">I", 0) + b"IEND"
    late, bomb = _saved(plain, "PNG").replace(end, chunk + end), _bomb(100_000) + chunk
    assert oddity(late) == "rotated" and picture_size(late) == (7, 5) == decode_image(late).shape[:2]
    assert oddity(bomb) == "bomb" and picture_size(bomb) == (100_000, 100_000)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        image = decode_image(_saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert image.shape == (8, 8, 3) and image[..., 0].min() > 200 and image[..., 2].max() < 60


def _bomb(side: int) -> bytes:
    """PNG that claims side x side pixels in a few bytes."""
    chunks = b""
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
    ):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bombs_and_other_formats_are_refused() -> None:
    with pytest.raises(UserError, match="image of 16785409 pixels, allowed: up to 16777216"):
        decode_image(_bomb(4097))
    for side in (10_000, 100_000):
        with pytest.raises(UserError):
            decode_image(_bomb(side))
    for kind in ("GIF", "TIFF", "BMP", "EPS", "PPM"):
        with pytest.raises(UserError, match="not a whole PNG, JPEG or WebP image"):
            decode_image(_saved(Image.fromarray(_image(0)), kind))


def test_damaged_images_raise_only_user_errors() -> None:
    draws, good = random.Random(0), 0
    seeds = [encode_image(_image(0), kind) for kind in ("png", "jpg", "webp")]
    for _ in range(1500):
        data = bytearray(draws.choice(seeds))
        data[draws.randrange(len(data))] = draws.randrange(256)
        if draws.random() < 0.3:
            del data[draws.randrange(len(data)) :]
        try:
            good += decode_image(bytes(data)).ndim == 3
        except UserError as error:
            assert "0x" not in str(error)  # no addresses of this process
    assert 0 < good < 1500


def test_a_corrupt_record_names_shard_and_key(tmp_path: Path) -> None:
    png = encode_image(_image(1))
    items = [("a", png, b"{"), ("b", png, b"[]"), ("c", png, b'{"prompt": 1}'), ("d", png, b"[" * 99_999)]
    items += [("e", png[:-40], META), ("f", b"", META), ("g", png, META), ("h", png, b"\xff")]
    _tar(tmp_path / "x.tar", [m for k, p, j in items for m in ((f"{k}.png", p), (f"{k}.json", j))])
    shards = ImageShards(tmp_path)
    assert len(shards) == 8 and shards[6].key == "g"
    for i in (0, 1, 2, 3, 4, 5, 7):
        with pytest.raises(CorruptRecord, match=rf"^x\.tar: record '{items[i][0]}': ") as caught:
            shards[i]
        assert "\n" not in str(caught.value) and str(caught.value).endswith(f": {caught.value.reason}")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert shards.meta(4) == {"prompt": "a"}
    with pytest.raises(CorruptRecord):
        shards.meta(0)


def test_public_layouts_are_read_as_they_are(tmp_path: Path) -> None:
    jpg = encode_image(_image(2), "jpg")
    deep = "folder/" * 30 + "long" * 30
    names = ["./a", "train/b", deep, "caf\u00e9"]
    for number, kind in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        members: list[tuple[tarfile.TarInfo | str, bytes]] = [("train", b"")]
        for name in names:  # all images, then all JSON: the halves of a record need not be neighbours
            members.append((f"{name}.JPG", jpg))
        for name in names:
            members += [(f"{name}.cls", b"a"), (f"{name}.json", META)]
        _tar(tmp_path / f"{number}.tar", members, kind)
    shards = ImageShards(tmp_path)
    # the two shards share names, so their numbers lead
    keys = [f"0000{shard}/{name}" for shard in (0, 1) for name in ("a", "train/b", deep, "caf\u00e9")]
    assert [shards.key(i) for i in range(8)] == keys == [record.key for record in shards]
    assert all(record.image.shape == (5, 7, 3) for record in shards)
    reasons = [each.reason for each in shards.skipped]
    assert reasons == ["hidden or without suffix", *["neither image, JSON nor txt"] * 4] * 2


def test_captions_may_lie_in_text_files(tmp_path: Path) -> None:
    png = encode_image(_image(1))
    members = [("a.png", png), ("a.txt", "a caf\u00e9\n".encode()), ("b.txt", b"of the text"), ("b.png", png)]
    members += [("b.json", b'{"caption": "of the JSON", "score": NaN}'), ("c.png", png), ("c.txt", b"\xff")]
    members += [("d.txt", b"lone"), ("e.txt", b" "), ("e.jpg", png), ("f.png", png)]
    members += [("f.txt", b"x" * ((1 << 20) + 1))]
    _tar(tmp_path / "x.tar", members)
    shards = ImageShards(tmp_path)
    assert [shards.key(i) for i in range(len(shards))] == ["a", "b", "c", "e"]
    assert shards[0].meta == {"prompt": "a caf\u00e9"} and np.array_equal(shards[0].image, _image(1))
    assert shards.meta(1) == {"prompt": "of the text", "caption": "of the JSON", "score": None}
    assert ImageShards(tmp_path / "x.tar", "caption").meta(1)["prompt"] == "of the JSON"
    for i, words in ((2, "its text is not UTF-8"), (3, "it has no caption")):
        with pytest.raises(CorruptRecord, match=words):
            shards.encoded(i)
    assert _reasons(shards) == {
        "d": "no image",
        "f.txt": "1048577 bytes, allowed: up to 1048576",
        "f": "no JSON or txt",
    }


def test_a_shard_that_is_none_costs_no_other(tmp_path: Path) -> None:
    write_image_shard(tmp_path / "b.tar", _records(0, 2))
    for name, data in (("a.tar", b""), ("c.tar", b"version https://git-lfs.github.com/spec/v1\n")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "._b.tar").write_bytes(b"x")
    shards = ImageShards(tmp_path)
    assert len(shards) == 2 and [each.shard for each in shards.skipped] == ["a.tar", "c.tar"]
    assert {each.reason for each in shards.skipped} == {"not a plain tar file, allowed: uncompressed tar"}


def test_hostile_members_are_skipped_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = _record("good")
    for name in ("/abs", "../up", "a/../../up", "a\\b", "new\nline", ".hidden"):
        members += _record(name)
    for name, kind in (
        ("l", tarfile.SYMTYPE),
        ("h", tarfile.LNKTYPE),
        ("c", tarfile.CHRTYPE),
        ("f", tarfile.FIFOTYPE),
    ):
        link = tarfile.TarInfo(f"{name}.png")
        link.type, link.linkname = kind, "/etc/passwd"
        members += [(link, b""), (f"{name}.json", META)]
    holes = tarfile.TarInfo("holes.png")
    holes.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "10737418240"}
    big = tarfile.TarInfo("big.json")
    big.size = (1 << 20) + 1
    members += [(holes, b"x"), ("holes.json", META), (big, b"x"), ("big.png", b"x"), ("lone.png", b"x")]
    members += [("good.png", b"second"), ("good.jpg", b"third"), *_record("last")]
    _tar(tmp_path / "in" / "x.tar", members)
    shards = ImageShards(tmp_path / "in")
    assert [record.key for record in shards] == ["good", "last"] and np.array_equal(
        shards[0].image, _image(1)
    )
    reasons = _reasons(shards)
    for name in ("/abs.png", "../up.json", "a/../../up.png", "a\\b.png", "new\nline.png"):
        assert reasons[name] == "unsafe name"
    assert reasons[".hidden.png"] == "hidden or without suffix"
    assert reasons["l.png"] == reasons["h.png"] == "link" and reasons["l"] == "no image"
    assert reasons["c.png"] == reasons["f.png"] == "device or unknown kind"
    assert reasons["holes.png"] == "sparse" and "allowed: up to 1048576" in reasons["big.json"]
    assert reasons["lone"] == "no JSON or txt" and reasons["good.png"] == reasons["good.jpg"] == "duplicate"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.tar"]


def _header(name: bytes, size: bytes, kind: bytes, tail: bytes = b"") -> bytes:
    """Header block by hand, with a right checksum; tail begins at byte 257."""
    block = bytearray(
        (name.ljust(124, b"\0") + size.ljust(32, b"\0") + kind).ljust(257, b"\0") + tail.ljust(255, b"\0")
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_old_sparse_members_are_stepped_over(tmp_path: Path) -> None:
    _tar(tmp_path / "x.tar", _record("good"))
    sparse = bytearray(_header(b"s.png", b"%011o" % 3, b"S", b"ustar  \0"))
    sparse[482] = 1  # one more block of holes follows
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "x.tar").write_bytes(
        bytes(sparse) + bytes(512) + b"abc".ljust(512) + (tmp_path / "x.tar").read_bytes()
    )
    shards = ImageShards(tmp_path)
    assert [record.key for record in shards] == ["good"] and _reasons(shards) == {"s.png": "sparse"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (_header(b"x.png", b"77777777777", b"0"), "cut short"),
        (_header(b"x.png", b"\x80" + b"\x7f" * 11, b"0"), "cut short"),
        (_header(b"x.png", b"\xff" * 12, b"0"), "damaged header"),
        (_header(b"x.png", b"-7", b"0"), "damaged header"),
        (_header(b"x.png", b"1_0", b"0"), "damaged header"),
        (_header(b"x", b"%011o" % 11, b"x") + b"11 size=\xc2\xb2\n".ljust(512, b"\0"), "damaged header"),
        (_header(b"x", b"%011o" % 11, b"x") + b"11 size=-1\n".ljust(512, b"\0"), "cut short"),
        (_header(b"x", b"%011o" % 20, b"x") + b"99 path=a\n".ljust(512, b"\0"), "damaged extended header"),
        (_header(b"x", b"%011o" % 70_000, b"x") + bytes(70_144), "extended header too large"),
        (_header(b"x", b"77777777777", b"L"), "cut short"),
        (_header(b"x\xff.png", b"0", b"0"), "unsafe name"),
        (b"\x01" * 512, "damaged header"),
    ],
)
def test_headers_that_lie_cost_no_more_than_themselves(tmp_path: Path, header: bytes, reason: str) -> None:
    for name in ("a", "b", "c"):
        _tar(tmp_path / name, _record(name))
    whole = [(tmp_path / name).read_bytes()[:2048] for name in ("a", "b", "c")]
    end = bytes(1024)
    (tmp_path / "x.tar").write_bytes(whole[0] + header + whole[1] + whole[2] + end)
    shards = ImageShards(tmp_path)
    assert shards[0].key == "a" and any(skipped.reason.startswith(reason) for skipped in shards.skipped)


def test_a_cut_shard_keeps_its_whole_records(tmp_path: Path) -> None:
    _tar(tmp_path / "x.tar", [m for i in range(4) for m in _record(str(i))])
    whole = (tmp_path / "x.tar").read_bytes()
    counts = []
    for size in range(2048, 8 * 1024 + 512, 256):
        (tmp_path / "x.tar").write_bytes(whole[:size])
        shards = ImageShards(tmp_path)
        counts.append(len(shards))
        assert all(np.array_equal(record.image, _image(1)) for record in shards)
        assert bool(shards.skipped) == (size < 8 * 1024 + 512)
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] == 4


def test_mutated_shards_raise_only_user_errors(tmp_path: Path) -> None:
    path, draws, opened = tmp_path / "x.tar", random.Random(0), 0
    _tar(path, [*_record("a"), *_record("n" * 150), ("c.txt", b"x"), *_record("d")])
    whole = path.read_bytes()[: 14 * 1024]
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draws.randrange(1, 4)):
            data[draws.randrange(len(data))] = draws.choice((0, 255, 0x80, *b"0179xgLKS/."))
        for at in range(0, len(data) - 511, 512):  # most mutations would else end at the checksum
            if draws.random() < 0.5 and data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        path.write_bytes(data[: draws.randrange(len(data))] if draws.random() < 0.2 else data)
        try:
            shards = ImageShards(tmp_path)
            opened += 1
            for i in range(len(shards)):
                try:
                    shards[i]
                except CorruptRecord:
                    continue
        except UserError:
            continue
    assert opened > 200


def test_directories_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got no image shards, expected \*\.tar"):
        ImageShards(tmp_path)
    os.mkfifo(tmp_path / "f.tar")
    with pytest.raises(UserError, match="got no image shards"):
        ImageShards(tmp_path)
    for data in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b" * 600):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"^x\.tar: not a plain tar file"):
            ImageShards(tmp_path)
    (tmp_path / "x.tar").write_bytes(bytes(10_240))
    with pytest.raises(UserError, match="got no record of image and JSON"):
        ImageShards(tmp_path)
