"""Encode: images become latents, by the autoencoder of a checkpoint, and captions features of their text."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightgen.core.artifact import Artifact, Workspace, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.data.images import CorruptRecord, Skipped
from lightgen.data.moments import Moments, together
from lightgen.data.picture import bucket_of, picture_size
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.stages.checkpoint import NANO, autoencoder_digest, open_checkpoint
from lightgen.stages.encode_images import ImagePass, ImageWork, Unit
from lightgen.stages.encode_representation import RepresentationConfig, find_representation
from lightgen.stages.encode_text import TextConfig, encode_text, find_length, text_encoder_digest
from lightgen.stages.engine import LOCAL, EngineConfig, cut, write_shards
from lightgen.stages.inputs import ImageInputs, count_reasons, open_images

SKIPPED = "skipped.jsonl"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How images are encoded.

    Attributes:
        batch_size: images per pass at the largest size; at a smaller one, as many as have the same pixels.
        shard_size: images per shard, the unit of work that a killed run does not repeat.
        precision: of the pass; latents are stored in bf16 in any case.
        sizes: sides in px to which the middle square of every image is scaled, each read and decoded once
            for all; smaller images are scaled up, and counted. None named: images are taken as they are, all
            of one size.
        buckets: whether images nearly keep their proportions instead, within about size x size pixels; those
            of one size share shards, and training makes each batch of one size.
        tiled: whether what is larger than `tile` px is encoded in overlapping tiles of that side, whose
            latents are blended and differ a little from those of the whole image; `auto` does so where a
            side is longer than two tiles, as memory grows with the pixels, and in attention with their
            square.
        tile: side of a tile, px.
        text: whether captions are encoded too, once each, so that training need not; and how.
        representation: whether a frozen model's features of the pictures are stored too, for REPA; and whose.
    """

    batch_size: int = 50
    shard_size: int = 1000
    precision: Literal["bf16", "fp32"] = "fp32"
    sizes: tuple[int, ...] = ()
    buckets: bool = False
    tiled: Literal["auto", "always", "never"] = "auto"
    tile: int = 1024
    text: TextConfig = TextConfig()
    representation: RepresentationConfig = RepresentationConfig()

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        if min(self.batch_size, self.shard_size, self.tile, *self.sizes) < 1:
            raise UserError(
                f"encode: got batch_size {self.batch_size}, shard_size {self.shard_size}, tile {self.tile}, "
                f"sizes {list(self.sizes)}, allowed: from 1"
            )
        if len(set(self.sizes)) < len(self.sizes):
            raise UserError(f"encode: got sizes {list(self.sizes)}, allowed: each once")
        self.text.check()
        self.representation.check()


def encode(
    config: EncodeConfig,
    out: str | Path,
    images: Sequence[str | Path],
    start: str | Path = NANO,
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Artifact of latents: mean (and std, where the autoencoder has one) and caption of every readable image.

    Images that cannot be read are listed in `skipped.jsonl` with the reason. The manifest tells mean and
    standard deviation of each channel, of all latents together and by size.

    Args:
        config: sizes, batches and shards.
        out: where the artifact will be.
        images: artifacts of images, or directories of plain tars.
        start: checkpoint whose autoencoder encodes, and whose text encoder where text is wanted.
        engine: who runs it; the latents do not depend on that.

    Raises:
        UserError: inputs that are no images or of several sizes, or a start without autoencoder or, where it
            is wanted, text encoder.
    """
    config.check()
    engine.check()
    inputs, checkpoint = open_images(images), open_checkpoint(start)
    autoencoder = autoencoder_digest(checkpoint)
    text_encoder, length = None, 0
    if config.text.stored:
        text_encoder, length = text_encoder_digest(checkpoint), find_length(config.text, checkpoint)
    frozen = find_representation(config.representation)
    recorded = replace(config, text=config.text.recorded(), representation=config.representation.recorded())
    settings = {"stage": "encode", **config_to_dict(recorded), **inputs.identity()}
    found = begin_artifact(out, "latents", settings, [*inputs.artifacts, checkpoint])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        units = _units(config, inputs, load_autoencoder(checkpoint.path / "vae").stride)
        if frozen is not None:
            frozen.check([shape for unit in units for shape in unit.shapes])
        how = ImagePass(config.batch_size, config.precision, config.tiled, config.tile)
        places = tuple(str(Path(path).absolute()) for path in images)
        work = ImageWork(how, places, str(checkpoint.path.absolute()), units, frozen)
        # the note of a unit comes last: where it is, the latents are
        names = [f"shards/{number:05d}.json" for number in range(len(units))]
        (workspace.path / "shards").mkdir(exist_ok=True)
        write_shards(engine, workspace, "encode", names, [len(unit.ids) for unit in units], work)
        notes = [workspace.path / name for name in names]
        counts, facts = _summary(workspace, notes, len(inputs), inputs.skipped)
        if frozen is not None:
            facts["representation"] = frozen.facts()
        if config.text.stored:
            more, facts["text_features"] = encode_text(config.text, length, workspace, checkpoint, engine)
            counts |= more
        return workspace.commit(counts, autoencoder=autoencoder, text_encoder=text_encoder, **facts)


def _summary(
    workspace: Workspace, notes: Sequence[Path], images: int, left_out: Iterable[Skipped]
) -> tuple[dict[str, int], dict[str, Any]]:
    """(Counts, further entries of the manifest) of all notes; lists what was skipped, by readers too.

    Raises:
        UserError: nothing could be read.
    """
    skipped: list[dict[str, str]] = []
    sizes: dict[str, list[tuple[int, Moments]]] = {}
    upscaled = 0
    for path in notes:
        note = json.loads(path.read_text())
        skipped += note["skipped"]
        upscaled += note["upscaled"]
        for name, found in note["sizes"].items():
            sizes.setdefault(name, []).append((found["rows"], Moments.from_json(found["moments"])))
    if len(skipped) == images:
        first = skipped[0]["reason"] if skipped else "none are there"
        raise UserError(f"encode: none of {images} images can be read ({first}), allowed: PNG, JPEG or WebP")
    no_records = [{"key": f"{each.shard}/{each.name}", "reason": each.reason} for each in left_out]
    if skipped or no_records:
        lines = "".join(json.dumps(each) + "\n" for each in (*skipped, *no_records))
        workspace.write_bytes(SKIPPED, lines.encode())
    if skipped:
        say(f"encode: skipped {len(skipped)} of {images} images, listed with the reasons in {SKIPPED}")
    if upscaled:
        say(f"encode: {upscaled} rows are of images smaller than their size, scaled up")
    parts = {name: together(moments for _, moments in found) for name, found in sizes.items()}
    rows = {name: sum(count for count, _ in found) for name, found in sizes.items()}
    whole = together(parts.values())
    facts = {
        "skipped": count_reasons(each["reason"] for each in (*skipped, *no_records)),
        "latent_mean": whole.mean,
        "latent_std": whole.std,
        "latent_sizes": {
            name: {"rows": rows[name], "latent_mean": part.mean, "latent_std": part.std}
            for name, part in parts.items()
        },
    }
    counts = {"rows": sum(rows.values()), "skipped": len(skipped), "upscaled": upscaled}
    return {**counts, **({"no_record": len(no_records)} if no_records else {})}, facts


def _units(config: EncodeConfig, inputs: ImageInputs, stride: int) -> tuple[Unit, ...]:
    """The images of each shard, and the (height, width) in px that they are encoded in, one for each size.

    Raises:
        UserError: a size that the autoencoder cannot take.
    """
    unit = stride * (8 if config.buckets else 1)
    if config.buckets and (not config.sizes or any(size % unit for size in config.sizes)):
        raise UserError(
            f"encode: got buckets and sizes {list(config.sizes)}, allowed: sizes in multiples of {unit}"
        )
    if config.tile % (4 * stride):
        raise UserError(f"encode: got tile {config.tile}, allowed: multiples of {4 * stride} px")
    sizes = tuple(sorted(config.sizes))
    groups: dict[tuple[tuple[int, int], ...], Sequence[int]] = {}
    if not sizes:
        groups[(_first_size(inputs),)] = range(len(inputs))
    elif not config.buckets:
        groups[tuple((size, size) for size in sizes)] = range(len(inputs))
    else:
        groups = _by_proportions(inputs, sizes)
    for height, width in (shape for shapes in groups for shape in shapes):
        if height % stride or width % stride:
            got = f"{width}x{height} px"
            raise UserError(f"encode: images of {got}, allowed: sides in multiples of {stride} px")
    return tuple(
        Unit(ids[part.start : part.stop], sizes, shapes)
        for shapes, ids in groups.items()
        for part in cut(len(ids), config.shard_size)
    )


def _by_proportions(
    inputs: ImageInputs, sizes: Sequence[int]
) -> dict[tuple[tuple[int, int], ...], Sequence[int]]:
    """Images by the (height, width) of their bucket at each size."""
    found: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for i in range(len(inputs)):
        try:
            height, width = picture_size(inputs.encoded(i).data)
        except UserError:  # it is counted where it is decoded, with the others of the square
            height = width = sizes[0]
        found.setdefault(tuple(bucket_of(height, width, size) for size in sizes), []).append(i)
    return {shapes: found[shapes] for shapes in sorted(found)}


def _first_size(inputs: ImageInputs) -> tuple[int, int]:
    """(height, width) of the first image that can be read."""
    for i in range(len(inputs)):
        try:
            height, width = inputs[i].image.shape[:2]
        except CorruptRecord:
            continue
        return height, width
    raise UserError(f"encode: none of {len(inputs)} images can be read, allowed: PNG, JPEG or WebP")
