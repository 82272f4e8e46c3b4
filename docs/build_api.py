"""Write docs/api.md, the API reference, from the docstrings of the code: `make api`."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path

from lightgen.recipes import STAGES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGE = ROOT / "lightgen"
# What a researcher imports beyond the public names; a class comes with its public methods.
BELOW = {
    "core.artifact": "Artifact begin_artifact",
    "recipes": "find describe",
    "models.transformer": "LightGenTransformer",
    "sampling.decode": "DecodeConfig Texts decode_tokens",
    "sampling.presets": "preset",
    "objectives.masked": "MaskedObjective draw_masking masked_errors",
    "objectives.dpo": "DPOObjective preference_loss reference_errors",
    "training.fit": "fit",
}
INTRODUCTION = """# API reference

Written by `make api` from the docstrings: to change a text, change it where its link leads. Arguments and
attributes stand with types and defaults; those without a word are what their names say. Shape letters:
[glossary.md](glossary.md).
"""
Definition = ast.ClassDef | ast.FunctionDef
Documented = Definition | ast.Module
_HEAD = "| recipe | what | hardware | time |\n|---|---|---|---|"
_LABEL = r"{}: (.+?)(?:\.(?= |$)|$)"
_ENTRY = re.compile(r"^ {4}([a-z_]\w*(?:, \w+)*): (.*)$")


@cache
def tree(module: str) -> ast.Module:
    """Syntax of a module, named below the package."""
    return ast.parse(file(module).read_text(encoding="utf-8"))


def file(module: str) -> Path:
    """Where a module is written."""
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def link(module: str) -> str:
    """Link from the page to a module's file."""
    name = file(module).relative_to(ROOT).as_posix()
    return f"[{name}](../{name})"


def find(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Module and statement that define a name as a module knows it; None where that is not in the package."""
    for node in tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if name in [ast.unparse(each) for each in targets]:
            return module, node
        if isinstance(node, Definition) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package, _, origin = (node.module or "").partition(".")
            return find(origin, name) if package == "lightgen" else None
    return None


def words(node: Documented) -> tuple[str, dict[str, str]]:
    """Docstring as one line without the lists of arguments and attributes, and what those say, by name."""
    told, kept, name, is_list = {}, [], "", False
    for line in cleandoc(ast.get_docstring(node) or "").splitlines():
        if line in ("Args:", "Attributes:"):
            is_list = True
        elif is_list and (entry := _ENTRY.match(line)):
            name, told[entry[1]] = entry[1], entry[2]
        elif is_list and line.startswith(" " * 5) and name:
            told[name] += f" {line.strip()}"
        else:
            is_list = is_list and not line
            kept.append(line.strip())
    return " ".join(" ".join(kept).split()), told


def parameters(node: Documented) -> Iterator[tuple[str, str]]:
    """Name and `name: type = default` of each field of a dataclass, or argument of a function."""
    if not isinstance(node, ast.FunctionDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        yield from ((ast.unparse(each.target), tidy(ast.unparse(each))) for each in fields)
        return
    given, more = node.args.args, node.args.vararg
    defaults = [None] * (len(given) - len(node.args.defaults)) + list(node.args.defaults)
    for each, default in zip(given, defaults, strict=True):
        if each.arg not in ("self", "cls"):
            yield each.arg, tidy(ast.unparse(each) + (f" = {ast.unparse(default)}" if default else ""))
    if more:
        yield more.arg, f"*{ast.unparse(more)}"


def tidy(code: str) -> str:
    """Code as a reader wants it: a factory as what it makes, a long tail cut."""
    code = re.sub(r"field\(default_factory=lambda: (.*)\)$", r"\1", code.replace("\n", " "))
    code = re.sub(r"field\(default_factory=(\w+)\)$", r"\1()", code)
    return code if len(code) <= 150 else code[:146] + " ..."


def bullets(node: Documented) -> list[str]:
    """A line for what each entry of a docstring tells, with types; last, one for all that needs no words."""
    codes, (_, told) = dict(parameters(node)), words(node)
    lines, named = [], set()
    for names, text in told.items():
        known = [name for name in names.split(", ") if name in codes]
        named |= set(known)
        shown = ", ".join(f"`{codes[name]}`" for name in known) or f"`{names}`"
        lines.append(f"- {shown}: {text}")
    rest = [f"`{code}`" for name, code in codes.items() if name not in named and name[0] != "_"]
    return lines + ([f"- {', '.join(rest)}"] if rest else [])


def described(module: str, name: str = "", title: str = "") -> list[str]:
    """Heading, docstring and entries of a module, class or function; of a class its public methods too."""
    node = tree(module)
    for part in name.split(".") if name else ():
        (node,) = (each for each in node.body if isinstance(each, Definition) and each.name == part)
    methods = node.body if isinstance(node, ast.ClassDef) else []
    told = [line for each in methods if isinstance(each, ast.FunctionDef) for line in method(each)]
    return [f"### {title or name}", f"{words(node)[0]} {link(module)}", *bullets(node), *told]


def method(node: ast.FunctionDef) -> list[str]:
    """The line of a method; none of what is private, sets a property, or checks numbers."""
    decorators = " ".join(ast.unparse(each) for each in node.decorator_list)
    if node.name.startswith("_") or node.name == "check" or ".setter" in decorators:
        return []
    inside = "" if "property" in decorators else f"({', '.join(code for _, code in parameters(node))})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return [f"- `.{node.name}{inside}{returns}`: {words(node)[0]}"]


def public_names() -> list[str]:
    """The names of `from lightgen import ...`, and all that the pipeline's call takes."""
    parts = ("LightGenPipeline", "LightGenPipeline.from_pretrained", "LightGenPipeline.__call__")
    lines = [line for part in parts for line in described("stages.pipeline", part)]
    lines += described("core.artifact", "open_artifact", "load_artifact")
    return ["## from lightgen import ...", "", *lines, *described("recipes", title="recipes"), ""]


def recipes_of(stage: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Module and function of each recipe of a stage, by name."""
    paths = [*(PACKAGE / "recipes").glob(f"{stage}.py"), *(PACKAGE / "recipes").glob(f"{stage}_*.py")]
    found = [(f"recipes.{path.stem}", node) for path in paths for node in tree(f"recipes.{path.stem}").body]
    functions = [(module, node) for module, node in found if isinstance(node, ast.FunctionDef)]
    yield from sorted((each for each in functions if each[1].name[0] != "_"), key=lambda each: each[1].name)


def recipe_tables() -> tuple[list[str], dict[str, str]]:
    """Tables of all recipes, by stage, and where each config that they return is known, by name."""
    lines, configs = ["## Recipes", ""], {}
    for stage in STAGES:
        made, rows = {}, []
        for module, node in recipes_of(stage):
            made[ast.unparse(node.returns or node)] = module
            text = ast.get_docstring(node) or ""
            labels = [re.search(_LABEL.format(each), " ".join(text.split())) for each in ("Hardware", "Time")]
            told = [text.partition("\n")[0], *(each[1] if each else "" for each in labels)]
            name = f"[{node.name.replace('_', '-')}](../{file(module).relative_to(ROOT).as_posix()})"
            rows.append(f"| {' | '.join([name, *(each.replace('|', '&#124;') for each in told)])} |")
        returned = ", ".join(f"[{each}](#{each.lower()})" for each in sorted(made))
        lines += [f"### Recipes of {stage}: {returned}", _HEAD, *rows, ""]
        configs |= made
    return lines, configs


def config_sections(configs: dict[str, str]) -> list[str]:
    """Every dataclass that the configs hold, however deep, with its attributes, by name."""
    waiting, found = list(configs.items()), {}
    while waiting:
        name, module = waiting.pop()
        home, node = find(module, name) or ("", None)
        inside: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            inside = [node.value]
        elif isinstance(node, ast.ClassDef) and name not in found and node.decorator_list:
            found[name] = home
            inside = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
        parts = [each for part in inside for each in ast.walk(part)]
        waiting += [(each.id, home) for each in parts if isinstance(each, ast.Name)]
    ordered = sorted(found, key=str.lower)
    return ["## Configs", "", *(line for name in ordered for line in described(found[name], name))]


def page() -> str:
    """The whole reference, as docs/api.md holds it."""
    tables, configs = recipe_tables()
    classes = [each.name for each in tree("ports.protocols").body if isinstance(each, ast.ClassDef)]
    ports = [line for name in sorted(classes) for line in described("ports.protocols", name)]
    below = [(module, name) for module, names in BELOW.items() for name in names.split()]
    lines = [INTRODUCTION, *public_names(), *tables, *config_sections(configs), "", "## Ports", "", *ports]
    lines += ["", "## For your own experiments", "", *(line for each in below for line in described(*each))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
