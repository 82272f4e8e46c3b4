"""The command `lightgen doctor`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightgen import recipes
from lightgen.cli.options import Parser, option_help, override
from lightgen.core.config import suggestion
from lightgen.core.errors import UserError
from lightgen.core.progress import say

_PROG = "lightgen doctor"


def run_doctor(arguments: Sequence[str]) -> int:
    """Exit code 0 where nothing is missing and the run, if one is named, fits; else 1.

    Raises:
        UserError: a recipe or option that does not exist, or numbers that do not fit together.
    """
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is None:
        epilog = f"with a recipe of train it also plans that run: {_PROG} RECIPE --help"
        Parser(_PROG, "Say what this machine has and what is missing.", epilog).parse_all(arguments)
        return 0 if _machine() else 1
    known = recipes.describe("train")
    if name not in known:
        hint = suggestion(name, known) or f", allowed: --help, or a recipe of train: {', '.join(known)}"
        raise UserError(f"{_PROG}: got {name!r}{hint}")
    parser, prog = _parser(name), f"{_PROG} {name}"
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(parser.format_help() + "\n" + option_help(prog, recipes.find("train", name)))
        return 0
    found, rest = parser.parse_known_args(list(arguments[1:]))
    if rest and not rest[0].startswith("--"):
        raise UserError(f"{prog}: got {rest[0]!r}, allowed: {', '.join(parser.names())} and dotted options")
    return _plan(name, override(prog, recipes.find("train", name), rest), found)


def _parser(name: str) -> Parser:
    parser = Parser(
        f"{_PROG} {name}",
        "Say what this machine has and what is missing, and what a run of this recipe needs.",
        "Every number of the recipe is an option too, as in `lightgen train`:",
    )
    parser.add_argument("--ranks", type=int, help="GPUs in all (default: those found here, at least 1)")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this GPU, as in H100 or RTX 4090")
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak that is reached (%(default)s)"
    )
    parser.add_argument("--images", type=int, help="in the data (default: 2,000,000; a nano recipe: 60,000)")
    parser.add_argument(
        "--cached-text",
        action="store_true",
        help="the latents come with text features (`encode --text.stored`)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--start", metavar="DIR", help="checkpoint that the run begins from, for its shape")
    shape.add_argument(
        "--model", metavar="NAME", help="recipe of model with its shape (default: paper, nano)"
    )
    return parser


def _machine() -> bool:
    """Write a line for each thing looked at; whether nothing is missing."""
    from lightgen.stages.doctor import doctor

    well = True
    for what, finding, fine in doctor():
        sys.stdout.write(f"{'ok     ' if fine else 'MISSING'}  {what}: {finding}\n")
        well = well and fine
    return well


def _plan(name: str, config: Any, found: argparse.Namespace) -> int:  # noqa: ANN401  (any recipe of train)
    import torch

    from lightgen.core.device import find_hardware
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.doctor import budget
    from lightgen.stages.plan import DTYPES, NANO_TEXT_WIDTH, Plan, find_shape
    from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig

    if not isinstance(config, TrainConfig) or not isinstance(config.task, PretrainTask | DPOTask):
        raise UserError(f"{_PROG}: got {name!r}, allowed: a recipe of train that trains a student")
    if not 0 < found.mfu <= 1:
        raise UserError(f"{_PROG}: got --mfu {found.mfu}, allowed: above 0 to 1")
    if found.images is not None and found.images < 1:
        raise UserError(f"{_PROG}: got --images {found.images}, allowed: from 1")
    quiet_libraries()
    shape = find_shape(config.task, found.start, recipes.find("model", _model(found.model, config.task)))
    ranks = max(1, torch.cuda.device_count()) if found.ranks is None else found.ranks
    hardware = find_hardware(found.gpu, DTYPES[config.fit.precision])
    plan = Plan(config.task, config.fit, config.run, shape, hardware, ranks, found.cached_text)
    images = found.images or (60_000 if shape.text_width == NANO_TEXT_WIDTH else 2_000_000)
    well = _machine()
    say("counting on tensors without storage, some seconds")
    sys.stdout.write(f"\n{name}\n")
    for line, fine in budget(plan, images=images, mfu=found.mfu, folder=Path.cwd()):
        sys.stdout.write(f"{line}\n")
        well = well and fine
    return 0 if well else 1


def _model(name: str | None, task: Any) -> str:  # noqa: ANN401  (imported late)
    """Recipe of model with the shape of a start: where the recipe names a size, the paper's, else nano's."""
    known = recipes.describe("model")
    if name is None:
        return "nano" if task.image_size is None else "paper"
    if name not in known:
        hint = suggestion(name, known) or f", allowed: {', '.join(known)}"
        raise UserError(f"{_PROG}: got --model {name!r}{hint}")
    return name
