import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lightgen.cli import inpaint, main
from lightgen.cli.main import main as run
from lightgen.core.draws import numpy_draws


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to run in, with a picture, a mask and what is neither."""
    monkeypatch.chdir(tmp_path)
    pixels = numpy_draws(0, "test-cli").integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("in.png")
    mask = np.zeros((32, 48), bool)
    mask[4:20, 30:40] = True
    Image.fromarray(mask).save("mask.png")
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(1625)) * 13_000, 9)
    chunks = b""
    for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    (tmp_path / "cut.png").write_bytes((tmp_path / "in.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (9, 9)).save("small.png")
    return tmp_path


def refusal(capfd, arguments):
    """The one line with which the arguments are refused."""
    assert run(["inpaint", *arguments]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("lightgen: ")
    return told.err


def test_the_command_is_where_main_looks_for_it(capfd):
    assert main._command("inpaint") is inpaint.run_inpaint
    assert run(["--help"]) == 0
    assert "\n  inpaint" in capfd.readouterr().out
    with pytest.raises(SystemExit) as end:
        run(["inpaint", "--help"])
    assert end.value.code == 0
    assert "IMAGE [MASK] PROMPT" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: IMAGE [MASK] PROMPT"),
        (["in.png"], "got 1 of them, allowed: IMAGE MASK PROMPT, or IMAGE PROMPT"),
        (["in.png", "mask.png", "a", "dog"], "got 4 of them"),
        (["in.png", "a dog"], "got nothing to change, allowed: a mask, outpaint, or a strength below 1"),
        (["in.png", "mask.png", "a dog", "--outpaint", "left=8"], "got a mask and outpaint"),
        (["in.png", "a dog", "--outpaint", "left"], "--outpaint 'left', allowed: as left=64,top=32"),
        (["in.png", "a dog", "--outpaint", "left=-4"], "--outpaint 'left=-4'"),
        (["in.png", "a dog", "--outpaint", "middle=4"], "--outpaint 'middle=4'"),
        (["in.png", "a dog", "--outpaint", "left=4,left=5"], "--outpaint 'left=4,left=5'"),
        (["in.png", "a dog", "--outpaint", "left=9999"], "outpaint: got 10047x32 px in all"),
        (["in.png", "a dog", "--strength", "1.5"], "strength: got 1.5, allowed: a number from 0 to 1"),
        (["in.png", "a dog", "--strength", "nan"], "strength: got nan"),
        (["in.png", "a dog", "--strength", "0.5", "--crop", "4"], "padding_mask_crop: got no mask_image"),
        (["in.png", "mask.png", "a dog", "--guidance", "nan"], "guidance_scale: got nan"),
        (["in.png", "mask.png", "a dog", "--preset", "fats"], "preset: got 'fats', did you mean 'fast'?"),
        (["in.png", "mask.png", "a dog", "--num", "0"], "--num 0, allowed: a whole number from 1"),
        (["in.png", "mask.png", "a dog", "--feather", "-1"], "feather: got -1"),
        (["in.png", "mask.png", "a dog", "--fether", "1"], "did you mean '--feather'?"),
        (["in.png", "mask.png", " "], "prompt: got a blank text"),
        (["in.png", "mask.png", "dog " * 2_500_000], "prompt: got 10000000 characters"),
        (["none.png", "mask.png", "a dog"], "none.png: no such file"),
        (["bomb.png", "mask.png", "a dog"], "bomb.png: got 13000x13000 px, allowed: up to 4096 px on a side"),
        (["in.png", "bomb.png", "a dog"], "bomb.png: got 13000x13000 px"),
        (["cut.png", "mask.png", "a dog"], "cut.png: not a whole PNG, JPEG or WebP image"),
        (["in.png", "text.png", "a dog"], "text.png: not a whole PNG, JPEG or WebP image"),
        (["in.png", "small.png", "a dog"], "small.png: got 9x9 px, allowed: the picture's 48x32 px"),
        ([".", "mask.png", "a dog"], ".: no such file"),
        (["in.png", "mask.png", "a dog", "--out", "x.jpg"], "allowed: a name ending in .png"),
        (["in.png", "mask.png", "a dog", "--out", "in.png"], "allowed: a file that is not read from"),
        (["in.png", "mask.png", "a dog", "--model", "no/such"], "no/such: no such directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, told, capfd, files):
    before = sorted(files.iterdir())
    assert told in refusal(capfd, arguments)
    assert sorted(files.iterdir()) == before


def test_the_three_ways_to_change_a_picture(toy, files, capfd):
    few = ["--model", str(toy.student.path), "--steps", "2", "--head-steps", "1"]
    given = np.asarray(Image.open("in.png"))
    mask = np.asarray(Image.open("mask.png"))
    assert run(["inpaint", "in.png", "mask.png", "a dog", "--seed", "3", "-n", "2", *few]) == 0
    assert capfd.readouterr().out == "a-dog-3.png\na-dog-4.png\n"
    made = [np.asarray(Image.open(f"a-dog-{seed}.png")) for seed in (3, 4)]
    assert all(np.array_equal(each[~mask], given[~mask]) for each in made)
    assert not np.array_equal(*made)
    assert (
        run(["inpaint", "in.png", "a dog", "--outpaint", "left=8,bottom=3", "--out", "wide.png", *few]) == 0
    )
    wide = np.asarray(Image.open("wide.png"))
    assert wide.shape == (35, 56, 3)
    assert np.array_equal(wide[:32, 8:], given)
    assert run(["inpaint", "in.png", "a dog", "--strength", "0.6", "--out", "other.png", *few]) == 0
    assert np.asarray(Image.open("other.png")).shape == given.shape
