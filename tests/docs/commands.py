"""What the documents tell people to type: every line of their shell blocks, read as a shell would."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("sh", "bash", "shell", "console")
# Programs by whose name a block that says no language is known to be one of a shell.
PROGRAMS = (
    *("lightgen", "make", "python", "torchrun", "pip", "curl", "docker", "ray", "hf", "git"),
    *("export", "umask", "systemctl", "cp", "mkdir", "cd", "sbatch", "tar", "comfy"),
)
_VENV, _ASSIGNMENT, _MORE = ".venv/bin/", re.compile(r"[A-Z_0-9]+=\S*"), re.compile(r"[;|<>]|&&|\$\(|^for ")


@dataclass(frozen=True)
class Command:
    """A line of a document.

    Attributes:
        document: its path below the root.
        text: the line without comment, continued lines joined, single spaces.
        kind: what can be done with it; `torchrun` brings lightgen along, and `other` is everything else.
        words: after the program's name, or after the module's that torchrun runs.
    """

    document: str
    text: str
    kind: Literal["lightgen", "torchrun", "script", "make", "other"]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Command and recipe, as in `train finetune-nano`; of a script its path."""
        if (
            self.kind == "script"
            or len(self.words) < 2
            or not re.fullmatch(r"[a-z][a-z0-9-]*", self.words[1])
        ):
            return self.words[0]
        return " ".join(self.words[:2])


def commands(path: Path) -> list[Command]:
    """All commands of a document, in its order."""
    return [read(path.relative_to(ROOT).as_posix(), line) for line in _lines(path.read_text("utf-8"))]


def inline(path: Path) -> list[str]:
    """Code within the sentences of a document."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def read(document: str, text: str) -> Command:
    """One line, told apart by its program."""
    if _MORE.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        return Command(document, text, "other", (text,))
    words = shlex.split(text)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    program, rest = (words or [""])[0].removeprefix(_VENV), words[1:]
    if program == "lightgen" and rest:
        return Command(document, text, "lightgen", tuple(rest))
    if program == "torchrun" and "lightgen.cli.main" in rest:
        return Command(document, text, "torchrun", tuple(rest[rest.index("lightgen.cli.main") + 1 :]))
    if program == "python" and rest and rest[0].endswith(".py"):
        return Command(document, text, "script", tuple(rest))
    if program == "make":
        return Command(document, text, "make", tuple(rest))
    return Command(document, text, "other", (text,))


def _lines(text: str) -> Iterator[str]:
    for language, block in re.findall(r"^```([a-z]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = [_plain(line) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        if language in SHELLS or (not language and any(_program(line) in PROGRAMS for line in lines)):
            yield from filter(None, lines)


def _plain(line: str) -> str:
    """A line without prompt, comment and spaces that a reader's eye needs."""
    return " ".join(re.sub(r"(^|\s)#(\s.*)?$", "", line.removeprefix("$ ")).split())


def _program(line: str) -> str:
    words = [word for word in line.split() if not _ASSIGNMENT.fullmatch(word)]
    return words[0].removeprefix(_VENV) if words else ""
