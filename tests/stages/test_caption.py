"""The stage caption: every caption is somewhere, a killed run goes on, and nothing held out slips through."""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.artifact import Artifact, open_artifact, workspace_of
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.cleaning import CleaningConfig
from lightgen.data.images import ImageRecord, ImageShards, encode_image, write_image_shard
from lightgen.data.prompts import PromptLines, read_prompts, write_prompts
from lightgen.ports.captioner import ModelCaptionerConfig
from lightgen.ports.grammar import GrammarConfig
from lightgen.recipes import caption as recipes
from lightgen.stages import caption_inputs
from lightgen.stages.caption import caption
from lightgen.stages.caption_config import CaptionConfig
from lightgen.stages.captioner import CaptionerPlace
from lightgen.stages.curate_config import SelectionConfig
from lightgen.stages.distill import DistillConfig, NanoPrompts, distill
from lightgen.stages.engine import EngineConfig

PLAIN = CaptionConfig(measure=False, cleaning=CleaningConfig(duplicates="exact"))


def dropped(artifact: Artifact) -> list[dict]:
    return [json.loads(line) for line in (artifact.path / "dropped.jsonl").read_bytes().splitlines()]


def texts(artifact: Artifact) -> list[str]:
    return [prompt.prompt for prompt in PromptLines(artifact.path / "prompts.jsonl")]


class FakeCaptioner:
    """Answers by the words of the text and the seed; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def expand(self, texts, seeds):
        self.asked += texts
        assert len(set(seeds)) == len(seeds)
        return [self._answer(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def _answer(self, text: str, seed: int) -> str:
        if "die" in text:
            raise KeyboardInterrupt
        if "refuse" in text:
            return "I'm sorry, I cannot."
        return "" if "mute" in text else f'"{text}, in detail {seed % 7 * 0 + 1}"'

    def describe(self, images, seeds):
        return [
            f"The image shows a picture of {image.shape[0]} px." if image.any() else "" for image in images
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    found = FakeCaptioner()
    place = CaptionerPlace(ModelCaptionerConfig(), tmp_path)
    monkeypatch.setattr(CaptionerPlace, "load", lambda self: found)
    monkeypatch.setattr(CaptionerPlace, "identity", lambda self: {"fake": "1"})
    monkeypatch.setattr("lightgen.stages.caption.find_captioner", lambda config: place)
    return found


def test_files_of_every_kind_become_prompts_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a red apple\r\n\nA RED APPLE.\n  two   dogs \n\xff\n<b>bold</b>\n")
    lines = [
        '{"caption": "three cats"}',
        '{"prompt": "two cats", "include": [{"class": "cat", "count": 2}], "tag": "counting"}',
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "sets"
    folder.mkdir()
    with tarfile.open(folder / "c.tar", "w") as tar:
        for name, data in {"1.jpg": b"x", "1.json": b'{"prompt": "a cow"}', "2.txt": b"a hen"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_prompts(folder / "d.jsonl", [Prompt(prompt="a pig"), Prompt(prompt="a cow")])
    config = replace(PLAIN, max_bad_share=0.2)
    found = caption(config, tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.jsonl", folder])
    assert texts(found) == ["a red apple", "two dogs", "three cats", "two cats", "a cow", "a hen", "a pig"]
    prompts = read_prompts(tmp_path / "out" / "prompts.jsonl")
    assert prompts[3].include[0].count == 2 and prompts[3].tag == "counting"
    assert [prompt.origin for prompt in prompts[:2]] == ["a.txt:1", "a.txt:4"]
    assert [(each["origin"], each["reason"]) for each in dropped(found)] == [
        ("a.txt:5", "unreadable"),
        ("a.txt:3", "duplicate"),
        ("a.txt:6", "markup"),
        ("d.jsonl:2", "duplicate"),
    ]
    assert dropped(found)[1]["twin"] == "a red apple"
    assert found.counts == {"prompts": 7, "read": 11, "dropped": 4}
    assert found.manifest["dropped"] == {"unreadable": 1, "markup": 1, "duplicate": 2}
    assert found.manifest["unreadable"] == {"not UTF-8 at byte 1": 1}
    assert [each["captions"] for each in found.manifest["sources"]] == [4, 2, 4]
    assert sorted(found.manifest["files"]) == ["dropped.jsonl", "prompts.jsonl"]
    assert found.kind == "prompts" and not found.parents
    # the same again is the same artifact; other text under the same name is another
    assert caption(config, tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.jsonl", folder]) == found
    again = caption(config, tmp_path / "again", [tmp_path / "a.txt", tmp_path / "b.jsonl", folder])
    assert again.manifest["files"] == found.manifest["files"]
    (tmp_path / "b.jsonl").write_text(lines[1])
    with pytest.raises(UserError, match="was made with"):
        caption(config, tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.jsonl", folder])


def test_artifacts_are_read_with_their_origin_and_are_parents(tmp_path: Path) -> None:
    first = caption(replace(PLAIN, source=GrammarConfig(num=50)), tmp_path / "first")
    prompts = read_prompts(first.path / "prompts.jsonl")
    assert prompts[0].origin == "grammar:0:0" and any(prompt.include for prompt in prompts)
    second = caption(replace(PLAIN, num_per_input=10), tmp_path / "second", [first.path])
    assert read_prompts(second.path / "prompts.jsonl") == prompts[:10]
    assert second.parents[0]["digest"] == first.digest and second.counts["read"] == 10
    images = distill(DistillConfig(height=64, width=64), tmp_path / "images", [nano(tmp_path, 6).path])
    third = caption(PLAIN, tmp_path / "third", [images.path])
    assert texts(third) == texts(nano(tmp_path, 6))
    assert read_prompts(third.path / "prompts.jsonl")[0].origin == "images-00000.tar:0000000-00"


def nano(tmp_path: Path, num: int) -> Artifact:
    return caption(replace(PLAIN, source=NanoPrompts(num=num)), tmp_path / "nano")


def test_held_out_captions_never_come_out(tmp_path: Path, fake: FakeCaptioner) -> None:
    grammar = GrammarConfig(num=300)
    whole = caption(replace(PLAIN, source=grammar), tmp_path / "whole")
    write_prompts(tmp_path / "test.jsonl", read_prompts(whole.path / "prompts.jsonl")[:40])
    (tmp_path / "more.txt").write_text(texts(whole)[40].upper() + "!!\n")
    exclude = (tmp_path / "test.jsonl", tmp_path / "more.txt")
    config = replace(PLAIN, source=grammar, exclude=exclude)
    found = caption(config, tmp_path / "found")
    assert texts(found) == texts(whole)[41:]
    assert found.manifest["dropped"]["held out"] >= 41
    # nor in the words of a model
    longer = caption(replace(config, captioner=ModelCaptionerConfig()), tmp_path / "longer")
    originals = {p.original_prompt or p.prompt for p in read_prompts(longer.path / "prompts.jsonl")}
    assert originals.isdisjoint(texts(whole)[:41]) and len(originals) > 200
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{')
    with pytest.raises(UserError, match=r"--exclude: bad.jsonl:2: not JSON"):
        caption(replace(config, exclude=(tmp_path / "bad.jsonl",)), tmp_path / "x")


def test_expansion_keeps_what_it_cannot_better_and_goes_on_after_a_kill(
    tmp_path: Path, fake: FakeCaptioner
) -> None:
    captions = [f"a cat number {n}" for n in range(20)]
    captions[3], captions[7] = "refuse this", "mute that"
    (tmp_path / "a.txt").write_text("\n".join(captions))
    config = replace(PLAIN, captioner=ModelCaptionerConfig(), shard_size=4)
    clean = caption(config, tmp_path / "clean", [tmp_path / "a.txt"])
    prompts = read_prompts(clean.path / "prompts.jsonl")
    assert prompts[0] == Prompt(
        prompt="a cat number 0, in detail 1", original_prompt="a cat number 0", origin="a.txt:1"
    )
    assert [prompts[3].prompt, prompts[3].original_prompt] == ["refuse this", None]
    assert clean.manifest["fallbacks"] == {"empty answer": 1, "refused": 1}
    assert clean.counts == {"prompts": 20, "read": 20, "dropped": 0, "expanded": 18}

    fake.asked.clear()
    answer = FakeCaptioner._answer

    def dying(self: FakeCaptioner, text: str, seed: int) -> str:
        return answer(self, "die" if text == captions[13] and len(self.asked) < 30 else text, seed)

    fake._answer = dying.__get__(fake)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            caption(config, tmp_path / "killed", [tmp_path / "a.txt"])
    assert not (tmp_path / "killed").exists() and workspace_of(tmp_path / "killed").is_dir()
    fake.asked += [""] * 30
    killed = caption(config, tmp_path / "killed", [tmp_path / "a.txt"])
    assert killed.manifest["files"] == clean.manifest["files"]
    assert killed.manifest["fallbacks"] == clean.manifest["fallbacks"]
    asked = Counter(fake.asked)
    assert {asked[each] for each in captions[:12]} == {1}, "a whole shard is not asked for again"


@pytest.mark.parametrize("step", ["judge", "write_prompts", "concept_coverage", "embed"])
def test_a_run_killed_in_any_step_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    config = replace(PLAIN, source=GrammarConfig(num=120), measure=True, selection=SelectionConfig(num=40))
    whole = caption(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        real = getattr(__import__("lightgen.stages.caption", fromlist=["x"]), step)
        calls = []

        def die(*given, **more):
            calls.append(1)
            if len(calls) == (3 if step == "write_prompts" else 1):
                raise KeyboardInterrupt
            return real(*given, **more)

        patch.setattr(f"lightgen.stages.caption.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            caption(config, tmp_path / "killed")
    again = caption(config, tmp_path / "killed")
    assert again.manifest["files"] == whole.manifest["files"]
    assert again.manifest["diversity"] == whole.manifest["diversity"]
    assert again.counts == whole.counts


def test_the_most_diverse_are_selected_and_the_others_told(tmp_path: Path) -> None:
    captions = [f"a red apple on table {n}" for n in range(40)] + ["two blue dogs in the snow", "a tall tree"]
    (tmp_path / "a.txt").write_text("\n".join(captions))
    config = replace(PLAIN, measure=True, selection=SelectionConfig(num=6, how="k-center"), cells=4)
    found = caption(config, tmp_path / "out", [tmp_path / "a.txt"])
    assert len(texts(found)) == 6 and {captions[-1], captions[-2]} <= set(texts(found))
    assert texts(found) == sorted(texts(found), key=captions.index)
    assert found.manifest["dropped"] == {"not selected": 36}
    assert sorted([*texts(found), *(each["prompt"] for each in dropped(found))]) == sorted(captions)
    told = found.manifest["diversity"]
    assert told["taken"]["num"] == told["random"]["num"] == 6
    assert told["taken"]["vendi"] > told["random"]["vendi"]
    assert 0 < told["taken"]["coverage"] <= 1 and told["concepts"]["objects"]["distinct"] >= 2
    every = caption(
        replace(config, selection=SelectionConfig(num=99)), tmp_path / "all", [tmp_path / "a.txt"]
    )
    assert texts(every) == captions and every.manifest["dropped"] == {}
    told = every.manifest["diversity"]
    assert "random" not in told and told["taken"]["num_cells"] == 4 and told["taken"]["coverage"] is None


def test_images_get_new_captions_and_keep_all_else(tmp_path: Path, fake: FakeCaptioner) -> None:
    random = np.random.default_rng(0)
    metas = {"score": 0.5, "generator": "g", "tag": "counting", "include": [{"class": "cat", "count": 2}]}
    records = [
        ImageRecord(
            f"k{n}", random.integers(1, 255, (16 + n, 8, 3), dtype=np.uint8), {"prompt": f"p{n}", **metas}
        )
        for n in range(5)
    ]
    records[2] = replace(records[2], image=np.zeros((8, 8, 3), dtype=np.uint8))
    folder = tmp_path / "images"
    folder.mkdir()
    write_image_shard(folder / "0.tar", records)
    with tarfile.open(folder / "1.tar", "w") as tar:
        for name, data in {
            "bad.png": encode_image(records[0].image)[:60],
            "bad.json": b'{"prompt": "b"}',
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    config = CaptionConfig(recaption=True, captioner=ModelCaptionerConfig(), shard_size=2)
    found = caption(config, tmp_path / "out", [folder])
    assert found.kind == "images" and len(list(found.path.glob("*.tar"))) == 3
    old, new = ImageShards(folder), ImageShards(found.path)
    assert [new.key(i) for i in range(len(new))] == ["k0", "k1", "k2", "k3", "k4"]
    assert all(new.encoded(i).data == old.encoded(i).data for i in range(5))
    assert new.meta(1) == {
        "prompt": "A picture of 17 px.", "original_prompt": "p1", "score": 0.5, "generator": "g"
    }  # fmt: skip
    assert new.meta(2) == {"prompt": "p2", **metas, "caption_fallback": "empty answer"}
    assert found.counts == {"images": 5, "recaptioned": 4, "dropped": 1}
    assert found.manifest["fallbacks"] == {"empty answer": 1}
    assert dropped(found) == [{"origin": "bad", "reason": "cannot be read"}]
    again = caption(config, tmp_path / "again", [found.path])
    assert ImageShards(again.path).meta(1)["original_prompt"] == "p1"
    assert again.parents[0]["digest"] == found.digest


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n' + "{\n" * 9)
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "a.csv").write_text("a cat\n")
    (tmp_path / "none").mkdir()
    new = replace(PLAIN, recaption=True, captioner=ModelCaptionerConfig())
    cases: list[tuple[CaptionConfig, list, str]] = [
        (PLAIN, [], "captions: got none, allowed: --in"),
        (PLAIN, [tmp_path / "no.txt"], "no such file"),
        (PLAIN, [tmp_path / "a.csv"], "suffix '.csv'"),
        (PLAIN, [tmp_path / "none"], "no files of captions"),
        (PLAIN, [tmp_path / "empty.txt"], "empty.txt: got no captions"),
        (PLAIN, [tmp_path / "bad.jsonl"], r"got 9 bad of 10 \(first bad.jsonl:2: not JSON\)"),
        (PLAIN, ["hf:nonsense"], "allowed: hf:OWNER/NAME"),
        (replace(PLAIN, cleaning=CleaningConfig(min_words=9)), [tmp_path / "a.txt"], "none of 1 stays"),
        (replace(PLAIN, recaption=True), [tmp_path / "a.txt"], "without a captioner"),
        (replace(new, exclude=(tmp_path / "a.txt",)), [tmp_path / "a.txt"], "recaption with exclude"),
        (replace(new, selection=SelectionConfig(num=1)), [tmp_path / "a.txt"], "or selection.num"),
        (replace(PLAIN, num_per_input=0), [tmp_path / "a.txt"], "whole numbers from 1"),
        (replace(PLAIN, max_bad_share=2.0), [tmp_path / "a.txt"], "0 to 1"),
        (replace(PLAIN, source=GrammarConfig(num=0)), [], "num 0"),
        (replace(PLAIN, source=NanoPrompts(num=0)), [], "num 0"),
        (replace(PLAIN, captioner=ModelCaptionerConfig(model="./no")), [tmp_path / "a.txt"], "./no"),
    ]
    for config, inputs, said in cases:
        with pytest.raises(UserError, match=re.escape(said) if "\\" not in said else said) as caught:
            caption(config, tmp_path / "out", inputs)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_public_sets_are_read_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"caption {n}"}) + "\n" for n in range(9))
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = caption(replace(PLAIN, num_per_input=4), tmp_path / "out", [f"hf:{folder}"])
    assert texts(found) == [f"caption {n}" for n in range(4)]
    asked = {}

    class Hub:
        def dataset_info(self, name: str, timeout: float):
            return type("Info", (), {"sha": "c0ffee"})

    def fake_set(name, note, *rest):
        asked[name] = rest
        yield Prompt(prompt="of the hub", origin=f"{name}:1")

    monkeypatch.setattr(caption_inputs.huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(caption_inputs, "read_set", fake_set)
    found = caption(replace(PLAIN, column="c"), tmp_path / "hub", ["hf:owner/name:en:test"])
    assert asked == {"owner/name": ("en", "test", "c", "c0ffee")}
    assert found.config["plain_inputs"] == [{"name": "hf:owner/name:en:test", "revision": "c0ffee"}]


def test_the_recipes_hold_together(tmp_path: Path) -> None:
    for name in ("nano", "grammar", "clean", "diverse", "expand", "recaption", "expand_endpoint"):
        vars(recipes)[name]().check()
    small = replace(recipes.nano(), source=NanoPrompts(num=30))
    found = caption(small, tmp_path / "out", engine=EngineConfig())
    assert found.manifest["diversity"]["taken"]["num"] == found.counts["prompts"] <= 30
    assert open_artifact(found.path, "prompts").digest == found.digest
