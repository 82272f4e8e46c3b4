"""Inspect: what is told of each kind, and a page that is the same each time, small, and safe to open."""

import html
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lightgen.cli.inspect import run_inspect
from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.images import ImageRecord, encode_image, write_image_shard
from lightgen.data.picture import decode_image
from lightgen.data.prompts import write_prompts
from lightgen.evals.contact_sheet import nearest_pairs, side_by_side, thumbnail
from lightgen.evals.scatter import principal_plane, scatter_plot
from lightgen.stages import inspect_sample
from lightgen.stages.inspect import MAX_PAGE_BYTES, InspectConfig, inspect
from lightgen.stages.inspect_sample import drawn, readable, told_of
from tests.stages.toy import Toy, toy_parts

HOSTILE = "</p><script>alert('x')</script> <img src=x onerror=y> \x1b[2J \"quoted\" & ]]>"


def _noise(key: int, height: int = 48, width: int = 64) -> np.ndarray:
    return numpy_draws(0, "test", key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _facts(place: Path | str, **changes) -> dict[str, str]:
    return dict(inspect(InspectConfig(**changes), place))


def _set(place: Path, count: int = 30) -> Path:
    place.mkdir()
    images = [_noise(i // 2) if i < 4 else _noise(i) for i in range(count)]  # 0 and 1 are twins, and 2 and 3
    metas = [
        {
            "prompt": f"picture {i} {HOSTILE if i % 2 else ''}",
            "clip_score": i / 10,
            "seed": i,
            "generator": f"g{i % 2}",
        }
        for i in range(count)
    ]
    records = (ImageRecord(f"{i:04d}", images[i], metas[i]) for i in range(count))
    write_image_shard(place / "a.tar", records)
    return place


def test_images_are_told_in_words(toy: Toy) -> None:
    facts = _facts(toy.images.path)
    assert (
        facts["kind"] == "images" and facts["digest"] == toy.images.digest and facts["made by"] == "distill"
    )
    assert facts["counts"] == "images 12, prompts 12" and facts["sizes"] == "64x64 12"
    assert facts["formats"] == "png 12" and facts["looked at"] == "12 of 12 records, the pictures of 12"
    assert facts["generators"].endswith(" 12") and int(facts["objects"].partition(":")[0]) > 1
    assert '"num": 12' in facts["config"] and "torch" in facts["versions"] and "unusual" not in facts


def test_latents_checkpoints_and_reports_are_told(toy: Toy, tmp_path: Path) -> None:
    facts = _facts(toy.latents.path)
    assert facts["rows"] == "12" and facts["shapes"].startswith("16x8x8 12")
    assert facts["parent 1"].endswith(f"(images) {toy.images.digest}") and "words" in facts
    facts = _facts(toy.student.path, verify=True)
    parts = {name: value for name, value in facts.items() if name.startswith("part ")}
    assert set(parts) == {"part transformer", "part vae", "part text_encoder"}
    count = sum(parameter.numel() for parameter in toy_parts().transformer.parameters())
    assert f"LightGenTransformer, {count:,} parameters (F32)" in parts["part transformer"]
    workspace = begin_artifact(tmp_path / "report", "report", {"stage": "evaluate"}, [toy.images])
    assert not isinstance(workspace, Artifact)
    with workspace:
        scores = {"overall": 0.5, "tasks": {"counting": 0.25}, "subjects": [{"name": "a", "overall": 0.5}]}
        workspace.write_json("report.json", scores | {"settings": {"seed": 3}})
        workspace.commit({})
    facts = _facts(tmp_path / "report")
    assert facts["overall"] == "0.5" and facts["tasks.counting"] == "0.25" and facts["a.overall"] == "0.5"
    assert not any("seed" in name for name in facts)
    assert "parameters" in _facts("nano")["part transformer"]


def test_a_page_of_images_holds_what_it_should(tmp_path: Path) -> None:
    place, page = _set(tmp_path / "in"), tmp_path / "page.html"
    before = (place / "a.tar").read_bytes()
    facts = dict(inspect(InspectConfig(samples=10), place, page))
    assert (
        facts["kind"] == "images, a public set"
        and facts["column clip_score"] == "0 to 2.9, median 1.5, in 30"
    )
    assert facts["sizes"] == "64x48 30" and "column seed" not in facts
    text = page.read_text(encoding="utf-8")
    pairs, sheets = re.findall(r"<li.*?</li>", text, re.DOTALL), re.findall(r"<h2.*?>(.*?)</h2>", text)
    assert sheets == [
        *("Random samples", "Lowest and highest", "Nearest twins", "Diversity"),
        *("Captions and numbers", "How it was made"),
    ]
    assert text.count('loading="lazy"') == text.count("data:image/jpeg;base64,") == 10 + 12 + 12
    assert "Of 30 images, 2 have an earlier twin by perceptual hash" in text
    assert "hash · 0000 and 0001" in text and "hash · 0002 and 0003" in text and "Vendi score" in text
    assert "entropy of the cells" in text and "something in them" not in text, "which is true of all"
    highest = text[text.index("Lowest clip_score") : text.index("Highest clip_score")]
    assert html.escape("2.9 · picture 29") in highest and "0.1 · " not in highest
    assert any("g0 (15)" in each for each in pairs), "groups by generator"
    # nothing of a caption is markup, and nothing is loaded from anywhere
    assert "<script" not in text and "onerror=y>" not in text and "\x1b" not in text
    assert "&lt;script&gt;alert(" in text and not re.search(r'(src|href)="(?!data:|#)', text)
    assert (place / "a.tar").read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "page.html",
    ]
    inspect(InspectConfig(samples=10), place, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    inspect(InspectConfig(samples=10, seed=1), place, tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() != page.read_bytes()


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path, toy: Toy) -> None:
    workspace = begin_artifact(tmp_path / "out", "images", {"stage": "curate"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        write_image_shard(workspace.path / "x.tar", [ImageRecord("a", _noise(0), {"prompt": "a"})])
        lines = [json.dumps({"key": str(i), "reason": "blank" if i else f"too small {i}"}) for i in range(5)]
        lines.append(json.dumps({"columns": {"long_caption": "x" * 900_000}, "reason": "damaged"}))
        workspace.write_bytes("rejected.jsonl", "\n".join([*lines, "{", '["x"]', "[" * 90_000]).encode())
        workspace.commit({"images": 1})
    page = tmp_path / "page.html"
    facts = dict(inspect(InspectConfig(), tmp_path / "out", page))
    assert (
        facts["left out"].startswith("blank 4, line that cannot be read 3, ")
        and "damaged 1" in facts["left out"]
        and "too small N 1" in facts["left out"]
    )
    text = page.read_text()
    assert "Left out" in text and "too small N" in text


def test_records_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in (
        ("a", encode_image(_noise(0))),
        ("b", b"no picture"),
        ("c", encode_image(_noise(1))[:-30]),
    ):
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
        (tmp_path / "in" / f"{name}.txt").write_text("" if name == "c" else name)
    (tmp_path / "in" / "lone.png").write_bytes(b"")
    facts = dict(inspect(InspectConfig(), tmp_path / "in", tmp_path / "page.html"))
    assert (
        facts["looked at"] == "3 of 3 records, the pictures of 1" and facts["skipped"] == "1 no JSON or txt"
    )
    assert (
        "not a whole PNG, JPEG or WebP image" in facts["unreadable"] and "no caption" in facts["unreadable"]
    )
    (tmp_path / "in" / "a.png").write_bytes(b"no picture either")
    facts = dict(inspect(InspectConfig(), tmp_path / "in", tmp_path / "page.html"))
    assert facts["sizes"] == "none" and "Random samples" in (tmp_path / "page.html").read_text()


def test_prompts_and_latents_have_pages_of_captions(tmp_path: Path, toy: Toy) -> None:
    workspace = begin_artifact(tmp_path / "prompts", "prompts", {"stage": "caption"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        prompts = [
            Prompt(prompt=f"{word} {HOSTILE}", tag="counting")
            for word in ("one dog", "one dog!", "a red kite")
        ]
        write_prompts(workspace.path / "prompts.jsonl", [*prompts, Prompt(prompt="")])
        workspace.commit({"prompts": 4})
    for place in (tmp_path / "prompts", toy.latents.path):
        page = tmp_path / "page.html"
        facts = dict(inspect(InspectConfig(), place, page))
        text = page.read_text(encoding="utf-8")
        assert (
            "Nearest captions" in text and "<script" not in text and "Diversity" in text and "words" in facts
        )
        assert ("Channels" in text) == ("mean by channel" in facts)
        assert ("<dt>rows</dt>" in text) == (place == toy.latents.path) != ("<dt>prompts</dt>" in text)
    assert "tags" in _facts(tmp_path / "prompts")


def test_the_page_stays_small(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    # noise is what a JPEG can do least with
    records = (
        ImageRecord(f"{i:04d}", _noise(i % 50, 256, 256), {"prompt": "p" * 5000, "a": i, "b": -i, "c": i % 7})
        for i in range(260)
    )
    write_image_shard(tmp_path / "in" / "a.tar", records, "jpg")
    inspect(InspectConfig(samples=250), tmp_path / "in", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < MAX_PAGE_BYTES


def test_only_some_of_a_large_set_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_sample, "MOST_TOLD", 20)
    monkeypatch.setattr(inspect_sample, "MOST_SEEN", 8)
    page = tmp_path / "page.html"
    facts = dict(inspect(InspectConfig(samples=12), _set(tmp_path / "in"), page))
    assert facts["looked at"] == "20 of 30 records, the pictures of 8" and facts["sizes"] == "64x48 8"
    text = page.read_text(encoding="utf-8")
    assert "Looked at 20 of 30 records, and the pictures of 8; numbers are of these." in text
    assert "8 of 30 images" in text and "Of 8 images" in text


def test_bad_options_are_refused(tmp_path: Path, toy: Toy) -> None:
    for samples in (0, 251):
        with pytest.raises(UserError, match=rf"--samples: got {samples}, allowed: 1 to 250"):
            _facts(toy.images.path, samples=samples)
    for page, told in (
        (tmp_path / "page.txt", "a file that ends in .html"),
        (tmp_path / "none" / "page.html", "in a directory that is there"),
        (toy.images.path / "page.html", "outside of"),
    ):
        with pytest.raises(UserError, match=told):
            inspect(InspectConfig(), toy.images.path, page)
    with pytest.raises(UserError, match="got a page of a checkpoint, allowed: of images, latents, prompts"):
        inspect(InspectConfig(), toy.student.path, tmp_path / "page.html")
    with pytest.raises(UserError, match="no such directory"):
        _facts(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = _set(tmp_path / "in", 6)
    assert run_inspect([str(place), "--samples", "4", "--out", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^sizes +64x48 6$", out, re.MULTILINE) and "\x1b" not in out
    assert (tmp_path / "page.html").is_file()
    for arguments, told in (
        (["--sample", "3", "x"], "--sample"),
        (["x", "--embedder", "bert"], "invalid choice"),
    ):
        with pytest.raises(UserError, match=told):
            run_inspect(arguments)


def test_what_is_told_of_a_record_is_short() -> None:
    meta = {"prompt": "a " * 100_000, "big": 10**400, "bool": True, "generator": "g\x1b\n" * 100, "tag": 3}
    told = told_of(
        {**meta, **{f"n{i}": i for i in range(500)}, "include": [{"class": "dog"}, 3, {"class": 4}]}
    )
    assert len(told.prompt) == 300 and told.words == 100_000 and told.letters == 200_000
    assert len(told.numbers) == 64 and "big" not in told.numbers and "bool" not in told.numbers
    assert len(told.names["generator"]) <= 60 and "tag" not in told.names and told.classes == ("dog",)
    assert readable("a\nb\x00c", 9) == "a b\ufffdc"


def test_draws_are_keyed() -> None:
    assert drawn(1000, 10, 3) == drawn(1000, 10, 3) != drawn(1000, 10, 4)
    assert sorted(drawn(5, 10, 0)) == [0, 1, 2, 3, 4]


def test_the_plane_shows_where_the_rows_are_spread() -> None:
    rows = numpy_draws(0, "plane").normal(size=(200, 8)) * [9, 1e-3, 1e-3, 4, *[1e-3] * 4]
    places, share = principal_plane(rows)
    assert share > 0.999 and places.shape == (200, 2)
    for axis, column in ((0, 0), (1, 3)):
        assert abs(np.corrcoef(places[:, axis], rows[:, column])[0, 1]) > 0.99
    assert np.allclose(principal_plane(rows[::-1])[0], places[::-1], atol=1e-6)
    assert principal_plane(np.ones((3, 4)))[1] == 1.0 and principal_plane(np.ones((2, 1)))[0].shape == (2, 2)
    drawn_plot = scatter_plot({"<a>": [(0, 0), (1, 1)], "b": [(2, 2)]}, '"two" & groups')
    assert drawn_plot.count("h0") == 3 and "&lt;a&gt; (2)" in drawn_plot and "<a>" not in drawn_plot
    assert "No points" in scatter_plot({}, "")


def test_thumbnails_are_whole_and_pairs_are_the_nearest() -> None:
    assert decode_image(thumbnail(_noise(0, 400, 200))).shape == (192, 96, 3)
    assert decode_image(thumbnail(_noise(0, 20, 30))).shape == (20, 30, 3)
    assert decode_image(side_by_side(_noise(0, 400, 200), _noise(1, 30, 40))).shape == (192, 140, 3)
    rows = np.array([[1, 0], [0, 1], [0.99, 0.1], [0.1, 0.99], [-1, 0]], np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = nearest_pairs(rows, 9)
    assert [pair[:2] for pair in found] == [(0, 2), (1, 3)] and found[0][2] == pytest.approx(0.995, abs=1e-3)
    assert nearest_pairs(rows[:1], 3) == nearest_pairs(rows, 0) == []


def test_public_tars_of_any_maker_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "x.tar", "w") as tar:
        for name in ("a.png", "a.txt"):
            path = tmp_path / name
            path.write_bytes(encode_image(_noise(0)) if name.endswith("png") else b"a caption")
            tar.add(path, name)
            path.unlink()
    assert _facts(tmp_path / "in")["words"] == "2 to 2, median 2"
