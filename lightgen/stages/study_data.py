"""What the phases of a study learn from: each set of latents is made once, and shared by arms."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lightgen.core.artifact import Artifact, begin_artifact, kind_of, open_artifact
from lightgen.core.config import digest
from lightgen.core.draws import numpy_draws
from lightgen.data.images import ImageRecord, ImageShards, write_image_shard
from lightgen.stages.checkpoint import autoencoder_digest
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.journal import Journal
from lightgen.stages.study_config import StudyData

_SHARD = 1_000


def study_data(data: StudyData, seed: int, out: Path, start: Artifact) -> tuple[Path, Journal]:
    """Latents, with the journal of what they cost.

    Args:
        data: what they are of.
        seed: of the pictures.
        out: directory of the study.
        start: checkpoint whose autoencoder encodes.
    """
    made_of = {"data": data, "seed": seed, "autoencoder": autoencoder_digest(start)}
    folder = out / "data" / digest(made_of)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    journal, latents = Journal(folder / "journal.jsonl"), folder / "latents"
    if kind_of(latents):
        return open_artifact(latents, "latents", verify=False).path, journal
    config = DistillConfig(
        teacher=data.teacher,
        prompts=data.prompts,
        images_per_prompt=data.images_per_prompt,
        height=data.size,
        width=data.size,
        shard_size=_SHARD,
        seed=seed,
    )
    with journal.stage("distill"):
        images = distill(config, folder / "images")
        if data.flip:
            images = mirrored(images, seed, folder / "mirrored")
    with journal.stage("encode"):
        encode(EncodeConfig(), latents, [images.path], start.path)
    return latents, journal


def mirrored(images: Artifact, seed: int, out: Path) -> Artifact:
    """The images, each mirrored with probability 1/2, as the released code does; captions stay as they are.

    What a teacher knows of the places of its objects is left out.
    """
    found = begin_artifact(out, "images", {"stage": "mirror", "seed": seed}, [images])
    if isinstance(found, Artifact):
        return found

    def records() -> Iterator[ImageRecord]:
        for number, record in enumerate(ImageShards(images.path)):
            is_mirrored = bool(numpy_draws(seed, "mirror", number).random() < 0.5)
            meta = {name: value for name, value in record.meta.items() if name != "objects"}
            image = record.image[:, ::-1].copy() if is_mirrored else record.image
            yield replace(record, image=image, meta={**meta, "mirrored": is_mirrored})

    with found as workspace:
        count = write_image_shard(workspace.path / "images-00000.tar", records())
        facts = {"generator": images.manifest["generator"]}
        return workspace.commit({"images": count, "prompts": images.counts["prompts"]}, **facts)
