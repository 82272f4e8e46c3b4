import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lightgen
from lightgen.core.errors import UserError
from lightgen.sampling.decode import DecodeConfig
from lightgen.sampling.presets import preset
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.generate import GenerateConfig, generate
from lightgen.stages.pipeline import LightGenPipeline

FEW = DecodeOverrides(num_iterations=2, num_head_steps=2)
CONFIG = GenerateConfig(height=64, width=80, overrides=FEW, seed=4)
LONG = " ".join(["a red apple left of a blue car and"] * 9)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_a_picture_remembers_how_it_was_made(toy, tmp_path):
    config = replace(CONFIG, negative_prompt="a cat", preset="balanced")
    (path,) = generate(config, "a photo of an été dog", tmp_path / "dog.png", toy.student.path)
    with Image.open(path) as picture:
        assert picture.size == (80, 64)
        text = dict(picture.text)
    facts = json.loads(text.pop("lightgen"))
    assert set(text) == set(facts)
    settings = replace(preset("balanced", "flow"), num_iterations=2, num_head_steps=2, last_head_steps=2)
    assert {field.name: facts[field.name] for field in fields(DecodeConfig)} == {
        **vars(settings),
        "guidance_interval": [0.0, 1.0],
    }
    told = {
        name: text[name] if isinstance(fact, str) else json.loads(text[name]) for name, fact in facts.items()
    }
    assert told == facts
    assert (text["solver"], text["num_iterations"], text["guidance_scale"]) == (settings.solver, "2", "3.0")
    assert (text["prompt"], text["negative_prompt"]) == ("a photo of an été dog", "a cat")
    assert (text["seed"], text["height"], text["width"]) == ("4", "64", "80")
    assert (text["model"], text["model_digest"]) == ("student", toy.student.digest)
    assert (text["preset"], text["lightgen_version"]) == ("balanced", lightgen.__version__)


def test_what_is_remembered_draws_it_again(toy, tmp_path):
    (path,) = generate(replace(CONFIG, seed=7), "a dog", tmp_path / "dog.png", toy.student.path)
    with Image.open(path) as picture:
        facts = json.loads(picture.text["lightgen"])
    settings = {field.name: facts[field.name] for field in fields(DecodeOverrides)}
    again = replace(
        GenerateConfig(seed=facts["seed"], height=facts["height"], width=facts["width"]),
        overrides=DecodeOverrides(**settings),
    )
    (copy,) = generate(again, facts["prompt"], tmp_path / "copy.png", toy.student.path)
    assert np.abs(pixels(path) - pixels(copy)).max() <= 1


def test_the_same_seed_gives_the_same_bytes(toy, tmp_path):
    config = replace(CONFIG, width=64, seed=5)
    (one,) = generate(config, "a dog", tmp_path / "one.png", toy.student.path)
    (two,) = generate(config, "a dog", tmp_path / "two.png", toy.student.path)
    assert one.read_bytes() == two.read_bytes()


def test_a_picture_is_the_same_alone_and_among_others(toy, tmp_path, monkeypatch):
    sizes, call = [], LightGenPipeline.__call__

    def count(self, **values):
        sizes.append(len(values["seeds"]))
        return call(self, **values)

    monkeypatch.setattr(LightGenPipeline, "__call__", count)
    config = replace(CONFIG, width=64, num=3, batch_size=4, negative_prompt="a car")
    prompts = ["a dog", "two red apples left of a blue elephant"]
    paths = generate(config, prompts, f"{tmp_path}/many/", toy.student.path)
    assert sizes == [4, 2]
    assert [path.name for path in paths] == [
        *(f"a-dog-{seed}.png" for seed in (4, 5, 6)),
        *(f"two-red-apples-left-of-a-blue-elephant-{seed}.png" for seed in (4, 5, 6)),
    ]
    alone = replace(config, num=1, seed=5)
    for number, prompt in enumerate(prompts):
        (path,) = generate(alone, prompt, tmp_path / "alone.png", toy.student.path)
        assert np.abs(pixels(path) - pixels(paths[3 * number + 1])).max() <= 1
        with Image.open(paths[3 * number + 1]) as picture:
            assert (picture.text["prompt"], picture.text["seed"]) == (prompt, "5")
    assert np.abs(pixels(paths[0]) - pixels(paths[1])).max() > 1
    assert np.abs(pixels(paths[0]) - pixels(paths[3])).max() > 1


def test_large_pictures_come_in_small_batches(toy, tmp_path, monkeypatch):
    sizes = []

    def note(self, **values):
        sizes.append(len(values["seeds"]))
        return (np.zeros((len(values["seeds"]), values["height"], values["width"], 3)),)

    monkeypatch.setattr(LightGenPipeline, "__call__", note)
    config = replace(CONFIG, height=512, width=256, num=9)
    generate(config, "a dog", f"{tmp_path}/", toy.student.path)
    assert sizes == [4, 4, 1]
    generate(replace(config, height=1024, width=1024, num=2), "a dog", f"{tmp_path}/", toy.student.path)
    assert sizes[3:] == [1, 1]


def test_the_negative_prompt_changes_the_picture(toy, tmp_path):
    found = [
        pixels(
            generate(replace(CONFIG, negative_prompt=each), "a dog", tmp_path / "x.png", toy.student.path)[0]
        )
        for each in (None, "", "a cat")
    ]
    assert all(np.abs(found[i] - found[j]).max() > 1 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_size_is_the_models_own(toy, tmp_path):
    config = GenerateConfig(overrides=DecodeOverrides(num_iterations=1, num_head_steps=1))
    (path,) = generate(config, "a dog", tmp_path / "x.png", toy.student.path)
    assert pixels(path).shape == (128, 128, 3)
    (path,) = generate(replace(config, width=32), "a dog", tmp_path / "x.png", toy.student.path)
    assert pixels(path).shape == (128, 32, 3)


@pytest.mark.parametrize(
    ("prompts", "out", "names"),
    [
        (["A red, DOG!"], "dogs/", ["a-red-dog-4.png", "a-red-dog-5.png"]),
        (["A red, DOG!"], "deep/er/x.png", ["x-4.png", "x-5.png"]),
        (["a dog", "a cat"], "x.png", ["x-1-4.png", "x-1-5.png", "x-2-4.png", "x-2-5.png"]),
        (["a dog", "a cat"], "", ["a-dog-4.png", "a-dog-5.png", "a-cat-4.png", "a-cat-5.png"]),
        (
            ["a dog", "A dog!", "un chien"],
            "dogs/",
            [
                *("a-dog-7dbdf68a-4.png", "a-dog-7dbdf68a-5.png"),
                *("a-dog-ab02bbc6-4.png", "a-dog-ab02bbc6-5.png", "un-chien-4.png", "un-chien-5.png"),
            ],
        ),
    ],
)
def test_where_pictures_go(toy, tmp_path, prompts, out, names, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = generate(replace(CONFIG, num=2), prompts, out or None, toy.student.path)
    assert [path.name for path in made] == names
    assert {path.resolve().parent for path in made} == {
        (tmp_path / out).parent if "." in out else tmp_path / out
    }
    assert all(path.is_file() for path in made)
    assert not list(tmp_path.rglob("*.tmp"))


def test_file_names_never_collide(toy, tmp_path):
    from lightgen.stages.picture_files import picture_paths

    prompts = ["dog 4", "dog", "Dog", "狗", "猫", "x" * 70, "x" * 71, "!", "picture", "../dog", "CON", "."]
    for out in (None, tmp_path, "x.png"):
        paths = [path for row in picture_paths(prompts, [3, 4, 5], out) for path in row]
        assert len({str(path).lower() for path in paths}) == len(prompts) * 3
        assert all(
            len(path.name) < 100 and path.parent == (out if out == tmp_path else Path()) for path in paths
        )


def test_a_contact_sheet(toy, tmp_path):
    config = replace(CONFIG, num=3, batch_size=2)
    *paths, sheet = generate(
        config, ["a dog", "two cats"], f"{tmp_path}/", toy.student.path, tmp_path / "sheet.png"
    )
    assert sheet == tmp_path / "sheet.png"
    rows = [np.concatenate([pixels(path) for path in paths[k : k + 3]], axis=1) for k in (0, 3)]
    np.testing.assert_array_equal(pixels(sheet), np.concatenate(rows))
    with Image.open(sheet) as picture:
        facts = json.loads(picture.text["lightgen"])
    assert (facts["prompts"], facts["seeds"]) == (["a dog", "two cats"], [4, 5, 6])


def test_a_cut_prompt_is_told_in_one_line(toy, tmp_path, capsys, recwarn):
    config = replace(CONFIG, negative_prompt=LONG)
    generate(config, ["a dog", LONG], f"{tmp_path}/", toy.student.path)
    lines = capsys.readouterr().err.splitlines()
    assert sum("prompt 2: 82 tokens, 48 fit; cut: 'apple left" in line for line in lines) == 1
    assert sum(line.startswith("negative prompt: 82 tokens, 48 fit") for line in lines) == 1
    assert not [each for each in recwarn if "tokens" in str(each.message)]


@pytest.mark.parametrize(
    ("changes", "prompts", "told"),
    [
        ({}, "  ", "prompt: got a blank text"),
        ({}, [], "prompt: got none"),
        ({}, ["a dog", "x" * 10_000_000], "prompt 2: got 10000000 characters, allowed: at most 2000"),
        ({}, ["a dog", "a cat", "a dog"], "got 'a dog' twice"),
        ({"negative_prompt": "x" * 3000}, "a dog", "negative_prompt: got 3000 characters"),
        ({"num": 0}, "a dog", "num: got 0, allowed: a whole number from 1 to 10000"),
        ({"num": 5001}, ["a dog", "a cat"], "num: got 5001, allowed: a whole number from 1 to 5000"),
        ({"batch_size": 0}, "a dog", "batch_size: got 0"),
        ({"height": 72}, "a dog", "size: got 80x72 px"),
        ({"width": 8192}, "a dog", "size: got 8192x64 px"),
        ({"preset": "fats"}, "a dog", "preset: got 'fats', did you mean 'fast'?"),
        ({"overrides": DecodeOverrides(guidance_scale=float("nan"))}, "a dog", "guidance_scale: got nan"),
        ({"overrides": DecodeOverrides(solver="ancestral")}, "a dog", "for a flow checkpoint"),
    ],
)
def test_what_is_refused(toy, tmp_path, changes, prompts, told):
    with pytest.raises(UserError, match=told) as error:
        generate(replace(CONFIG, **changes), prompts, tmp_path / "dog.png", toy.student.path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_which_files_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match="allowed: a name ending in .png"):
        generate(CONFIG, "a dog", tmp_path / "dog.jpg", toy.student.path)
    with pytest.raises(UserError, match="checkpoint with transformer"):
        generate(CONFIG, "a dog", tmp_path / "dog.png", toy.detector.path)
    for grid in ("sheet.jpg", "dog.png"):
        with pytest.raises(
            UserError, match="--grid: got .*allowed: a name ending in .png that no picture has"
        ):
            generate(CONFIG, "a dog", tmp_path / "dog.png", toy.student.path, tmp_path / grid)
    with pytest.raises(UserError, match="--grid: got 24000x64 px, allowed: at most 16384 px a side"):
        generate(replace(CONFIG, num=300), "a dog", f"{tmp_path}/", toy.student.path, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
