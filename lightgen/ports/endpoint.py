"""Teachers behind a server: images asked for as OpenAI's API does it, and taken with care."""

import base64
import binascii
import io
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lightgen.core.errors import UserError
from lightgen.core.webp import webp_size
from lightgen.ports.refusal import RefusedPrompt, all_drawn
from lightgen.ports.requests import RequestError, check_url, post_json, read_key
from lightgen.ports.server import check_server

_FIELDS = ("model", "prompt", "n", "size", "response_format", "seed")
_NEEDED = ("model", "prompt")
_REFUSAL_STATUS = (400, 403, 422, 451)
_REFUSAL_CODES = ("content_policy_violation", "moderation_blocked", "content_filter", "contentfilter")
_REFUSAL_WORDS = ("content policy", "content_policy", "content filter", "safety system", "moderation")
_MODES = ("L", "LA", "P", "RGB", "RGBA")
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EndpointTeacherConfig:
    """Which server draws, and how it is asked.

    Attributes:
        base_url: what comes before /images/generations, such as https://api.openai.com/v1.
        model: its name there.
        key_variable: environment variable that holds the key; None sends none. The key itself is in no
            config, manifest or message.
        concurrency: questions at a time.
        timeout_s: longest wait for one answer, seconds.
        retries: how often a question is asked again that may pass: after 429, 5xx or no answer.
        omit: what this server does not take, out of n, size, response_format and seed.
        extra: further fields of the request, such as quality.
        plain_http: whether http is fine for other machines too, where anybody on the way can read it.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 4
    timeout_s: float = 180.0
    retries: int = 6
    omit: tuple[str, ...] = ()
    extra: dict[str, bool | int | float | str] = field(default_factory=dict)
    plain_http: bool = False


class EndpointTeacher:
    """An ImageGenerator that is a server; whether a seed gives the same image again is the server's affair.

    Source: OpenAI's API, POST /images/generations; answers as b64_json only, so nothing else is ever fetched.
    """

    def __init__(self, config: EndpointTeacherConfig) -> None:
        check_config(config)
        self.config, self.name = config, endpoint_name(config)
        self._key = read_key(config.key_variable)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        source: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images uint8 [B, height, width, 3].

        Raises:
            RefusedPrompt: the server's rules forbid a prompt.
            UserError: a source or mask, or as of `draw`.
        """
        if source is not None or mask is not None:
            raise UserError(f"{self.name}: got a source or mask, allowed: text alone, which it draws from")
        return all_drawn(self.draw(prompts, seeds, height, width), height, width)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], height: int, width: int
    ) -> Iterator[np.ndarray | RefusedPrompt]:
        """Images uint8 [height, width, 3] in order, or why there is none; a few are asked for ahead.

        Args:
            prompts: one text per image.
            seeds: one per image.
            height: px.
            width: px.

        Raises:
            RequestError: no answer, or an error that is no refusal.
            UserError: an answer that holds no such image.
        """
        assert len(prompts) == len(seeds), (len(prompts), len(seeds))
        stop = threading.Event()
        # its threads do not hold up the end of the process, as those of concurrent.futures do
        pool = ThreadPool(max(1, min(self.config.concurrency, len(prompts))))
        waiting: deque[Any] = deque()
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                waiting.append(pool.apply_async(self._one, (prompt, seed, height, width, stop)))
                if len(waiting) >= 2 * self.config.concurrency:
                    yield waiting.popleft().get()
            while waiting:
                yield waiting.popleft().get()
        finally:
            stop.set()
            pool.terminate()

    def _one(
        self, prompt: str, seed: int, height: int, width: int, stop: threading.Event
    ) -> np.ndarray | RefusedPrompt:
        """The image of one prompt, or why the server refuses it."""
        config = self.config
        wanted = {
            "model": config.model,
            "prompt": prompt,
            "n": 1,
            "size": f"{width}x{height}",
            "response_format": "b64_json",
            "seed": seed,
        }
        payload = {name: value for name, value in wanted.items() if name not in config.omit} | config.extra
        try:
            answer = post_json(
                f"{config.base_url.rstrip('/')}/images/generations",
                payload,
                self._key,
                config.timeout_s,
                config.retries,
                plain_http=config.plain_http,
                stop=stop,
            )
        except RequestError as error:
            if is_refusal(error):
                return RefusedPrompt(f"{self.name}: refused a prompt ({error.told or error.code})")
            raise
        try:
            return decode_answer(answer, height, width)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error


def check_config(config: EndpointTeacherConfig) -> None:
    """Raises UserError: an address, number or field that cannot be sent."""
    check_server("teacher", config)
    for name in config.omit:
        if name not in _FIELDS or name in _NEEDED:
            allowed = ", ".join(each for each in _FIELDS if each not in _NEEDED)
            raise UserError(f"--teacher.omit: got {name!r}, allowed: {allowed}")
    for name in config.extra:
        if name in _FIELDS and name not in config.omit:
            raise UserError(f"--teacher.extra: got {name!r}, allowed: what is not sent already")


def endpoint_name(config: EndpointTeacherConfig) -> str:
    """Model and host, as the manifest of its images carries them."""
    return f"{config.model}@{check_url(config.base_url, plain_http=config.plain_http).netloc}"


def is_refusal(error: RequestError) -> bool:
    """Whether a server's error means that its rules forbid the prompt, and not that anything is broken."""
    if error.status not in _REFUSAL_STATUS:
        return False
    told = error.told.lower()
    return error.code.lower() in _REFUSAL_CODES or any(words in told for words in _REFUSAL_WORDS)


def decode_answer(answer: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Image uint8 [height, width, 3] in an answer of one base64 picture, its transparent parts over white.

    Raises:
        UserError: another number of pictures, an address instead of one, another size, or damaged bytes.
    """
    data = answer.get("data")
    if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], dict):
        got = f"{len(data)} pictures" if isinstance(data, list) else "none"
        raise UserError(f"answer: got {got}, allowed: one under data")
    text = data[0].get("b64_json")
    if not isinstance(text, str):
        got = "an address" if data[0].get("url") else "no picture"
        raise UserError(f"answer: got {got}, allowed: b64_json, as nothing is fetched from elsewhere")
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("answer: got damaged base64, allowed: a whole PNG, JPEG or WebP image") from error
    return decode_picture(found, height, width)


def decode_picture(data: bytes, height: int, width: int) -> np.ndarray:
    """Image uint8 [height, width, 3] of a PNG, JPEG or WebP file; its size is checked before it is decoded.

    Raises:
        UserError: another format or size, colours that are no 8-bit RGB, or damaged bytes.
    """
    try:
        picture = _open(data, height, width)
        if picture.mode not in _MODES:
            raise UserError(f"answer: got colours {picture.mode}, allowed: {', '.join(_MODES)}")
        if picture.mode == "RGB":
            return np.array(picture)
        full = picture.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", full.size, "white"), full).convert("RGB"))
    except _DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"answer: not a whole PNG, JPEG or WebP image ({type(error).__name__})") from error


def _open(data: bytes, height: int, width: int) -> Image.Image:
    """Picture of the wanted size, of which only the header is read."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        picture: Image.Image = PngImageFile(io.BytesIO(data))
        size = picture.size
    elif data.startswith(b"\xff\xd8\xff"):
        picture = JpegImageFile(io.BytesIO(data))
        size = picture.size
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = webp_size(data)
        # opening it would allocate what it claims
        picture = WebPImageFile(io.BytesIO(data)) if size == (width, height) else Image.new("L", (1, 1))
    else:
        raise UserError("answer: not a whole PNG, JPEG or WebP image")
    if size != (width, height):
        raise UserError(
            f"answer: got {size[0]}x{size[1]} px, allowed: the {width}x{height} that were asked for"
        )
    return picture
