"""Caption: sources become prompts, expanded, cleaned and selected; or images get new captions."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.artifact import Artifact, Workspace, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.core.prompt import Prompt
from lightgen.data.caption_sources import BadCaption
from lightgen.data.cleaning import (
    REASONS,
    BlockList,
    Verdicts,
    held_out_hashes,
    judge,
    tidy,
)
from lightgen.data.prompts import PromptLines, write_prompts
from lightgen.evals.concepts import concept_coverage
from lightgen.stages.caption_config import CaptionConfig
from lightgen.stages.caption_inputs import CaptionInputs, line_of, open_captions, read_held_out
from lightgen.stages.caption_select import EmbedWork, embed, measure, take
from lightgen.stages.caption_write import ExpandWork, Limits, RecaptionWork, expand, recaption
from lightgen.stages.captioner import CaptionerPlace, find_captioner
from lightgen.stages.embedder import EmbedderPlace, find_embedder
from lightgen.stages.engine import LOCAL, EngineConfig
from lightgen.stages.inputs import open_images

UNREADABLE, NOT_SELECTED = "unreadable", "not selected"

_READ, _BAD, _READ_COUNTS = "state/read.jsonl", "state/bad.jsonl", "state/read.json"
_EXPANDED = "state/expanded.jsonl"
_CLEAN, _DROPPED, _CLEAN_COUNTS = "state/clean.jsonl", "state/dropped.jsonl", "state/clean.json"
_MOST_REASONS = 20


def caption(
    config: CaptionConfig,
    out: str | Path,
    inputs: Sequence[str | Path] = (),
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Artifact of prompts made of captions, or, with `recaption`, of the same images with new captions.

    Captions are read, expanded, cleaned, selected and written, in this order; each that does not come out is
    in `dropped.jsonl` with its origin and reason, and the manifest counts both by reason. A killed run goes
    on after the last whole step, and within expansion and embedding after the last whole shard.

    Args:
        config: what is done.
        out: where the artifact will be.
        inputs: captions: see `open_captions`; without any, the config's own grammar. recaption: images, see
            `open_images`.
        engine: who runs the models; what comes out does not depend on that.

    Raises:
        UserError: inputs that are no captions, too many bad ones, none that stays, or a model that is not on
            this machine.
    """
    config.check()
    place = None if config.captioner is None else find_captioner(config.captioner)
    if config.recaption:
        assert place is not None
        return _recaption(config, place, out, inputs, engine)
    sources = open_captions(inputs, config.source, config.column, config.num_per_input)
    config = replace(config, source=None if inputs else config.source)
    held_out, excluded = read_held_out(config.exclude)
    blocked = BlockList() if config.cleaning.blocked is None else BlockList.read(config.cleaning.blocked)
    embedder = find_embedder(config.embedder) if config.needs_embeddings() else None
    settings = {"stage": "caption", **config_to_dict(config), "exclude": excluded}
    if config.cleaning.blocked is not None:  # what it says, not where it lies
        settings["cleaning"]["blocked"] = file_entry(config.cleaning.blocked)["sha256"]
    settings |= {"plain_inputs": list(sources.identity)} if sources.identity else {}
    settings |= {"captioner_files": place.identity()} if place else {}
    settings |= {"embedder_files": embedder.identity()} if embedder else {}
    found = begin_artifact(out, "prompts", settings, sources.artifacts)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        with _forgotten(workspace):
            read = _read(config, sources, workspace)
        fallbacks, source = {}, _READ
        if place is not None:
            limits = Limits(config.cleaning.max_chars, config.cleaning.max_bytes)
            work = ExpandWork(place, workspace.path / _READ, limits, config.shard_size, config.seed)
            fallbacks, source = expand(engine, workspace, work, read["captions"], _EXPANDED), _EXPANDED
        with _forgotten(workspace) if place is None else contextlib.nullcontext():
            cleaned = _clean(config, source, blocked, held_out, workspace)
        rows, told = _select(config, embedder, engine, workspace)
        total = _write(workspace, rows)
        dropped = {UNREADABLE: read["bad"], **cleaned["reasons"]}
        dropped[NOT_SELECTED] = len(PromptLines(workspace.path / _CLEAN)) - total
        dropped = {reason: count for reason, count in dropped.items() if count}
        assert total + sum(dropped.values()) == read["captions"] + read["bad"], (total, dropped, read)
        workspace.remove("state")
        counts = {"prompts": total, "read": read["captions"] + read["bad"], "dropped": sum(dropped.values())}
        if place is not None:
            counts |= {"expanded": read["captions"] - sum(fallbacks.values())}
        if config.measure:
            told["concepts"] = concept_coverage(PromptLines(workspace.path / "prompts.jsonl"))
        extra = {"sources": read["sources"], "unreadable": read["reasons"], "fallbacks": fallbacks}
        return workspace.commit(counts, dropped=dropped, diversity=told, **extra)


@contextlib.contextmanager
def _forgotten(workspace: Workspace) -> Iterator[None]:
    """Context after a mistake in which nothing is left that would stand in the way of a run that mends it."""
    try:
        yield
    except UserError:
        workspace.remove("state")
        raise


def _read(config: CaptionConfig, inputs: CaptionInputs, workspace: Workspace) -> dict[str, Any]:
    """Numbers of what was read; all captions are in one file, and what is none in another.

    Raises:
        UserError: an input without captions, or too many that are none.
    """
    if workspace.has(_READ):
        return json.loads((workspace.path / _READ_COUNTS).read_bytes())
    reasons: Counter[str] = Counter()
    first: list[BadCaption] = []
    taken: list[int] = []
    with (
        workspace.file(_BAD) as bad_path,
        bad_path.open("wb") as bad,
        Progress("read", None, "captions") as bar,
    ):

        def note(found: BadCaption) -> None:
            record = {"origin": found.origin, "reason": UNREADABLE, "why": found.reason}
            bad.write(json.dumps(record).encode() + b"\n")
            reasons[found.reason] += 1
            first.extend([found] if not first else [])

        def captions() -> Iterator[Prompt]:
            for source in inputs.sources:
                count = 0
                for prompt in source.read(note):
                    count += 1
                    bar.advance()
                    yield prompt
                why = f" ({first[0].origin}: {first[0].reason})" if first else ""
                if not count:
                    raise UserError(f"{source.name}: got no captions{why}, allowed: inputs that hold some")
                taken.append(count)

        with workspace.file(_READ + ".new") as temporary:
            write_prompts(temporary, captions())
    total, lost = sum(taken), reasons.total()
    if lost > config.max_bad_share * (total + lost):
        raise UserError(
            f"captions: got {lost:,} bad of {total + lost:,} (first {first[0].origin}: {first[0].reason}), "
            f"allowed: a share of {config.max_bad_share:g} (--max-bad-share)"
        )
    numbers = {
        "captions": total,
        "bad": lost,
        "reasons": dict(reasons.most_common(_MOST_REASONS)),
        "sources": [
            {"name": source.name, "captions": n} for source, n in zip(inputs.sources, taken, strict=True)
        ],
    }
    workspace.write_json(_READ_COUNTS, numbers)
    (workspace.path / f"{_READ}.new").replace(workspace.path / _READ)  # last: it says that all is there
    return numbers


def _clean(
    config: CaptionConfig, source: str, blocked: BlockList, held_out: Sequence[str], workspace: Workspace
) -> dict[str, Any]:
    """How many captions were dropped, by reason; the others are in one file, those in another.

    Raises:
        UserError: none is left.
    """
    if workspace.has(_CLEAN):
        return json.loads((workspace.path / _CLEAN_COUNTS).read_bytes())
    lines = PromptLines(workspace.path / source)
    with Progress("clean", len(lines), "captions") as bar:
        hashes = held_out_hashes(held_out)
        verdicts = judge(
            config.cleaning, lines, len(lines), lambda i: lines[i].prompt, blocked, hashes, bar.advance
        )
    counts = verdicts.counts()
    if not (verdicts.reasons == 0).any():
        told = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        raise UserError(
            f"captions: none of {len(lines):,} stays ({told}), allowed: other --cleaning or inputs"
        )
    with workspace.file(_DROPPED) as path, path.open("wb") as file:
        for number, prompt in enumerate(lines):
            if verdicts.reasons[number]:
                file.write(line_of(prompt, **_told(verdicts, number, lines)))
    workspace.write_json(_CLEAN_COUNTS, {"reasons": counts})
    kept = (
        replace(prompt, prompt=tidy(prompt.prompt))
        for prompt, reason in zip(lines, verdicts.reasons, strict=True)
        if not reason
    )
    write_prompts(workspace.path / _CLEAN, kept)  # last: it says that all is there
    return {"reasons": counts}


def _told(verdicts: Verdicts, number: int, lines: PromptLines) -> dict[str, str]:
    """Why a caption was dropped, and for which other one."""
    told = {"reason": REASONS[verdicts.reasons[number] - 1]}
    twin = int(verdicts.twins[number])
    return told if twin == number else {**told, "twin": lines[twin].prompt}


def _select(
    config: CaptionConfig, place: EmbedderPlace | None, engine: EngineConfig, workspace: Workspace
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """(Rows of the clean captions that are taken, None = all; diversity for the manifest)."""
    total, wanted = len(PromptLines(workspace.path / _CLEAN)), config.selection
    embeddings = np.zeros((total, 1), dtype=np.float16)
    if place is not None:
        embeddings = embed(engine, workspace, EmbedWork(place, workspace.path / _CLEAN), total)
    rows = None
    if wanted.num is not None and wanted.num < total:
        rows = take(workspace, embeddings, wanted.num, wanted.how, wanted.seed)
    elif wanted.num is not None:
        say(f"caption: {total:,} captions are left, not more than --selection.num; all are taken")
    told = measure(workspace, embeddings, rows, config.cells, config.seed) if config.measure else {}
    return rows, told


def _write(workspace: Workspace, rows: np.ndarray | None) -> int:
    """How many prompts were written; all others are in `dropped.jsonl`."""
    lines = PromptLines(workspace.path / _CLEAN)
    taken = np.zeros(len(lines), dtype=bool)
    taken[slice(None) if rows is None else rows] = True
    with workspace.file("dropped.jsonl") as path, path.open("wb") as file:
        for name in (_BAD, _DROPPED):
            with (workspace.path / name).open("rb") as part:
                while block := part.read(1 << 20):
                    file.write(block)
        if rows is not None:
            for prompt, stays in zip(lines, taken, strict=True):
                if not stays:
                    file.write(line_of(prompt, reason=NOT_SELECTED))
    stay = (prompt for prompt, stays in zip(lines, taken, strict=True) if stays)
    return write_prompts(workspace.path / "prompts.jsonl", stay)


def _recaption(
    config: CaptionConfig,
    place: CaptionerPlace,
    out: str | Path,
    paths: Sequence[str | Path],
    engine: EngineConfig,
) -> Artifact:
    images = open_images(paths)
    settings = {
        "stage": "caption",
        **config_to_dict(config),
        **images.identity(),
        "captioner_files": place.identity(),
    }
    found = begin_artifact(out, "images", settings, images.artifacts)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        limits = Limits(config.cleaning.max_chars, config.cleaning.max_bytes)
        whole = tuple(str(Path(path).absolute()) for path in paths)
        work = RecaptionWork(place, whole, limits, config.shard_size, config.seed)
        total, kept, dropped = recaption(engine, workspace, work, images)
        counts = {
            "images": total,
            "recaptioned": total - sum(kept.values()),
            "dropped": sum(dropped.values()),
        }
        return workspace.commit(counts, fallbacks=kept, dropped=dropped)
