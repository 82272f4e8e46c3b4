"""Import and export: released LightGen weights become a checkpoint artifact, and the other way round."""

import contextlib
import json
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.directory import file_entry, sync_directory, whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.released import (
    RELEASED_CHOICES,
    from_released,
    released_config,
    require_released,
    to_released,
)
from lightgen.ports.released_file import read_released
from lightgen.ports.text import T5TextEncoder, load_text_encoder
from lightgen.stages.checkpoint import (
    Parts,
    Vae,
    forget_origin,
    load_transformer,
    open_checkpoint,
    require_part,
)
from lightgen.stages.pipeline import LightGenPipeline

_STRIDE = 8  # of the released autoencoder
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What released weights do not say themselves.

    Attributes:
        ema: whether to take the averaged weights, where the file holds both.
        num_heads: of attention; None stands for that of the released sizes.
        text_length: most text tokens.
        size: default side of a picture, px.
    """

    ema: bool = True
    num_heads: int | None = None
    text_length: int = 128
    size: int = 512


def import_checkpoint(
    config: ImportConfig,
    file: str | Path | None,
    out: str | Path,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Artifact:
    """Checkpoint artifact in fp32 of a file of released weights, with the other parts that are named.

    Without a file it holds those parts alone: what a new student starts from.

    Args:
        config: what the file does not say.
        file: a `.pth` or `.safetensors`, of which nothing is ever run; or None.
        out: where the artifact will be.
        vae: local folder of a diffusers autoencoder.
        text_encoder: local folder of a T5, whole or its encoder alone; it keeps its dtype.
        tokenizer: local folder; None looks in that of the text encoder.

    Raises:
        UserError: a file or folder is of another kind, or they do not fit together.
    """
    file = None if file is None else Path(file)
    folders = _folders(vae, text_encoder, tokenizer)
    if file is None and "vae" not in folders:
        raise UserError("import-checkpoint: got neither a file nor --vae, allowed: at least one of them")
    weights = None if file is None else read_released(file, config.ema)
    settings = {"stage": "import-checkpoint", **config_to_dict(config), **_identity(file, folders)}
    found = begin_artifact(out, "checkpoint", settings, [])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        if weights is None or file is None:
            parts, source = _others(config, folders, None), None
        else:
            parts = _parts(config, weights.tensors, folders, str(file))
            source = {"name": file.name, "weights": weights.part}
        modules = [part for part in parts.values() if isinstance(part, nn.Module)]
        parameters = sum(tensor.numel() for tensor in (parts.get("transformer") or modules[0]).parameters())
        say(f"{', '.join(parts)}: {parameters:,} parameters of {'transformer' if source else 'vae'}")
        for name in parts:
            workspace.remove(name)  # what an interrupted run left
        _save(parts, workspace.path)
        return workspace.commit({"parameters": parameters}, source=source)


def export_released(checkpoint: str | Path, out_file: str | Path) -> Path:
    """Path of a safetensors file, in fp32 under the released names, of a checkpoint's transformer.

    Raises:
        UserError: the checkpoint is of another configuration than the released one, or the file exists.
    """
    out = Path(out_file)
    if out.suffix != ".safetensors" or os.path.lexists(out):
        what = "exists already" if os.path.lexists(out) else f"got {out.name!r}"
        raise UserError(f"--out {out}: {what}, allowed: a new file ending in .safetensors")
    artifact = require_part(open_checkpoint(checkpoint), "transformer")
    transformer = load_transformer(artifact.path / "transformer")
    for name, allowed in RELEASED_CHOICES.items():
        got = transformer.config[name]
        if got != allowed:
            raise UserError(f"{artifact.path}: got {name} {got!r}, allowed: {allowed!r}, as released")
    state = {name: tensor.detach() for name, tensor in transformer.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in to_released(state).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    sync_directory(out.parent)
    return out


def _folders(
    vae: str | Path | None, text_encoder: str | Path | None, tokenizer: str | Path | None
) -> dict[str, Path]:
    """The named folders, each checked to be there."""
    if tokenizer is not None and text_encoder is None:
        raise UserError(f"--tokenizer {tokenizer}: got no text encoder, allowed: with --text-encoder")
    named = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer or text_encoder}
    folders = {part: Path(folder) for part, folder in named.items() if folder is not None}
    for part, folder in folders.items():
        option = f"--{part.replace('_', '-')} {folder}"
        if not folder.is_dir():
            raise UserError(f"{option}: no such directory, allowed: a local folder; nothing is downloaded")
        if part == "tokenizer" and not (folder / "tokenizer_config.json").is_file():
            raise UserError(
                f"{option}: no tokenizer_config.json, allowed: a transformers tokenizer (--tokenizer)"
            )
        if part != "tokenizer" and not any(folder.glob("*.safetensors")):
            raise UserError(f"{option}: holds no .safetensors, allowed: a folder of safetensors weights")
    return folders


def _identity(file: Path | None, folders: Mapping[str, Path]) -> dict[str, Any]:
    """What tells these inputs from others: the hash of the weights, names and sizes in the folders."""
    if file is not None and file.stat().st_size > 2**30:
        say(f"{file.name}: hashing {file.stat().st_size / 2**30:.1f} GiB")
    kinds = (".safetensors", ".json", ".model")
    sizes = {
        part: {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix in kinds}
        for part, folder in folders.items()
    }
    return {"sha256": None if file is None else file_entry(file)["sha256"], "parts": sizes}


def _parts(
    config: ImportConfig, tensors: Mapping[str, torch.Tensor], folders: Mapping[str, Path], where: str
) -> dict[str, Any]:
    """The transformer and the named parts in memory, checked to fit together."""
    stride = _load_vae(folders["vae"]).stride if "vae" in folders else _STRIDE
    unit = stride * RELEASED_CHOICES["patch_size"]
    if config.size < unit or config.size % unit:
        raise UserError(f"--size: got {config.size} px, allowed: multiples of {unit}")
    shape = released_config(tensors, config.num_heads, config.text_length, config.size // stride, where)
    cast = require_released(tensors, shape, where)
    parts = _others(config, folders, shape)
    with torch.device("meta"):
        transformer = LightGenTransformer(**shape)
    transformer.load_state_dict(from_released(cast), assign=True)
    return parts | {"transformer": transformer.eval()}


def _others(
    config: ImportConfig, folders: Mapping[str, Path], shape: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The named parts besides the transformer, checked to fit its shape, where there is one."""
    parts: dict[str, Any] = {}
    if "vae" in folders:
        parts["vae"] = _load_vae(folders["vae"]).vae
        got = parts["vae"].config["latent_channels"]
        if shape is not None and got != shape["latent_channels"]:
            allowed = shape["latent_channels"]
            raise UserError(f"--vae {folders['vae']}: got {got} latent channels, allowed: {allowed}")
    if "text_encoder" in folders:
        width = None if shape is None else int(shape["text_width"])
        text = _load_text(folders["text_encoder"], folders["tokenizer"], width, config.text_length)
        parts |= {"text_encoder": text.encoder, "tokenizer": text.tokenizer}
    return parts


def _load_vae(folder: Path) -> DiffusersAutoencoder:
    with _told(f"--vae {folder}"):
        stored = _stored(folder)
        autoencoder = load_autoencoder(folder)
        _require_whole(autoencoder.vae, stored)
    return autoencoder


def _load_text(folder: Path, tokenizer: Path, width: int | None, text_length: int) -> T5TextEncoder:
    """Text encoder in the dtype that it is stored in; its tokenizer cuts where the transformer does."""
    with _told(f"--text-encoder {folder}"):
        stored = _stored(folder)
        told = json.loads((folder / "config.json").read_text())
        if told["model_type"] != "t5" or told["d_model"] != (width or told["d_model"]):
            got = f"a {told['model_type']!r} of width {told['d_model']!r}"
            raise UserError(f"got {got}, allowed: a 't5' of width {width or 'any'}")
        text = load_text_encoder(folder, tokenizer)
        shared = {"shared.weight", "encoder.embed_tokens.weight"}  # two names of one tensor
        _require_whole(text.encoder, {*stored, *(shared if shared & set(stored) else ())})
    dtypes = {stored[name] for name in text.encoder.state_dict() if name in stored}
    if len(dtypes) == 1:
        nn.Module.to(text.encoder, _DTYPES.get(dtypes.pop(), torch.float32))
    text.tokenizer.model_max_length = min(text.tokenizer.model_max_length, text_length)
    return text


@contextlib.contextmanager
def _told(option: str) -> Iterator[None]:
    """Context in which whatever ails a folder of other people's weights becomes one line about an option."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        why = " ".join(f"{type(error).__name__} {error}".removeprefix("UserError ").split())
        raise UserError(f"{option}: {why[:300]}") from error


def _stored(folder: Path) -> dict[str, str]:
    """Dtype of each tensor of a folder's safetensors files, by its name."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


def _require_whole(module: nn.Module, stored: Container[str]) -> None:
    """Check that every weight is stored: the libraries draw others at random, which would go unseen."""
    missing = [name for name in module.state_dict() if name not in stored]
    if missing:
        got = f"{len(missing)} weights of {type(module).__name__} missing ({missing[0]}...)"
        raise UserError(f"got {got}, allowed: a whole model")


def _save(parts: Mapping[str, Any], folder: Path) -> None:
    """Write the parts in the diffusers layout, as a pipeline where all four are there."""
    if len(parts) == 4:
        transformer: LightGenTransformer = parts["transformer"]
        vae: Vae = parts["vae"]
        text_encoder: T5EncoderModel = parts["text_encoder"]
        tokenizer: PreTrainedTokenizerBase = parts["tokenizer"]
        whole = Parts(transformer, vae, text_encoder, tokenizer)
        LightGenPipeline.from_parts(whole).save_pretrained(folder)
        return
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    forget_origin(folder)
