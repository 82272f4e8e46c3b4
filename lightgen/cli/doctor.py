"""The command `lightgen doctor`."""

import sys
from collections.abc import Sequence

from lightgen.cli.options import Parser


def run_doctor(arguments: Sequence[str]) -> int:
    """Exit code 0 where nothing is missing, else 1; one line for each thing looked at."""
    Parser("lightgen doctor", "Say what this machine has and what is missing.").parse_all(arguments)
    from lightgen.stages.doctor import doctor

    well = True
    for what, finding, fine in doctor():
        sys.stdout.write(f"{'ok     ' if fine else 'MISSING'}  {what}: {finding}\n")
        well = well and fine
    return 0 if well else 1
