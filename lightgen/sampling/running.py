"""Masked decoding of pictures that join and leave between iterations, each as `decode_tokens` decodes it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from lightgen.models.layout import Context
from lightgen.models.packed import PackedPicture, PackedTrunk, Pass
from lightgen.models.tokens import tokens_placed
from lightgen.models.transformer import LightGenTransformer
from lightgen.sampling.decode import DecodeConfig, Texts, head_steps
from lightgen.sampling.draws import draw
from lightgen.sampling.order import unknown_after
from lightgen.sampling.solver import HeadSampler

# Shapes: L tokens of a picture, P predicted now, R of all pictures, D width, d token channels, S head steps.
# Ranks: see `lightgen.models.layout`.

_MAX_SAMPLERS = 16


class RunningPicture:
    """A picture that is being decoded.

    Attributes:
        grid: rows and columns of tokens.
        config: how it is decoded.
        order: position of the token at each rank, int [L].
        tokens: by rank, [L, d]; those below rank `unknown` are not yet decoded.
        iteration, num_iterations: done, and in all.
    """

    def __init__(
        self,
        transformer: LightGenTransformer,
        seed: int,
        grid: tuple[int, int],
        config: DecodeConfig,
        known: torch.Tensor | None,
        known_mask: torch.Tensor | None,
    ) -> None:
        length, device = grid[0] * grid[1], transformer.null_text.device
        is_noisy = config.solver == "ancestral"
        noisy_steps = max(config.num_head_steps, config.last_head_steps or 0) if is_noisy else 0
        drawn = draw([seed], length, transformer.token_channels, noisy_steps, known_mask)
        self.grid, self.config = grid, config
        self._positions = drawn.order[0].numpy()
        self.order = drawn.order[0].to(device)
        self.start = drawn.start[0].to(device)[self.order]  # by rank, as everything
        self.noises = None
        if is_noisy:
            assert drawn.steps is not None
            self.noises = drawn.steps[:, 0].to(device)[:, self.order] * config.temperature
        else:
            self.start = self.start * config.temperature
        self.unknown = self.num_unknown = length - (0 if known_mask is None else int(known_mask.sum()))
        self.tokens = torch.zeros_like(self.start)
        if known is not None:
            self.tokens[self.unknown :] = known.to(self.tokens)[self.order[self.unknown :]]
        self._schedule = unknown_after(self.num_unknown, config.num_iterations) if self.num_unknown else []
        self.iteration, self.num_iterations = 0, len(self._schedule)
        self._entered = length

    @property
    def is_done(self) -> bool:
        """Whether all tokens are decoded."""
        return self.iteration == self.num_iterations

    @property
    def left(self) -> int:
        """Tokens that are unknown after the next iteration."""
        return self._schedule[self.iteration]

    @property
    def scale(self) -> float:
        """Weight of the text in the next iteration."""
        # as released, the last iteration still counts one token as unknown
        rise = self.config.guidance_rise * max(self.left, 1) / self.num_unknown
        return 1 + (self.config.guidance_scale - 1) * (1 - rise)

    @property
    def num_head_steps(self) -> int:
        """Steps of the head in the next iteration."""
        return head_steps(self.config, self.iteration, self.num_iterations)

    def known(self) -> np.ndarray:
        """Which tokens are given or decoded, bool [L] by position."""
        known = np.zeros(len(self._positions), bool)
        known[self._positions[self.unknown :]] = True
        return known

    def placed(self) -> torch.Tensor:
        """Tokens [L, d] by position, 0 where unknown."""
        return tokens_placed(self.tokens[None], self.order[None])[0]

    def next_pass(self, packed: PackedPicture) -> Pass:
        """What the trunk is asked for in the next iteration."""
        newest = self.tokens[self.unknown : self._entered]
        is_full = self.iteration % self.config.refresh_every == 0
        return Pass(packed, newest, self.left, self.unknown, is_full)

    def advance(self, values: torch.Tensor) -> None:
        """End an iteration with the tokens [P, d] that it gave."""
        self.tokens[self.left : self.unknown] = values
        self._entered, self.unknown = self.unknown, self.left
        self.iteration += 1


class RunningBatch:
    """Pictures that are decoded together, of any grids, texts and settings, each at its own iteration.

    Args:
        transformer: in eval mode.
    """

    def __init__(self, transformer: LightGenTransformer) -> None:
        self._transformer = transformer
        self._pictures: list[RunningPicture] = []
        self._packed: dict[RunningPicture, tuple[int, PackedPicture]] = {}  # those with something to do
        self._trunks: dict[int, PackedTrunk] = {}
        self._samplers: dict[tuple[object, ...], HeadSampler] = {}

    def __len__(self) -> int:
        """Pictures in it."""
        return len(self._pictures)

    @torch.inference_mode()
    def join(
        self,
        texts: Texts,
        seed: int,
        grid: tuple[int, int],
        config: DecodeConfig,
        known: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
    ) -> RunningPicture:
        """A picture that is decoded from now on.

        Args:
            texts: of this picture alone.
            seed: of its order and noise.
            grid: rows and columns of tokens.
            config: iterations, steps, guidance.
            known: tokens [L, d], of which those outside `known_mask` are ignored.
            known_mask: bool [L], True = kept exactly; on the CPU; None = nothing is known.
        """
        picture = RunningPicture(self._transformer, seed, grid, config, known, known_mask)
        self._pictures.append(picture)
        if picture.is_done:
            return picture
        contexts = _contexts(self._transformer, texts, config.guidance_scale != 1)
        # attention costs all pictures of a trunk what it costs the longest
        size = (len(picture.order) - 1).bit_length()
        trunk = self._trunks.setdefault(size, PackedTrunk(self._transformer))
        packed = trunk.join(picture.order, grid, contexts, config.refresh_every > 1)
        self._packed[picture] = (size, packed)
        return picture

    @torch.inference_mode()
    def leave(self, picture: RunningPicture) -> None:
        """Forget a picture, if it is here."""
        self._pictures = [each for each in self._pictures if each is not picture]
        if picture in self._packed:
            size, packed = self._packed.pop(picture)
            self._trunks[size].leave(packed)
            if not self._trunks[size].pictures:
                del self._trunks[size]

    @torch.inference_mode()
    def step(self) -> list[RunningPicture]:
        """One iteration of every picture; those that are done by it have left."""
        conds = self._conditions()
        alike: dict[tuple[object, ...], list[RunningPicture]] = {}
        for picture in conds:
            config, guided = picture.config, len(conds[picture]) > 1
            kind = (config.solver, config.spacing, config.guidance_interval, picture.num_head_steps, guided)
            alike.setdefault(kind, []).append(picture)
        for pictures in alike.values():
            values = self._sampled(pictures, [conds[picture] for picture in pictures])
            for picture, found in zip(pictures, values, strict=True):
                picture.advance(found)
        done = [picture for picture in self._pictures if picture.is_done]
        for picture in done:
            self.leave(picture)
        return done

    def _conditions(self) -> dict[RunningPicture, list[torch.Tensor]]:
        """Conditions [P, D] of the tokens that each picture predicts now, under each of its texts."""
        found = {}
        for size, trunk in self._trunks.items():
            members = {each: packed for each, (at, packed) in self._packed.items() if at == size}
            passes = [picture.next_pass(packed) for picture, packed in members.items()]
            found.update(zip(members, trunk.conditions(passes), strict=True))
        return found

    def _sampled(
        self, pictures: Sequence[RunningPicture], conds: Sequence[Sequence[torch.Tensor]]
    ) -> Iterable[torch.Tensor]:
        """Tokens [P, d] of pictures whose heads step alike."""
        spans = [slice(each.left, each.unknown) for each in pictures]
        counts = [len(each[0]) for each in conds]
        start = torch.cat([each.start[now] for each, now in zip(pictures, spans, strict=True)])
        noises, num_steps = None, pictures[0].num_head_steps
        if pictures[0].noises is not None:
            pairs = zip(pictures, spans, strict=True)
            parts = [each.noises[:num_steps, now] for each, now in pairs if each.noises is not None]
            noises = torch.cat(parts, dim=1)
        scale: float | torch.Tensor = 1.0
        if len(conds[0]) > 1:
            scales = np.repeat(np.array([each.scale for each in pictures], np.float32), counts)
            scale = torch.from_numpy(scales).to(start.device)[:, None]
        # all under their texts, then all without
        cond = torch.cat([under for copies in zip(*conds, strict=True) for under in copies])
        sampler = self._sampler(pictures[0].config)
        return sampler(cond, start, scale, num_steps, noises).split(counts)

    def _sampler(self, config: DecodeConfig) -> HeadSampler:
        key = (config.solver, config.spacing, config.guidance_interval)
        if key not in self._samplers:
            if len(self._samplers) == _MAX_SAMPLERS:
                self._samplers.pop(next(iter(self._samplers)))
            prediction = self._transformer.shape.prediction
            self._samplers[key] = HeadSampler(self._transformer.head, prediction, *key)
        return self._samplers[key]


def _contexts(transformer: LightGenTransformer, texts: Texts, guided: bool) -> list[Context]:
    """Contexts of one picture: its text and, if guided, what to stay away from; only tokens that are seen."""
    shape, given = transformer.shape, [(texts.text, texts.text_mask)]
    if guided:
        null, null_mask = texts.null_text, texts.null_mask
        if null is None or null_mask is None:
            # equal tokens that are only read count as one
            num_text = texts.text.shape[1] if shape.fusion == "joint" else 1
            null, null_mask = transformer.null_text_of(1, num_text)
        given.append((null.to(texts.text.dtype), null_mask))
    if shape.text_masked:
        given = [(text[:, mask[0]], mask[:, mask[0]]) for text, mask in given]
    return [transformer.context(text, torch.ones_like(mask)) for text, mask in given]
