"""Checkpoints: where `nano` is, and the parts of a checkpoint in memory and on disk."""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel
from transformers.utils import logging as transformers_logging

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.config import digest
from lightgen.core.errors import UserError
from lightgen.core.ranks import local_rank
from lightgen.models.shape import TransformerConfig
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.nano.detector import (
    CONFIG,
    WEIGHTS,
    DetectorNetwork,
    NanoDetector,
    detector_config,
    load_nano_detector,
)
from lightgen.ports.text import T5TextEncoder, load_text_encoder

NANO = "nano"
SHIPPED_STUDENTS = (NANO, "nano-256")  # words that name a student that comes with the package, by its folder
SHIPPED = Path(__file__).parents[1] / "weights"
SHIPPED_DETECTOR = SHIPPED / "nano-detector"
SHARD_BYTES = 11_000_000

Vae = AutoencoderKL | AutoencoderDC


@dataclass(frozen=True)
class Parts:
    """The four parts of a student in memory, in fp32."""

    transformer: LightGenTransformer
    vae: Vae
    text_encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the weights of all parts."""
        for module in (self.transformer, self.vae, self.text_encoder):
            cast(module, dtype)

    @property
    def text(self) -> T5TextEncoder:
        """Text encoder behind its port."""
        return T5TextEncoder(self.text_encoder, self.tokenizer, self.tokenizer.model_max_length)

    @property
    def autoencoder(self) -> DiffusersAutoencoder:
        """Autoencoder behind its port."""
        return DiffusersAutoencoder(self.vae)


def open_checkpoint(name: str | Path, *, verify: bool = True) -> Artifact:
    """Checkpoint artifact of a directory, or a shipped one for the words `nano` and `nano-256`.

    Args:
        name: the directory, or the word.
        verify: also hash every file.

    Raises:
        ArtifactError: it is missing, damaged or of another kind.
        UserError: a word is given and this copy of lightgen comes without weights.
    """
    if not is_shipped(name):
        return open_artifact(name, "checkpoint", verify=verify)
    return _open_shipped(SHIPPED / str(name))


def is_shipped(name: str | Path) -> bool:
    """Whether it is one of the words that name a shipped student."""
    return str(name) in SHIPPED_STUDENTS


def open_detector(name: str | Path | None) -> Artifact:
    """Checkpoint artifact of a detector; None or `nano` name the shipped one.

    Raises:
        UserError: as `open_checkpoint`, or the checkpoint holds no detector.
    """
    artifact = (
        _open_shipped(SHIPPED_DETECTOR)
        if name in (None, NANO)
        else open_artifact(Path(str(name)), "checkpoint")
    )
    return require_part(artifact, "detector")


def _open_shipped(path: Path) -> Artifact:
    if not path.is_dir():
        raise UserError(
            f"{path.name}: no weights came with this copy of lightgen; run `make nano-weights` or name a DIR"
        )
    return open_artifact(path, "checkpoint")


def has_part(checkpoint: Artifact, part: str) -> bool:
    """Whether a checkpoint holds a part such as `vae` or `transformer`."""
    return (checkpoint.path / part).is_dir()


def require_part(checkpoint: Artifact, part: str) -> Artifact:
    """The checkpoint itself, where it holds the part.

    Raises:
        UserError: it does not.
    """
    if not has_part(checkpoint, part):
        parts = [path.name for path in checkpoint.path.iterdir() if path.is_dir()]
        found = sorted(set(parts) - {"train_state"})
        raise UserError(
            f"{checkpoint.path}: holds {', '.join(found) or 'nothing'}, allowed: a checkpoint with {part}"
        )
    return checkpoint


def load_parts(folder: Path) -> Parts:
    """Student stored in a folder in the diffusers layout (safetensors only).

    Raises:
        UserError: a part is missing or of another class.
    """
    text = load_text_encoder(folder / "text_encoder", folder / "tokenizer")
    return Parts(
        transformer=load_transformer(folder / "transformer"),
        vae=load_autoencoder(folder / "vae").vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
    )


def load_transformer(folder: Path, position_step: float | None = None) -> LightGenTransformer:
    """Transformer stored in a folder, in fp32 and eval mode; `position_step` takes the place of its own.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"transformer {folder}: no config.json; expected a LightGenTransformer folder")
    transformer = LightGenTransformer.from_pretrained(
        folder,
        use_safetensors=True,
        torch_dtype=torch.float32,
        low_cpu_mem_usage=False,
        **({} if position_step is None else {"position_step": position_step}),
    )
    return transformer.eval()


def transformer_shape(checkpoint: Artifact) -> TransformerConfig:
    """Shape of a checkpoint's transformer, whose weights are not read.

    Raises:
        UserError: the checkpoint holds none.
    """
    folder = require_part(checkpoint, "transformer").path / "transformer"
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # a checkpoint from before a field was thought of has its default
    known = [each.name for each in fields(TransformerConfig) if each.name in record]
    return TransformerConfig(**{name: record[name] for name in known})


def load_detector(checkpoint: Artifact) -> NanoDetector:
    """Detector of a checkpoint that holds one."""
    return load_nano_detector(require_part(checkpoint, "detector").path / "detector")


def save_detector(network: DetectorNetwork, folder: Path) -> None:
    """Write a detector where `load_nano_detector` finds it, in the network's dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().contiguous() for n, t in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(detector_config(), indent=1))


def copy_part(source: Path, target: Path) -> None:
    """Copy of a part's folder, byte for byte, in place of what is there.

    Weights are linked where the file system can: nothing changes a file of an artifact, and a large text
    encoder is then stored once.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_weights)


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def part_digest(checkpoint: Artifact, part: str) -> str:
    """SHA-256 [64 hex digits] of a part's weights and config: two of one digest compute the same."""
    files = require_part(checkpoint, part).manifest["files"]
    names = [name for name in files if name.startswith(f"{part}/") and name.endswith(".safetensors")]
    weights = {name: files[name]["sha256"] for name in names}
    config = json.loads((checkpoint.path / part / "config.json").read_text())
    return digest({"weights": weights, "config": {k: v for k, v in config.items() if not k.startswith("_")}})


def autoencoder_digest(checkpoint: Artifact) -> str:
    """SHA-256 [64 hex digits] of a checkpoint's autoencoder; two of one digest make the same latents."""
    return part_digest(checkpoint, "vae")


def forget_origin(folder: Path) -> None:
    """Remove from the configs of a checkpoint the paths that its parts were once loaded from."""
    for path in [folder / "model_index.json", *sorted(folder.glob("*/config.json"))]:
        config = json.loads(path.read_text()) if path.is_file() else {}
        if "_name_or_path" in config:
            del config["_name_or_path"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module in place; diffusers' own `to` warns of an empty list of exceptions each time."""
    nn.Module.to(module, dtype)


def quiet_libraries() -> None:
    """Keep the progress bars and notes of diffusers and transformers off a terminal that shows ours."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def pick_device() -> torch.device:
    """The accelerator of this rank, where PyTorch finds one, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
