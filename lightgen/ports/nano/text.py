"""The small text encoder that stands for Flan-T5-XXL in the nano world: one token per word."""

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from lightgen.core.draws import draw_key
from lightgen.ports.nano.language import vocabulary
from lightgen.ports.text import T5TextEncoder

MAX_LENGTH = 48
# Buckets of the relative bias: half for the word itself (0) and those before, by distance: 1, 2, 3, then ever
# wider spans; half for those after.
_BUCKETS = 16
_AFTER = _BUCKETS // 2
# What each head prefers to read at first: the word before, the one after, two before, two after, all before,
# all after, three before, three after.
_PREFERRED = (
    [1],
    [_AFTER + 1],
    [2],
    [_AFTER + 2],
    list(range(1, _AFTER)),
    list(range(_AFTER + 1, _BUCKETS)),
    [3],
    [_AFTER + 3],
)
_STRENGTH = 3.0


def build_nano_text_encoder(seed: int) -> T5TextEncoder:
    """Untrained T5 encoder, 2 layers of width 256, with the tokenizer of the nano language.

    Each head begins with a place that it prefers to read. From T5's own beginning, which prefers none, logits
    of the content outgrow those of the place: words are known then and their order is not, and "red dog and
    blue car" reads as "blue dog and red car".
    """
    tokenizer = _tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=256,
        d_kv=32,
        num_heads=len(_PREFERRED),
        d_ff=512,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=_BUCKETS,
        relative_attention_max_distance=32,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "text-encoder-weights"))
        encoder = T5EncoderModel(config)
    _prefer_places(encoder)
    return T5TextEncoder(encoder, tokenizer, MAX_LENGTH)


@torch.no_grad()
def _prefer_places(encoder: T5EncoderModel) -> None:
    """Add to the relative bias of each head, which all layers share, the places that it prefers."""
    bias: torch.Tensor = encoder.get_parameter(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    )  # [buckets, heads]
    for head, buckets in enumerate(_PREFERRED):
        bias[buckets, head] += _STRENGTH


def _tokenizer() -> PreTrainedTokenizerFast:
    """Lower-casing word tokenizer of all words of the nano language, which ends every text with </s>."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )
