"""How close images are to the images that they stand for."""

import numpy as np

from lightgen.core.errors import UserError


def psnr(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio [B] float64 in dB of each image; infinite where it equals its reference.

    Args:
        images: uint8 [B, H, W, 3].
        reference: uint8 of the same shape.

    Raises:
        UserError: types or shapes differ from that.
    """
    for name, array in (("images", images), ("reference", reference)):
        if array.dtype != np.uint8 or array.ndim != 4:
            raise UserError(f"psnr: {name} are {array.dtype} {array.shape}, allowed: uint8 [B, H, W, 3]")
    if images.shape != reference.shape:
        raise UserError(f"psnr: images are {images.shape} but their references are {reference.shape}")
    errors = np.empty(len(images), dtype=np.float64)
    for i, (image, other) in enumerate(zip(images, reference, strict=True)):
        errors[i] = np.mean(np.square(image.astype(np.float64) - other.astype(np.float64)))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / errors)
