"""What a stage may be handed as images: which kind a path is, and what the records of several are called."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.data.images import ImageRecord, encode_image, write_image_shard
from lightgen.stages.inputs import kind_of_images, open_images
from tests.stages.toy import Toy

IMAGE = np.full((8, 8, 3), 90, np.uint8)
PNG = encode_image(IMAGE)


def _tars(place: Path, keys: tuple[str, ...] = ("a", "b")) -> Path:
    place.mkdir(parents=True)
    write_image_shard(place / "x.tar", [ImageRecord(key, IMAGE, {"prompt": f"tar {key}"}) for key in keys])
    return place


def _folder(place: Path) -> Path:
    (place / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (place / f"{name}.png").write_bytes(PNG)
        (place / f"{name}.txt").write_text(f"folder {name}")
    (place / "a.json").write_text(json.dumps({"long": "a long one", "text": "short"}))
    (place / "deep" / "b.json").write_text(json.dumps({"long": "another"}))
    (place / "lone.png").write_bytes(PNG)
    return place


def _parquet(place: Path) -> Path:
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    place.mkdir(parents=True)
    columns = {"image": [{"bytes": PNG, "path": "x"}] * 2, "mask": [PNG] * 2}
    pq.write_table(pa.table({**columns, "text": ["p0", "p1"], "long": ["l0", "l1"]}), place / "x.parquet")
    return place


def test_every_kind_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: Toy) -> None:
    places = [_tars(tmp_path / "t"), _folder(tmp_path / "f"), _parquet(tmp_path / "p"), toy.images.path]
    assert [kind_of_images(place) for place in places] == ["tars", "folder", "parquet", None]
    inputs = open_images(places)
    assert len(inputs) == 6 + 12 and len(inputs.artifacts) == 1
    assert [inputs.meta(i)["prompt"] for i in range(6)] == [
        *("tar a", "tar b", "folder a", "folder deep/b", "p0", "p1"),
    ]
    keys = [inputs.key(i) for i in range(6)]
    assert keys == ["0/a", "0/b", "1/a", "1/deep/b", "2/00000000", "2/00000001"]
    assert all(np.array_equal(inputs[i].image, IMAGE) and inputs.encoded(i).data == PNG for i in range(6))
    assert inputs.locate(5) == (2, 1) and inputs.locate(6) == (3, 0)
    for i in (-1, 18):
        with pytest.raises(IndexError):
            inputs.locate(i)
    assert [(each.name, each.reason) for each in inputs.skipped] == [("lone.png", "no JSON or txt")]
    assert capsys.readouterr().err.strip() == "f: left out 1 no JSON or txt"
    open_images(places, verify=False)
    assert not capsys.readouterr().err, "workers say nothing"
    assert open_images([places[2] / "x.parquet"]).key(1) == "00000001"
    assert open_images([str(places[0] / "x.tar")]).meta(0)["prompt"] == "tar a"


def test_what_is_plain_is_told_apart_by_names_and_sizes(tmp_path: Path) -> None:
    tars, folder, rows = _tars(tmp_path / "t"), _folder(tmp_path / "f"), _parquet(tmp_path / "p")
    tar, place, parquet = (open_images([each]).identity()["plain_inputs"][0] for each in (tars, folder, rows))
    assert tar == {"name": "t", "shards": {"x.tar": (tars / "x.tar").stat().st_size}}
    assert parquet == {"name": "p", "shards": {"x.parquet": (rows / "x.parquet").stat().st_size}}
    assert place["name"] == "f" and place["images"] == 2 and len(place["digest"]) == 64
    (folder / "a.txt").write_text("folder a, changed")
    assert open_images([folder]).identity()["plain_inputs"][0] != place
    told = open_images([f"{rows}::caption=long"])
    assert told.identity()["plain_inputs"] == [{**parquet, "caption": "long"}]


def test_the_caption_may_be_named(tmp_path: Path) -> None:
    rows, folder = _parquet(tmp_path / "p"), _folder(tmp_path / "f")
    assert open_images([f"{rows}::caption=long"]).meta(1)["prompt"] == "l1"
    assert open_images([f"{rows}::caption=text,image=mask"]).meta(1)["prompt"] == "p1"
    assert open_images([f"{folder}::caption=long"]).meta(0)["prompt"] == "a long one"
    assert open_images([f"{folder}::caption=txt"]).meta(0)["prompt"] == "folder a"
    for told in ("", "caption", "caption=", "title=x", "caption=a,b"):
        with pytest.raises(UserError, match=r"allowed: ::caption=NAME, or ::caption=NAME,image=NAME"):
            open_images([f"{rows}::{told}"])
    with pytest.raises(UserError, match="got ::image=x, allowed: of parquet files alone"):
        open_images([f"{folder}::image=x"])
    odd = tmp_path / "with::colons"
    _tars(odd)
    assert open_images([odd]).meta(0)["prompt"] == "tar a"


def test_an_artifact_has_its_captions_where_they_are(toy: Toy) -> None:
    with pytest.raises(UserError, match="got caption of an artifact, allowed: of a public set"):
        open_images([f"{toy.images.path}::caption=text"])


def test_mixed_and_missing_sets_are_refused(tmp_path: Path) -> None:
    mixed = _tars(tmp_path / "mixed")
    (mixed / "preview.png").write_bytes(PNG)  # a picture of a README is no set
    assert kind_of_images(mixed) == "tars"
    (mixed / "preview.txt").write_text("a caption")
    with pytest.raises(UserError, match="got tars and images in one directory, allowed: one kind; part them"):
        open_images([mixed])
    (mixed / "preview.txt").unlink()
    (mixed / "y.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="got tars and parquet in one directory"):
        open_images([mixed])
    _tars(tmp_path / "outer" / "data")
    with pytest.raises(UserError, match=r"got tar files in folders within, allowed: --in .*outer/data"):
        open_images([tmp_path / "outer"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a")
    for place, told in (
        ("empty", "no manifest.json"),
        ("words", "no manifest.json"),
        ("none", "no such directory"),
    ):
        with pytest.raises(UserError, match=told):
            open_images([tmp_path / place])
    (tmp_path / "words" / "a.png").write_bytes(PNG)
    (tmp_path / "words" / "a.txt").unlink()
    with pytest.raises(UserError, match="got no image with a caption beside it"):
        open_images([tmp_path / "words"])
    with pytest.raises(UserError, match="--in: got nothing"):
        open_images([])


def test_the_order_of_plain_sets_among_artifacts_counts(tmp_path: Path, toy: Toy) -> None:
    tars = _tars(tmp_path / "t")
    one, other = (open_images(each).identity() for each in ([tars, toy.images.path], [toy.images.path, tars]))
    assert one != other and "place" not in open_images([tars]).identity()["plain_inputs"][0]
