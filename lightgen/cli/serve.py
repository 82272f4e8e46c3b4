"""The command `lightgen serve`."""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from lightgen.cli.main import INTERRUPTED, TERMINATED
from lightgen.cli.options import Parser
from lightgen.core.config import set_environment
from lightgen.core.errors import UserError
from lightgen.core.interrupts import Terminated
from lightgen.core.progress import say

_PROG = "lightgen serve"
_NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_EPILOG = """\
lightgen serve                                      the page and the API at http://127.0.0.1:8000
lightgen serve --model runs/a --model b=runs/b      two checkpoints, to compare on the page
lightgen serve --host 0.0.0.0 --api-key-file keys   for other machines, who need a key of the file

The end of the process (SIGTERM or Ctrl-C) waits for the pictures that were accepted; exit code 0.
A second one, or one while the models are read, ends at once; exit code 143 for SIGTERM, 130 for Ctrl-C."""
_T = TypeVar("_T")


def run_serve(arguments: Sequence[str]) -> int:
    """Exit code once the server was told to end: 0, or 130 or 143 where a signal ended it at once.

    Raises:
        UserError: an option, address, key or model that cannot be used, or a library that is missing.
    """
    found = _parser().parse_all(arguments)
    models = _models(found.model or ["nano"])
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{_PROG}: needs {missing[0]}, allowed: with `pip install lightgen[serve]`")
    if found.threads is not None and found.threads < 1:
        raise UserError(f"{_PROG}: --threads {found.threads}, allowed: a whole number from 1")
    from lightgen.serve.config import ServeConfig

    config = _applied(ServeConfig(), found)
    config = replace(
        config,
        queue=_applied(config.queue, found),
        limits=_applied(config.limits, found),
        connections=_applied(config.connections, found),
    )
    # Threads of arithmetic share cores with the event loop: those that wait must not keep a core busy. It is
    # read when torch is loaded.
    set_environment("OMP_WAIT_POLICY", "PASSIVE")
    if found.threads is not None:
        import torch

        torch.set_num_threads(found.threads)
    from lightgen.serve.run import serve
    from lightgen.stages.checkpoint import quiet_libraries

    quiet_libraries()
    try:
        serve(config, models, found.safety)
    except KeyboardInterrupt as stop:
        is_terminated = isinstance(stop, Terminated)
        say(f"{_PROG}: {'terminated' if is_terminated else 'interrupted'}")
        return TERMINATED if is_terminated else INTERRUPTED
    return 0


def _parser() -> Parser:
    parser = Parser(_PROG, "Answer requests for pictures, by OpenAI's image API and on a page.", _EPILOG)
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="[NAME=]DIR",
        help="checkpoint, nano (default) or nano-256; may be repeated",
    )
    add("--host", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, help="0 = any free one (default: 8000)")
    add("--api-key-file", type=Path, metavar="FILE", help="keys that may ask, one per line")
    add("--insecure-no-keys", action="store_true", default=None, help="let other machines ask without a key")
    add(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        metavar="NAME",
        help="by which a proxy calls it",
    )
    add(
        "--cors-origin",
        dest="cors_origins",
        action="append",
        metavar="ORIGIN",
        help="of other pages that ask, as https://their.example",
    )
    add("--preset", metavar="NAME", help="of requests that name none: exact, balanced or fast (default)")
    add("--threads", type=int, metavar="N", help="of arithmetic (default: PyTorch's choice)")
    add("--max-running", type=int, metavar="N", help="pictures decoded together (default: 16)")
    add("--max-waiting", type=int, metavar="N", help="pictures in the queue (default: 64)")
    add("--max-per-key", type=int, metavar="N", help="pictures of one key (default: 32)")
    add("--deadline", dest="deadline_s", type=float, metavar="S", help="seconds for a picture (default: 60)")
    add("--drain", dest="drain_s", type=float, metavar="S", help="seconds for the last ones (default: 30)")
    add("--max-side", dest="max_side_px", type=int, metavar="PX", help="of a picture (default: 1024)")
    add("--max-pictures", type=int, metavar="N", help="of a request (default: 8)")
    add("--max-connections", type=int, metavar="N", help="at a time (default: 512)")
    add("--safety", metavar="DIR", help="ViT classifier; what it calls nsfw is not shown")
    add("--c2pa-certificate", type=Path, metavar="FILE", help="chain in PEM that signs the pictures")
    add("--c2pa-key", type=Path, metavar="FILE", help="its private key in PEM")
    return parser


def _models(given: Sequence[str]) -> dict[str, str]:
    """Directories by name, of `NAME=DIR` or `DIR`, which is called as its last part."""
    found: dict[str, str] = {}
    for text in given:
        name, is_named, place = text.rpartition("=")
        name = name if is_named else Path(place).resolve().name
        if not place or not name or not name.isprintable() or "/" in name or name in found:
            raise UserError(f"{_PROG}: --model {text!r}, allowed: [NAME=]DIR, nano, nano-256, each name once")
        found[name] = place
    return found


def _applied(config: _T, found: argparse.Namespace) -> _T:
    """Config with the options of its fields' names, where they are given."""
    given: Any = config
    named = {name: vars(found).get(name) for name in (each.name for each in fields(given))}
    told = {name: value for name, value in named.items() if value is not None}
    return replace(given, **{name: tuple(v) if isinstance(v, list) else v for name, v in told.items()})
