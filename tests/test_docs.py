"""What the documents tell people to type exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightgen.recipes import find

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAGES = ("caption", "distill", "curate", "encode", "train", "rank", "align", "evaluate", "study")
COMMANDS = {
    *STAGES,
    "quickstart",
    "generate",
    "inpaint",
    "serve",
    "compare",
    "doctor",
    "inspect",
    "import-checkpoint",
    "export-checkpoint",
}
SPOKEN = re.compile(r"lightgen ([a-z]+(?:-checkpoint)?)(?: ([a-z][a-z0-9-]+))?")


def lines(path):
    """Lines of code blocks and the text of inline code."""
    text = path.read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line for block in blocks for line in block.splitlines()] + inline


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_recipe_exists(path):
    for line in lines(path):
        for command, recipe in SPOKEN.findall(line):
            if re.search(r"from lightgen |import lightgen", line) or command == "import":
                continue
            assert command in COMMANDS, line
            if command in STAGES and recipe:
                find(command, recipe)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for line in lines(path):
            for target in re.findall(r"^\s*make ([a-z-]+)", line):
                assert target in targets, (path.name, line)


def test_readme_is_short_and_its_python_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)


def test_readme_generate_commands_draw(tmp_path):
    commands = re.findall(
        r"^\.venv/bin/lightgen (generate .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    program = "import sys; from lightgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for number, command in enumerate(commands, start=1):
        arguments = shlex.split(command, comments=True)
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=tmp_path)
        assert len(list(tmp_path.glob("*.png"))) == number
    assert len(commands) == 2
