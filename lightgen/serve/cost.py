"""What a picture costs, so that shares are of work and not of pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.edit import frame_of

if TYPE_CHECKING:
    from lightgen.serve.batches import Live
    from lightgen.stages.decoding import DecodeConfig
    from lightgen.stages.live import PictureRequest

_USUAL_PRESET = "fast"
# Measured with nano on a CPU, as shares of its usual picture.
_LEAST = 1 / 16  # reading the text and making the file, however small the picture
_PREVIEW = 1 / 32  # of a picture of the usual size


def picture_costs(requests: "Sequence[PictureRequest]", live: "Live", previews: int = 0) -> list[float]:
    """Work of each picture, 1 = a picture of the model's own size by the preset `fast`.

    Work is tokens, times the passes of the trunk and the steps of the head that each takes part in, times the
    contexts (two where the text is weighed against another). It foretells seconds to about a factor of two.

    Args:
        requests: pictures of one model.
        live: the model.
        previews: partial pictures of each.
    """
    found: dict[tuple[int, ...], float] = {}
    costs = []
    for each in requests:
        # mostly they differ by their seed alone, and to look through a large mask takes a while
        alike = (each.height, each.width, id(each.mask), id(each.edit), id(each.config))
        if alike not in found:
            found[alike] = _cost(each, live, previews)
        costs.append(found[alike])
    return costs


def _cost(request: "PictureRequest", live: "Live", previews: int) -> float:
    usual_tokens = _tokens(*live.default_size, live.unit)
    usual = usual_tokens * _passes(usual_tokens, live.resolve(_USUAL_PRESET, DecodeOverrides()))
    tokens, config = _tokens(request.height, request.width, live.unit), request.config
    if request.mask is not None and request.edit.crop is not None:
        area = live.default_size[0] * live.default_size[1]
        frame = frame_of(request.mask, live.unit, area, request.edit.crop)
        tokens = frame.rows * frame.columns
    shown = min(previews, config.num_iterations, tokens) * _PREVIEW * tokens / usual_tokens
    return max(_LEAST, tokens * _passes(tokens, config) / usual + shown)


def _tokens(height: int, width: int, unit: int) -> int:
    return -(-height // unit) * -(-width // unit)


def _passes(tokens: int, config: "DecodeConfig") -> float:
    """How often a token passes the trunk or the head; an iteration decodes one token at least."""
    last = config.num_head_steps if config.last_head_steps is None else config.last_head_steps
    contexts = 1 if config.guidance_scale == 1 else 2
    return contexts * (min(config.num_iterations, tokens) + (config.num_head_steps + last) / 2)
