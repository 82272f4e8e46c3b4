"""Options that all commands share that decode pictures."""

import argparse
from dataclasses import replace
from typing import Any, TypeVar

from lightgen.cli.options import Parser
from lightgen.core.errors import UserError

_T = TypeVar("_T")
_SETTINGS = {
    "steps": "num_iterations",
    "head_steps": "num_head_steps",
    "solver": "solver",
    "guidance": "guidance_scale",
    "temperature": "temperature",
    "refresh_every": "refresh_every",
}


def add_decoding(parser: Parser, each: str = "") -> None:
    """Add the options; `each` says whose pictures are counted, as in ` of each prompt`."""
    parser.add_argument("--model", default="nano", metavar="DIR", help="checkpoint, nano (default), nano-256")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help=f"of the first picture{each} (default: 0)"
    )
    parser.add_argument("-n", "--num", type=int, default=1, metavar="N", help=f"pictures{each} (default: 1)")
    parser.add_argument(
        "--preset", metavar="NAME", help="exact (default), balanced or fast; and in place of its"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="... iterations of masked decoding")
    parser.add_argument("--head-steps", type=int, metavar="N", help="... steps of the head for each token")
    parser.add_argument("--solver", metavar="NAME", help="... solver: ddim, dpm++ or (ddpm models) ancestral")
    parser.add_argument("--guidance", type=float, metavar="X", help="... weight of the text")
    parser.add_argument("--temperature", type=float, metavar="X", help="... factor on the noise")
    parser.add_argument("--refresh-every", type=int, metavar="N", help="... iterations between full passes")
    parser.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    parser.add_argument("--out", metavar="PATH", help="file .png, or directory ending in /")


def with_decoding(prog: str, found: argparse.Namespace, config: _T) -> _T:
    """Config of a command (with seed, num, preset, negative_prompt, overrides) with the options applied.

    Raises:
        UserError: a count below 1.
    """
    for name in ("num", "steps", "head_steps", "refresh_every"):
        value = vars(found)[name]
        if value is not None and value < 1:
            raise UserError(f"{prog}: --{name.replace('_', '-')} {value}, allowed: a whole number from 1")
    given: Any = config
    told = {ours: vars(found)[name] for name, ours in _SETTINGS.items() if vars(found)[name] is not None}
    return replace(
        given,
        seed=found.seed,
        num=found.num,
        preset=found.preset or given.preset,
        negative_prompt=given.negative_prompt if found.negative is None else found.negative,
        overrides=replace(given.overrides, **told),
    )
