"""Options of the command line: mistakes become one line that says what, got, and allowed."""

import argparse
import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError

_T = TypeVar("_T")
_BOX = re.compile(r"[╭╮╰╯│─]+")


class Parser(argparse.ArgumentParser):
    """Argument parser whose mistakes are UserErrors of one line, with suggestions."""

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the mistake."""
        raise UserError(f"{self.prog}: {' '.join(message.split())}")

    def names(self) -> list[str]:
        """All options that start with two dashes."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Values of the arguments.

        Raises:
            UserError: an argument is unknown, missing or out of range.
        """
        found, rest = self.parse_known_args(list(arguments))
        if rest:
            refuse_unknown(self.prog, rest, self.names())
            self.error(f"got {rest[0]!r}, allowed: {', '.join(self.names())}")
        return found


def refuse_unknown(prog: str, arguments: Sequence[str], allowed: Sequence[str]) -> None:
    """Check that every option among the arguments is one of the allowed.

    Raises:
        UserError: one is not; it names the closest allowed one.
    """
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in allowed:
            hint = suggestion(name, allowed) or f", allowed: see {prog} --help"
            raise UserError(f"{prog}: unknown option {argument.partition('=')[0]!r}{hint}")


def override(prog: str, config: _T, arguments: Sequence[str]) -> _T:
    """Config with the dotted options among the arguments applied, as in `--fit.num-steps 100`.

    Raises:
        UserError: an option is unknown, or a value is not of its type.
    """
    if not arguments:
        return config
    refuse_unknown(prog, arguments, [f"--{name}" for name in _leaves(config)])
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                type(config),
                prog=prog,
                default=config,
                args=list(arguments),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{prog}: {_first_words(told.getvalue())}") from None


def option_help(prog: str, config: object) -> str:
    """Every dotted option of a config with its type and default."""
    import tyro

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(
            type(config),
            prog=prog,
            default=config,
            args=["--help"],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    text = told.getvalue()
    return text[text.find("╭") :] if "╭" in text else text


def _leaves(config: Any, prefix: str = "") -> list[str]:  # noqa: ANN401  (any dataclass)
    """Dotted names of all values of a config, with dashes."""
    names = []
    for field in dataclasses.fields(config):
        value, name = vars(config)[field.name], prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += _leaves(value, f"{name}.")
        else:
            names.append(name)
    return names


def _first_words(panel: str) -> str:
    """The mistake that a panel of tyro tells, in one line."""
    lines = []
    for line in panel.splitlines()[1:]:
        words = _BOX.sub("", line).strip()
        if not words:
            break
        lines.append(words)
    return " ".join(lines) or "bad options"
