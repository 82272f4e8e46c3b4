"""The trunk over pictures that stand at different iterations: their tokens pass as one packed sequence.

Linear layers and MLPs, which are the cost, see no filling; only attention lays the tokens out in rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from lightgen.models.blocks import Block, CrossBlock, Projected
from lightgen.models.layout import Context
from lightgen.models.positions import Rotation
from lightgen.models.shelf import Asked, Shelf
from lightgen.models.transformer import LightGenTransformer

# Shapes: N tokens that pass, of all rows, L tokens of a picture, T of its text, P predicted now, D width, d
# token channels, A heads, E head width. Ranks: see `lightgen.models.layout`. A row is a picture under one of
# its texts, or, where no text has part, a picture. The slots of a row are its ranks and, where fusion is
# joint, its text after them. A door is `Projected` with x, queries, keys and values side by side, [N, 4 D].


class PackedPicture:
    """What the trunk keeps of a picture while it is decoded.

    Attributes:
        length: L.
        keeps: whether its keys and values last, for passes that are not full.
        texts: door [T, 4 D] of the text of each context; T is 0 unless fusion is joint.
        unknown_door: mask tokens by rank, [L, 4 D].
        known_door: tokens by rank, [L, 4 D], of which the known ones have entered.
        turns: cosines and sines by slot, [L + T, E]; None without rotary positions.
        tables: learned positions of encoder, decoder and cross stage by slot, [L + T, D]; empty without.
        first, left, unknown, stop: of the pass at hand: ranks first to stop take part, those from left to
            unknown are predicted; the text takes part where all known tokens do.
    """

    def __init__(
        self,
        transformer: LightGenTransformer,
        order: torch.Tensor,
        grid: tuple[int, int],
        contexts: Sequence[Context],
        keeps: bool,
    ) -> None:
        layout, length = transformer.lay_out(order[None], grid), len(order)
        self.length, self.keeps = length, keeps
        self.unknown_door = _door(layout.unknown_at(0, length))
        nothing = self.unknown_door[:0]
        prefixes = [context.prefix for context in contexts]
        self.texts = [nothing if prefix is None else _door(prefix) for prefix in prefixes]
        self.known_door = torch.empty_like(self.unknown_door)
        num_text = max(map(len, self.texts))
        # all tokens of a text are seen, so that those of a shorter one lie as the first of the longest
        angles = max(contexts, key=lambda context: context.num_text).angles
        rotation = layout.rotation(0, length, self.unknown_door.dtype, angles)
        self.turns = None if rotation is None else torch.cat(rotation, dim=-1)[0, 0]
        self.tables = [
            functional.pad(layout.table(stage, 0, length)[0], (0, 0, 0, num_text))
            for stage in range(len(layout.tables))
        ]
        self.first = self.left = 0
        self.unknown = self.stop = length

    def take(self, left: int, unknown: int, is_full: bool) -> None:
        """Begin the next pass; tokens up to the rank that was unknown before have entered."""
        self.first, self.stop = (0, self.length) if is_full else (left, self.unknown)
        self.left, self.unknown = left, unknown

    @property
    def has_text(self) -> bool:
        """Whether the text takes part in the pass at hand."""
        return self.stop == self.length

    def end(self, copy: int) -> int:
        """Slot after the last one that takes part under a text."""
        return self.stop + (len(self.texts[copy]) if self.has_text else 0)


class Pass(NamedTuple):
    """A picture's part in an iteration.

    Attributes:
        picture: from `PackedTrunk.join`.
        newest: tokens [N, d] of those ranks from `unknown` on that were not yet known in its last pass.
        left, unknown: first rank to predict, and first known one.
        is_full: whether all tokens pass, or, of a picture that keeps, the newest and the predicted ones.
    """

    picture: PackedPicture
    newest: torch.Tensor
    left: int
    unknown: int
    is_full: bool


class Row(NamedTuple):
    """A picture under one of its texts; 0 too where no text has part."""

    picture: PackedPicture
    copy: int


Span = tuple[PackedPicture, int, int]  # slots of a picture, from and to


class PackedTrunk:
    """Conditions of the tokens that each picture predicts now: those that `Trunk` gives of it alone.

    Pictures of any grid, text and number of contexts share a pass. Attention costs each what it costs the
    longest.

    Args:
        transformer: in eval mode.
    """

    def __init__(self, transformer: LightGenTransformer) -> None:
        shape = transformer.shape
        self._transformer, self._fusion = transformer, shape.fusion
        self._device = transformer.null_text.device
        self.pictures: list[PackedPicture] = []
        self._encoder, self._decoder, self._texts = (
            Shelf[Row](shape.num_heads, shape.width, self._device) for _ in range(3)
        )
        self._texts.keep(True)

    def join(
        self, order: torch.Tensor, grid: tuple[int, int], contexts: Sequence[Context], keeps: bool
    ) -> PackedPicture:
        """A picture that takes part in passes from now on.

        Args:
            order: positions by rank, int [L].
            grid: rows and columns of tokens.
            contexts: of one picture each, of the texts that conditions are wanted under; all tokens of a text
                are attended to, and none of them is a constant.
            keeps: whether keys and values last, for passes that are not full.
        """
        picture = PackedPicture(self._transformer, order, grid, contexts, keeps)
        for copy, context in enumerate(contexts):
            row, length = Row(picture, copy), picture.length + len(picture.texts[copy])
            if copy == 0 or self._fusion == "joint":
                self._encoder.add(row, length)
            if copy == 0 or self._fusion != "late":
                self._decoder.add(row, length)
            if self._fusion != "joint":
                self._remember(row, context)
        self.pictures.append(picture)
        self._keep()
        return picture

    def leave(self, picture: PackedPicture) -> None:
        """Forget a picture."""
        self.pictures = [each for each in self.pictures if each is not picture]
        for shelf in (self._encoder, self._decoder, self._texts):
            for number in reversed([i for i, row in enumerate(shelf.owners) if row.picture is picture]):
                shelf.remove(number)
        self._keep()

    def conditions(self, passes: Sequence[Pass]) -> list[list[torch.Tensor]]:
        """Conditions [P, D] of each pass under each context of its picture; every picture must have one."""
        assert len(passes) == len(self.pictures)
        for each in passes:
            each.picture.take(each.left, each.unknown, each.is_full)
        self._enter(passes)
        rows = self._decode(self._encode())
        if self._fusion == "late":
            rows = self._fuse(rows)
        return [[rows[Row(each.picture, i)] for i in range(len(each.picture.texts))] for each in passes]

    def _keep(self) -> None:
        for shelf in (self._encoder, self._decoder):
            shelf.keep(any(picture.keeps for picture in self.pictures))

    def _remember(self, row: Row, context: Context) -> None:
        """Keep what cross blocks read of a text."""
        for i, memory in enumerate(context.memories):
            assert not isinstance(memory, torch.Tensor)
            if i == 0:
                self._texts.add(row, memory.k.shape[2])
                ends = [0] * (len(self._texts.owners) - 1) + [memory.k.shape[2]]
                flat = self._index(self._texts.places([0] * len(ends), ends)[1])
            self._texts.put(f"{i}", flat, *(each[0].transpose(0, 1) for each in memory[:2]))

    def _enter(self, passes: Sequence[Pass]) -> None:
        """Bring the newest tokens of all pictures to the door of the encoder."""
        spans = [(each.picture, each.unknown, each.unknown + len(each.newest)) for each in passes]
        newest = torch.cat([each.newest for each in passes])
        if not len(newest):
            return
        z_proj, block = self._transformer.z_proj, self._transformer.encoder_blocks[0]
        x = _placed(z_proj(newest.to(z_proj.weight.dtype)), 0, spans)
        door = _door(block.project(self._transformer.z_norm(x)[:, None], _rotation(spans)))
        for each, piece in zip(spans, door.split([end - start for _, start, end in spans]), strict=True):
            each[0].known_door[each[1] : each[2]] = piece

    def _encode(self) -> dict[Row, torch.Tensor]:
        """Encoded tokens of each row, at the door of the decoder."""
        transformer, shelf = self._transformer, self._encoder
        spans: list[Span] = []
        pieces = []
        for picture, copy in shelf.owners:
            spans.append((picture, picture.unknown, picture.end(copy)))
            pieces.append(picture.known_door[picture.unknown : picture.stop])
            if picture.has_text:
                pieces.append(picture.texts[copy])
        starts = [start for _, start, _ in spans]
        count, places = shelf.places(starts, [end for _, _, end in spans])
        if not len(places):
            return {row: row.picture.unknown_door[:0] for row in shelf.owners}
        flat, asked, rotation = self._index(places), shelf.asked(count, starts), _rotation(spans)
        x, *qkv = torch.cat(pieces).chunk(4, dim=1)
        for i, block in enumerate(transformer.encoder_blocks):
            if i:
                _, *qkv = block.project(x[:, None], rotation)
            x = _updated(block, x, shelf, f"{i}", flat, qkv, asked)
        x = _placed(transformer.decoder_embed(transformer.encoder_norm(x)), 1, spans)
        door = _door(transformer.decoder_blocks[0].project(x[:, None], rotation))
        return dict(zip(shelf.owners, door.split(count.tolist()), strict=True))

    def _decode(self, encoded: dict[Row, torch.Tensor]) -> dict[Row, torch.Tensor]:
        """Decoded tokens [P, D] of each row."""
        transformer, shelf = self._transformer, self._decoder
        pieces = []
        for row in shelf.owners:
            pieces.append(row.picture.unknown_door[row.picture.first : row.picture.unknown])
            pieces.append(encoded[row if self._fusion == "joint" else Row(row.picture, 0)])
        spans: list[Span] = [(picture, picture.first, picture.end(copy)) for picture, copy in shelf.owners]
        count, places = shelf.places([start for _, start, _ in spans], [end for _, _, end in spans])
        pictures = [row.picture for row in shelf.owners]
        num_now, now = shelf.places([each.left for each in pictures], [each.unknown for each in pictures])
        wanted = self._index(np.searchsorted(places, now))
        flat, rotation, last = self._index(places), _rotation(spans), len(transformer.decoder_blocks) - 1
        asked = [shelf.asked(each) for each in (count, num_now)]
        texts = [self._texts.asked(each) for each in (count, num_now)] if transformer.cross_blocks else []
        x, *qkv = torch.cat(pieces).chunk(4, dim=1)
        for i, block in enumerate(transformer.decoder_blocks):
            if i:
                _, *qkv = block.project(x[:, None], rotation)
            if i == last:
                x, qkv = x[wanted], [qkv[0][wanted], *qkv[1:]]
            x = _updated(block, x, shelf, f"{i}", flat, qkv, asked[i == last])
            if self._fusion == "interleaved":
                x = self._read(transformer.cross_blocks[i], x, f"{i}", texts[i == last])
        return dict(zip(shelf.owners, transformer.decoder_norm(x).split(num_now.tolist()), strict=True))

    def _fuse(self, decoded: dict[Row, torch.Tensor]) -> dict[Row, torch.Tensor]:
        """Conditions [P, D] of each text's row: the late stage."""
        transformer, shelf = self._transformer, self._texts
        spans: list[Span] = [(row.picture, row.picture.left, row.picture.unknown) for row in shelf.owners]
        count = np.array([end - start for _, start, end in spans])
        x = transformer.cross_embed(torch.cat([decoded[Row(row.picture, 0)] for row in shelf.owners]))
        x, asked = _placed(x, 2, spans), shelf.asked(count)
        for i, block in enumerate(transformer.cross_blocks):
            x = self._read(block, x, f"{i}", asked)
        return dict(zip(shelf.owners, transformer.cross_norm(x).split(count.tolist()), strict=True))

    def _read(self, block: CrossBlock, x: torch.Tensor, name: str, asked: Sequence[Asked]) -> torch.Tensor:
        """Tokens [N, D] after a cross block: see `CrossBlock.forward`."""
        normed = block.norm_q(x)
        base = normed if block.residual == "normed" else x
        mixed = self._texts.attend(name, block.attn.queries(normed[:, None]), asked)
        x = base + block.attn.output(mixed)
        return x + block.mlp(block.norm2(x))

    def _index(self, places: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(places).to(self._device)


def _updated(
    block: Block,
    x: torch.Tensor,
    shelf: Shelf[Row],
    name: str,
    flat: torch.Tensor,
    qkv: Sequence[torch.Tensor],
    asked: Sequence[Asked],
) -> torch.Tensor:
    """Tokens [N, D] after a block: see `Block.update`."""
    q, k, v = qkv
    shelf.put(name, flat, k, v)
    x = x + block.attn.output(shelf.attend(name, q, asked))
    return x + block.mlp(block.norm2(x))


def _door(projected: Projected) -> torch.Tensor:
    """Projected tokens, of one sequence [1, N, D] or each a sequence of its own [N, 1, D], as a door."""
    x, *qkv = projected
    return torch.cat(
        [x.flatten(0, 1), *(each.transpose(1, 2).flatten(0, 1).flatten(1) for each in qkv)], dim=1
    )


def _placed(x: torch.Tensor, stage: int, spans: Sequence[Span]) -> torch.Tensor:
    """Tokens [N, D] of slots, with learned positions if any."""
    if not spans[0][0].tables:
        return x
    return x + torch.cat([picture.tables[stage][start:end] for picture, start, end in spans])


def _rotation(spans: Sequence[Span]) -> Rotation | None:
    """Turns [N, 1, 1, E/2] of slots, or None."""
    turns = [picture.turns[start:end] for picture, start, end in spans if picture.turns is not None]
    if not turns:
        return None
    cosine, sine = torch.cat(turns)[:, None, None].chunk(2, dim=-1)
    return cosine, sine
