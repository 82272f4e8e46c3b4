"""The command `lightgen generate`."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from lightgen import recipes
from lightgen.cli.options import Parser
from lightgen.core.errors import UserError


def run_generate(arguments: Sequence[str]) -> int:
    """Exit code of drawing a prompt; the paths of the pictures go to standard output.

    Raises:
        UserError: an option, model or size that cannot be used.
    """
    prog = "lightgen generate"
    parser = Parser(prog, "Draw pictures of a prompt; their PNG files remember how they were made.")
    parser.add_argument("prompt", help='text, as in "a photo of a red apple left of a blue car"')
    parser.add_argument("--model", default="nano", metavar="DIR", help="checkpoint, or nano (default)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture (default: 0)")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="how many pictures (default: 1)")
    parser.add_argument("--size", default="", metavar="PX", help="side, or WIDTHxHEIGHT (default: 128)")
    parser.add_argument("--steps", type=int, metavar="N", help="iterations of masked decoding")
    parser.add_argument("--guidance", type=float, metavar="X", help="weight of the text")
    parser.add_argument("--out", metavar="PATH", help="file .png, or directory ending in /")
    found = parser.parse_all(arguments)
    for name in ("num", "steps"):
        value = vars(found)[name]
        if value is not None and value < 1:
            raise UserError(f"{prog}: --{name} {value}, allowed: a whole number from 1")
    width, height = _size(prog, found.size)
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.generate import generate

    quiet_libraries()
    config = recipes.find("generate", "nano")
    decode = config.decode
    decode = replace(
        decode,
        num_iterations=decode.num_iterations if found.steps is None else found.steps,
        guidance_scale=decode.guidance_scale if found.guidance is None else found.guidance,
    )
    config = replace(config, seed=found.seed, num=found.num, decode=decode)
    if width:
        config = replace(config, width=width, height=height)
    for path in generate(config, found.prompt, found.out, found.model):
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
