import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightgen.cli.options import override
from lightgen.core import directory
from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.images import ImageRecord, ImageShards, encode_image, write_image_shard
from lightgen.data.picture import decode_image
from lightgen.ports.embedding import EmbedderConfig
from lightgen.ports.safety import SafetyConfig
from lightgen.ports.scorer import ScorerConfig
from lightgen.stages import curate_judges, curate_measure
from lightgen.stages.curate import curate
from lightgen.stages.curate_config import CurateConfig, LimitsConfig, SelectionConfig, TwinsConfig
from lightgen.stages.curate_decide import REASONS
from lightgen.stages.curate_judges import Judges, find_judges
from lightgen.stages.scorer import ScorerPlace
from tests.ports.toy_clip import save_clip
from tests.ports.toy_vit import save_vit

SIDE = 64


def picture(seed, height=SIDE, width=SIDE):
    """Patches of chance colours under a little noise; another one for another seed."""
    random = numpy_draws(seed, "curate", height, width)
    patches = random.integers(20, 236, (8, 8, 3)).repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)
    return (patches[:height, :width] + random.integers(0, 20, (height, width, 3))).astype(np.uint8)


def png(image):
    return encode_image(image)


def saved(image, kind="PNG", mode=None, **options):
    buffer, found = io.BytesIO(), Image.fromarray(image)
    (found.convert(mode) if mode else found).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", quality=95, exif=exif)


def animated(images):
    first, *rest = map(Image.fromarray, images)
    buffer = io.BytesIO()
    first.save(buffer, "PNG", save_all=True, append_images=rest)
    return buffer.getvalue()


def bomb():
    """A PNG whose header claims 30,000 x 30,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def told(prompt, **more):
    return {"prompt": prompt, **more}


def crafted(folder):
    """A public set in which each item but the first two is left out for the reason in its name."""
    same = picture(0)
    lighter = np.clip(same.astype(int) + 2, 0, 255).astype(np.uint8)
    flat = np.full((SIDE, SIDE, 3), 90, np.uint8)
    smooth = np.repeat(np.linspace(0, 255, SIDE).astype(np.uint8)[None, :, None], SIDE, 0).repeat(3, 2)
    items = {
        "good": (png(same), told("a", clip_score=0.9)),
        "fine": (png(picture(1)), told("b", clip_score=0.8, seed=7, tag="x", objects=[{"class": "dog"}])),
        "damaged": (png(picture(2))[:-60], told("c", clip_score=0.9)),
        "damaged-json": (png(picture(3)), b'{"prompt": 3'),
        "bomb": (bomb(), told("d", clip_score=0.9)),
        "odd-cmyk": (saved(picture(4), "JPEG", "CMYK"), told("e", clip_score=0.9)),
        "odd-turned": (turned(picture(5)), told("f", clip_score=0.9)),
        "odd-animated": (animated([picture(6), picture(7)]), told("g", clip_score=0.9)),
        "small": (png(picture(8, 63, 64)), told("h", clip_score=0.9)),
        "long": (png(picture(9, 64, 200)), told("i", clip_score=0.9)),
        "blank": (png(flat), told("j", clip_score=0.9)),
        "soft": (png(smooth), told("k", clip_score=0.9)),
        "no-column": (png(picture(10)), told("l")),
        "low": (png(picture(11)), told("m", clip_score=0.2)),
        "twin": (png(lighter), told("n", clip_score=0.95)),
    }
    files = []
    for key, (image, meta) in items.items():
        files += [(f"{key}.png", image), (f"{key}.json", meta)]
    files += [("lonely.png", png(picture(12))), ("../../evil.png", b"x"), ("readme.md", b"hello")]
    write_tar(folder / "data-0.tar", files)
    return folder


WANTED = {
    **{"not a record": 3, "damaged": 2, "bomb": 1, "odd picture": 3, "too small": 1, "too long": 1},
    **{"blank": 1, "not sharp": 1, "no column": 1, "out of range": 1, "duplicate": 1},
}


def strict(**changes):
    limits = LimitsConfig(
        min_side=64, max_aspect=3.0, min_sharpness=20.0, columns=(("clip_score", 0.5, None),)
    )
    return CurateConfig(limits=limits, **{"shard_size": 4, **changes})


def lines(made):
    return [json.loads(line) for line in (made.path / "rejected.jsonl").read_text().splitlines()]


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return crafted(tmp_path_factory.mktemp("public") / "set")


def test_every_reason_is_counted_and_the_sums_add_up(public, tmp_path):
    made = curate(strict(), tmp_path / "out", [public])
    assert made.kind == "images"
    assert made.manifest["rejected"] == {**dict.fromkeys(REASONS, 0), **WANTED}
    assert made.counts == {"images": 2, "rejected": 16, "records": 18, **WANTED}
    assert made.manifest["safety"] == "not checked"
    left_out = lines(made)
    assert len(left_out) == 16
    by_key = {line["key"]: line for line in left_out}
    reasons = {
        **{"damaged": "damaged", "damaged-json": "damaged", "bomb": "bomb", "small": "too small"},
        **{"odd-cmyk": "odd picture", "odd-turned": "odd picture", "odd-animated": "odd picture"},
        **{"long": "too long", "blank": "blank", "soft": "not sharp", "no-column": "no column"},
        **{"low": "out of range", "twin": "duplicate", "lonely": "not a record"},
        **{"../../evil.png": "not a record", "readme.md": "not a record"},
    }
    assert {key: line["reason"] for key, line in by_key.items()} == reasons
    assert by_key["twin"]["twin"] == "good" and by_key["twin"]["columns"]["clip_score"] == 0.95
    assert by_key["low"]["detail"] == "clip_score 0.2, allowed: 0.5 to any"
    assert by_key["small"]["detail"] == "64x63 px, allowed: sides from 64 px"
    assert by_key["odd-cmyk"]["detail"] == "CMYK" and by_key["blank"]["columns"]["contrast"] == 0
    assert by_key["damaged"]["prompt"] == "c" and by_key["damaged-json"]["prompt"] is None
    assert not (tmp_path / "evil.png").exists()


def test_files_and_columns_are_kept_and_measures_added(public, tmp_path):
    made = curate(strict(), tmp_path / "out", [public])
    before, after = ImageShards(public), ImageShards(made.path)
    assert len(after) == 2
    for i in range(2):
        old, new = before.encoded(i), after.encoded(i)
        assert (old.key, old.data, old.suffix) == (new.key, new.data, new.suffix)
        assert {name: new.meta[name] for name in old.meta} == dict(old.meta)
        added = {"width", "height", "contrast", "entropy", "sharpness", "phash"}
        assert set(new.meta) - set(old.meta) == added
        assert new.meta["width"] == SIDE and len(new.meta["phash"]) == 16
    again = curate(strict(), tmp_path / "out", [public])
    assert again.digest == made.digest


def test_odd_pictures_are_made_plain_where_asked(public, tmp_path):
    made = curate(strict(odd_images="convert"), tmp_path / "out", [public])
    assert made.counts["images"] == 5 and "odd picture" not in made.counts
    shards = ImageShards(made.path)
    found = {shards.key(i): (shards[i].image, shards.encoded(i)) for i in range(5)}
    assert {key: record.meta.get("converted") for key, (_, record) in found.items()} == {
        **{"good": None, "fine": None, "odd-cmyk": "CMYK"},
        **{"odd-turned": "rotated", "odd-animated": "animated"},
    }
    source = ImageShards(public)
    for i in range(len(source)):
        if source.key(i).startswith("odd"):
            assert found[source.key(i)][1].suffix == "png"
            np.testing.assert_array_equal(found[source.key(i)][0], decode_image(source.encoded(i).data))
    np.testing.assert_array_equal(found["odd-animated"][0], picture(6))
    as_jpg = curate(strict(odd_images="convert", convert_to="jpg"), tmp_path / "jpg", [public])
    shards = ImageShards(as_jpg.path)
    assert [shards.encoded(i).suffix for i in range(5)] == ["png", "png", "jpg", "jpg", "jpg"]


def test_other_limits_measure_nothing_again(public, tmp_path, monkeypatch):
    first = curate(strict(), tmp_path / "a", [public])
    (folder,) = tmp_path.glob("measures-*")
    monkeypatch.setattr(curate_measure, "looks", None)  # whoever measures again fails
    limits = LimitsConfig(min_side=63, max_aspect=None, min_contrast=0, min_entropy=0)
    second = curate(CurateConfig(limits=limits, shard_size=4), tmp_path / "b", [public])
    assert first.counts["images"] == 2
    gone = ("damaged", "bomb", "odd picture", "duplicate", "not a record")
    assert {name for name in second.counts if second.counts[name]} == {"images", "rejected", "records", *gone}
    assert list(tmp_path.glob("measures-*")) == [folder]
    told = json.loads((folder / "report.json").read_text())
    assert told["quantiles"]["clip_score"][0] == 0.2 and told["records"] == 15
    monkeypatch.undo()
    curate(strict(shard_size=5), tmp_path / "c", [public])
    assert len(list(tmp_path.glob("measures-*"))) == 2


class Killed(KeyboardInterrupt):
    pass


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(public, tmp_path, monkeypatch):
    """Killed at every second file or folder that is synced, in all three passes and while it is committed."""
    config, original = strict(odd_images="convert", shard_size=3), directory.os.fsync
    left: list[int] = []

    def fsync(descriptor):  # each file is synced before it takes its name
        if left and not left.pop():
            raise Killed
        original(descriptor)

    def count(descriptor):
        calls.append(descriptor)
        original(descriptor)

    calls: list[int] = []
    monkeypatch.setattr(directory.os, "fsync", count)
    clean = curate(config, tmp_path / "clean" / "out", [public])
    monkeypatch.setattr(directory.os, "fsync", fsync)
    assert len(calls) > 14
    for step in range(0, len(calls) - 1, 2):  # the last one comes after the output is in its place
        out = tmp_path / str(step) / "out"
        left[:] = [0, *[1] * step]
        with pytest.raises(Killed):
            curate(config, out, [public])
        assert not out.exists() and not left
        made = curate(config, out, [public])
        assert made.digest == clean.digest, step
        assert files_of(made.path) == files_of(clean.path)
        assert not any(name.startswith("decision") for name in files_of(made.path))


def test_measures_are_not_those_of_a_file_that_was_exchanged(tmp_path):
    places = [tmp_path / "set", tmp_path / "other"]
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    for place, images in ((places[0], [picture(1), picture(2)]), (places[1], [black, black])):
        place.mkdir()
        records = [ImageRecord(str(i), image, {"prompt": "a"}) for i, image in enumerate(images)]
        write_image_shard(place / "a.tar", records)
    old, new = (place / "a.tar" for place in places)
    assert len(curate(CurateConfig(), tmp_path / "first", [places[0]]).manifest["files"]) == 2
    new.write_bytes(new.read_bytes().ljust(old.stat().st_size, b"\0"))
    assert new.stat().st_size == old.stat().st_size
    shutil.copyfile(new, old)
    with pytest.raises(UserError, match="took none of 2 images \\(2 blank\\)"):
        curate(CurateConfig(), tmp_path / "second", [places[0]])


def test_two_sources_and_a_later_twin_of_a_higher_score(tmp_path):
    base = picture(0)
    for number, score in enumerate((0.2, 0.9)):
        (tmp_path / str(number)).mkdir()
        records = [ImageRecord("x", base, told("a", aesthetic=score))]
        records += [ImageRecord("y", picture(5 + number), told("b", aesthetic=0.5))]
        write_image_shard(tmp_path / str(number) / "s.tar", records)
    places = [tmp_path / "0", tmp_path / "1"]
    earlier = curate(CurateConfig(), tmp_path / "earlier", places)
    assert [line["twin"] for line in lines(earlier)] == ["0/x"]
    config = CurateConfig(twins=TwinsConfig(keep="aesthetic"))
    better = curate(config, tmp_path / "better", places)
    (line,) = lines(better)
    assert (line["source"], line["key"], line["twin"], line["reason"]) == (0, "0/x", "1/x", "duplicate")
    with pytest.raises(UserError, match="--twins.keep: got 'nope', allowed: a column that some record has"):
        curate(CurateConfig(twins=TwinsConfig(keep="nope")), tmp_path / "no", places)


def test_a_prompt_keeps_its_best_few(tmp_path):
    (tmp_path / "in").mkdir()
    records = [
        ImageRecord(f"{i:02d}", picture(i), told("a" if i < 6 else "b", score=float(i % 4))) for i in range(8)
    ]
    write_image_shard(tmp_path / "in" / "s.tar", records)
    config = CurateConfig(twins=TwinsConfig(per_prompt=3, keep="score"))
    made = curate(config, tmp_path / "out", [tmp_path / "in"])
    shards = ImageShards(made.path)
    assert [shards.key(i) for i in range(len(shards))] == ["01", "02", "03", "06", "07"]
    assert made.counts["too many of a prompt"] == 3
    first = curate(CurateConfig(twins=TwinsConfig(per_prompt=3)), tmp_path / "first", [tmp_path / "in"])
    shards = ImageShards(first.path)
    assert [shards.key(i) for i in range(len(shards))] == ["00", "01", "02", "06", "07"]


class Colors:
    """An embedder of mean colours."""

    dim = 3

    def embed_images(self, images):
        found = images.reshape(len(images), -1, 3).mean(1).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class ColorPlace:
    config = EmbedderConfig()

    def identity(self):
        return {"kind": "colors"}

    def load(self):
        return Colors()


@pytest.fixture
def by_color(monkeypatch):
    """The mean colour in the place of an embedder, where one is asked for."""
    monkeypatch.setattr(curate_judges, "find_embedder", lambda _: ColorPlace())


def tinted(seed, color):
    grey = picture(seed).mean(2, keepdims=True) / 255
    return (grey * np.array(color)).astype(np.uint8)


def test_near_duplicates_and_selection_by_embeddings(by_color, tmp_path):
    (tmp_path / "in").mkdir()
    colors = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 12, 10), (195, 30, 10), (190, 60, 10)]
    records = [ImageRecord(f"{i}", tinted(i, color), told(f"{i}")) for i, color in enumerate(colors)]
    records.insert(2, ImageRecord("flat", np.full((SIDE, SIDE, 3), 5, np.uint8), told("flat")))
    write_image_shard(tmp_path / "in" / "s.tar", records)
    twins = TwinsConfig(min_cosine=0.999)
    made = curate(CurateConfig(twins=twins, shard_size=2), tmp_path / "out", [tmp_path / "in"])
    assert {line["key"]: (line["reason"], line["twin"]) for line in lines(made)} == {
        "flat": ("blank", None),
        "3": ("near duplicate", "0"),
    }
    config = CurateConfig(twins=twins, selection=SelectionConfig(num=3, how="k-center"), shard_size=2)
    made = curate(config, tmp_path / "three", [tmp_path / "in"])
    assert made.counts["images"] == 3 and made.counts["not selected"] == 2
    shards = ImageShards(made.path)
    kept = {shards.key(i) for i in range(3)}
    assert {"1", "2"} <= kept, "the corners"
    assert len(list(tmp_path.glob("measures-*"))) == 1


def test_chance_needs_no_embedder(tmp_path):
    (tmp_path / "in").mkdir()
    write_image_shard(
        tmp_path / "in" / "s.tar", [ImageRecord(f"{i}", picture(i), told("a")) for i in range(9)]
    )
    config = CurateConfig(selection=SelectionConfig(num=4, how="random"))
    assert not config.needs_embeddings()
    made = curate(config, tmp_path / "out", [tmp_path / "in"])
    assert made.counts["images"] == 4 and made.counts["not selected"] == 5
    more = curate(
        CurateConfig(selection=SelectionConfig(num=40, how="random")), tmp_path / "all", [tmp_path / "in"]
    )
    assert more.counts["images"] == 9


class Bright:
    def score(self, images, prompts):
        found = images.mean(axis=(1, 2, 3)).astype(np.float32)
        found[[prompt == "nan" for prompt in prompts]] = np.nan
        return found


def test_scorers_and_safety_become_columns(tmp_path, monkeypatch):
    clip = save_clip(tmp_path / "clip")
    vit = save_vit(tmp_path / "vit")
    save_file({"weight": torch.ones(1, 12), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    (tmp_path / "in").mkdir()
    sizes = [(64, 64), (64, 80), (64, 64), (80, 64), (64, 80)]
    records = [ImageRecord(f"{i}", picture(i, *size), told("abc")) for i, size in enumerate(sizes)]
    write_image_shard(tmp_path / "in" / "s.tar", records)
    settings = ScorerConfig(model=str(clip), head=str(tmp_path / "head.safetensors"), batch_size=2)
    config = CurateConfig(
        score=("clip-score", "aesthetic"),
        scorer=settings,
        safety=SafetyConfig(model=str(vit), batch_size=2),
        limits=LimitsConfig(max_unsafe=1.0),
    )
    made = curate(config, tmp_path / "out", [tmp_path / "in"])
    shards = ImageShards(made.path)
    metas = [shards.meta(i) for i in range(5)]
    assert made.manifest["safety"] == f"checked by {vit}"
    loaded = find_judges(config).load()
    for name, (scorer, _) in loaded.scorers.items():
        wanted = [float(scorer.score(record.image[None], ["abc"])[0]) for record in records]
        np.testing.assert_allclose([meta[name] for meta in metas], wanted, atol=1e-4)
    assert loaded.safety is not None
    wanted = [float(loaded.safety[0].unsafe(record.image[None])[0]) for record in records]
    np.testing.assert_allclose([meta["unsafe"] for meta in metas], wanted, atol=1e-5)
    limit = float(np.median([meta["unsafe"] for meta in metas]))
    safer = curate(
        replace(config, limits=LimitsConfig(max_unsafe=limit)), tmp_path / "safer", [tmp_path / "in"]
    )
    assert safer.counts["unsafe"] == 2
    assert len(list(tmp_path.glob("measures-*"))) == 1, "a threshold is not a measure"
    assert {line["columns"]["unsafe"] > limit for line in lines(safer)} == {True}
    monkeypatch.setattr(ScorerPlace, "load", lambda _: Bright())
    odd = [ImageRecord("a", picture(0), told("nan")), ImageRecord("b", picture(1), told("fine"))]
    (tmp_path / "odd").mkdir()
    write_image_shard(tmp_path / "odd" / "s.tar", odd)
    config = replace(
        config,
        safety=SafetyConfig(),
        score=("clip-score",),
        limits=LimitsConfig(columns=(("clip_score", 0, None),)),
    )
    made = curate(config, tmp_path / "finite", [tmp_path / "odd"])
    assert made.counts["no column"] == 1 and lines(made)[0]["key"] == "a"


def test_who_cannot_be_judged_is_unsafe_and_nobody_vouches_for_himself(tmp_path, monkeypatch):
    class Blind:
        def unsafe(self, images):
            return np.full(len(images), np.nan, np.float32)

    (tmp_path / "in").mkdir()
    write_image_shard(
        tmp_path / "in" / "s.tar", [ImageRecord(f"{i}", picture(i), told("a", unsafe=i)) for i in range(2)]
    )
    unchecked = curate(CurateConfig(), tmp_path / "unchecked", [tmp_path / "in"])
    assert unchecked.counts["images"] == 2 and unchecked.manifest["safety"] == "not checked"
    monkeypatch.setattr(curate_judges.SafetyPlace, "load", lambda _: Blind())
    config = CurateConfig(safety=SafetyConfig(model=str(save_vit(tmp_path / "vit"))))
    with pytest.raises(UserError, match="2 unsafe"):
        curate(config, tmp_path / "checked", [tmp_path / "in"])


def test_nothing_taken_is_one_line_and_no_artifact(public, tmp_path):
    with pytest.raises(
        UserError, match=r"took none of 15 images \(.*2 damaged.*\), allowed: limits"
    ) as error:
        curate(CurateConfig(limits=LimitsConfig(min_side=3_000)), tmp_path / "out", [public])
    assert "\n" not in str(error.value) and "report.json" in str(error.value)
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["measures-"]


HOSTILE = ["", "\u2028\u0000\x1b[31m", "a" * 100_000, "\ud800 half", "<script>alert(1)</script>", "🐕" * 500]


def test_hostile_captions_do_no_harm(tmp_path):
    files = []
    for i, caption in enumerate(HOSTILE):
        meta = {
            "prompt": caption,
            "reason": "ok",
            "columns": {"a": 1},
            "phash": 3,
            "huge": 10**300,
            "score": 1,
        }
        files += [(f"{i}.png", png(picture(i))), (f"{i}.json", meta)]
    files += [("nan.png", png(picture(50))), ("nan.json", b'{"prompt": "a", "x": NaN, "y": 1e999}')]
    deep = b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    files += [("deep.png", png(picture(51))), ("deep.json", deep)]
    write_tar(tmp_path / "in" / "s.tar", files)
    columns = (("score", None, 1.0), ("phash", 0, 3), ("huge", None, 1e308))
    made = curate(
        CurateConfig(limits=LimitsConfig(columns=columns), shard_size=3), tmp_path / "out", [tmp_path / "in"]
    )
    assert made.counts["records"] == len(HOSTILE) + 2 == made.counts["images"] + made.counts["rejected"]
    assert len(lines(made)) == made.counts["rejected"]
    for line in lines(made):
        assert len(line["prompt"] or "") <= 300
    text = (made.path / "rejected.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and "\x1b" not in text
    everything = curate(CurateConfig(), tmp_path / "all", [tmp_path / "in"])
    shards = ImageShards(everything.path)
    assert {shards.meta(i)["prompt"] for i in range(len(shards))} >= {HOSTILE[2], HOSTILE[4], HOSTILE[5]}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (CurateConfig(shard_size=0), "--shard-size: got 0, allowed: from 1"),
        (CurateConfig(limits=LimitsConfig(max_aspect=0.5)), "--limits.max-aspect: got 0.5, allowed: from 1"),
        (CurateConfig(limits=LimitsConfig(max_unsafe=2)), "--limits.max-unsafe: got 2, allowed: 0 to 1"),
        (
            CurateConfig(limits=LimitsConfig(columns=(("a", None, None),))),
            "--limits.columns: got 'a' None None",
        ),
        (CurateConfig(limits=LimitsConfig(columns=(("a", 2, 1),))), "--limits.columns: got 'a' 2 1"),
        (CurateConfig(twins=TwinsConfig(max_bits=12)), "--twins.max-bits: got 12, allowed: 0 to 11"),
        (CurateConfig(twins=TwinsConfig(min_cosine=-1)), "--twins.min-cosine: got -1, allowed: 0 to 1"),
        (CurateConfig(twins=TwinsConfig(per_prompt=0)), "--twins.per-prompt: got 0"),
        (CurateConfig(selection=SelectionConfig(num=0)), "--selection.num: got 0"),
        (CurateConfig(safety=SafetyConfig(model="no/such")), "not here and not in the Hub's cache"),
        (
            CurateConfig(twins=TwinsConfig(min_cosine=0.9), embedder=EmbedderConfig(kind="sentence")),
            "--embedder.kind: got 'sentence', allowed: nano, clip, siglip2, dinov2",
        ),
        (CurateConfig(score=("aesthetic",)), "--scorer.head: got none"),
    ],
)
def test_mistakes_are_one_line(public, tmp_path, config, told):
    with pytest.raises(UserError, match=told) as error:
        curate(config, tmp_path / "out", [public])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_columns_are_told_on_the_command_line():
    told = override(
        "lightgen curate x",
        CurateConfig(),
        ["--limits.columns", "clip_score", "0.7", "None", "aesthetic", "5", "9", "--score", "clip-score"],
    )
    assert told.limits.columns == (("clip_score", 0.7, None), ("aesthetic", 5.0, 9.0))
    assert told.score == ("clip-score",)


def test_two_runs_side_by_side_do_not_share_what_is_half_done(public, tmp_path):
    """The second one is told so, and what the first one measures stays whole."""
    original = Judges.load
    refused = []

    def load(self):
        Judges.load = original
        with pytest.raises(UserError, match="another process is writing it") as error:
            curate(strict(), tmp_path / "b", [public])
        refused.append(str(error.value))
        return original(self)

    try:
        Judges.load = load
        first = curate(strict(), tmp_path / "a", [public])
    finally:
        Judges.load = original
    assert len(refused) == 1 and "measures-" in refused[0]
    second = curate(strict(), tmp_path / "b", [public])
    shutil.rmtree(next(tmp_path.glob("measures-*")))
    third = curate(strict(), tmp_path / "c", [public])
    assert files_of(first.path).keys() == files_of(second.path).keys()
    assert first.digest == second.digest == third.digest
