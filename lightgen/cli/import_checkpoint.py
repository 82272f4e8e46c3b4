"""The commands `lightgen import-checkpoint` and `lightgen export-checkpoint`."""

import sys
from collections.abc import Sequence

from lightgen.cli.options import Parser
from lightgen.core.errors import UserError


def run_import(arguments: Sequence[str]) -> int:
    """Exit code of bringing released weights in; the path of the checkpoint goes to standard output.

    Raises:
        UserError: an option, file or folder that cannot be used.
    """
    prog = "lightgen import-checkpoint"
    parser = Parser(
        prog,
        "Make a checkpoint of released LightGen weights. Code in a file is never run, nothing is downloaded.",
    )
    parser.add_argument(
        "file", nargs="?", help="released .pth, or .safetensors; without it, parts to start a student from"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the checkpoint will be")
    parser.add_argument("--raw", action="store_true", help="take the weights as trained, not their average")
    parser.add_argument(
        "--num-heads", type=int, metavar="N", help="attention heads (default: those of the released size)"
    )
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="default side (default: 512)")
    parser.add_argument("--vae", metavar="DIR", help="autoencoder, as stable-diffusion-3.5-large/vae")
    parser.add_argument("--text-encoder", metavar="DIR", help="T5, as flan-t5-xxl")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: in the text encoder's folder")
    found = parser.parse_all(arguments)
    for name in ("num_heads", "size"):
        value = vars(found)[name]
        if value is not None and not 1 <= value <= 100_000:
            raise UserError(f"{prog}: --{name.replace('_', '-')} {value}, allowed: a whole number from 1")
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.import_checkpoint import ImportConfig, import_checkpoint

    quiet_libraries()
    config = ImportConfig(ema=not found.raw, num_heads=found.num_heads, size=found.size)
    artifact = import_checkpoint(
        config, found.file, found.out, found.vae, found.text_encoder, found.tokenizer
    )
    sys.stdout.write(f"{artifact.path}\n")
    return 0


def run_export(arguments: Sequence[str]) -> int:
    """Exit code of writing a checkpoint under the released names; the file's path goes to standard output.

    Raises:
        UserError: a checkpoint of another configuration, or a file that exists.
    """
    prog = "lightgen export-checkpoint"
    parser = Parser(prog, "Write a checkpoint's transformer under the names of the released LightGen.")
    parser.add_argument("checkpoint", help="checkpoint of the released configuration")
    parser.add_argument("--out", required=True, metavar="FILE", help="new file ending in .safetensors")
    found = parser.parse_all(arguments)
    from lightgen.stages.checkpoint import quiet_libraries
    from lightgen.stages.import_checkpoint import export_released

    quiet_libraries()
    sys.stdout.write(f"{export_released(found.checkpoint, found.out)}\n")
    return 0
