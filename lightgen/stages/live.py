"""The student as a batch that pictures join and leave: each comes out as the pipeline draws it alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lightgen.core.errors import UserError
from lightgen.models.tokens import patchify
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.sampling.decode import DecodeConfig, Texts
from lightgen.sampling.running import RunningBatch, RunningPicture
from lightgen.stages.decoding import DecodeOverrides, check_sides, pick_seeds
from lightgen.stages.drawing import open_pipeline, pictures_at_once
from lightgen.stages.edit import Canvas, EditConfig, Frame, compose, paint, prepare
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.pixels import to_uint8
from lightgen.stages.prompt_features import PromptFeatures
from lightgen.stages.prompt_text import check_texts

# Shapes: H, W pixels of a picture, L tokens, d token channels.

_AT_ONCE = 8
# Up to so many, as of two small pictures of nano, threads of a CPU wait for each other longer than they work.
_FEW_VALUES = 2**15


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureRequest:
    """What one picture is wanted like.

    Attributes:
        prompt: one text.
        negative_prompt: what to stay away from; may be empty; None = the learned "no text".
        width, height: px, multiples of the model's unit; of an edit the picture's own, which may be any.
        seed: of order and noise.
        config: how it is decoded, from `LiveBatch.resolve`.
        image: to edit, uint8 [H, W, 3]; None = the picture is all new.
        mask: bool [H, W], True = to be painted; None = everywhere.
        edit: how it is edited.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    seed: int
    config: DecodeConfig
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    edit: EditConfig = EditConfig()


class LivePicture:
    """A picture that joined a batch.

    Attributes:
        request: what is wanted.
        grid: rows and columns of tokens.
    """

    def __init__(
        self, request: PictureRequest, canvas: Canvas | None, grid: tuple[int, int], mask: np.ndarray | None
    ) -> None:
        self.request, self.grid = request, grid
        self.canvas, self.mask = canvas, mask
        self.decoded: RunningPicture | None = None

    @property
    def iteration(self) -> int:
        """Iterations that are done."""
        return 0 if self.decoded is None else self.decoded.iteration

    @property
    def num_iterations(self) -> int:
        """Iterations in all; 0 of an edit that changes nothing."""
        return 0 if self.decoded is None else self.decoded.num_iterations

    def known(self) -> np.ndarray:
        """Which tokens are given or decoded by now, bool [rows, columns]."""
        known = np.ones(self.grid, bool)
        return known if self.decoded is None else self.decoded.known().reshape(self.grid)


class LiveBatch:
    """Pictures of one model that are decoded together, each at its own iteration, size, preset and texts.

    All methods but `resolve` and `check` belong to one thread.

    Args:
        pipeline: the model, whose parts stay where they are.
    """

    def __init__(self, pipeline: LightGenPipeline) -> None:
        self._pipeline, self._transformer = pipeline, pipeline.transformer.eval()
        self._autoencoder = DiffusersAutoencoder(pipeline.vae)
        self._patch: int = self._transformer.config["patch_size"]
        self.facts: dict[str, str] = {}
        self.unit = pipeline.unit
        self.default_size = pipeline.default_size
        self._running = RunningBatch(self._transformer)
        self._pictures: list[LivePicture] = []
        self._threads = torch.get_num_threads()

    @property
    def running(self) -> int:
        """Pictures in the batch, those that only half joined it before an error counted too."""
        return max(len(self._pictures), len(self._running))

    def resolve(self, preset: str | None, overrides: DecodeOverrides) -> DecodeConfig:
        """Every setting of the decoder; see `lightgen.stages.decoding.resolve`."""
        return self._pipeline.resolve(preset, overrides)

    def check(self, request: PictureRequest) -> None:
        """Check a request without touching the model.

        Raises:
            UserError: something in it is not allowed.
        """
        check_texts("prompt", request.prompt)
        if request.negative_prompt is not None:
            check_texts("negative_prompt", request.negative_prompt, may_be_blank=True)
        pick_seeds(1, None, [request.seed])
        self.resolve(None, DecodeOverrides.of(request.config))
        request.edit.check(has_image=request.image is not None, has_mask=request.mask is not None)
        if request.image is None:
            check_sides(request.height, request.width, self.unit)
        else:
            self._check_edit(request, request.image)

    @torch.inference_mode()
    def join(self, requests: Sequence[PictureRequest]) -> list[LivePicture | UserError]:
        """A picture for each request, decoded from the next step on, or what is wrong with it."""
        joined = [self._begin(request) for request in requests]
        active = [each for each in joined if isinstance(each, LivePicture) and each.canvas is not None]
        if active:
            texts, known = self._texts([each.request for each in active]), self._known(active)
            for each, text, tokens in zip(active, texts, known, strict=True):
                assert each.canvas is not None
                request, mask = each.request, None if tokens is None else ~each.canvas.mask.flatten()
                each.decoded = self._running.join(text, request.seed, each.grid, request.config, tokens, mask)
        self._pictures += [each for each in joined if isinstance(each, LivePicture)]
        return joined

    def leave(self, picture: LivePicture) -> None:
        """Forget a picture, if it is here."""
        self._pictures = [each for each in self._pictures if each is not picture]
        if picture.decoded is not None:
            self._running.leave(picture.decoded)

    def step(self) -> list[LivePicture]:
        """One iteration of every picture; those that are finished by it, which have left."""
        values = self._transformer.shape.width * sum(math.prod(each.grid) for each in self._pictures)
        torch.set_num_threads(1 if values <= _FEW_VALUES else self._threads)
        self._running.step()
        done = [each for each in self._pictures if each.iteration == each.num_iterations]
        self._pictures = [each for each in self._pictures if each.iteration < each.num_iterations]
        return done

    def preview(self, pictures: Sequence[LivePicture]) -> list[np.ndarray]:
        """Pictures uint8 [H, W, 3] as decoded so far, mid grey where tokens are unknown."""
        return self._drawn_in_parts(pictures, blank=True)

    def finish(self, pictures: Sequence[LivePicture]) -> list[np.ndarray]:
        """Finished pictures uint8 [H, W, 3]; edits change under their mask alone."""
        return self._drawn_in_parts(pictures, blank=False)

    def reset(self) -> None:
        """Forget all pictures, whatever happened to them."""
        self._running = RunningBatch(self._transformer)
        self._pictures = []

    def _check_edit(self, request: PictureRequest, image: np.ndarray) -> None:
        height, width = request.height, request.width
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"image: got {image.dtype} {list(image.shape)}, allowed: uint8 [H, W, 3]")
        if image.shape[:2] != (height, width):
            got = f"{width}x{height} px (width x height)"
            raise UserError(f"size: got {got}, allowed: the image's {image.shape[1]}x{image.shape[0]} px")
        mask = request.mask
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape[:2]):
            got = f"{mask.dtype} {list(mask.shape)}"
            raise UserError(f"mask_image: got {got}, allowed: bool, the image's {width}x{height} px")
        tall, wide = (-(-side // self.unit) * self.unit for side in (height, width))
        check_sides(tall, wide, self.unit)

    def _begin(self, request: PictureRequest) -> LivePicture | UserError:
        """The picture of a request before anything is decoded."""
        try:
            self.check(request)
        except UserError as error:
            return error
        size = request.height, request.width
        rows, columns = (-(-side // self.unit) for side in size)
        if request.image is None:
            frame = Frame(0, 0, *size, rows, columns)
            canvas = Canvas(frame, torch.empty(0), torch.ones(rows, columns, dtype=torch.bool))
            return LivePicture(request, canvas, (rows, columns), None)
        mask = np.ones(size, bool) if request.mask is None else request.mask
        area = self.default_size[0] * self.default_size[1]
        canvas = prepare(request.image, mask, request.seed, self.unit, area, request.edit)
        grid = (rows, columns) if canvas is None else (canvas.frame.rows, canvas.frame.columns)
        return LivePicture(request, canvas, grid, mask)

    def _texts(self, requests: Sequence[PictureRequest]) -> list[Texts]:
        """Texts of each picture; each different one is encoded once."""
        pairs = [(each.prompt, each.negative_prompt) for each in requests]
        unique = list(dict.fromkeys(text for pair in pairs for text in pair if text is not None))
        tokenizer, encoder = self._pipeline.tokenizer, self._pipeline.text_encoder
        limits, device = self._pipeline._limits(), self._transformer.device
        features = PromptFeatures.encoded((unique, []), tokenizer, encoder, limits, device)
        text, mask = self._transformer.embed_text(features.prompt, features.mask), features.mask
        rows = {each: (text[i : i + 1], mask[i : i + 1]) for i, each in enumerate(unique)}
        found = []
        for prompt, negative in pairs:
            null, null_mask = (None, None) if negative is None else rows[negative]
            own = rows[prompt]
            found.append(Texts(text=own[0], text_mask=own[1], null_text=null, null_mask=null_mask))
        return found

    def _known(self, pictures: Sequence[LivePicture]) -> list[torch.Tensor | None]:
        """Tokens [L, d] of each picture that keeps some; those of one size are encoded together."""
        known: list[torch.Tensor | None] = [None] * len(pictures)
        alike: dict[tuple[int, int], list[int]] = {}
        for i, each in enumerate(pictures):
            if each.canvas is not None and not each.canvas.mask.all():
                alike.setdefault(each.grid, []).append(i)
        for chosen in alike.values():
            canvases = [canvas for i in chosen if (canvas := pictures[i].canvas) is not None]
            pixels = torch.stack([canvas.pixels for canvas in canvases]).to(self._transformer.device)
            tokens = patchify(self._autoencoder.encode(pixels)[0], self._patch)
            for i, each in zip(chosen, tokens, strict=True):
                known[i] = each
        return known

    def _drawn_in_parts(self, pictures: Sequence[LivePicture], blank: bool) -> list[np.ndarray]:
        """As `_drawn`, of no more pixels at once than the autoencoder's memory may be expected to hold."""
        tokens = max((each.grid[0] * each.grid[1] for each in pictures), default=1)
        size = pictures_at_once(_AT_ONCE, tokens * self.unit**2)
        parts = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        return [image for part in parts for image in self._drawn(part, blank)]

    @torch.inference_mode()
    def _drawn(self, pictures: Sequence[LivePicture], blank: bool) -> list[np.ndarray]:
        """Pictures uint8 [H, W, 3] of the tokens so far; with `blank`, unknown ones are mid grey."""

        def tokens_of(chosen: list[int], *_: object) -> torch.Tensor:
            found = [decoded.placed() for i in chosen if (decoded := pictures[i].decoded) is not None]
            return torch.stack(found)

        # with nothing known, painting is the autoencoder alone
        canvases = [
            each.canvas and Canvas(each.canvas.frame, each.canvas.pixels, torch.ones_like(each.canvas.mask))
            for each in pictures
        ]
        painted = paint(canvases, self._autoencoder, self._patch, tokens_of, self._transformer.device)
        drawn = []
        for each, pixels in zip(pictures, painted, strict=True):
            if blank and pixels is not None:
                known = torch.from_numpy(each.known())[None, None].float()
                pixels = pixels * functional.interpolate(known, pixels.shape[1:])[0]
            image, mask = each.request.image, each.mask
            if image is None or mask is None:
                assert pixels is not None
                drawn.append(to_uint8(pixels[None])[0])
            else:
                drawn.append(compose(image, mask, each.canvas, pixels, each.request.edit.feather))
        return drawn


def open_live(model: str | Path) -> LiveBatch:
    """Batch of a checkpoint directory or of `nano`; its `facts` are what a picture notes of its model.

    Raises:
        UserError: there is no such checkpoint, or it lacks a part.
    """
    pipeline, facts = open_pipeline(model)
    live = LiveBatch(pipeline)
    live.facts = facts
    return live
