"""Prompt files: a round trip, and errors that name the line."""

from pathlib import Path

import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.data.prompts import read_prompts, write_prompts

PROMPTS = [
    Prompt(
        prompt="two red apples", tag="counting", include=(Requirement(name="apple", count=2, color="red"),)
    ),
    Prompt(prompt="caf\u00e9 \u2028 \u732b \ud83d", seed=3, source="a.png", mask="b.png"),
]


def test_prompts_round_trip_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_prompts(tmp_path / name, PROMPTS)
    assert read_prompts(tmp_path / "a.jsonl") == PROMPTS
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_foreign_files_are_read(tmp_path: Path) -> None:
    text = '\ufeff{"prompt": "a\u2028b", "extra": 1}\r\n\n   \n{"prompt": "c"}'
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    assert [p.prompt for p in read_prompts(tmp_path / "p.jsonl")] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        b"a red apple",
        b"{",
        b'"text"',
        b'{"caption": "a"}',
        b'{"prompt": 1}',
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=r"^p\.jsonl, line 3: ") as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_field_out_of_range_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "tag": "colour"}\n')
    with pytest.raises(UserError, match="line 1: .*tag 'colour'.*allowed: single_object"):
        read_prompts(tmp_path / "p.jsonl")


def test_no_prompts_is_an_error(tmp_path: Path) -> None:
    for data in (b"", b"\n \n"):
        (tmp_path / "p.jsonl").write_bytes(data)
        with pytest.raises(UserError, match="p.jsonl: got no prompts"):
            read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="got no prompts to write"):
        write_prompts(tmp_path / "q.jsonl", [])
    for missing in (tmp_path / "q.jsonl", tmp_path):
        with pytest.raises(UserError, match="not readable"):
            read_prompts(missing)
