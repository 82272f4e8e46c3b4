"""PromptLines: the same prompts as a whole reading, line by line, whatever the file looks like."""

import json
import pickle
from pathlib import Path

import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.data import prompts as module
from lightgen.data.prompts import PromptFiles, PromptLines, read_prompts, write_prompts

PROMPTS = [
    Prompt(prompt=f"{n} caf\u00e9 \u2028", seed=n, origin="a.txt:1", include=(Requirement(name="cat"),))
    for n in range(5)
]


def test_lines_are_read_in_any_order(tmp_path: Path) -> None:
    assert write_prompts(tmp_path / "p.jsonl", iter(PROMPTS)) == 5
    lines = PromptLines(tmp_path / "p.jsonl")
    assert len(lines) == 5
    assert list(lines) == read_prompts(tmp_path / "p.jsonl") == PROMPTS
    assert [lines[i] for i in (4, 0, -1)] == [PROMPTS[i] for i in (4, 0, -1)]
    assert lines[1:4] == PROMPTS[1:4]
    for outside in (5, -6):
        with pytest.raises(IndexError):
            lines[outside]
    again = pickle.loads(pickle.dumps(lines))
    assert again[3] == PROMPTS[3] and len(pickle.dumps(lines)) < 400


def test_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 64)
    path = tmp_path / "p.jsonl"
    long = json.dumps({"prompt": "x" * 200}).encode()
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\r\n\n' + b" " * 150 + b"\n" + b" " * 70 + b'{"prompt": "b"}\n'
    )
    lines = PromptLines(path)
    assert len(lines) == 2 and lines[0].prompt == "a"
    path.write_bytes(b'{"prompt": "a"}\n\n' + long + b"\n" + b'{"prompt": "c"}')
    lines = PromptLines(path)
    assert [lines[0].prompt, lines[2].prompt] == ["a", "c"]
    with pytest.raises(UserError, match=r"^p\.jsonl, line 3: got more than 64 bytes"):
        lines[1]
    with pytest.raises(UserError, match="line 3"):
        list(lines)


def test_new_fields_survive_and_strangers_use_of_their_names_is_no_error() -> None:
    prompt = Prompt(prompt="a", origin="x:1", original_prompt="b")
    assert Prompt.from_json(prompt.to_json()) == prompt
    assert Prompt.from_json({"prompt": "a", "origin": {"x": 1}, "original_prompt": 5}) == Prompt(prompt="a")
    assert Prompt(prompt="a").to_json() == {"prompt": "a"}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield PROMPTS[0]
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        write_prompts(tmp_path / "p.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


def test_several_files_are_one_sequence(tmp_path):
    texts = [["a", "b", "c"], ["d"], ["e", "f"]]
    for number, each in enumerate(texts):
        write_prompts(tmp_path / f"{number}.jsonl", [Prompt(prompt=text) for text in each])
    files = PromptFiles([PromptLines(tmp_path / f"{number}.jsonl") for number in range(3)])
    assert [p.prompt for p in files] == list("abcdef") == [files[i].prompt for i in range(6)]
    assert [p.prompt for p in files[2:5]] == ["c", "d", "e"] and len(files) == 6
    assert files[-1].prompt == "f"
    with pytest.raises(IndexError):
        files[6]
    assert [p.prompt for p in pickle.loads(pickle.dumps(files))] == list("abcdef")
