"""Tiny language models of random weights, one that reads and two that see, in the layout of transformers."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIAL = ("<pad>", "<end>", "<image>", "<see>", "</see>", "<video>")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<see><image></see>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} answer: {% endif %}"
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def toy_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    letters = [*SPECIAL, *sorted(set(string.printable) | {"\u2581"})]
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[], unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="?"
    )
    found.add_special_tokens({"additional_special_tokens": list(SPECIAL[2:])})
    found.chat_template = template
    return found


def _shake(model: torch.nn.Module, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


def _save(model, folder: Path, template: str | None) -> Path:
    _shake(model, 0)
    tokenizer = toy_tokenizer(template)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reader(folder: Path, template: str | None = TEMPLATE) -> Path:
    size = len(toy_tokenizer())
    config = Qwen2Config(
        **SMALL, vocab_size=size, intermediate_size=48, max_position_embeddings=2048, tie_word_embeddings=True
    )
    return _save(Qwen2ForCausalLM(config), folder, template)


def save_seer(folder: Path) -> Path:
    """A Qwen2.5-VL, which sees images of any size."""
    size = len(toy_tokenizer())
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={
            **SMALL,
            "vocab_size": size,
            "intermediate_size": 48,
            "max_position_embeddings": 2048,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=SPECIAL.index("<image>"),
        vision_start_token_id=SPECIAL.index("<see>"),
        vision_end_token_id=SPECIAL.index("</see>"),
        video_token_id=SPECIAL.index("<video>"),
    )
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(folder)
    return _save(Qwen2_5_VLForConditionalGeneration(config), folder, TEMPLATE)


def save_llava(folder: Path, side: int = 28) -> Path:
    """A LLaVA on a CLIP, which sees squares of 28 px."""
    size = len(toy_tokenizer())
    config = LlavaConfig(
        text_config=LlamaConfig(**SMALL, vocab_size=size, intermediate_size=48),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            projection_dim=16,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=16,
    )
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return _save(LlavaForConditionalGeneration(config), folder, TEMPLATE)
