"""The captions that a stage reads: artifacts, files of other tools, public sets and grammars."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

from lightgen.core.artifact import Artifact, kind_of, open_artifact
from lightgen.core.config import digest
from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.caption_sources import SUFFIXES, BadCaption, Note, read_captions, read_set
from lightgen.data.prompts import PromptLines
from lightgen.ports.grammar import GrammarConfig, draw_caption
from lightgen.stages.distill import NanoPrompts, nano_prompts

_HUB = "hf:"
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
# Text is told apart by its hash; what may hold images is terabytes, and by its size.
_HASHED = (".txt", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class CaptionSource:
    """One input.

    Attributes:
        name: of it in counts.
        read: its captions in order; what is none is noted.
    """

    name: str
    read: Callable[[Note], Iterator[Prompt]]


@dataclass(frozen=True)
class CaptionInputs:
    """All inputs.

    Attributes:
        sources: one after the other.
        artifacts: those of them that are artifacts, the parents of what is made from them.
        identity: what the config of a stage must hold to tell the others apart.
    """

    sources: tuple[CaptionSource, ...]
    artifacts: tuple[Artifact, ...] = ()
    identity: tuple[dict[str, Any], ...] = ()


def open_captions(
    named: Sequence[str | Path],
    own: NanoPrompts | GrammarConfig | None,
    column: str | None,
    num: int | None,
) -> CaptionInputs:
    """Sources of captions; nothing is read yet but what tells them apart.

    Args:
        named: artifacts of prompts or images (the captions of these), files of SUFFIXES, directories of such
            files, and `hf:OWNER/NAME[:config[:split]]`, or `hf:DIR` of a set here.
        own: grammar that is drawn from where nothing is named.
        column: field or column that holds the captions.
        num: most captions that are taken of each; None = all.

    Raises:
        UserError: nothing is named or drawn, or what is named is none of these.
    """
    if not named:
        if own is None:
            raise UserError(
                "captions: got none, allowed: --in FILE, DIR or hf:OWNER/NAME, or a recipe with a grammar"
            )
        return CaptionInputs((_cut(_grammar(own), num),))
    sources: list[CaptionSource] = []
    artifacts: list[Artifact] = []
    identity: list[dict[str, Any]] = []
    for each in named:
        text, path = str(each), Path(each)
        if text.startswith(_HUB):
            source, told = _open_set(text, column)
        elif path.is_dir() and kind_of(path) is not None:
            artifact = open_artifact(path, "prompts", "images")
            artifacts.append(artifact)
            source, told = _artifact(artifact), None
        else:
            source, told = _open_files(path, column)
        sources.append(_cut(source, num))
        identity += [told] if told else []
    return CaptionInputs(tuple(sources), tuple(artifacts), tuple(identity))


def _cut(source: CaptionSource, num: int | None) -> CaptionSource:
    return CaptionSource(source.name, lambda note: itertools.islice(source.read(note), num))


def _grammar(own: NanoPrompts | GrammarConfig) -> CaptionSource:
    if isinstance(own, GrammarConfig):
        own.check()

        def read(note: Note) -> Iterator[Prompt]:
            for i in range(own.num):
                yield replace(draw_caption(own, i), origin=f"grammar:{own.seed}:{i}")

        return CaptionSource("grammar", read)

    def read_nano(note: Note) -> Iterator[Prompt]:
        for i, prompt in enumerate(nano_prompts(own)):
            yield replace(prompt, origin=f"nano-{own.split}:{own.seed}:{i}")

    return CaptionSource(f"nano-{own.split}", read_nano)


def _artifact(artifact: Artifact) -> CaptionSource:
    """Captions of an artifact: its prompts, or those of its images."""
    name = artifact.path.resolve().name
    if artifact.kind == "images":
        return _files(name, sorted(artifact.path.glob("*.tar")), None)

    def read(note: Note) -> Iterator[Prompt]:
        for number, prompt in enumerate(PromptLines(artifact.path / "prompts.jsonl"), 1):
            origin = prompt.origin or f"{name}:{number}"
            if prompt.source or prompt.mask:
                note(BadCaption(origin, "an image to edit, no caption alone"))
            else:
                yield replace(prompt, origin=origin)

    return CaptionSource(name, read)


def _open_files(path: Path, column: str | None) -> tuple[CaptionSource, dict[str, Any]]:
    """A file, or all files of captions of a directory in order of their names, and what tells them apart."""
    if path.is_dir():
        paths = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
        if not paths:
            raise UserError(f"{path}: got no files of captions, allowed: {', '.join(SUFFIXES)}")
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        paths = [path]
    else:
        got = f"suffix {path.suffix!r}" if path.is_file() else "no such file"
        raise UserError(
            f"{path}: {got}, allowed: {', '.join(SUFFIXES)}, a directory of those, an artifact, or "
            "hf:OWNER/NAME"
        )
    name = path.resolve().name
    told = [
        (each.name, file_entry(each)["sha256"] if each.suffix.lower() in _HASHED else each.stat().st_size)
        for each in paths
    ]
    return _files(name, paths, column), {"name": name, "files": len(paths), "digest": digest(told)}


def _files(name: str, paths: Sequence[Path], column: str | None) -> CaptionSource:
    def read(note: Note) -> Iterator[Prompt]:
        for path in paths:
            yield from read_captions(path, note, column)

    return CaptionSource(name, read)


def _open_set(text: str, column: str | None) -> tuple[CaptionSource, dict[str, Any]]:
    """A set of the `datasets` library, at the commit that its main branch is now at."""
    rest = text.removeprefix(_HUB)
    name, _, more = rest.partition(":") if not Path(rest).is_dir() else (rest, "", "")
    config, _, split = more.partition(":")
    told: dict[str, Any] = {"name": text}
    if Path(name).is_dir():
        files = [each for each in sorted(Path(name).rglob("*")) if each.is_file()]
        sizes = [(each.relative_to(name).as_posix(), each.stat().st_size) for each in files]
        told = {"name": Path(name).resolve().name, "set": more, "digest": digest(sizes)}
    elif _ID.fullmatch(name):
        try:
            told["revision"] = huggingface_hub.HfApi().dataset_info(name, timeout=30).sha
        except (OSError, ValueError, HTTPError) as error:
            why = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise UserError(
                f"{text}: not read from the Hub ({why}); allowed: hf:OWNER/NAME[:config[:split]] that can be "
                "reached"
            ) from error
    else:
        raise UserError(f"{text}: got {name!r}, allowed: hf:OWNER/NAME[:config[:split]], or hf:DIR")

    def read(note: Note) -> Iterator[Prompt]:
        return read_set(name, note, config or None, split or "train", column, told.get("revision"))

    return CaptionSource(text if "revision" in told else told["name"], read), told


def read_held_out(paths: Sequence[Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """(Captions of files or artifacts of prompts, which may not occur; what tells the files apart).

    Raises:
        UserError: one cannot be read, or a line of it is no caption: nothing may slip through.
    """
    found: list[str] = []
    identity: list[dict[str, Any]] = []

    def refuse(bad: BadCaption) -> None:
        raise UserError(f"--exclude: {bad.origin}: {bad.reason}, allowed: captions alone")

    for path in paths:
        if path.is_dir():
            path = open_artifact(path, "prompts").path / "prompts.jsonl"
        fresh = [prompt.prompt for prompt in read_captions(path, refuse)]
        identity.append({"name": path.name, "digest": digest(fresh)})
        found += fresh
    return found, identity


def line_of(prompt: Prompt, **more: str) -> bytes:
    """Line of JSON of a prompt and further entries."""
    return json.dumps({**prompt.to_json(), **more}, allow_nan=False).encode() + b"\n"
