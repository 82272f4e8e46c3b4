"""The API reference is what the docstrings say today."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(build_api):
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == build_api.page(), "run `make api`"


def test_every_recipe_has_a_row(build_api):
    from lightgen import recipes

    lines = build_api.page().splitlines()
    for stage in recipes.STAGES:
        head = next(i for i, line in enumerate(lines) if line.startswith(f"### Recipes of {stage}: "))
        rows = lines[head + 3 : lines.index("", head)]
        assert [row.split("[")[1].split("]")[0] for row in rows] == sorted(recipes.describe(stage), key=_code)


def _code(name: str) -> str:
    return name.replace("-", "_")


def test_every_argument_of_the_call_is_told(build_api):
    from lightgen import LightGenPipeline

    section = build_api.page().split("### LightGenPipeline.__call__")[1].split("###")[0]
    told = [line.split("`")[1].split(":")[0] for line in section.splitlines() if line.startswith("- ")]
    assert told == [
        name for name in inspect.signature(LightGenPipeline.__call__).parameters if name != "self"
    ]


def test_types_defaults_and_words_come_together(build_api):
    source = '''\
class Thing:
    """What it is.

    Attributes:
        a, b: sides
            in px.
        c: of it.

    Raises:
        UserError: never.
    """

    a: int = 1
    b: int = 2
    c: str = field(default_factory=lambda: make("|"))
    d: bool
'''
    (node,) = ast.parse(source).body
    assert build_api.words(node)[0] == "What it is. Raises: UserError: never."
    assert build_api.bullets(node) == [
        "- `a: int = 1`, `b: int = 2`: sides in px.",
        "- `c: str = make('|')`: of it.",
        "- `d: bool`",
    ]


def test_every_link_inside_the_page_has_its_heading(build_api):
    text = build_api.page()
    headings = {line.removeprefix("### ").lower() for line in text.splitlines() if line.startswith("### ")}
    targets = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert targets and targets <= headings
