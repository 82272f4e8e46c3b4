"""The Inception network that FID and KID are defined by, as torch-fidelity builds it (extra `fid`).

torch-fidelity imports torchvision, which lightgen never asks for; so this works where a user installed both.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightgen.core.errors import UserError
from lightgen.ports.released_file import read_state_dict

DIM = 2048
# The one file that FID is defined by, also under pytorch-fid's name of it, which begins with pt_inception.
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_FETCH = "load_state_dict_from_url"


def load_inception(path: Path, device: torch.device) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """Network from images uint8 [B, 3, H, W] to features float32 [B, 2048], the last pool, and their width.

    It scales images to 299 x 299 px bilinearly, as TensorFlow 1 did. torch-fidelity would unpickle the file
    without restrictions; so it is read here, by the loader that runs nothing, and handed to torch-fidelity in
    the place of what it would download.

    Args:
        path: file of the weights.
        device: where it runs.

    Raises:
        UserError: torch-fidelity or torchvision is missing or too new, or the file holds other weights.

    Source: arXiv 1706.08500 (FID); torch-fidelity 0.4.0 `feature_extractor_inceptionv3.py`.
    """
    module = _torch_fidelity()
    tensors = read_state_dict(path, WEIGHTS_SHA256)
    fetch = vars(module)[_FETCH]
    try:
        vars(module)[_FETCH] = lambda *_, **__: tensors
        network: Any = module.FeatureExtractorInceptionV3("inception-v3-compat", [str(DIM)])
    except RuntimeError as error:  # names or shapes that are not the network's
        told = " ".join(str(error).split())[:200]
        raise UserError(f"features {path}: {told}, allowed: {WEIGHTS} of torch-fidelity") from error
    finally:
        vars(module)[_FETCH] = fetch
    network = network.to(device).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        return network(images)[0]

    return features, DIM


def _torch_fidelity() -> Any:  # noqa: ANN401  (a module without types)
    """torch-fidelity's module of the network."""
    try:
        from torch_fidelity import (  # pyright: ignore[reportMissingImports]
            feature_extractor_inceptionv3 as module,
        )
    except (ImportError, RuntimeError) as error:  # the latter: a torchvision made for another torch
        got = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else f"got {error}"
        raise UserError(
            f"features inception: {' '.join(got.split())[:200]}, allowed: pip install 'lightgen[fid]'"
        ) from error
    if _FETCH not in vars(module):
        raise UserError("features inception: got a torch-fidelity of another make, allowed: 0.4.0")
    return module
