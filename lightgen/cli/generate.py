"""The command `lightgen generate`."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from lightgen import recipes
from lightgen.cli.decoding import add_decoding, with_decoding
from lightgen.cli.imports import uncollected
from lightgen.cli.options import Parser
from lightgen.core.errors import UserError


def run_generate(arguments: Sequence[str]) -> int:
    """Exit code of drawing prompts; the paths of the pictures go to standard output.

    Raises:
        UserError: an option, model or size that cannot be used.
    """
    prog = "lightgen generate"
    parser = Parser(prog, "Draw pictures of prompts; their PNG files remember how they were made.")
    parser.add_argument(
        "prompt", nargs="+", help='one or more texts, as "a photo of a red apple left of a blue car"'
    )
    parser.add_argument(
        "--size", default="", metavar="PX", help="side, or WIDTHxHEIGHT (default: the model's)"
    )
    add_decoding(parser, " of each prompt")
    parser.add_argument("--grid", metavar="FILE", help="also a contact sheet .png, a row for each prompt")
    found = parser.parse_all(arguments)
    width, height = _size(prog, found.size)
    with uncollected():
        from lightgen.stages.checkpoint import quiet_libraries
        from lightgen.stages.generate import generate

    quiet_libraries()
    config = with_decoding(prog, found, recipes.find("generate", "nano"))
    config = replace(config, width=width or config.width, height=height or config.height)
    for path in generate(config, found.prompt, found.out, found.model, found.grid):
        sys.stdout.write(f"{path}\n")
    return 0


def _size(prog: str, text: str) -> tuple[int, int]:
    """(Width, height) of `128` or `160x96`; zeros of an empty text."""
    if not text:
        return 0, 0
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise UserError(f"{prog}: --size {text!r}, allowed: a side in px such as 128, or WIDTHxHEIGHT")
    return int(match[1]), int(match[2] or match[1])
