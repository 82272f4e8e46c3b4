"""Answerers as stages find them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tyro

from lightgen.core.errors import UserError
from lightgen.ports.answerer import ModelAnswererConfig
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.stages.answerer import AnswererConfig, find_answerer
from tests.ports.toy_answerer import save_family

IMAGES = np.zeros((1, 64, 64, 3), np.uint8)


def test_nano_needs_nothing_but_the_shipped_files() -> None:
    place = find_answerer(AnswererConfig())
    assert set(place.identity()) == {"nano", "detector"} and place.folder is None
    image = EmojiTeacher().generate(["two red dogs"], [0], 128, 128)
    asked = ("How many dogs are in the image?", "Are the dogs red?", "Are the dogs blue?")
    found = place.load().answer(np.repeat(image, 3, 0), asked, [("two",), ("Yes",), ("Yes",)])
    assert [each[0] > 0.9 for each in found] == [True, True, False]


def test_an_answerer_is_its_files_wherever_they_lie(tmp_path: Path) -> None:
    def config(name: str) -> AnswererConfig:
        folder = save_family("qwen3_vl", tmp_path / name)
        return AnswererConfig(kind="model", model=str(folder), precision="fp32", batch_size=2)

    place, other = find_answerer(config("a")), find_answerer(config("b"))
    assert place.identity() == other.identity()
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= set(
        place.identity()
    )
    first, second = (
        each.load().answer(IMAGES, ["Red?"], [("yes", "no")])[0].tolist() for each in (place, other)
    )
    assert first == second and 0 < sum(first) < 1
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert place.identity() != other.identity()


def test_the_command_line_switches_the_kind() -> None:
    config = tyro.cli(AnswererConfig, args=["--kind", "model", "--model", "a/b", "--batch-size", "3"])
    assert config.for_model() == ModelAnswererConfig(model="a/b", batch_size=3)
    assert AnswererConfig().for_model() == ModelAnswererConfig()
    assert set(asdict(AnswererConfig())) == {"kind", *asdict(ModelAnswererConfig())}


def test_what_is_not_here_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf download Qwen/Qwen3-VL-8B-Instruct"):
        find_answerer(AnswererConfig(kind="model"))
    with pytest.raises(UserError, match="no such file or folder"):
        find_answerer(AnswererConfig(kind="model", model=str(tmp_path / "x")))
    with pytest.raises(UserError, match="answerer .*: no config.json"):
        find_answerer(AnswererConfig(kind="model", model=str(tmp_path)))
    with pytest.raises(UserError, match="--answerer.batch-size: got 0"):
        find_answerer(AnswererConfig(batch_size=0))
    with pytest.raises(UserError, match="--answerer.prompt: got 'Well"):
        find_answerer(AnswererConfig(kind="model", prompt="Well?"))
    with pytest.raises(UserError, match="x"):
        find_answerer(AnswererConfig(model=str(tmp_path / "x")))
