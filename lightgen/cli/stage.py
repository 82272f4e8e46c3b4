"""The commands that run a stage: `lightgen STAGE RECIPE --in DIR --out DIR [--dotted.key value]`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightgen import recipes
from lightgen.cli.options import Parser, option_help, override
from lightgen.core.artifact import Artifact
from lightgen.core.config import suggestion
from lightgen.core.errors import UserError

if TYPE_CHECKING:
    from lightgen.stages.engine import EngineConfig

# What `--in` is to each stage; the rest of the table is which further options it has.
_INPUTS = {
    "caption": "captions: files of text, JSON lines, parquet or tars, `hf:OWNER/NAME`; images to recaption",
    "curate": "images: artifacts, folders of tars, of parquet files, or of pictures with texts",
    "distill": "prompts: files of JSON lines, or artifacts; without any, the recipe's own",
    "encode": "images: artifacts, folders of tars, of parquet files, or of pictures with texts",
    "train": "latents (pretrain, dpo), or images (autoencoder, detector); none for language",
    "rank": "images of the same prompts; several directories for `source`",
    "align": "prompts: files of JSON lines, or artifacts; without any, the recipe's own",
    "evaluate": "checkpoints, `nano`, `nano-256`, or images",
}
_ENGINED = ("caption", "distill", "curate", "encode", "rank", "evaluate")
_STARTS = {
    "distill": "checkpoint of the student that draws (default: nano)",
    "encode": "checkpoint whose autoencoder encodes (default: nano)",
    "train": "checkpoint to begin from (default: nano where the task needs one)",
    "align": "checkpoint to begin from (default: nano)",
    "study": "checkpoint with the autoencoder, and the student where arms go on with it (default: nano)",
}


def run_stage(stage: str, arguments: Sequence[str]) -> int:
    """Exit code of a stage run with the arguments after its name.

    Raises:
        UserError: a recipe or option that does not exist, or what the stage refuses.
    """
    known = recipes.describe(stage)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_overview(stage, known))
        return 0 if arguments else 2
    name, prog = arguments[0], f"lightgen {stage} {arguments[0]}"
    if name.startswith("-"):
        raise UserError(f"lightgen {stage}: got {name!r} in place of a recipe, allowed: {', '.join(known)}")
    if name not in known:
        hint = suggestion(name, known) or f", allowed: {', '.join(known)}"
        raise UserError(f"lightgen {stage}: unknown recipe {name!r}{hint}")
    parser = _parser(stage, prog, known[name])
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(parser.format_help() + "\n" + option_help(prog, _shown(recipes.find(stage, name))))
        return 0
    found, rest = parser.parse_known_args(list(arguments[1:]))
    if found.out is None:
        raise UserError(f"{prog}: got no --out, allowed: a new directory, or that of an interrupted run")
    config = override(prog, recipes.find(stage, name), _known_first(prog, parser, rest))
    made = _run(stage, config, found, shlex.join(["lightgen", stage, *arguments]))
    from lightgen.core.ranks import leave_ranks, rank

    if rank() == 0:
        _report(made)
    leave_ranks()
    return 0


def _known_first(prog: str, parser: Parser, rest: list[str]) -> list[str]:
    """The rest, where it begins with an option: what no option takes is a mistake."""
    if rest and not rest[0].startswith("--"):
        raise UserError(f"{prog}: got {rest[0]!r}, allowed: {', '.join(parser.names())} and dotted options")
    return rest


def _parser(stage: str, prog: str, doc: str) -> Parser:
    parser = Parser(prog, doc, "Every number of the recipe is an option too:")
    if stage in _INPUTS:
        parser.add_argument(
            "--in", dest="inputs", nargs="+", action="extend", default=[], metavar="DIR", help=_INPUTS[stage]
        )
    parser.add_argument(
        "--out", metavar="DIR", help="where the artifact will be; an interrupted run continues"
    )
    if stage in _STARTS:
        parser.add_argument("--start", metavar="DIR", help=_STARTS[stage])
    if stage == "train":
        parser.add_argument(
            "--reference", metavar="DIR", help="checkpoint that preferences compare with (default: the start)"
        )
    if stage == "evaluate":
        parser.add_argument(
            "--prompts",
            nargs="+",
            default=[],
            metavar="FILE",
            help="prompts in GenEval's schema, or the file of GenEval 2 or DPG-Bench",
        )
        parser.add_argument(
            "--reference", metavar="DIR", help="images that fidelity is measured against (nano: renders)"
        )
    if stage in ("evaluate", "rank", "align"):
        parser.add_argument(
            "--detector", metavar="DIR", help="checkpoint or folder of the detector (default: the recipe's)"
        )
    if stage in _ENGINED:
        add = parser.add_argument_group("who runs it (what comes out does not depend on it)").add_argument
        add("--engine", choices=("local", "ray"), default="local", help="ray: on many processes or machines")
        add("--workers", type=int, default=1, metavar="N", help="of ray, each with its own models")
        add("--worker-gpus", type=float, default=0.0, metavar="N", help="of each worker, also a part (0.5)")
        add("--worker-cpus", type=float, default=1.0, metavar="N", help="of each worker, and its threads")
        add("--ray-address", metavar="ADDRESS", help="of a running cluster (auto: that of this machine)")
    return parser


def _engine(found: argparse.Namespace) -> "EngineConfig":
    """Who runs the stage, of the options."""
    from lightgen.stages.engine import EngineConfig

    engine = EngineConfig(
        name=found.engine,
        workers=found.workers,
        gpus=found.worker_gpus,
        cpus=found.worker_cpus,
        address=found.ray_address,
    )
    engine.check()
    return engine


def _overview(stage: str, known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {doc.splitlines()[0]}" for name, doc in known.items()]
    inputs = "--in DIR [DIR...] " if stage in _INPUTS else ""
    usage = f"usage: lightgen {stage} RECIPE {inputs}--out DIR [--dotted.key value]"
    return (
        f"{usage}\n\nrecipes:\n"
        + "\n".join(lines)
        + f"\n\nlightgen {stage} RECIPE --help lists all options\n"
    )


def _shown(config: Any) -> Any:  # noqa: ANN401  (any config)
    """The config whose options help lists: of a study, without the thousands of its arms."""
    return replace(config, arms=(), claims=()) if "arms" in vars(config) else config


def _run(stage: str, config: Any, found: argparse.Namespace, command: str) -> Artifact | str:  # noqa: ANN401
    """What the stage made: an artifact, or the path of a folder."""
    from lightgen.stages.checkpoint import NANO, quiet_libraries

    quiet_libraries()
    if stage in _ENGINED:
        return _run_engined(stage, config, found, _engine(found))
    if stage == "align":
        from lightgen.stages.align import align
        from lightgen.stages.sweep import SweepConfig, sweep

        rest = (found.out, found.inputs, found.start or NANO, found.detector)
        return sweep(config, *rest) if isinstance(config, SweepConfig) else align(config, *rest)
    if stage == "study":
        from lightgen.stages.study import study

        return study(replace(config, start=found.start or config.start), found.out, command)
    from lightgen.stages.nano_weights import NanoWeightsConfig, nano_weights
    from lightgen.stages.train import train

    if isinstance(config, NanoWeightsConfig):
        if found.inputs or found.start or found.reference:
            raise UserError("lightgen train nano-weights: got --in or a checkpoint, allowed: --out alone")
        return str(nano_weights(config, found.out))
    return train(config, found.out, found.inputs, found.start, found.reference)


def _run_engined(stage: str, config: Any, found: argparse.Namespace, engine: "EngineConfig") -> Artifact:  # noqa: ANN401
    """What a stage of many shards made."""
    from lightgen.stages.checkpoint import NANO

    if stage == "caption":
        from lightgen.stages.caption import caption

        return caption(config, found.out, found.inputs, engine)
    if stage == "distill":
        from lightgen.stages.distill import distill

        return distill(config, found.out, found.inputs, found.start, engine)
    if stage == "curate":
        from lightgen.stages.curate import curate

        return curate(config, found.out, found.inputs, engine)
    if stage == "encode":
        from lightgen.stages.encode import encode

        return encode(config, found.out, found.inputs, found.start or NANO, engine)
    if stage == "rank":
        from lightgen.stages.rank import rank

        return rank(config, found.out, found.inputs, found.detector, engine)
    from lightgen.stages.evaluate import evaluate

    named = (found.prompts, found.detector, engine, found.reference)
    return evaluate(config, found.out, found.inputs, *named)


def _report(made: Artifact | str) -> None:
    if isinstance(made, str):
        sys.stdout.write(f"{made}\n")
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in made.counts.items())
    sys.stdout.write(f"{made.path}  {made.kind}: {counts}\n")
