"""The released LightGen weights: their names against ours, and what their shapes tell.

Source: names and shapes of github XianfengWu01/LightGen at 2792991.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightgen.core.errors import UserError

# Of the released sizes only: the number of heads leaves no trace in the weights.
RELEASED_HEADS = {768: 12, 1024: 16, 1280: 16}
# Options of LightGenTransformer that these names and shapes stand for.
RELEASED_CHOICES: dict[str, Any] = {
    **{"layers": "plain", "positions": "learned", "fusion": "late", "cross_residual": "normed"},
    **{"text_masked": False, "prediction": "ddpm", "head_conditioning": "joint"},
    **{"patch_size": 2, "position_grid": 16},
}

_HEAD = "diffloss.net"
_MODULES = {
    **{"text_emb.text_proj.linear_1": "text_proj.fc1", "text_emb.text_proj.linear_2": "text_proj.fc2"},
    **{"text_emb.text_aligner_norm": "text_norm", "z_proj": "z_proj", "z_proj_ln": "z_norm"},
    **{"encoder_norm": "encoder_norm", "decoder_embed": "decoder_embed", "decoder_norm": "decoder_norm"},
    **{"last_embed": "cross_embed", "cross_norm": "cross_norm"},
    **{f"{_HEAD}.time_embed.mlp.0": "head.time_in", f"{_HEAD}.time_embed.mlp.2": "head.time_out"},
    **{f"{_HEAD}.cond_embed": "head.cond_in", f"{_HEAD}.input_proj": "head.token_in"},
}
_VECTORS = {"fake_latent": "null_text", "mask_token": "mask_token"}
_TABLES = {f"{stage}_pos_embed_learned": f"{stage}_positions" for stage in ("encoder", "decoder")}
_TABLES["last_pos_embed_learned"] = "cross_positions"

_SAME = ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_SELF_BLOCK = {name: name for name in ("norm1", *_SAME)}
_CROSS_BLOCK = {"normq": "norm_q", "normkv": "norm_kv", "attn.query_linear": "attn.q", "attn.kv": "attn.kv"}
_STACKS: dict[str, tuple[str, dict[str, str]]] = {
    "text_emb.text_aligner": ("aligner_blocks", _SELF_BLOCK),
    "encoder_blocks": ("encoder_blocks", _SELF_BLOCK),
    "decoder_blocks": ("decoder_blocks", _SELF_BLOCK),
    "cross_attn_blocks": ("cross_blocks", {**_CROSS_BLOCK, **{name: name for name in _SAME}}),
    f"{_HEAD}.res_blocks": ("head.blocks", {"in_ln": "norm", "mlp.0": "fc1", "mlp.2": "fc2"}),
}
_DEPTHS = ("aligner_layers", "encoder_layers", "decoder_layers", "cross_layers", "head_layers")

_LISTED, _LONGEST_NAME = 10, 80

# Modules, each with its share of the rows that all of a side hold together.
_Side = tuple[tuple[str, int], ...]


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; weights and gradients alike, bit for bit.

    Raises:
        UserError: a name is missing or unknown.
    """
    depths = [_depth(tensors, stack) for stack in _STACKS]
    pairs = _pairs(depths)
    moved = _moved(tensors, pairs, [*_VECTORS, *_TABLES])
    moved |= {ours: tensors[name].reshape(-1) for name, ours in _VECTORS.items()}
    return moved | {ours: tensors[name].flatten(0, 1) for name, ours in _TABLES.items()}


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the released names: the inverse of `from_released`, bit for bit.

    Raises:
        UserError: a name is missing or unknown, as in any other configuration than the released one.
    """
    depths = [_depth(state, ours) for ours, _ in _STACKS.values()]
    pairs = [(ours, released) for released, ours in _pairs(depths)]
    moved = _moved(state, pairs, [*_VECTORS.values(), *_TABLES.values()])
    moved |= {name: state[ours].reshape(1, 1, -1) for name, ours in _VECTORS.items()}
    return moved | {name: state[ours][None] for name, ours in _TABLES.items()}


def released_config(
    tensors: Mapping[str, Tensor],
    num_heads: int | None = None,
    text_length: int = 128,
    sample_size: int = 64,
    where: str = "weights",
) -> dict[str, Any]:
    """Config of the LightGenTransformer that released tensors belong to, as their shapes tell it.

    Args:
        tensors: under their released names; where some contradict each other, most win.
        num_heads: of attention; None stands for that of the released sizes.
        text_length: most text tokens.
        sample_size: default side of a picture in latent cells; 64 is 512 px, the last released one.
        where: the tensors' name in an error.

    Raises:
        UserError: these are no released weights, or the number of heads is unknown or impossible.
    """
    norms = ("decoder_norm.weight", "encoder_norm.weight", "cross_norm.weight", "z_proj_ln.weight")
    width = _vote(tensors, {**dict.fromkeys(norms, 0), "z_proj.weight": 0, "decoder_embed.weight": 0})
    if not width:
        raise UserError(f"{where}: got {_listed(sorted(tensors))}, allowed: names of the released LightGen")
    heads = num_heads if num_heads is not None else RELEASED_HEADS.get(width)
    if heads is None or heads < 1 or width % heads:
        got = "no heads" if heads is None else f"{heads} heads"
        raise UserError(f"{where}: got {got}, allowed: a divisor of width {width} (--num-heads)")
    head_ends = [f"{_HEAD}.{name}.weight" for name in ("input_proj", "cond_embed", "time_embed.mlp.0")]
    channels = _vote(tensors, {"z_proj.weight": 1, head_ends[0]: 1}) or 64
    return {
        **RELEASED_CHOICES,
        "latent_channels": max(1, channels // RELEASED_CHOICES["patch_size"] ** 2),
        "sample_size": sample_size,
        "width": width,
        "num_heads": heads,
        **{name: max(1, _depth(tensors, stack)) for name, stack in zip(_DEPTHS, _STACKS, strict=True)},
        "text_width": _vote(tensors, {"text_emb.text_proj.linear_1.weight": 1}) or 4096,
        "text_length": text_length,
        "dropout": 0.1,
        "head_width": _vote(tensors, dict.fromkeys(head_ends, 0)) or 1536,
    }


def released_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every released tensor of a configuration, by its released name."""
    d, m = config["width"], config["head_width"]
    c = config["latent_channels"] * config["patch_size"] ** 2
    modules: dict[str, tuple[int, ...]] = {name: (d,) for name in _MODULES if "norm" in name or "_ln" in name}
    modules |= {"z_proj": (d, c), "decoder_embed": (d, d), "last_embed": (d, d)}
    modules |= {
        "text_emb.text_proj.linear_1": (d, config["text_width"]),
        "text_emb.text_proj.linear_2": (d, d),
    }
    modules |= {f"{_HEAD}.time_embed.mlp.0": (m, 256), f"{_HEAD}.time_embed.mlp.2": (m, m)}
    modules |= {f"{_HEAD}.cond_embed": (m, d), f"{_HEAD}.input_proj": (m, c)}
    modules |= {
        f"{_HEAD}.final_layer.adaLN_modulation.1": (2 * m, m),
        f"{_HEAD}.final_layer.linear": (2 * c, m),
    }
    common = {"attn.proj": (d, d), "norm2": (d,), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    in_self = {"norm1": (d,), "attn.qkv": (3 * d, d), **common}
    in_cross = {"normq": (d,), "normkv": (d,), "attn.query_linear": (d, d), "attn.kv": (2 * d, d), **common}
    in_head = {"in_ln": (m,), "mlp.0": (m, m), "mlp.2": (m, m), "adaLN_modulation.1": (3 * m, m)}
    for stack, inner, name in zip(_STACKS, (*[in_self] * 3, in_cross, in_head), _DEPTHS, strict=True):
        modules |= {f"{stack}.{n}.{k}": shape for n in range(config[name]) for k, shape in inner.items()}
    shapes = {f"{name}.weight": shape for name, shape in modules.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in modules.items()}
    tables = dict.fromkeys(_TABLES, (1, config["position_grid"] ** 2, d))
    return shapes | dict.fromkeys(_VECTORS, (1, 1, d)) | tables


def require_released(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str = "weights"
) -> dict[str, Tensor]:
    """The tensors in fp32, in memory of their own.

    Raises:
        UserError: names are missing or unknown, or tensors of another shape, no floats, or not finite; it
            lists them all.
    """
    shapes = released_shapes(config)
    wrong = [
        f"{name!r} {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = {
        "missing": [repr(name) for name in shapes if name not in tensors],
        "unknown": [repr(name[:_LONGEST_NAME]) for name in tensors if name not in shapes],
        "wrong-shaped": wrong,
        "not of floats": [repr(n) for n, t in tensors.items() if n in shapes and not t.is_floating_point()],
    }
    if not any(faults.values()):
        cast = {name: tensors[name].detach().to(torch.float32, copy=True) for name in shapes}
        faults["not finite in fp32"] = [repr(n) for n, t in cast.items() if not torch.isfinite(t).all()]
        if not any(faults.values()):
            return cast
    told = "; ".join(f"{what}: {_listed(names, quoted=True)}" for what, names in faults.items() if names)
    raise UserError(f"{where}: {told}; allowed: exactly the released LightGen's tensors")


def _pairs(depths: Sequence[int]) -> list[tuple[_Side, _Side]]:
    """Released and our modules whose rows, one below the other, are the same."""
    pairs: list[tuple[_Side, _Side]] = [(((name, 1),), ((ours, 1),)) for name, ours in _MODULES.items()]
    for (stack, (our_stack, inner)), depth in zip(_STACKS.items(), depths, strict=True):
        for n in range(depth):
            block, our_block = f"{stack}.{n}", f"{our_stack}.{n}"
            pairs += [(((f"{block}.{a}", 1),), ((f"{our_block}.{b}", 1),)) for a, b in inner.items()]
            if inner is _SELF_BLOCK:
                query_key_value = ((f"{our_block}.attn.q", 1), (f"{our_block}.attn.kv", 2))
                pairs.append((((f"{block}.attn.qkv", 3),), query_key_value))
    last, layers = f"{_HEAD}.final_layer", depths[-1]
    pairs.append((((f"{last}.linear", 2),), (("head.token_out", 1), ("head.variance_out", 1))))
    blocks = [(f"{_HEAD}.res_blocks.{n}.adaLN_modulation.1", 3) for n in range(layers)]
    modulation = (*blocks, (f"{last}.adaLN_modulation.1", 2))
    pairs.append((modulation, (("head.modulation", 3 * layers + 2),)))
    return pairs


def _moved(
    tensors: Mapping[str, Tensor], pairs: Sequence[tuple[_Side, _Side]], others: Sequence[str]
) -> dict[str, Tensor]:
    """Weights and biases of each pair's first side under the names of its second."""
    kinds = ("weight", "bias")
    sources = {f"{name}.{kind}" for side, _ in pairs for name, _ in side for kind in kinds} | {*others}
    if sources != set(tensors):
        missing, unknown = sorted(sources - set(tensors)), sorted(set(tensors) - sources)
        told = f"missing: {_listed(missing) or 'none'}; unknown: {_listed(unknown) or 'none'}"
        raise UserError(f"weights: {told}; allowed: exactly the released LightGen's names")
    moved = {}
    for source, target in pairs:
        for kind in kinds:
            rows = [tensors[f"{name}.{kind}"] for name, _ in source]
            whole = torch.cat(rows) if len(rows) > 1 else rows[0]
            if len(target) == 1:
                moved[f"{target[0][0]}.{kind}"] = whole
                continue
            unit = whole.shape[0] // sum(share for _, share in target)
            parts = whole.split([unit * share for _, share in target])
            moved |= {f"{name}.{kind}": part.clone() for (name, _), part in zip(target, parts, strict=True)}
    return moved


def _depth(names: Mapping[str, Tensor], stack: str) -> int:
    """Number of blocks of a stack, the missing ones before the last included."""
    found = (re.match(rf"{re.escape(stack)}\.(\d{{1,3}})\.", name) for name in names)
    return max((int(each[1]) + 1 for each in found if each), default=0)


def _vote(tensors: Mapping[str, Tensor], axes: Mapping[str, int]) -> int | None:
    """Most common size of the named axes, or None where no such tensor is there."""
    present = ((tensors[name].shape, axis) for name, axis in axes.items() if name in tensors)
    sizes = Counter(shape[axis] for shape, axis in present if axis < len(shape))
    return sizes.most_common(1)[0][0] if sizes else None


def _listed(names: Sequence[str], *, quoted: bool = False) -> str:
    """The first names, and how many more there are."""
    shown = [name if quoted else repr(name[:_LONGEST_NAME]) for name in names[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown) + more
