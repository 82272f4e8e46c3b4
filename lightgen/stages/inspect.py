"""Inspect: what is in an artifact of any kind, or in a public set of images, in words and as a page."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.data.latents import CorruptSample, LatentShards
from lightgen.data.prompts import PromptLines
from lightgen.ports.embedding import EmbedderConfig
from lightgen.stages.checkpoint import is_shipped, open_checkpoint
from lightgen.stages.inputs import ImageInputs, kind_of_images, open_images, summary
from lightgen.stages.inspect_facts import (
    Facts,
    artifact_facts,
    checkpoint_facts,
    counted,
    latent_facts,
    left_out,
    looked_at,
    report_facts,
    seen_facts,
    size_text,
    told_facts,
)
from lightgen.stages.inspect_page import Subject, captions_page, images_page
from lightgen.stages.inspect_sample import (
    MOST_SEEN,
    MOST_TOLD,
    Embedded,
    Sample,
    drawn,
    embed_images,
    embed_texts,
    look_at,
    told_of,
)

MOST_SAMPLES = 250
MAX_PAGE_BYTES = 15_000_000
_MAX_SETTINGS = 200_000
_PAGED = ("images", "latents", "prompts")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is looked at.

    Attributes:
        samples: pictures (or captions) drawn for the page, 1 to MOST_SAMPLES.
        seed: of what is drawn; the same seed shows the same.
        embedder: what twins and diversity are told by.
        verify: whether every file of an artifact is hashed too.
    """

    samples: int = 48
    seed: int = 0
    embedder: EmbedderConfig = EmbedderConfig()
    verify: bool = False


def inspect(config: InspectConfig, place: str | Path, page: Path | None = None) -> Facts:
    """What is at a place, as (what, value) in words; and its contact sheet, where a page is wanted.

    Args:
        config: how much is looked at.
        place: artifact of any kind, `nano`, `nano-256`, or a public set of images as `open_images` reads it.
        page: HTML file to write, for images, latents and prompts.

    Raises:
        UserError: there is nothing of the kind, a page of a kind that has none, or a page inside the place.
    """
    if not 1 <= config.samples <= MOST_SAMPLES:
        raise UserError(f"--samples: got {config.samples}, allowed: 1 to {MOST_SAMPLES}")
    if page is not None:
        _check_page(page, place)
    if is_shipped(place):
        return checkpoint_facts(open_checkpoint(place, verify=config.verify))
    if "::" in str(place) or kind_of_images(Path(place)) is not None:
        inputs = open_images([place])
        name = str(inputs.plain[0]["name"])
        return _images(config, inputs, Subject(name, "A public set, as it is.", [], {}, {}), [], page)
    artifact = open_artifact(place, verify=config.verify)
    if page is not None and artifact.kind not in _PAGED:
        raise UserError(f"--out: got a page of a {artifact.kind}, allowed: of {', '.join(_PAGED)}")
    facts = artifact_facts(artifact)
    settings = {"Settings": artifact.config, "Versions": artifact.manifest["versions"]}
    settings["Parents"] = {str(each.get("name")): each.get("digest") for each in artifact.parents}
    settings = {title: each for title, each in settings.items() if len(str(each)) < _MAX_SETTINGS}
    name, kind = artifact.path.resolve().name, f"An artifact of {artifact.kind}, {artifact.digest[:12]}."
    subject = Subject(name, kind, facts, left_out(artifact.path), settings)
    if artifact.kind == "images":
        return _images(config, open_images([place], verify=False), subject, facts, page)
    if artifact.kind in ("latents", "prompts"):
        return _captions(config, artifact, subject, facts, page)
    return checkpoint_facts(artifact) if artifact.kind == "checkpoint" else report_facts(artifact)


def _images(
    config: InspectConfig, inputs: ImageInputs, subject: Subject, facts: Facts, page: Path | None
) -> Facts:
    sample = look_at(inputs, config.seed)
    skipped = list(inputs.skipped)
    facts = facts or [("kind", "images, a public set"), ("records", f"{len(inputs):,}")]
    facts = [*facts, ("looked at", looked_at(sample)), *seen_facts(sample), *told_facts(sample)]
    if skipped:
        facts.append(("skipped", summary(skipped)))
    if sample.unread:
        facts.append(("unreadable", counted(sample.unread)))
    if subject.left_out:
        facts.append(("left out", counted(Counter(subject.left_out))))
    if page is not None:
        reasons = Counter(subject.left_out) + sample.unread + Counter(each.reason for each in skipped)
        subject = Subject(subject.name, subject.kind, facts, reasons, subject.settings)
        embedded = embed_images(inputs, list(sample.seen), config.embedder, config.seed)
        _write(page, images_page(subject, inputs, sample, embedded, config.samples))
    return facts


def _captions(
    config: InspectConfig, artifact: Artifact, subject: Subject, facts: Facts, page: Path | None
) -> Facts:
    """Facts and page of latents, of which the captions can be shown, or of prompts."""
    channels: list[tuple[float, float]] = []
    if artifact.kind == "latents":
        shards = LatentShards(artifact.path)
        facts = [*facts, *latent_facts(artifact, shards)]
        sample = _sample(config, len(shards), lambda i: {**(row := shards.row(i)), "prompt": row["caption"]})
        mean, std = (artifact.manifest.get(f"latent_{name}") for name in ("mean", "std"))
        if isinstance(mean, list) and isinstance(std, list):
            channels = list(zip(mean, std, strict=False))
    else:
        lines = PromptLines(artifact.path / "prompts.jsonl")
        sample = _sample(config, len(lines), lambda i: lines[i].to_json())
    facts = [*facts, ("looked at", looked_at(sample)), *told_facts(sample)]
    if subject.left_out:
        facts.append(("left out", counted(Counter(subject.left_out))))
    if page is not None:
        subject = Subject(subject.name, subject.kind, facts, subject.left_out, subject.settings)
        texts = {i: told.prompt for i, told in list(sample.told.items())[:MOST_SEEN]}
        embedded: Embedded | None = embed_texts(texts, config.embedder, config.seed)
        _write(page, captions_page(subject, sample, embedded, config.samples, channels))
    return facts


def _sample(config: InspectConfig, total: int, read: Any) -> Sample:  # noqa: ANN401  (a function of a number)
    order = drawn(total, MOST_TOLD, config.seed)
    told, unread = {}, Counter[str]()
    for i in sorted(order):
        try:
            told[i] = told_of(read(i))
        except CorruptSample as error:
            unread[error.reason] += 1
    return Sample(total, {i: told[i] for i in order if i in told}, {}, unread)


def _check_page(page: Path, place: str | Path) -> None:
    """Refuse a page that is no HTML file, has no folder, or would lie inside what is looked at."""
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise UserError(f"--out: got {str(page)!r}, allowed: a file that ends in .html")
    if not page.absolute().parent.is_dir():
        raise UserError(f"--out: got {str(page)!r}, allowed: in a directory that is there")
    if Path(place).resolve() in page.absolute().parent.resolve().parents or (
        Path(place).resolve() == page.absolute().parent.resolve()
    ):
        raise UserError(f"--out: got {str(page)!r}, allowed: outside of {place}, which stays as it is")


def _write(page: Path, html: str) -> None:
    data = html.encode("utf-8", "replace")
    if len(data) > MAX_PAGE_BYTES:
        raise UserError(f"--out: got a page of {len(data)} bytes, allowed: {MAX_PAGE_BYTES}; fewer --samples")
    with whole_file(page) as temporary:
        temporary.write_bytes(data)
    say(f"wrote {page} ({size_text(len(data))})")
