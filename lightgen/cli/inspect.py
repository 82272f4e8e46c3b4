"""The command `lightgen inspect`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightgen.cli.options import Parser

_PROG = "lightgen inspect"
_KINDS = ("nano", "clip", "siglip2", "dinov2", "sentence")


def run_inspect(arguments: Sequence[str]) -> int:
    """Exit code 0: what is at a place is written to standard output, and its page, if one is wanted.

    Raises:
        UserError: an option or place that does not exist, or a page that cannot be made.
    """
    parser = Parser(
        _PROG,
        "Say what is in an artifact of any kind, or in a public set of images as it is.",
        "A public set is a folder of tars, of parquet files, or of images with their captions beside them.\n"
        "PATH::caption=NAME names the key or column of the captions, PATH::image=NAME that of the images.",
    )
    parser.add_argument("place", metavar="PATH", help="artifact, `nano`, `nano-256`, or public set of images")
    parser.add_argument("--out", metavar="PAGE.html", help="write a contact sheet too")
    parser.add_argument("--samples", type=int, default=48, help="random samples on it (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument(
        "--embedder",
        choices=_KINDS,
        default="nano",
        help="what twins and diversity are told by (%(default)s)",
    )
    parser.add_argument("--embedder-model", metavar="DIR", help="its folder, or its name in the Hub's cache")
    parser.add_argument("--verify", action="store_true", help="also hash every file of the artifact")
    found = parser.parse_all(arguments)

    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.inspect import InspectConfig, inspect

    quiet_libraries()
    embedder = replace(InspectConfig().embedder, kind=found.embedder, model=found.embedder_model)
    config = InspectConfig(samples=found.samples, seed=found.seed, embedder=embedder, verify=found.verify)
    facts = inspect(config, found.place, Path(found.out) if found.out else None)
    width = max(len(what) for what, _ in facts)
    sys.stdout.write("".join(f"{what:<{width}}  {value}\n" for what, value in facts))
    return 0
