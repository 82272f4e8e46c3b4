"""Extractors of others behind one port, each as the distance that it is known for prepares its images.

That is done here, by Pillow and by fixed numbers: with a folder's own settings it would be another distance.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from lightgen.core.errors import UserError
from lightgen.ports.inception import load_inception
from lightgen.ports.released_file import read_state_dict

Kind = Literal["nano", "dinov2", "clip", "inception"]
DEFAULT_MODELS: dict[Kind, str] = {
    "dinov2": "facebook/dinov2-large",
    "clip": "openai/clip-vit-large-patch14-336",
}
# What a folder is read for; nothing else of a repository is needed. Older CLIPs come as a pickle alone.
_WEIGHTS, _PICKLED = "model*.safetensors", "pytorch_model.bin"
_STORED = ("config.json", _WEIGHTS, "model.safetensors.index.json")
PATTERNS: dict[Kind, tuple[str, ...]] = {"dinov2": _STORED, "clip": (*_STORED, _PICKLED)}

_DINOV2_SIDE, _OFFSET = 224, 0.1
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of red, green, blue
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Shapes: B images, S side in px that a model sees, D features.


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which model's features are compared, and how it runs.

    Attributes:
        kind: nano: what the shipped detector's layers answer, without a download; dinov2: FD-DINOv2's and the
            usual one for precision and recall; clip: CMMD's; inception: FID's and KID's, by torch-fidelity.
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            for nano the checkpoint of a detector, for inception the file of its weights. None names the usual
            one; inception has none.
        batch_size: most images per pass.
        precision: of the model; features are float32 in any case. nano and inception are always fp32.
    """

    kind: Kind = "nano"
    model: str | None = None
    batch_size: int = 64
    precision: Literal["bf16", "fp32"] = "fp32"


class ModelFeatures:
    """A network and how its images are prepared; made by `load_features`.

    Args:
        network: pixels float [B, 3, S, S] (inception: uint8 [B, 3, H, W]) to features [B, D].
        prepare: an image uint8 [H, W, 3] to such pixels [3, S, S].
        dim: D.
        batch_size: most images per pass.
        device: of the network.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        prepare: Callable[[np.ndarray], torch.Tensor],
        dim: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._network, self._prepare, self._device = network, prepare, device
        self._dim, self._batch_size = dim, batch_size

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self._dim

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D], of any length, of images uint8 [B, H, W, 3]."""
        rows = [np.zeros((0, self._dim), np.float32)]
        # unasked, PyTorch computes convolutions in TF32, of ten bits
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for start in range(0, len(images), self._batch_size):
                pixels = torch.stack(
                    [self._prepare(each) for each in images[start : start + self._batch_size]]
                )
                rows.append(self._network(pixels.to(self._device)).float().cpu().numpy())
        return np.concatenate(rows)


def features_files(config: FeaturesConfig, path: Path) -> list[Path]:
    """Files of a folder (inception: the file itself) that an extractor is read from.

    Raises:
        UserError: the folder lacks what the kind needs.
    """
    assert config.kind != "nano", config
    if config.kind == "inception":
        if not path.is_file():
            raise UserError(f"features {path}: is no file, allowed: that of Inception's weights")
        return [path]
    weights = sorted(path.glob(_WEIGHTS)) or [path / _PICKLED] * (_PICKLED in PATTERNS[config.kind])
    if not (path / "config.json").is_file() or not weights or not weights[0].is_file():
        lack = "model.safetensors" if (path / "config.json").is_file() else "config.json"
        raise UserError(f"features {path}: no {lack}, allowed: {config.kind} in transformers' layout")
    index = path / "model.safetensors.index.json"
    return [path / "config.json", *weights, *([index] if index.is_file() else [])]


def load_features(config: FeaturesConfig, folder: Path, device: torch.device) -> ModelFeatures:
    """Extractor of local files on a device; nothing is downloaded and no code of the files is run.

    dinov2: the whole image, squeezed to 224 x 224 px bicubically; the CLS token after the last norm, as
    FD-DINOv2's own code takes both. clip: the square in the middle, scaled to the model's side bicubically;
    the projected embedding, whose length CMMD does not see. CMMD's own code cuts in this way too, so that of
    images that are not square the rest does not count. inception: see `lightgen.ports.inception`.

    Args:
        config: its kind, any but nano.
        folder: in the layout of transformers; for inception a file.
        device: where it runs.

    Raises:
        UserError: the files are missing, damaged, or of another kind, or torch-fidelity is.

    Source: arXiv 2306.04675, github layer6ai-labs/dgm-eval `models/dinov2.py`; arXiv 2401.09603, github
    google-research/google-research `cmmd/embedding.py`, `cmmd/io_util.py`.
    """
    files = features_files(config, folder)
    if config.kind == "inception":
        network, dim = load_inception(folder, device)
        return ModelFeatures(network, _unchanged, dim, config.batch_size, device)
    with refused_whole(folder):
        stated = str(json.loads((folder / "config.json").read_text()).get("model_type"))
        if stated != config.kind:
            raise UserError(f"holds a {stated!r}, allowed: {config.kind!r}")
        model = load_model(config, folder, files).to(device)
        return (_dinov2 if config.kind == "dinov2" else _clip)(model, config.batch_size, device)


def _dinov2(model: Dinov2Model, batch_size: int, device: torch.device) -> ModelFeatures:
    fit_positions(model, _DINOV2_SIDE)

    def token(pixels: torch.Tensor) -> torch.Tensor:
        found: Any = model(pixel_values=pixels.to(model.dtype))
        return found.last_hidden_state[:, 0]

    return ModelFeatures(token, _squeezed, model.config.hidden_size, batch_size, device)


def _clip(model: CLIPModel, batch_size: int, device: torch.device) -> ModelFeatures:
    config: Any = model.config
    side = config.vision_config.image_size

    def embedding(pixels: torch.Tensor) -> torch.Tensor:
        found: Any = model.get_image_features(pixel_values=pixels.to(model.dtype))
        return found.pooler_output

    return ModelFeatures(
        embedding, lambda image: _middle(image, side), config.projection_dim, batch_size, device
    )


def fit_positions(model: Dinov2Model, side: int) -> None:
    """Give a DINOv2 the table of positions for images of side px that its authors' code computes.

    Their factor is (patches + 0.1) over the patches that it was trained with; transformers leaves out the
    0.1, which shifts every position by up to a fraction of a patch.

    Source: github facebookresearch/dinov2 `models/vision_transformer.py`, interpolate_pos_encoding.
    """
    table: Any = model.embeddings.position_embeddings  # [1, 1 + n * n, D]
    patch: Any = model.config.patch_size
    num, wanted = math.isqrt(table.shape[1] - 1), side // patch
    if num == wanted:
        return
    grid = table[:, 1:].detach().float().reshape(1, num, num, -1).permute(0, 3, 1, 2)
    factor = (wanted + _OFFSET) / num
    grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    found = torch.cat([table[:, :1].detach(), grid.flatten(2).mT.to(table.dtype)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(found, requires_grad=False)


def load_model(config: FeaturesConfig, folder: Path, files: list[Path]) -> Any:  # noqa: ANN401
    """The model in its dtype, for eval; a weight that is not stored, which would be drawn, is refused."""
    model_class: Any = CLIPModel if config.kind == "clip" else Dinov2Model
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if config.precision == "bf16" else torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, where it can be named
    }
    pickled = folder / _PICKLED
    if pickled in files:
        config_class: Any = CLIPConfig if config.kind == "clip" else Dinov2Config
        stated = config_class.from_pretrained(folder, local_files_only=True)
        model, told = model_class.from_pretrained(
            None, config=stated, state_dict=read_state_dict(pickled), **options
        )
    else:
        model, told = model_class.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **options
        )
    absent = sorted(told["missing_keys"]) + sorted(str(each[0]) for each in told["mismatched_keys"])
    if absent:
        raise UserError(
            f"{len(absent)} weights missing or of another shape ({absent[0]}), allowed: a whole {config.kind}"
        )
    return model.eval().requires_grad_(False)


def _squeezed(image: np.ndarray) -> torch.Tensor:
    """Pixels float [3, 224, 224] of a whole image, whatever its shape."""
    return _normal(Image.fromarray(image), _DINOV2_SIDE, *_IMAGENET)


def _middle(image: np.ndarray, side: int) -> torch.Tensor:
    """Pixels float [3, side, side] of the largest square in the middle of an image."""
    height, width = image.shape[:2]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = np.ascontiguousarray(image[top : top + square, left : left + square])
    return _normal(Image.fromarray(cut), side, *_CLIP)


def _normal(
    picture: Image.Image, side: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> torch.Tensor:
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def _unchanged(image: np.ndarray) -> torch.Tensor:
    """Pixels uint8 [3, H, W]: the network scales them itself."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@contextlib.contextmanager
def refused_whole(path: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"features {path}: {' '.join(f'{name}{error}'.split())[:300]}") from error
