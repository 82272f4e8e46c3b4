"""The command `lightgen compare`."""

import sys
from collections.abc import Sequence

from lightgen.cli.options import Parser

_PROG = "lightgen compare"


def run_compare(arguments: Sequence[str]) -> int:
    """Exit code 0: the comparison is written to standard output, and its report, if one is wanted.

    Raises:
        UserError: fewer than two runs, or reports that cannot be compared.
    """
    parser = Parser(
        _PROG,
        "Say whether the runs of several reports differ, task by task, by tests that are paired by prompt.",
        "Each later run is compared with the first run of the first report.",
    )
    parser.add_argument("reports", metavar="REPORT", nargs="+", help="report that `lightgen evaluate` made")
    parser.add_argument("--out", metavar="DIR", help="write a report of the comparison too")
    found = parser.parse_all(arguments)

    from lightgen.stages.compare import compare, write_comparison

    if found.out:
        made, compared = write_comparison(found.out, found.reports)
    else:
        made, compared = None, compare(found.reports)
    sys.stdout.write("".join(f"{line}\n" for line in compared.lines()))
    if made is not None:
        sys.stdout.write(f"\n{made.path}  report: {len(compared.runs)} subjects\n")
    return 0
