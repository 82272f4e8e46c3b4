"""The command `lightgen`: which word runs what, and what each way to end means for the exit code."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from lightgen.core.config import environment, suggestion
from lightgen.core.errors import UserError
from lightgen.core.interrupts import Terminated
from lightgen.core.progress import printable

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
DEBUG_VARIABLE = "LIGHTGEN_DEBUG"

_COMMANDS = {
    "quickstart": "see the whole paradigm run: teacher, student, preferences, report",
    "generate": "draw pictures of a prompt",
    "inpaint": "change a picture under a mask or beyond its borders",
    "caption": "captions are gathered, cleaned, chosen, made longer; or images get new ones",
    "distill": "prompts become images, by a teacher or a student",
    "curate": "images are filtered, freed of duplicates, and chosen",
    "encode": "images become latents",
    "train": "latents (or images) become a checkpoint",
    "rank": "images get scores",
    "align": "rounds of drawing, ranking and training by preferences become a better checkpoint",
    "evaluate": "checkpoints or images become a report",
    "study": "ways to train or to draw are compared at equal cost, in one report",
    "serve": "answer requests for pictures, and show a page to draw on",
    "compare": "say whether the runs of several reports differ",
    "inspect": "say what an artifact holds, and show it on a page",
    "import-checkpoint": "released LightGen weights become a checkpoint",
    "export-checkpoint": "a checkpoint becomes a file under the released names",
    "doctor": "say what this machine has and what is missing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 1 failure, 130 interrupted, 143 terminated (what is done is kept)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with _termination_as_interrupt():
            return _run(arguments)
    except UserError as error:
        return _complain(str(error), REFUSED)
    except OSError as error:
        return _complain(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED
        )
    except KeyboardInterrupt as stop:
        is_terminated = isinstance(stop, Terminated)
        return _complain(
            f"{'terminated' if is_terminated else 'interrupted'}; what is done is kept, and a stage run "
            "again goes on from its saved state",
            TERMINATED if is_terminated else INTERRUPTED,
        )
    except Exception as error:
        if environment(DEBUG_VARIABLE):
            raise
        what = f"{type(error).__name__}: {error}"
        return _complain(f"failed, {what}; {DEBUG_VARIABLE}=1 shows where", FAILED)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return DONE if arguments else REFUSED
    command, rest = arguments[0], arguments[1:]
    if command in ("-V", "--version"):
        from lightgen.core.provenance import library_versions

        sys.stdout.write(f"lightgen {library_versions().get('lightgen', 'not installed')}\n")
        return DONE
    if command not in _COMMANDS:
        hint = suggestion(command, _COMMANDS) or f", allowed: {', '.join(_COMMANDS)}"
        raise UserError(f"unknown command {command!r}{hint}")
    return _command(command)(rest)


def _command(name: str) -> Callable[[list[str]], int]:
    """The function behind a word; imported only now, since each brings what it needs."""
    if name == "generate":
        from lightgen.cli.generate import run_generate

        return run_generate
    if name == "inpaint":
        from lightgen.cli.inpaint import run_inpaint

        return run_inpaint
    if name == "serve":
        from lightgen.cli.serve import run_serve

        return run_serve
    if name == "quickstart":
        from lightgen.cli.quickstart import run_quickstart

        return run_quickstart
    if name == "doctor":
        from lightgen.cli.doctor import run_doctor

        return run_doctor
    if name == "compare":
        from lightgen.cli.compare import run_compare

        return run_compare
    if name == "inspect":
        from lightgen.cli.inspect import run_inspect

        return run_inspect
    if name in ("import-checkpoint", "export-checkpoint"):
        from lightgen.cli.import_checkpoint import run_export, run_import

        return run_import if name == "import-checkpoint" else run_export
    from lightgen.cli.stage import run_stage

    return lambda rest: run_stage(name, rest)


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in _COMMANDS.items()]
    return (
        "usage: lightgen COMMAND ...\n\n"
        "Small text-to-image models from teachers' pictures and preferences.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\nlightgen COMMAND --help says more\n"
    )


def _complain(text: str, code: int) -> int:
    line = printable(" ".join(text.split()))
    sys.stderr.write(f"lightgen: {line.removeprefix('lightgen ')}\n")
    return code


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Context in which the signal to terminate is an interrupt, so that both leave things in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # outside the main thread, signals belong to somebody else
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
