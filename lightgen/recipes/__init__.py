"""The numbers that we run: a function per recipe, which returns a frozen dataclass; by stage."""

import ast
import difflib
import importlib
import importlib.abc
import importlib.util
from collections.abc import Sequence
from typing import Any

STAGES = (
    "caption",
    "distill",
    "curate",
    "encode",
    "train",
    "rank",
    "align",
    "evaluate",
    "study",
    "generate",
    "inpaint",
    "quickstart",
    "model",
)


def find(stage: str, name: str) -> Any:  # noqa: ANN401  (each stage has a config class of its own)
    """Config of the recipe `name` of a stage, as in `find("train", "pretrain-nano")`.

    Raises:
        ValueError: there is no such stage or recipe.
    """
    known = describe(stage)
    if name not in known:
        raise ValueError(f"{stage}: unknown recipe {name!r}, {_allowed(name, list(known))}")
    function = name.replace("-", "_")
    (module,) = (each for each, functions in _functions(stage).items() if function in functions)
    return getattr(importlib.import_module(module), function)()


def describe(stage: str) -> dict[str, str]:
    """Docstring of each recipe of a stage, by name; read from the source, so that nothing heavy is imported.

    Raises:
        ValueError: there is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"recipes: unknown stage {stage!r}, {_allowed(stage, STAGES)}")
    found = {name: doc for functions in _functions(stage).values() for name, doc in functions.items()}
    return {name.replace("_", "-"): doc for name, doc in found.items()}


def _functions(stage: str) -> dict[str, dict[str, str]]:
    """Docstring of each public function, by module: that of its recipes of a kind, and the stage's."""
    modules = (f"{stage}_nano", f"{stage}_next", f"{stage}_design", stage)
    specs = [importlib.util.find_spec(f"lightgen.recipes.{name}") for name in modules]
    found = {}
    for spec in filter(None, specs):
        assert isinstance(spec.loader, importlib.abc.InspectLoader), stage
        body = ast.parse(spec.loader.get_source(spec.name) or "").body
        nodes = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        found[spec.name] = {node.name: ast.get_docstring(node) or "" for node in nodes}
    assert found, stage
    return found


def _allowed(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(names)}"
