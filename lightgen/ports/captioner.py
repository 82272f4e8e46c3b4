"""Captioners: what they are asked, and those behind a server that speaks OpenAI's chat."""

import base64
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.ports.endpoint import is_refusal
from lightgen.ports.requests import RequestError, post_json, read_key
from lightgen.ports.server import check_server

_T = TypeVar("_T")
_FIELDS = ("max_tokens", "temperature", "top_p", "seed")
_MAX_ANSWER_BYTES = 1 << 20
_ENDS = (".", "!", "?", '"', "\u201d", ")", "\u3002")

EXPAND = (
    "Rewrite the caption below as one detailed description of a picture, in English, in one paragraph of 40 "
    "to 80 words. Keep every object, every number, every colour and where things are as seen from each "
    "other, in the words of the caption. Add what fits: materials, surroundings, light, mood, the kind of "
    "picture. Add no further objects of the kinds named. Answer with the description alone."
)
DESCRIBE = (
    "Describe this image in English, in one paragraph of 40 to 80 words, for somebody who will paint it "
    "without having seen it: which objects there are, how many of each, their colours and materials, where "
    "they are as seen from each other, the background, the light and the kind of picture. Name only what is "
    "seen. Answer with the description alone."
)


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """What a captioner is asked, and how freely it answers.

    Attributes:
        expand: the task for a short caption, which follows it.
        describe: the task for an image.
        max_tokens: most tokens of an answer; one that is cut off keeps its whole sentences.
        temperature: 0 = always the likeliest token; above, tokens are drawn by the seed of each text.
        top_p: share of the likeliest tokens that are drawn from.
    """

    expand: str = EXPAND
    describe: str = DESCRIBE
    max_tokens: int = 200
    temperature: float = 0.7
    top_p: float = 0.95

    def check(self) -> None:
        """Raises UserError: a task that says nothing, or a number out of its range."""
        if not self.expand.strip() or not self.describe.strip():
            raise UserError("--captioner.ask: got an empty task, allowed: what is to be written")
        if self.max_tokens < 1 or not 0 <= self.temperature <= 2 or not 0 < self.top_p <= 1:
            raise UserError(
                f"--captioner.ask: got max-tokens {self.max_tokens}, temperature {self.temperature:g}, top-p "
                f"{self.top_p:g}, allowed: from 1, 0 to 2, above 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class ModelCaptionerConfig:
    """Which model of this machine writes.

    Attributes:
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache.
        batch_size: most texts or images per pass.
        precision: of the model.
    """

    model: str = "Qwen/Qwen2.5-7B-Instruct"
    ask: AskConfig = field(default_factory=AskConfig)
    batch_size: int = 16
    precision: Literal["bf16", "fp32"] = "bf16"


@dataclass(frozen=True, kw_only=True)
class EndpointCaptionerConfig:
    """Which server writes, and how it is asked.

    Attributes:
        base_url: what comes before /chat/completions; the default is where vLLM and its like listen.
        model: its name there.
        key_variable: environment variable that holds the key; None sends none. The key itself is in no
            config, manifest or message.
        concurrency: questions at a time.
        timeout_s: longest wait for one answer, seconds.
        retries: how often a question is asked again that may pass.
        omit: what this server does not take, out of max_tokens, temperature, top_p and seed.
        extra: further fields of the request, such as max_completion_tokens.
        plain_http: whether http is fine for other machines too, where anybody on the way can read it.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    ask: AskConfig = field(default_factory=AskConfig)
    key_variable: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 6
    omit: tuple[str, ...] = ()
    extra: dict[str, bool | int | float | str] = field(default_factory=dict)
    plain_http: bool = False

    def check(self) -> None:
        """Raises UserError: an address, number or field that cannot be sent."""
        check_server("captioner", self)
        for name in self.omit:
            if name not in _FIELDS:
                raise UserError(f"--captioner.omit: got {name!r}, allowed: {', '.join(_FIELDS)}")
        for name in self.extra:
            if name in ("model", "messages", *_FIELDS) and name not in self.omit:
                raise UserError(f"--captioner.extra: got {name!r}, allowed: what is not sent already")


class EndpointCaptioner:
    """A Captioner that is a server; whether a seed gives the same text again is the server's affair.

    Source: OpenAI's API, POST /chat/completions, with images as data URLs.
    """

    def __init__(self, config: EndpointCaptionerConfig) -> None:
        config.check()
        config.ask.check()
        self.config = config
        self._key = read_key(config.key_variable)

    def expand(self, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each text; empty where the server's rules forbid one.

        Raises:
            RequestError: no answer, or an error that is no refusal.
            UserError: an answer that holds no text.
        """
        return self._all([expand_task(self.config.ask, text) for text in texts], seeds, lambda task: task)

    def describe(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each image uint8 [H, W, 3]; as expand."""

        def content(image: np.ndarray) -> list[dict[str, Any]]:
            url = {"url": f"data:image/png;base64,{_png(image)}"}
            return [
                {"type": "image_url", "image_url": url},
                {"type": "text", "text": self.config.ask.describe},
            ]

        return self._all(images, seeds, content)

    def _all(self, things: Sequence[_T], seeds: Sequence[int], content: Callable[[_T], Any]) -> list[str]:
        """Answers in order, a few of them asked for at a time."""
        assert len(things) == len(seeds), (len(things), len(seeds))
        stop = threading.Event()

        def one(thing: _T, seed: int) -> str:
            return self._one(content(thing), seed, stop)

        pool = ThreadPool(max(1, min(self.config.concurrency, len(things))))
        try:
            return pool.starmap(one, zip(things, seeds, strict=True), chunksize=1)
        finally:
            stop.set()
            pool.terminate()

    def _one(self, content: Any, seed: int, stop: threading.Event) -> str:  # noqa: ANN401  (text, or parts)
        config = self.config
        wanted: dict[str, Any] = {
            "max_tokens": config.ask.max_tokens,
            "temperature": config.ask.temperature,
            "top_p": config.ask.top_p,
            "seed": seed,
        }
        payload = {name: value for name, value in wanted.items() if name not in config.omit} | config.extra
        payload |= {"model": config.model, "messages": [{"role": "user", "content": content}]}
        try:
            answer = post_json(
                f"{config.base_url.rstrip('/')}/chat/completions",
                payload,
                self._key,
                config.timeout_s,
                config.retries,
                plain_http=config.plain_http,
                max_bytes=_MAX_ANSWER_BYTES,
                stop=stop,
            )
        except RequestError as error:
            if is_refusal(error):
                return ""
            raise
        return read_answer(answer)


def expand_task(ask: AskConfig, text: str) -> str:
    """What a model reads that is to expand a text."""
    return f"{ask.expand}\n\nCaption: {text}"


def read_answer(answer: dict[str, Any]) -> str:
    """Text of a chat's answer: whole sentences where it was cut off, empty where it was filtered.

    Raises:
        UserError: there is none in it.
    """
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise UserError("answer: got no choices with a message, allowed: an answer of /chat/completions")
    text, reason = message.get("content"), choice.get("finish_reason")
    if reason == "content_filter" or text is None:  # None: a refusal, or thoughts that took all tokens
        return ""
    if not isinstance(text, str):
        raise UserError(f"answer: got content of {type(text).__name__}, allowed: text")
    return whole_sentences(text) if reason == "length" else text


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty where it has none."""
    words = text.rstrip().split(" ")
    while words and not words[-1].endswith(_ENDS):
        words.pop()
    return " ".join(words)


def _png(image: np.ndarray) -> str:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
