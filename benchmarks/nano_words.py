"""Teaches the nano student of `gpu_weights.py` the order of words, in about four hours of one core.

That student could not tell which of two objects is left or red: from its first minutes on, its text encoder
had lost word order. A new text encoder learns to read on captions alone (`text`), pictures are drawn with a
record of what covers each token (`scenes`), and the transformer learns to use what it reads (`student`):
first with captions of places and of two colours alone, then with all tasks, then with more known tokens, then
with more counting. In a share of the texts it sees the objects' names alone, and from its state before a
block of the decoder, class and colour of what hides are read as well, in later phases as one; in the last
one, which leaves out pictures in which the teacher erred, so is how many objects are still to come. With
`--side 256` a student of 256 px goes on from the fourth phase, its tokens half as far apart. `checkpoint`
puts the parts together, as an artifact that the stage of export takes.

The shipped weights began from the student of `gpu_weights.py`, its average after the rate had fallen, which
is `lightgen/weights/nano` in the repository's commit b849ecd. Features of their text encoder stayed near
those of the same student before the rate fell, which `--old-text RUN` reads from `stable-0` and `stable-1` of
that run; without it they stay near those of `--start`, which are what its transformer reads.

.venv/bin/python benchmarks/nano_words.py all --start START --out runs/words   # -> checkpoint, checkpoint-256
.venv/bin/python benchmarks/nano_words.py all --start START --out runs/trial --small   # a few minutes

`text`, `scenes`, `student` and `checkpoint` do one part each; what is there already is not made again.
Scenes are made in four parts, which processes may draw at once: `scenes --part 0` and so on.
"""

import argparse
import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from nano_words_student import (
    PARTS,
    PATCH,
    PHASES,
    THINGS_BEGIN,
    WIDE,
    WIDE_BEGINS,
    Phase,
    Scenes,
    begin_things,
    new_readouts,
    scenes_path,
    train_phase,
)
from nano_words_text import learn_codes, learn_to_read
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.directory import whole_file
from lightgen.core.draws import draw_key
from lightgen.models.student import Student
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob, Rendered
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.reading import KINDS, NOTHING
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.nano.world import CLASSES
from lightgen.ports.text import load_text_encoder
from lightgen.stages.checkpoint import (
    Parts,
    copy_part,
    forget_origin,
    load_parts,
    load_transformer,
    open_checkpoint,
)
from lightgen.stages.student_save import StudentWriter

SEED = 4242  # of the captions
CHUNK, PART_STEP = 64, 10_000_000  # scenes drawn at once; captions between the parts' first ones
# As in gpu_weights.py: the teacher errs now and then.
TEACHER = EmojiTeacherConfig(
    rotation_degrees=0.0,
    rotation_steps=1,
    errors=ErrorKnob(wrong_count=0.1, wrong_place=0.1, wrong_color=0.05, blur=0.05),
)
# Share of each task's captions that are drawn; None stands for rich ones.
TAKEN: dict[str | None, float] = {
    "position": 1.0,
    "color_attr": 1.0,
    "counting": 0.6,
    "two_object": 0.5,
    "colors": 0.4,
    "single_object": 0.4,
    None: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything."""

    reading: int = 700
    coding: int = 250
    captions: int = 128
    scenes: int = 12_000
    batch: int = 48
    held_out: int = 1_500
    cut: int = 1  # the student's steps are divided by it


SMALL = Size(reading=20, coding=10, captions=32, scenes=256, batch=8, held_out=64, cut=20)


def main() -> None:
    """Do one part, or all in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[argparse.Namespace, Size, Artifact], None]] = {
        "text": make_text,
        "scenes": make_scenes,
        "student": train_student,
        "checkpoint": lambda arguments, _, __: say(str(assemble(arguments.out, arguments.side).path)),
    }
    parser.add_argument("what", choices=(*parts, "all"))
    parser.add_argument("--start", required=True, help="checkpoint of the student that cannot read")
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    parser.add_argument("--old-text", type=Path, help="run of gpu_weights.py whose text encoder is kept near")
    parser.add_argument("--part", type=int, choices=range(max(PARTS.values())), help="of the scenes")
    parser.add_argument("--side", type=int, choices=tuple(PARTS), default=128, help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a trial of everything")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    start, size = open_checkpoint(arguments.start), SMALL if arguments.small else Size()
    settle(arguments, start)
    for side in PARTS if arguments.what == "all" else (arguments.side,):
        arguments.side = side
        for what in parts if arguments.what == "all" else (arguments.what,):
            say(f"{what}, {side} px")
            parts[what](arguments, size, start)


def settle(arguments: argparse.Namespace, start: Artifact) -> None:
    """Note what is being made, and refuse a folder in which something else was begun."""
    settings = {"start": start.digest, "small": arguments.small, "old_text": arguments.old_text is not None}
    path = arguments.out / "settings.json"
    if path.is_file() and (found := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{arguments.out}: was begun with {found}, now {settings}; name another --out")
    path.write_text(json.dumps(settings))


def make_text(arguments: argparse.Namespace, size: Size, start: Artifact) -> None:
    """`reading.safetensors`, and checkpoint `coded`: the start with the new text encoder."""
    out, text, old = arguments.out, build_nano_text_encoder(0), old_encoder(start, arguments.old_text)
    tokenizer, path = text.tokenizer, out / "reading.safetensors"
    settings = {"part": "text", "old_text": arguments.old_text is not None, **dataclasses.asdict(size)}
    made = begin_artifact(out / "coded", "checkpoint", {"stage": "nano-words", **settings}, [start])
    if isinstance(made, Artifact):
        return
    with made as workspace:
        if not path.is_file():
            note = Log(out, "reading")
            learn_to_read(text.encoder, old, tokenizer, size.reading, size.captions, note)
            save_weights(path, text.encoder.state_dict())
        text.encoder.load_state_dict(load_file(path), strict=False)
        learn_codes(text.encoder, old, tokenizer, size.coding, size.captions, Log(out, "codes"))
        for part in ("transformer", "vae", "tokenizer"):
            copy_part(start.path / part, workspace.path / part)
        workspace.write_bytes("model_index.json", (start.path / "model_index.json").read_bytes())
        text.encoder.save_pretrained(workspace.path / "text_encoder")
        forget_origin(workspace.path)
        workspace.commit({})


def old_encoder(start: Artifact, run: Path | None) -> T5EncoderModel:
    """The text encoder whose features are kept, frozen: of a run before its rate fell, or of the start."""
    if run is None:
        old = load_text_encoder(start.path / "text_encoder", start.path / "tokenizer").encoder
    else:
        old, prefix = build_nano_text_encoder(0).encoder, "text_encoder."
        found = load_file(run / "stable-0.safetensors") | load_file(run / "stable-1.safetensors")
        weights = {n.removeprefix(prefix): w.float() for n, w in found.items() if n.startswith(prefix)}
        old.load_state_dict(weights, strict=False)
    return old.eval().requires_grad_(False)


def make_scenes(arguments: argparse.Namespace, size: Size, start: Artifact) -> None:
    """Parts of scenes: latents fp16 and labels int16 [N, 3, L] in one file, what they show in another."""
    teacher, autoencoder = EmojiTeacher(TEACHER), load_autoencoder(start.path / "vae")
    side = arguments.side
    for part in range(PARTS[side]) if arguments.part is None else (arguments.part,):
        path, wanted = scenes_path(arguments.out, side, part), size.scenes * 128 // side
        if path.is_file():
            continue
        latents, labels, said, right, taken = [], [], [], [], np.random.default_rng(part)
        number = part * PART_STEP
        while len(said) < wanted:
            chosen: list[tuple[str, str | None]] = []
            while len(chosen) < CHUNK:
                prompt = draw_prompt(SEED, number, "train")
                number += 1
                if taken.random() < TAKEN[prompt.tag]:
                    chosen.append((prompt.prompt, prompt.tag))
            seeds = [draw_key(part, "s", number * CHUNK + place) >> 31 for place in range(CHUNK)]
            drawn = [teacher.draw(c, seed, side, side) for (c, _), seed in zip(chosen, seeds, strict=True)]
            pixels = torch.from_numpy(np.stack([each.image for each in drawn])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                latents.append(autoencoder.encode(pixels.float().div(127.5).sub(1))[0].half())
            labels += [covering(each, side // PATCH) for each in drawn]
            right += [not each.errors for each in drawn]
            said += chosen
            if len(said) % (16 * CHUNK) == 0:
                say(f"part {part}: {len(said)} scenes")
        captions, tags = zip(*said, strict=True)
        facts = {"captions": captions, "tags": tags, "right": right}
        path.with_suffix(".json").write_text(json.dumps(facts))
        save_weights(path, {"latents": torch.cat(latents), "labels": torch.from_numpy(np.stack(labels))})


def covering(drawn: Rendered, grid: int) -> np.ndarray:
    """Class, colour and number (0: none), int16 [3, L], of the last object whose box has a token's centre."""
    labels = np.zeros((3, grid, grid), np.int16)
    labels[0] = len(CLASSES)
    centres = (np.arange(grid) + 0.5) * PATCH
    for number, each in enumerate(drawn.objects, start=1):
        left, top, right, bottom = each["box"]
        rows, columns = (centres >= top) & (centres < bottom), (centres >= left) & (centres < right)
        color = KINDS["color"].index(each["color"] or NOTHING)
        labels[:, rows[:, None] & columns[None]] = [[CLASSES.index(each["class"])], [color], [number]]
    return labels.reshape(3, -1)


def train_student(arguments: argparse.Namespace, size: Size, start: Artifact) -> None:
    """`student-1` and so on, `student-256`: averaged weights after each phase, with the readouts."""
    out, side = arguments.out, arguments.side
    parts = load_parts(open_checkpoint(out / "coded").path)
    transformer = load_transformer(out / "coded" / "transformer", 128 / side)
    student = Student(transformer, parts.text_encoder, False)
    student.add_module("readouts", new_readouts())
    scenes = Scenes(out, side, parts.tokenizer)

    def learn(name: str, phase: Phase, batch: int) -> None:
        path = out / f"{name}.safetensors"
        if not path.is_file():
            cut = dataclasses.replace(
                phase, steps=phase.steps // size.cut, decay=max(1, phase.decay // size.cut)
            )
            save_weights(path, train_phase(student, scenes, cut, batch, size.held_out, Log(out, name)))
        student.load_state_dict(load_file(path), strict=False)

    if side == 128:
        for number, phase in enumerate(PHASES, start=1):
            learn(f"student-{number}", phase, size.batch)
            if number == THINGS_BEGIN:
                begin_things(student.get_submodule("readouts"))
    else:
        student.load_state_dict(load_file(out / f"student-{WIDE_BEGINS}.safetensors"), strict=False)
        learn(f"student-{side}", WIDE, size.batch // 2)


def assemble(out: Path, side: int) -> Artifact:
    """Checkpoint artifact of the student of a size after its last phase."""
    coded = open_checkpoint(out / "coded")
    phases, name, path = PHASES, f"student-{len(PHASES)}", out / "checkpoint"
    if side != 128:
        phases, name, path = (*PHASES[:WIDE_BEGINS], WIDE), f"student-{side}", out / f"checkpoint-{side}"
    settings = {"part": "student", "side": side, "phases": [dataclasses.asdict(phase) for phase in phases]}
    made = begin_artifact(path, "checkpoint", {"stage": "nano-words", **settings}, [coded])
    if isinstance(made, Artifact):
        return made
    with made as workspace:
        parts: Parts = load_parts(coded.path)
        cells = parts.transformer.shape.sample_size * side // 128
        shape = dataclasses.replace(parts.transformer.shape, sample_size=cells, position_step=128 / side)
        writer = StudentWriter(coded, dataclasses.asdict(shape), parts.text)
        writer.write(workspace.path, load_file(out / f"{name}.safetensors"))
        return workspace.commit({})


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A file that appears when whole; of what shares memory, the first."""
    kept = {name: each.detach().contiguous() for name, each in tensors.items() if "embed_tokens" not in name}
    with whole_file(path) as temporary:
        save_file(kept, temporary)


class Log:
    """Means of the last steps as lines of `NAME.jsonl`, and on the screen."""

    def __init__(self, out: Path, name: str, every: int = 10) -> None:
        self._path, self._every = out / f"{name}.jsonl", every
        self._rows: deque[dict[str, float]] = deque(maxlen=every)
        self._path.unlink(missing_ok=True)

    def __call__(self, step: int, shown: dict[str, float]) -> None:
        """Take what a step gave."""
        self._rows.append(shown)
        if step and (step + 1) % self._every:
            return
        means = {name: round(float(np.mean([row[name] for row in self._rows])), 4) for name in shown}
        line = json.dumps({"step": step + 1, **means})
        with self._path.open("a") as file:
            file.write(line + "\n")
        say(f"{self._path.stem} {line}")


def say(text: str) -> None:
    """A line at once."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)  # noqa: T201


_BEGAN = time.monotonic()

if __name__ == "__main__":
    main()
