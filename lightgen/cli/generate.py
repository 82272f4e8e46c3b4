"""The command `lightgen generate`."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from lightgen import recipes
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
    parser.add_argument("--model", default="nano", metavar="DIR", help="checkpoint, or nano (default)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of each prompt's first picture (default: 0)"
    )
    parser.add_argument(
        "-n", "--num", type=int, default=1, metavar="N", help="pictures of each prompt (default: 1)"
    )
    parser.add_argument(
        "--size", default="", metavar="PX", help="side, or WIDTHxHEIGHT (default: the model's)"
    )
    parser.add_argument("--preset", metavar="NAME", help="exact (default), balanced or fast")
    parser.add_argument("--steps", type=int, metavar="N", help="iterations of masked decoding")
    parser.add_argument("--head-steps", type=int, metavar="N", help="steps of the head for each token")
    parser.add_argument("--guidance", type=float, metavar="X", help="weight of the text")
    parser.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    parser.add_argument("--out", metavar="PATH", help="file .png, or directory ending in /")
    parser.add_argument("--grid", metavar="FILE", help="also a contact sheet .png, a row for each prompt")
    found = parser.parse_all(arguments)
    for name in ("num", "steps", "head_steps"):
        value = vars(found)[name]
        if value is not None and value < 1:
            raise UserError(f"{prog}: --{name.replace('_', '-')} {value}, allowed: a whole number from 1")
    width, height = _size(prog, found.size)
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.generate import generate

    quiet_libraries()
    config = recipes.find("generate", "nano")
    config = replace(
        config,
        seed=found.seed,
        num=found.num,
        width=width or config.width,
        height=height or config.height,
        preset=found.preset or config.preset,
        negative_prompt=config.negative_prompt if found.negative is None else found.negative,
        overrides=replace(
            config.overrides,
            num_iterations=found.steps or config.overrides.num_iterations,
            num_head_steps=found.head_steps or config.overrides.num_head_steps,
            guidance_scale=config.overrides.guidance_scale if found.guidance is None else found.guidance,
        ),
    )
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
