"""The command `lightgen inpaint`."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from lightgen import recipes
from lightgen.cli.decoding import add_decoding, with_decoding
from lightgen.cli.imports import uncollected
from lightgen.cli.options import Parser
from lightgen.core.errors import UserError

_PROG = "lightgen inpaint"
_SIDES = ("left", "right", "top", "bottom")
_EPILOG = """\
lightgen inpaint IMAGE MASK PROMPT                    paint where the mask is white
lightgen inpaint IMAGE PROMPT --outpaint left=64      paint beyond the picture
lightgen inpaint IMAGE PROMPT --strength 0.6          a variation: draw 60% of it anew"""


def run_inpaint(arguments: Sequence[str]) -> int:
    """Exit code of changing a picture; the paths of the new pictures go to standard output.

    Raises:
        UserError: an option, file or model that cannot be used.
    """
    found = _parser().parse_all(arguments)
    if len(found.inputs) not in (2, 3):
        got = f"{len(found.inputs)} of them"
        raise UserError(f"{_PROG}: got {got}, allowed: IMAGE MASK PROMPT, or IMAGE PROMPT (quote the prompt)")
    image, *masks, prompt = found.inputs
    sides = _sides(found.outpaint)
    with uncollected():
        from lightgen.stages.checkpoint import quiet_libraries
        from lightgen.stages.inpaint import inpaint

    quiet_libraries()
    config = with_decoding(_PROG, found, recipes.find("inpaint", "nano"))
    told = {name: vars(found)[name] for name in ("strength", "crop", "feather")}
    edit = replace(config.edit, **{name: value for name, value in told.items() if value is not None})
    config = replace(config, edit=edit, margins=replace(config.margins, **sides))
    for path in inpaint(config, image, prompt, masks[0] if masks else None, found.out, found.model):
        sys.stdout.write(f"{path}\n")
    return 0


def _parser() -> Parser:
    parser = Parser(_PROG, "Change a picture under a mask, beyond its borders, or all over.", _EPILOG)
    parser.usage = f"{_PROG} IMAGE [MASK] PROMPT [options]"
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE [MASK] PROMPT",
        help="PNG, JPEG or WebP files, the mask white where to paint; and what the picture shall show",
    )
    parser.add_argument("--outpaint", metavar="SIDES", help="px to add, as left=64,top=32")
    parser.add_argument("--strength", type=float, metavar="X", help="share to draw anew, 0 to 1 (default: 1)")
    parser.add_argument(
        "--crop", type=int, metavar="PX", help="see only the mask and PX around it, enlarged (large pictures)"
    )
    parser.add_argument("--feather", type=int, metavar="PX", help="fade in over PX inside the mask")
    add_decoding(parser)
    return parser


def _sides(text: str | None) -> dict[str, int]:
    """Pixels by side of `left=64,top=32`; nothing of None."""
    if text is None:
        return {}
    pairs = [re.fullmatch(r"([a-z]+)=([1-9]\d{0,4})", part) for part in text.split(",")]
    sides = {match[1]: int(match[2]) for match in pairs if match is not None}
    if len(sides) < len(pairs) or not sides.keys() <= set(_SIDES):
        raise UserError(
            f"{_PROG}: --outpaint {text[:60]!r}, allowed: as left=64,top=32, of {', '.join(_SIDES)}"
        )
    return sides
