"""Images become latents, at each of their sizes: decoded ahead by threads, encoded in batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from lightgen.core.directory import json_bytes, whole_file
from lightgen.data.images import CorruptRecord
from lightgen.data.latents import write_latent_shard
from lightgen.data.moments import Moments, together
from lightgen.data.picture import fit
from lightgen.data.representation import FOLDER, write_representation_shard
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.stages.checkpoint import pick_device
from lightgen.stages.encode_representation import RepresentationPlace
from lightgen.stages.engine import Writer
from lightgen.stages.inputs import ImageInputs, open_images, require_size
from lightgen.stages.rank import RANKED

_COPIED = ("tag", "include", "exclude", "score", *RANKED, "seed", "generator")
_MOST_THREADS = 8

Represent = Callable[[torch.Tensor], torch.Tensor]
# Mean, std [B, C, h, w] and, where they are wanted, features [B, L, D]: all bfloat16.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class ImagePass:
    """How a batch is encoded; see `EncodeConfig`."""

    batch_size: int
    precision: Literal["bf16", "fp32"]
    tiled: Literal["auto", "always", "never"]
    tile: int


@dataclass(frozen=True)
class Unit:
    """Images that are encoded together.

    Attributes:
        ids: of the images.
        sizes: sides in px that they are wanted in; empty = as they are.
        shapes: (height, width) of each of the sizes, or the one that they have.
    """

    ids: Sequence[int]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ImageWork:
    """Shards of latents, and a note of each unit: rows and moments by size, and what was skipped.

    Attributes:
        how: batches, precision, tiles.
        images: directories of all images.
        checkpoint: folder with the autoencoder.
        units: images of each shard.
        representation: frozen model whose features are stored too; None = none are.
    """

    how: ImagePass
    images: tuple[str, ...]
    checkpoint: str
    units: tuple[Unit, ...]
    representation: RepresentationPlace | None = None

    def open(self) -> Writer:
        """Function that writes the latents of a unit, and then its note at `shards/NAME.json`; see `Work`."""
        frozen = None if self.representation is None else self.representation.load()
        encoder = Encoder(self.how, load_autoencoder(Path(self.checkpoint) / "vae"), frozen)
        inputs = open_images(self.images, verify=False)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            folder, unit = path.parent.parent, self.units[number]
            note = write_unit(encoder, inputs, unit, folder, path.stem, advance)
            with whole_file(path) as temporary:
                temporary.write_bytes(json_bytes(note))

        return write


class Encoder:
    """An autoencoder that encodes batches of images on the device of this process.

    Args:
        how: they are encoded.
        autoencoder: that encodes.
        represent: gives further features [B, L, D] of pixels; see `RepresentationPlace.load`.
    """

    def __init__(
        self, how: ImagePass, autoencoder: DiffusersAutoencoder, represent: Represent | None = None
    ) -> None:
        self.how, self.device, self._represent = how, pick_device(), represent
        autoencoder.vae.to(self.device)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self._autoencoder = autoencoder

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> Encoded:
        """What is stored of images uint8 [H, W, 3] of one size, on the device."""
        batch = torch.from_numpy(np.stack(images))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        largest, how = max(pixels.shape[2:]), self.how
        tiled = how.tiled == "always" or (how.tiled == "auto" and largest > 2 * how.tile)
        self._autoencoder.use_tiles(how.tile if tiled else None)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            mean, std = self._autoencoder.encode(pixels)
        found = None if self._represent is None else self._represent(pixels).bfloat16()
        return mean.bfloat16(), std.bfloat16(), found


@dataclass(frozen=True)
class _Picture:
    """An image made ready, in every shape; or the reason why it is not there."""

    key: str
    meta: dict[str, Any]
    images: Sequence[np.ndarray] = ()
    is_scaled_up: Sequence[bool] = ()
    reason: str | None = None


class _Lane:
    """The rows of one size.

    Latents come to the CPU in a thread of their own, so that an accelerator goes on meanwhile.
    """

    def __init__(self, encoder: Encoder, batch_size: int, pool: ThreadPoolExecutor) -> None:
        self._encoder, self._batch_size, self._pool = encoder, batch_size, pool
        self._waiting: list[np.ndarray] = []
        self._encoded: list[Future[tuple[Encoded, Moments]]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, image: np.ndarray, row: dict[str, Any]) -> None:
        """Take in an image; a full batch is encoded."""
        self._waiting.append(image)
        self.rows.append(row)
        if len(self._waiting) == self._batch_size:
            self.flush()

    def flush(self) -> None:
        """Encode what waits."""
        if self._waiting:
            self._encoded.append(self._pool.submit(_brought, self._encoder.encode(self._waiting)))
            self._waiting = []

    def write(self, path: Path) -> dict[str, Any] | None:
        """Write the shard and return what its note says; None without rows."""
        self.flush()
        found = [each.result() for each in self._encoded]
        if not found:
            return None
        means, stds, features = zip(*(encoded for encoded, _ in found), strict=True)
        mean, std = torch.cat(means), torch.cat(stds)
        write_latent_shard(path, mean, std if bool(std.any()) else None, self.rows)
        if features[0] is not None:
            write_representation_shard(path.parent / FOLDER / path.name, torch.cat(features))
        moments = together(moments for _, moments in found)
        return {"rows": len(self.rows), "moments": vars(moments)}


def write_unit(
    encoder: Encoder,
    inputs: ImageInputs,
    unit: Unit,
    folder: Path,
    name: str,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Note of a unit; its latents are written as `latents-NAME` or, in sizes, `latents-SIZE-NAME`."""
    skipped: list[dict[str, str]] = []
    scaled_up, largest = 0, max(height * width for height, width in unit.shapes)
    threads = max(1, min(_MOST_THREADS, torch.get_num_threads()))
    reading = ThreadPoolExecutor(threads, "decode")
    with ThreadPoolExecutor(1, "bring") as bringing:
        lanes = [
            _Lane(encoder, encoder.how.batch_size * largest // (height * width), bringing)
            for height, width in unit.shapes
        ]
        try:
            ready = _ahead(reading, lambda i: _read(inputs, i, unit), unit.ids, encoder.how.batch_size)
            for picture in ready:
                advance(1)
                if picture.reason is not None:
                    skipped.append({"key": picture.key, "reason": picture.reason})
                    continue
                scaled_up += sum(picture.is_scaled_up)
                for lane, image in zip(lanes, picture.images, strict=True):
                    lane.add(image, _row(picture, image))
        finally:
            reading.shutdown(wait=False, cancel_futures=True)
        sizes = {}
        for number, (lane, (height, width)) in enumerate(zip(lanes, unit.shapes, strict=True)):
            size = f"{unit.sizes[number]:04d}-" if unit.sizes else ""
            note = lane.write(folder / f"latents-{size}{name}.safetensors")
            if note is not None:
                sizes[str(unit.sizes[number]) if unit.sizes else f"{width}x{height}"] = note
    return {"skipped": skipped, "upscaled": scaled_up, "sizes": sizes}


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], depth: int
) -> Iterator[_Out]:
    """What the function gives for each item, in order, found by threads up to `depth` items ahead."""
    waiting: deque[Future[_Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(inputs: ImageInputs, i: int, unit: Unit) -> _Picture:
    key = inputs.key(i)
    try:
        record = inputs[i]
    except CorruptRecord as error:
        return _Picture(key, {}, reason=error.reason)
    meta = dict(record.meta)
    if not unit.sizes:
        return _Picture(key, meta, [require_size(record.image, *unit.shapes[0], key=record.key)], [False])
    tall, wide = record.image.shape[:2]
    images = [fit(record.image, *shape) for shape in unit.shapes]
    return _Picture(key, meta, images, [tall < height or wide < width for height, width in unit.shapes])


def _row(picture: _Picture, image: np.ndarray) -> dict[str, Any]:
    height, width = image.shape[:2]
    row = {"caption": picture.meta["prompt"], "key": picture.key, "height": height, "width": width}
    return row | {name: picture.meta[name] for name in _COPIED if name in picture.meta}


def _brought(encoded: Encoded) -> tuple[Encoded, Moments]:
    """Latents, with what is stored beside them, on the CPU; and their moments."""
    mean, std, features = encoded
    mean, std = mean.cpu(), std.cpu()
    return (mean, std, None if features is None else features.cpu()), Moments.of(mean, std)
