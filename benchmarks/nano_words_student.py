"""The student of `nano_words.py`: a transformer that learns to use the order of words."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_words_text import LENGTH, WIDTH, Note
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from lightgen.core.draws import draw_key
from lightgen.models.student import Student
from lightgen.objectives.language import NOT_ASKED
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, draw_masking
from lightgen.ports.nano.reading import KINDS, read
from lightgen.ports.nano.world import CLASSES, MAX_OBJECTS
from lightgen.ports.text import tokenize
from lightgen.recipes.train_nano import pretrain_nano
from lightgen.stages.language_job import label_words
from lightgen.training.config import RunConfig
from lightgen.training.learning import Learning
from lightgen.training.schedule import ScheduleConfig

PATCH = 16  # pixels of a token's side
PARTS = {128: 4, 256: 1}  # files of scenes by pixels of a side
BINDING = ("position", "color_attr")
BLOCK = 3  # of the decoder, before which it is read what hides in a token
# What is read. The last class is the background; `thing` is class and colour as one, the last the background;
# `left` is how many objects hide wholly.
SEEN = {"class": len(CLASSES) + 1, "color": len(KINDS["color"])}
SEEN |= {"thing": len(CLASSES) * SEEN["color"] + 1, "left": MAX_OBJECTS + 1}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of the student's training.

    Attributes:
        steps, decay: how many, and over how many of the last the rate falls.
        focus: share of captions of places or of two colours.
        counting: share of captions of counts; None leaves it to chance among the others.
        names_only: share of texts of which the names of objects alone are seen.
        spread: of the share of hidden tokens.
        read_weight: of the cross-entropies of what is read.
        reads: of SEEN, what is read. Class and colour each by itself say nothing of which colour is whose, as
            long as it is open what lies where; `thing` does. `left` asks for the count of what is seen.
        right_only: whether pictures in which the teacher erred are left out.
        muon_lr: rate of the blocks' matrices; 1e-3 for all else.
    """

    steps: int
    decay: int
    focus: float
    names_only: float
    spread: float
    read_weight: float
    ema_decay: float
    seed: int
    muon_lr: float = 2e-3
    counting: float | None = None
    reads: tuple[str, ...] = ("class", "color")
    right_only: bool = False


PHASES = (
    Phase(200, 1, 1.0, 0.3, 0.1, 0.3, 0.99, 11),
    Phase(400, 250, 0.65, 0.2, 0.12, 0.2, 0.985, 12),
    # nearly finished pictures again, which the law of masks of the phases before hardly shows
    Phase(150, 120, 0.45, 0.1, 0.25, 0.1, 0.98, 12, 1.5e-3),
    # counts, of which the phases before showed few, and which colour is whose
    Phase(350, 1, 0.5, 0.1, 0.15, 0.15, 0.985, 13, 2e-3, 0.25, ("thing",)),
    Phase(450, 350, 0.4, 0.1, 0.25, 0.1, 0.99, 14, 2e-3, 0.3, ("thing",)),
    # how many are still to come, where some are seen
    Phase(500, 400, 0.35, 0.05, 0.2, 0.15, 0.99, 16, 1.5e-3, 0.35, ("thing", "left"), right_only=True),
)
THINGS_BEGIN = 3  # after so many phases, things are read
# At 256 px, in batches of half as many; it begins where so many phases have ended.
WIDE, WIDE_BEGINS = Phase(450, 350, 0.45, 0.1, 0.25, 0.1, 0.99, 15, 2e-3, 0.25, ("thing",)), 4


def new_readouts() -> nn.ModuleDict:
    """Linear readouts of SEEN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(0, "readout-weights"))
        return nn.ModuleDict({kind: nn.Linear(WIDTH, number) for kind, number in SEEN.items()})


@torch.no_grad()
def begin_things(readouts: nn.Module) -> None:
    """Let the readout of things begin as those of class and colour say together."""
    kinds = [readouts.get_submodule(kind) for kind in ("class", "color", "thing")]
    for name in ("weight", "bias"):
        objects, color, thing = (each.get_parameter(name) for each in kinds)
        both = objects[:-1, None] + color
        thing.copy_(torch.cat([both.flatten(0, 1), objects[-1:] + color[:1]]))


def scenes_path(out: Path, side: int, part: int) -> Path:
    """File of a part of the scenes; their captions lie beside it."""
    return out / f"scenes-{part if side == 128 else f'{side}-{part}'}.safetensors"


class Scenes:
    """All scenes of a size in memory, as batches for the student."""

    def __init__(self, out: Path, side: int, tokenizer: PreTrainedTokenizerBase) -> None:
        paths = [scenes_path(out, side, part) for part in range(PARTS[side])]
        files = [load_file(path) for path in paths]
        said = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        self.num_tokens = (side // PATCH) ** 2
        captions = [caption for each in said for caption in each["captions"]]
        self.tags = [tag for each in said for tag in each["tags"]]
        self.right = [right for each in said for right in each["right"]]
        self._latents = torch.cat([each["latents"] for each in files])
        objects, color, which = torch.cat([each["labels"] for each in files]).long().unbind(1)
        thing = (objects * SEEN["color"] + color).clamp(max=SEEN["thing"] - 1)
        # what is left is counted from the number of the object at each token
        self._labels = {"class": objects, "color": color, "thing": thing, "left": which}
        self._ids, self._mask = tokenize(tokenizer, captions, LENGTH, LENGTH)
        found = [read(caption) for caption in captions]
        names = label_words([objects or () for objects in found], LENGTH)[0]["class"] != NOT_ASKED
        unread = torch.tensor([objects is None for objects in found])
        self._names = torch.where(unread[:, None], self._mask, names)

    @torch.no_grad()
    def load(self, rows: np.ndarray, hidden: torch.Tensor, student: Student) -> dict[str, Any]:
        """Batch of `MaskedObjective` without a masking; of texts `hidden`, bool [B], only names are seen."""
        mask, ids = self._mask[rows], self._ids[rows]
        length = int(mask.sum(1).max())
        output: Any = student.text_encoder(input_ids=ids[:, :length], attention_mask=mask[:, :length])
        return {
            "latents": self._latents[rows].float(),
            "labels": {kind: labels[rows] for kind, labels in self._labels.items()},
            "text_features": output.last_hidden_state,
            "text_mask": torch.where(hidden[:, None], self._names[rows], mask)[:, :length],
            "ids": rows.tolist(),
        }


class BindingObjective:
    """The masked objective, with cross-entropies of what is read of hidden tokens before a decoder block."""

    def __init__(self, config: MaskedConfig, student: Student, weight: float, reads: tuple[str, ...]) -> None:
        self._masked, self._weight, self._reads = MaskedObjective(config), weight, reads
        self._state = torch.empty(0)
        block = student.transformer.get_submodule(f"decoder_blocks.{BLOCK}")
        # called once it no longer reads
        self.stop = block.register_forward_pre_hook(self._keep).remove

    def _keep(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._state = given[0]

    def __call__(
        self, learner: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss, and its terms; `batch` also has `labels`, int [B, L] by kind."""
        loss, _ = self._masked(learner, batch, step)  # pyright: ignore[reportArgumentType]
        masking, shown = batch["masking"], {"masked": loss.detach()}
        # images whose text is dropped say nothing of what hides in them
        hidden, kept = masking.noise.shape[2], masking.kept
        state = functional.layer_norm(self._state[:, : masking.order.shape[1]], (WIDTH,))[kept][:, :hidden]
        for kind in self._reads:
            readout = learner.get_submodule(f"readouts.{kind}")
            wanted = torch.gather(batch["labels"][kind], 1, masking.order)[kept]
            wanted = count_left(wanted, hidden) if kind == "left" else wanted[:, :hidden]
            shown[kind] = functional.cross_entropy(readout(state).flatten(0, 1), wanted.flatten())
            loss = loss + self._weight * shown[kind]
        return loss, {name: value.detach() for name, value in shown.items()}


def count_left(which: torch.Tensor, hidden: int) -> torch.Tensor:
    """How many objects have no token among those that are seen, int [B, hidden].

    Args:
        which: number of the object at each token, 0 for none, int [B, L]; hidden tokens come first.
        hidden: tokens that hide.
    """
    are = functional.one_hot(which, MAX_OBJECTS + 2)[..., 1:].bool()
    left = (are.any(1) & ~are[:, hidden:].any(1)).sum(1).clamp(max=MAX_OBJECTS)
    return left[:, None].expand(-1, hidden)


def train_phase(
    student: Student, scenes: Scenes, phase: Phase, size: int, held_out: int, note: Note
) -> dict[str, torch.Tensor]:
    """Averaged weights after a phase, the readouts' too.

    Args:
        student: to train in place, with its readouts.
        scenes: to learn from.
        phase: how.
        size: scenes of a batch.
        held_out: of the last scenes, how many are not learned from.
        note: of the loss and its terms.
    """
    recipe, config = pretrain_nano(), MaskedConfig(mask_spread=phase.spread)
    fit = dataclasses.replace(
        recipe.fit,
        optimizer=dataclasses.replace(recipe.fit.optimizer, lr=1e-3, muon_lr=phase.muon_lr),
        num_steps=phase.steps,
        global_batch_size=size,
        precision="fp32",
        ema_decay=phase.ema_decay,
        schedule=ScheduleConfig(kind="wsd", warmup_steps=20, decay_steps=phase.decay),
    )
    objective = BindingObjective(config, student, phase.read_weight, phase.reads)
    learning = Learning(fit, RunConfig(), student, objective)
    random = np.random.default_rng(phase.seed)
    seen = range(len(scenes.tags) - held_out)
    those = [row for row in seen if scenes.right[row] or not phase.right_only]
    chosen = draw_rows(scenes.tags, those, phase, size, random)
    for step in range(phase.steps):
        rows = next(chosen)
        hidden = torch.from_numpy(random.random(size) < phase.names_only)
        batch = scenes.load(rows, hidden, student)
        batch["masking"] = draw_masking(
            config, step, rows.tolist(), scenes.num_tokens, student.transformer.head
        )
        outcome = learning.step([(batch, size)], step, size)
        note(step, {name: total / count for name, (total, count) in outcome.sums.items() if count})
    objective.stop()
    return learning.ema.tensors


def draw_rows(
    tags: list[str | None], those: list[int], phase: Phase, batch: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Rows int [B] of those scenes in the shares of a phase; none again before all of its kind have been."""
    if phase.counting is None:
        shares, kinds = [phase.focus], [BINDING]
    else:
        shares, kinds = [phase.focus, phase.counting], [BINDING, ("counting",)]
    rows = [[i for i in those if tags[i] in kind] for kind in kinds]
    rows.append([i for i in those if not any(tags[i] in kind for kind in kinds)])
    counts = [round(batch * share) for share in shares]
    streams = [shuffled(each, random) for each in rows]
    while True:
        yield np.array(
            [
                next(stream)
                for stream, count in zip(streams, [*counts, batch - sum(counts)], strict=True)
                for _ in range(count)
            ]
        )


def shuffled(rows: list[int], random: np.random.Generator) -> Iterator[int]:
    """The rows in a new order again and again."""
    while True:
        yield from random.permutation(rows).tolist()
