"""Distill: prompts become images, drawn by a teacher or by a student of our own."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.config import config_to_dict, digest
from lightgen.core.directory import whole_file
from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt
from lightgen.core.together import begin_together, commit_together
from lightgen.data.images import Format, ImageRecord, write_image_shard
from lightgen.data.prompts import PromptFiles, PromptLines
from lightgen.ports.endpoint import EndpointTeacherConfig
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.scenes import Words
from lightgen.ports.refusal import RefusedPrompt
from lightgen.ports.teacher import DiffusersTeacherConfig
from lightgen.stages.checkpoint import NANO, open_checkpoint, require_part
from lightgen.stages.engine import LOCAL, EngineConfig, Writer, cut, write_shards
from lightgen.stages.student import StudentGenerator, StudentTeacherConfig, student_name
from lightgen.stages.teachers import TeacherPlace, find_teacher

_Job = tuple[str, Prompt, int]  # key, prompt, seed
_Draw = Callable[[Sequence[_Job]], Iterator[ImageRecord | dict[str, Any]]]  # or what is told of a refusal
_REFUSED = ".refused.jsonl"
_MOST_DRAWS = 10_000  # of prompts of which few may be of the wanted kind


@dataclass(frozen=True, kw_only=True)
class NanoPrompts:
    """Prompts of the nano grammar.

    Attributes:
        num: how many.
        split: no training prompt has a combination of words of a test prompt; both takes them in turn.
        tags: only prompts of these tasks; empty = all, those without a task included.
        classes, colors: only prompts that name nothing else; empty = all.
        distinct: whether no two captions are alike.
    """

    num: int
    split: Literal["train", "test", "both"] = "train"
    seed: int = 0
    tags: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    distinct: bool = False


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Who draws what, how often and how large.

    Attributes:
        prompts: built-in prompts; None where prompts are handed in.
        height, width: of the images, px.
        shard_size: images per shard, the unit of work that a killed run does not repeat.
        batch_size: images that a student draws at once; a pipeline's is among its own settings.
        format: of the image files; png loses nothing.
    """

    teacher: EmojiTeacherConfig | StudentTeacherConfig | DiffusersTeacherConfig | EndpointTeacherConfig = (
        field(default_factory=EmojiTeacherConfig)
    )
    prompts: NanoPrompts | None = None
    images_per_prompt: int = 1
    height: int = 128
    width: int = 128
    shard_size: int = 500
    batch_size: int = 50
    seed: int = 0
    format: Format = "png"

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        for name in ("images_per_prompt", "height", "width", "shard_size", "batch_size"):
            if vars(self)[name] < 1:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option}: got {vars(self)[name]}, allowed: a whole number from 1")


def distill(
    config: DistillConfig,
    out: str | Path,
    prompts: Sequence[str | Path] = (),
    start: str | Path | None = None,
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Artifact of images: `images_per_prompt` of each prompt, each with its prompt, seed and generator.

    Args:
        config: who draws, how often and how large.
        out: where the artifact will be.
        prompts: artifacts of prompts, or files of JSON lines; without any, the config's own prompts.
        start: checkpoint of a student (`nano` unless named); the emoji teacher takes none.
        engine: who runs it; the images do not depend on that.

    Raises:
        UserError: a number out of range, no prompts, a start without a student, or what the teacher refuses.
    """
    config.check()
    engine.check()
    texts, config, parents, identity = load_prompts(config, prompts)
    place, teacher = _find(config, start)
    settings = {"stage": "distill", **config_to_dict(config), **identity}
    if isinstance(place, TeacherPlace):
        settings |= {"teacher": config_to_dict(place.recorded()), "teacher_is": place.identity()}
    elif place is not None:
        parents = [*parents, place]
    found = begin_together(out, "images", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        total = len(texts) * config.images_per_prompt
        shards = cut(total, config.shard_size)
        names = [f"images-{number:05d}.tar" for number in range(len(shards))]
        drawer = place.path.absolute() if isinstance(place, Artifact) else place
        work = DistillWork(config, texts, drawer)
        write_shards(engine, workspace, "distill", names, [len(shard) for shard in shards], work)
        refused = sum(len(path.read_bytes().splitlines()) for path in workspace.path.glob(f"*{_REFUSED}"))
        counts = {
            "images": total - refused,
            "prompts": len(texts),
            **({"refused": refused} if refused else {}),
        }
        return commit_together(workspace, counts, generator=teacher)


def _find(config: DistillConfig, start: str | Path | None) -> tuple[Artifact | TeacherPlace | None, str]:
    """Who draws, None = the emoji teacher, and the name of that."""
    if isinstance(config.teacher, StudentTeacherConfig):
        student = require_part(open_checkpoint(start or NANO), "transformer")
        return student, student_name(student)
    if start is not None:
        raise UserError(f"--start: got {str(start)!r} for a teacher, allowed: only where a student draws")
    if isinstance(config.teacher, EmojiTeacherConfig):
        return None, EmojiTeacher.name
    place = find_teacher(config.teacher)
    return place, place.name


def load_prompts(
    config: DistillConfig, paths: Sequence[str | Path]
) -> tuple[Sequence[Prompt], DistillConfig, list[Artifact], dict[str, Any]]:
    """(Prompts, config that says if they are built in, parents, entries of the config for plain files)."""
    if not paths:
        if config.prompts is None:
            raise UserError(
                "prompts: got none, allowed: --in DIR or FILE.jsonl, or a recipe with built-in prompts"
            )
        return nano_prompts(config.prompts), config, [], {}
    found: list[PromptLines] = []
    parents: list[Artifact] = []
    plain: list[dict[str, Any]] = []
    for number, path in enumerate(map(Path, paths)):
        if path.is_dir() or not path.exists():
            parents.append(open_artifact(path, "prompts"))
            found.append(PromptLines(path.absolute() / "prompts.jsonl"))
        else:
            found.append(PromptLines(path.absolute()))
            plain.append({"name": path.name, "digest": _digest(found[-1]), "place": number})
        edits = next((prompt for prompt in found[-1] if prompt.source or prompt.mask), None)
        if edits is not None:
            raise UserError(f"prompt {edits.prompt[:60]!r}: got a source or mask, allowed: text alone")
    if not parents:  # parents are listed apart: only beside them, the order of all is not seen
        plain = [{"name": each["name"], "digest": each["digest"]} for each in plain]
    texts = found[0] if len(found) == 1 else PromptFiles(found)
    return texts, replace(config, prompts=None), parents, {"plain_inputs": plain} if plain else {}


def _digest(lines: PromptLines) -> str:
    """SHA-256 [64 hex digits] of the prompts of a file, however they are written."""
    found = hashlib.sha256()
    for prompt in lines:
        found.update(digest(prompt.to_json()).encode())
    return found.hexdigest()


def nano_prompts(wanted: NanoPrompts) -> list[Prompt]:
    """The first `num` prompts of the wanted split, tasks and words; raises UserError where there are none."""
    unknown = sorted(set(wanted.tags) - set(TAGS))
    if unknown or wanted.num < 1:
        got = f"tags {unknown}" if unknown else f"num {wanted.num}"
        raise UserError(f"nano prompts: got {got}, allowed: num from 1, tags of {', '.join(TAGS)}")
    words = Words.of(wanted.classes, wanted.colors)
    splits = ("train", "test") if wanted.split == "both" else (wanted.split,)
    found: list[Prompt] = []
    captions: set[str] = set()
    for index in range(_MOST_DRAWS + 100 * wanted.num):
        number, place = divmod(index, len(splits))
        prompt = draw_prompt(wanted.seed, number, splits[place], words)
        is_old = wanted.distinct and prompt.prompt in captions
        if not is_old and (not wanted.tags or prompt.tag in wanted.tags):
            found.append(prompt)
            captions.add(prompt.prompt)
        if len(found) == wanted.num:
            return found
    raise UserError(
        f"nano prompts: got num {wanted.num}, allowed: up to {len(found)} of these words and tasks"
    )


def image_seed(config: DistillConfig, prompt: Prompt, number: int, repeat: int) -> int:
    """Seed of the `repeat`-th image of the prompt at `number`: the prompt's own, else a keyed draw."""
    if prompt.seed is not None:
        return prompt.seed + repeat
    return draw_key(config.seed, "image seed", number, repeat) >> 31  # 32 bits, which every tool can hold


@dataclass(frozen=True)
class DistillWork:
    """Shards of images: what is drawn, by whom.

    Attributes:
        config: how.
        prompts: of all shards.
        drawer: folder of the student's checkpoint, or place of a teacher; None for the emoji teacher.
    """

    config: DistillConfig
    prompts: Sequence[Prompt]
    drawer: Path | TeacherPlace | None

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`. What a teacher refuses is told beside it."""
        if self.drawer is None:
            draw = self._by_emoji()
        elif isinstance(self.drawer, Path):
            draw = self._by_student(self.drawer)
        else:
            draw = self._by_teacher(self.drawer)
        shards = cut(len(self.prompts) * self.config.images_per_prompt, self.config.shard_size)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            def records() -> Iterator[ImageRecord]:
                refused = []
                for each in draw(self._jobs(shards[number])):
                    advance(1)
                    if isinstance(each, ImageRecord):
                        yield each
                    else:
                        refused.append(json.dumps(each) + "\n")
                told = path.with_suffix(_REFUSED)
                if refused:  # before the shard gets its name, so that no whole shard lacks them
                    with whole_file(told) as temporary:
                        temporary.write_bytes("".join(refused).encode())
                else:  # an earlier run was killed here, and the server thinks otherwise now
                    told.unlink(missing_ok=True)

            write_image_shard(path, records(), self.config.format)

        return write

    def _jobs(self, shard: range) -> list[_Job]:
        """Key, prompt and seed of the images numbered by `shard`."""
        repeats = self.config.images_per_prompt
        first = shard[0] // repeats
        prompts = self.prompts[first : shard[-1] // repeats + 1]
        jobs = []
        for index in shard:
            number, repeat = divmod(index, repeats)
            prompt = prompts[number - first]
            seed = image_seed(self.config, prompt, number, repeat)
            jobs.append((f"{number:07d}-{repeat:02d}", prompt, seed))
        return jobs

    def _by_emoji(self) -> _Draw:
        assert isinstance(self.config.teacher, EmojiTeacherConfig)
        teacher = EmojiTeacher(self.config.teacher)

        def draw(jobs: Sequence[_Job]) -> Iterator[ImageRecord]:
            for key, prompt, seed in jobs:
                drawn = teacher.draw(prompt.prompt, seed, self.config.height, self.config.width)
                meta = _meta(prompt, seed, teacher.name)
                yield ImageRecord(key, drawn.image, meta | {"objects": drawn.objects, "errors": drawn.errors})

        return draw

    def _by_student(self, folder: Path) -> _Draw:
        assert isinstance(self.config.teacher, StudentTeacherConfig)
        student = StudentGenerator(self.config.teacher, open_artifact(folder, "checkpoint", verify=False))

        def draw(jobs: Sequence[_Job]) -> Iterator[ImageRecord]:
            for start in range(0, len(jobs), self.config.batch_size):
                batch = jobs[start : start + self.config.batch_size]
                texts, seeds = [p.prompt for _, p, _ in batch], [seed for _, _, seed in batch]
                images = student.generate(texts, seeds, self.config.height, self.config.width)
                for (key, prompt, seed), image in zip(batch, images, strict=True):
                    yield ImageRecord(key, image, _meta(prompt, seed, student.name))

        return draw

    def _by_teacher(self, place: TeacherPlace) -> _Draw:
        teacher = place.load()

        def draw(jobs: Sequence[_Job]) -> Iterator[ImageRecord | dict[str, Any]]:
            texts, seeds = [prompt.prompt for _, prompt, _ in jobs], [seed for _, _, seed in jobs]
            drawn = teacher.draw(texts, seeds, self.config.height, self.config.width)
            for (key, prompt, seed), each in zip(jobs, drawn, strict=True):
                meta = _meta(prompt, seed, place.name)
                if isinstance(each, RefusedPrompt):
                    yield {"key": key, **meta, "reason": str(each)}
                else:
                    yield ImageRecord(key, each, meta)

        return draw


def _meta(prompt: Prompt, seed: int, generator: str) -> dict[str, Any]:
    return prompt.to_json() | {"seed": seed, "generator": generator}
