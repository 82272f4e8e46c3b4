"""Every command of the documents: understood in any case, and run in small where this machine can."""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightgen import recipes
from lightgen.cli import stage as stage_command
from lightgen.cli.main import main
from lightgen.cli.options import _leaves
from tests.docs.commands import DOCUMENTS, ROOT, Command, commands, inline, read
from tests.docs.made_small import ONLY_PARSED, SMALLER
from tests.docs.stand_ins import STAND_INS, TOYS

ALL = [command for path in DOCUMENTS for command in commands(path)]
NOT_RUN = {text for texts in ONLY_PARSED.values() for text in texts}
# Where each command that is no stage hands over what it has read.
ENDS = {
    "generate": ["lightgen.stages.generate.generate"],
    "inpaint": ["lightgen.stages.inpaint.inpaint"],
    "serve": ["lightgen.serve.run.serve"],
    "quickstart": ["lightgen.stages.quickstart.quickstart"],
    "doctor": ["lightgen.stages.doctor.doctor"],
    "compare": ["lightgen.stages.compare.compare", "lightgen.stages.compare.write_comparison"],
    "inspect": ["lightgen.stages.inspect.inspect"],
    "import-checkpoint": ["lightgen.stages.import_checkpoint.import_checkpoint"],
    "export-checkpoint": ["lightgen.stages.import_checkpoint.export_released"],
}


class Reached(BaseException):
    """A command was understood to its last option."""


@pytest.fixture
def stop_at_the_end(monkeypatch):
    """Commands read everything that they are told, and then raise Reached in place of working."""

    def stop(*arguments, **named):
        raise Reached

    def stop_stage(stage, config, found, *more):
        if stage in stage_command._ENGINED:
            stage_command._engine(found)
        raise Reached

    monkeypatch.setattr(stage_command, "_run", stop_stage)

    def prepare(word):
        assert word in ENDS or word in recipes.STAGES, f"say in ENDS where `lightgen {word}` hands over"
        for end in ENDS.get(word, []):
            monkeypatch.setattr(end, stop)

    return prepare


def understood(words, prepare):
    """Check that the command line takes the words of a command."""
    prepare(words[0])
    if "--help" in words:
        assert main(words) == 0
        return
    with pytest.raises(Reached):
        code = main(words)
        raise AssertionError(f"exit code {code}")


def options_of(script: Path) -> set[str]:
    """Every text of a script that looks like an option."""
    return {"--help", *re.findall(r"\"(--?[a-z][a-z-]*)\"", script.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.document}: {command.text}"[:90])
def test_the_command_is_understood(command: Command, stop_at_the_end):
    if command.kind == "other":
        assert command.text in NOT_RUN, "no program of ours: say in ONLY_PARSED why it is not run"
        return
    if command.kind == "make":
        targets = [word for word in command.words if "=" not in word]
        told = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        return
    is_known = command.text in NOT_RUN or command.name in SMALLER or "--help" in command.words
    assert is_known, "say in SMALLER how it is made small"
    if command.kind == "script":
        script = ROOT / command.words[0]
        assert script.is_file()
        assert {word for word in command.words[1:] if word.startswith("-")} <= options_of(script)
        return
    if command.kind == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(shlex.split(command.text.partition("torchrun ")[2]))
    understood(list(command.words), stop_at_the_end)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dotted_options_in_sentences_exist(path, dotted_options):
    spoken = {option for code in inline(path) for option in re.findall(r"--[a-z-]+(?:\.[a-z-]+)+", code)}
    assert spoken - dotted_options == set()


@pytest.fixture(scope="module")
def dotted_options() -> set[str]:
    """Every option of every recipe, and every group of them, as `--fit.optimizer`."""
    configs = [recipes.find(stage, name) for stage in recipes.STAGES for name in recipes.describe(stage)]
    parts = [name.split(".") for config in configs for name in _leaves(config)]
    return {"--" + ".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}


def test_what_is_not_run_is_in_a_document():
    assert NOT_RUN - {command.text for command in ALL} == set()


def test_a_wrong_option_or_recipe_is_seen(stop_at_the_end, capsys):
    for text in (
        "lightgen train finetune-nano --fit.steps 3 --out runs/a",
        "lightgen train no-such-recipe --out runs/a",
        "lightgen distill nano-teacher --prompts.num few --out runs/a",
        "lightgen distill nano-teacher",
        "lightgen generate --no-such-option cat",
    ):
        with pytest.raises(AssertionError, match="exit code 2"):
            understood(list(read("x", text).words), stop_at_the_end)
    assert "did you mean" in capsys.readouterr().err


def test_lines_are_read_as_a_shell_reads_them(tmp_path):
    page = ROOT / "docs" / "x.md"
    for text, kind, words in (
        ('lightgen generate "a b" --steps 2', "lightgen", ("generate", "a b", "--steps", "2")),
        ("A=1 .venv/bin/lightgen serve", "lightgen", ("serve",)),
        ("torchrun -m -- lightgen.cli.main train x", "torchrun", ("train", "x")),
        ("lightgen generate a; lightgen generate b", "other", ("lightgen generate a; lightgen generate b",)),
        ("cat 'a;b'", "other", ("cat 'a;b'",)),
    ):
        found = read(page.name, text)
        assert (found.kind, found.words) == (kind, words)


class Tour:
    """A reader who types a document's commands, one after the other, in a folder of their own."""

    def __init__(self, folder: Path, toys: dict[str, Path]) -> None:
        self.folder, self.toys = folder, toys

    def run(self, command: Command) -> None:
        """Type a command, made small; what it reads and nobody made is made first."""
        words = [found for word in command.words for found in self._expanded(word)]
        out = words[words.index("--out") + 1] if "--out" in words else ""
        for word in words:
            if word != out:
                self._stand_in(word)
        if out:
            self._forget(out)
        if "--help" not in words:
            words += shlex.split(SMALLER[command.name].format(**self.toys))
        if command.kind == "script":
            (self.folder / out).parent.mkdir(parents=True, exist_ok=True)
            script = [sys.executable, str(ROOT / words[0]), *words[1:]]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(script, cwd=self.folder, check=True, env=environment, timeout=600)
            return
        code = main(words)
        assert code == 0 or (words[0] == "doctor" and code == 1), f"exit code {code}: {shlex.join(words)}"

    def _expanded(self, word: str) -> list[str]:
        return sorted(glob.glob(word, root_dir=self.folder)) or [word] if "*" in word else [word]

    def _stand_in(self, word: str) -> None:
        name = word.rstrip("/")
        if name not in STAND_INS or (self.folder / name).exists():
            return
        maker = STAND_INS[name]
        if isinstance(maker, str):
            self.run(read("a stand-in", maker))
        else:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            maker(self.folder / name)

    def _forget(self, out: str) -> None:
        """Make room where an earlier command of the document wrote."""
        for path in (self.folder / out, self.folder / f"{out}-steps"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    for name, make in TOYS.items():
        make(root / name)
    return {name: root / name for name in TOYS}


def to_run(path: Path) -> list[Command]:
    runs = ("lightgen", "script")
    return [command for command in commands(path) if command.kind in runs and command.text not in NOT_RUN]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if to_run(path)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_the_commands_of_a_document_run(path, tmp_path, toys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tour = Tour(tmp_path, toys)
    for command in to_run(path):
        tour.run(command)
