"""The rules of the house that hold in every room."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightgen

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "lightgen").rglob("*.py"))
MAX_LINES = 320
CATCH_ALL = ("util", "utils", "helper", "helpers", "common", "misc", "manager", "base")
HEAVY = (
    *("torch", "numpy", "diffusers", "transformers", "PIL", "safetensors", "scipy"),
    *("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"),
)
# Written so that this file does not hold what it looks for.
PRIVATE = {
    "a path of one machine": r"(?<![\w.])/(?:root|home|work|Users)/\w|\b[A-Z]:\\Users",
    "a package registry's host": r"\b(?:"
    + "|".join((r"pypi\.org", r"pythonhosted\.org", r"download\.pytorch\.org"))
    + ")",
}
TEXT = (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", "")
SKIPPED = (".git", ".venv", "runs", "build", "dist", "__pycache__")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def public_without_docstring(source: str) -> list[str]:
    """Public modules, classes and functions (methods too) that have no docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["module"]

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if child.name.startswith("_"):
                continue
            overload = not isinstance(child, ast.ClassDef) and any(
                isinstance(each, ast.Name) and each.id in ("overload", "override")
                for each in child.decorator_list
            )
            if not ast.get_docstring(child) and not overload:
                missing.append(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return missing


def private_text(text: str) -> list[str]:
    """What a text holds that is of one machine only."""
    return [f"{what}: {found[0]}" for what, pattern in PRIVATE.items() if (found := re.search(pattern, text))]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_in_order(path):
    source = path.read_text(encoding="utf-8")
    assert path.stem not in CATCH_ALL, "name the file after the one thing that it holds"
    assert len(source.splitlines()) <= MAX_LINES
    assert public_without_docstring(source) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def test_a_missing_docstring_is_seen():
    assert public_without_docstring("def f(): pass") == ["module", "f"]
    assert public_without_docstring('"""M."""\nclass A:\n    """A."""\n    def f(self): pass\n') == ["A.f"]
    assert (
        public_without_docstring('"""M."""\ndef _f(): pass\nclass A:\n    """A."""\n    def _g(self): pass\n')
        == []
    )


def test_private_text_is_seen():
    for text in (
        "see /ro" + "ot/x",
        "'/ho" + "me/me/x'",
        "C:" + r"\Users\me",
        "https://py" + "pi.org/simple",
    ):
        assert private_text(text), text
    assert private_text("a/home/b and ./root/x, home/ and root") == []


def text_files() -> list[Path]:
    """Files under version control, or (outside a checkout) all that are not put there by tools."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or list(ROOT.rglob("*"))
    inside = [path for path in paths if not set(path.relative_to(ROOT).parts[:-1]) & set(SKIPPED)]
    return [path for path in inside if path.suffix in TEXT and path.is_file() and not path.is_symlink()]


def test_no_file_speaks_of_one_machine():
    paths = text_files()
    assert ROOT / "pyproject.toml" in paths
    found = {
        name_of(path): private_text(path.read_text(encoding="utf-8", errors="replace")) for path in paths
    }
    assert {name: what for name, what in found.items() if what} == {}


def imported_by(code: str) -> tuple[int, set[str]]:
    """Exit status of a fresh Python that runs the code, and the top-level modules that it imported."""
    report = "sys.stderr.write('\\nIMPORTED ' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    probe = f"import atexit, sys\natexit.register(lambda: {report})\n"
    run = subprocess.run(
        [sys.executable, "-c", probe + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return run.returncode, set(run.stderr.rpartition("\nIMPORTED ")[2].split())


def test_the_probe_sees_imports():
    status, imported = imported_by("import decimal\nsys.exit(3)")
    assert status == 3
    assert "decimal" in imported


@pytest.mark.parametrize(
    "module", ["lightgen", "lightgen.core.artifact", "lightgen.core.config", "lightgen.cli"]
)
def test_light_modules_import_nothing_heavy(module):
    status, imported = imported_by(f"import {module}, lightgen.core.progress, lightgen.core.metrics")
    assert status == 0
    assert imported.isdisjoint({*HEAVY, "rich"})


@pytest.mark.parametrize("arguments", [["--help"], ["no-such-command"]])
def test_the_command_line_answers_without_heavy_imports(arguments):
    status, imported = imported_by(
        f"sys.argv = ['lightgen', *{arguments!r}]\nfrom lightgen.cli.main import main\nsys.exit(main())"
    )
    assert status == (2 if arguments == ["no-such-command"] else 0)
    assert imported.isdisjoint(HEAVY)


def test_the_public_names():
    from lightgen.core.artifact import open_artifact

    assert lightgen.load_artifact is open_artifact
    assert set(lightgen.__all__) == {"LightGenPipeline", "load_artifact", "recipes", "__version__"}
    assert {name for name in lightgen.__all__ if getattr(lightgen, name) is None} == set()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lightgen.no_such_name


def test_the_version_is_stated_once_more_at_most():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{lightgen.__version__}"' in text
