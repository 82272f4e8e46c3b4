"""The command `lightgen quickstart`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from lightgen import recipes
from lightgen.cli.options import Parser
from lightgen.core.errors import UserError


def run_quickstart(arguments: Sequence[str]) -> int:
    """Exit code of the whole story; the path of the report goes to standard output.

    Raises:
        UserError: an option that does not exist, or a missing font or weights.
    """
    prog = "lightgen quickstart"
    parser = Parser(
        prog,
        "See the whole paradigm run: a teacher draws, a student learns, preferences repair it, a report.",
    )
    parser.add_argument("--from-scratch", action="store_true", help="let the student begin from nothing")
    parser.add_argument("--minutes", type=float, metavar="N", help="of the student's training")
    parser.add_argument(
        "--out", metavar="DIR", help="default: runs/quickstart or runs/quickstart-from-scratch"
    )
    found = parser.parse_all(arguments)
    if found.minutes is not None and not 0 < found.minutes < 100_000:
        raise UserError(f"{prog}: --minutes {found.minutes}, allowed: above 0")
    name = "from-scratch" if found.from_scratch else "quickstart"
    out = found.out or ("runs/quickstart-from-scratch" if found.from_scratch else "runs/quickstart")
    config = recipes.find("quickstart", name)
    if found.minutes is not None:
        expected = {**config.expected_s, "student": 60 * found.minutes + 20}
        config = replace(config, pretrain_minutes=found.minutes, expected_s=expected)
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.quickstart import quickstart

    quiet_libraries()
    sys.stdout.write(f"{quickstart(config, out)}\n")
    return 0
