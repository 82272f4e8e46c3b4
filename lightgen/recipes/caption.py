"""Recipes of caption: where captions come from, and which are kept."""

from lightgen.data.cleaning import CleaningConfig
from lightgen.ports.captioner import EndpointCaptionerConfig, ModelCaptionerConfig
from lightgen.ports.grammar import GrammarConfig
from lightgen.stages.caption_config import CaptionConfig
from lightgen.stages.curate_config import SelectionConfig
from lightgen.stages.distill import NanoPrompts


def nano() -> CaptionConfig:
    """The distinct ones of 20,000 training captions of the nano world.

    Source: the built-in nano grammar. Hardware: one core. Time: about 6 seconds.
    """
    return CaptionConfig(source=NanoPrompts(num=20_000), cleaning=CleaningConfig(duplicates="exact"))


def grammar() -> CaptionConfig:
    """The distinct ones of 10,000 captions of the everyday world, half of which count or place things.

    Source: the built-in grammar. Hardware: one core. Time: about 4 seconds.
    """
    return CaptionConfig(source=GrammarConfig(num=10_000), cleaning=CleaningConfig(duplicates="exact"))


def clean() -> CaptionConfig:
    """English captions of the inputs without faults, duplicates and near duplicates.

    Source: `--in` files, directories, artifacts or hf:OWNER/NAME. Hardware: one core. Time: about 5 minutes
    for a million captions. Memory: 90 bytes for each, beside the libraries.
    """
    return CaptionConfig(cleaning=CleaningConfig(min_words=2, language="en"), measure=False)


def diverse() -> CaptionConfig:
    """The 10,000 most diverse of the clean captions of the inputs, by the words of their embeddings.

    Source: `--in` as for `clean`; another `--selection.num`, and `--embedder.kind sentence` where such a
    model is at hand. Hardware: one core, or a GPU for the embedder. Time: not measured as a whole.
    """
    return CaptionConfig(
        cleaning=CleaningConfig(min_words=2, language="en"),
        selection=SelectionConfig(num=10_000, how="facility"),
        cells=256,
    )


def expand() -> CaptionConfig:
    """Detailed captions of the short ones of the inputs, by a language model of this machine.

    Source: `--in` as for `clean`, which is best run first: a model is asked for every caption. Hardware: a
    GPU with 20 GB for the default, Qwen2.5-7B-Instruct. Time: not run here; the weights (15 GB) must be in
    the Hub's cache.
    """
    return CaptionConfig(
        captioner=ModelCaptionerConfig(), cleaning=CleaningConfig(min_words=2, language="en")
    )


def expand_endpoint() -> CaptionConfig:
    """As `expand`, by a server that speaks OpenAI's chat: vLLM and its like here, or `--captioner.base-url`.

    Source: `--in` as for `expand`. Hardware: the server's. Time: the server's.
    """
    return CaptionConfig(
        captioner=EndpointCaptionerConfig(), cleaning=CleaningConfig(min_words=2, language="en")
    )


def recaption() -> CaptionConfig:
    """The same images with captions by a model that sees them; the old ones stay as `original_prompt`.

    Source: `--in` images: artifacts, or public sets. Hardware: a GPU with 20 GB for the default,
    Qwen2.5-VL-7B-Instruct. Time: not run here; the weights (17 GB) must be in the Hub's cache.
    """
    model = ModelCaptionerConfig(model="Qwen/Qwen2.5-VL-7B-Instruct")
    return CaptionConfig(recaption=True, captioner=model)


def recaption_endpoint() -> CaptionConfig:
    """As `recaption`, by a server that speaks OpenAI's chat with images.

    Source: `--in` as for `recaption`. Hardware: the server's. Time: the server's.
    """
    model = EndpointCaptionerConfig(model="Qwen/Qwen2.5-VL-7B-Instruct")
    return CaptionConfig(recaption=True, captioner=model)
