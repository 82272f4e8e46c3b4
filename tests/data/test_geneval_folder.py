"""GenEval's own layout: what it would judge is read, in order, and collated metadata is understood."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.data.geneval_folder import GenEvalFolder, is_geneval_folder, unwrapped
from lightgen.data.images import CorruptRecord, encode_image
from lightgen.stages.inputs import kind_of_images, open_images

COUNTING = {
    "tag": "counting",
    "include": [{"class": "bench", "count": 2}],
    "exclude": [{"class": "bench", "count": 3}],
    "prompt": "a photo of two benches",
}
POSITION = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a dog left of a cat",
}


def _image(key: int) -> np.ndarray:
    return numpy_draws(0, "test", key).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def _write(place: Path, number: str, meta: object, samples: dict[str, bytes]) -> None:
    folder = place / number
    (folder / "samples").mkdir(parents=True)
    (folder / "metadata.jsonl").write_text(json.dumps(meta))
    for name, data in samples.items():
        (folder / "samples" / name).write_bytes(data)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    _write(tmp_path, "00001", POSITION, {"0000.png": encode_image(_image(2))})
    _write(
        tmp_path,
        "00000",
        COUNTING,
        {
            "0010.png": encode_image(_image(1)),
            "0002.jpg": encode_image(_image(0), "jpg"),
            "grid.png": b"",
            "notes.txt": b"",
        },
    )
    (tmp_path / "grid.png").write_bytes(b"")
    return tmp_path


def test_images_come_in_order_with_their_prompts(place: Path) -> None:
    found = GenEvalFolder(place)
    assert [found.key(i) for i in range(3)] == [
        "00000/samples/0002",
        "00000/samples/0010",
        "00001/samples/0000",
    ]
    np.testing.assert_array_equal(found[1].image, _image(1))
    assert found.meta(2) == {**POSITION, "filename": "00001/samples/0000.png"}
    assert found.encoded(0).suffix == "jpg"
    assert {each.name for each in found.skipped} == {
        "00000/samples/grid.png",
        "00000/samples/notes.txt",
    }
    assert found.collated == 0
    for i in (-1, 3):
        for read in (found.__getitem__, found.meta, found.key, found.encoded):
            with pytest.raises(IndexError):
                read(i)


def test_the_stage_finds_the_layout(place: Path) -> None:
    assert is_geneval_folder(place) and kind_of_images(place) == "geneval"
    inputs = open_images([place])
    assert len(inputs) == 3 and inputs.key(0) == "00000/samples/0002"
    assert Prompt.from_json(inputs.meta(0)) == Prompt(
        prompt="a photo of two benches",
        tag="counting",
        include=(Requirement(name="bench", count=2),),
        exclude=(Requirement(name="bench", count=3),),
    )
    before = inputs.plain[0]["digest"]
    (place / "00001" / "metadata.jsonl").write_text(json.dumps({**POSITION, "tag": "two_object"}))
    assert open_images([place]).plain[0]["digest"] != before
    with pytest.raises(UserError, match="got caption of GenEval's layout"):
        open_images([f"{place}::caption=x"])


def test_metadata_that_a_loader_collated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the released LightGen script saves it: GenEval would judge this count by .3 instead of .9."""
    collated = {
        "tag": ["counting"],
        "include": [{"class": ["bench"], "count": [2]}],
        "exclude": [{"class": ["bench"], "count": [3]}],
        "prompt": ["a photo of two benches"],
    }
    assert unwrapped(collated) == COUNTING
    _write(tmp_path, "0", collated, {"0.png": encode_image(_image(0))})
    inputs = open_images([tmp_path])
    assert Prompt.from_json(inputs.meta(0)).tag == "counting"
    assert "1 prompts have metadata wrapped in lists" in capsys.readouterr().err
    wrapped = {
        **POSITION,
        "include": [{"class": ["cat"]}, {"class": ["dog"], "position": [["left of"], [0]]}],
    }
    assert unwrapped(wrapped)["include"][1] == {"class": "dog", "position": ["left of", 0]}
    assert unwrapped(POSITION) == POSITION


def test_what_cannot_be_read(place: Path) -> None:
    (place / "00000" / "samples" / "0010.png").write_bytes(b"\x89PNG broken")
    (place / "00002").mkdir()
    (place / "00003").symlink_to(place / "00001")
    found = GenEvalFolder(place)
    with pytest.raises(CorruptRecord, match="00000/samples/0010"):
        found[1]
    reasons = {each.name: each.reason for each in found.skipped}
    assert reasons["00002"] == "no metadata.jsonl" and reasons["00003"] == "link"
    (place / "00001" / "samples" / "0000.png").unlink()
    (place / "00001" / "samples" / "0000.png").symlink_to(place / "00000" / "samples" / "0002.jpg")
    assert len(GenEvalFolder(place)) == 2, "a link is no image"
    (place / "00000" / "metadata.jsonl").write_text("[]")
    with pytest.raises(UserError, match="00000/metadata.jsonl: got no JSON object"):
        GenEvalFolder(place)


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(COUNTING))
    with pytest.raises(UserError, match="got no images in GenEval's layout"):
        open_images([tmp_path])
