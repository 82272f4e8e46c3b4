"""Requests that are wrong or oddly right: pictures, masks, texts, JSON and forms with something changed."""

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from serve_probe import EDITS, GENERATIONS, raw_request

# Of this machine, or of the insides of the server, in an answer.
_LEAK = re.compile(rb"Traceback|site-packages|\.py\b|/(?:usr|opt|tmp|home|root|work|srv|var)/|0x[0-9a-f]{6,}")
_ODD = (
    "",
    " ",
    "\0",
    "\x1b[31m",
    "\u202e",
    "\u200d" * 50,
    "\ufffd",
    "👩‍👩‍👧‍👦" * 20,
    "é" * 900,
    "a\nb\tc",
    "<script>",
    "ß" * 3000,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, 1e-320, 0.5, "", "1", "auto", "0x0",
    "16x16", "16x99999", "-1x5", [], {}, [1], {"a": 1}, "x" * 5000, "\0", "nan",
)  # fmt: skip
_FIELDS = (
    "prompt", "model", "n", "size", "quality", "preset", "response_format", "output_format", "seed", "user",
    "output_compression", "background", "moderation", "style", "stream", "partial_images", "progress",
    "negative_prompt", "num_inference_steps", "num_head_steps", "guidance_scale", "temperature", "deadline_s",
    "strength", "feather", "padding_mask_crop", "image_url", "no_such_field",
)  # fmt: skip
_CHEAP = {
    "prompt": "a photo of a dog",
    "num_inference_steps": 1,
    "num_head_steps": 2,
    "size": "16x16",
    "n": 1,
}


class Mutants:
    """Draws requests, each of a kind that it names.

    Args:
        draws: where chance comes from.
    """

    def __init__(self, draws: np.random.Generator) -> None:
        self._draws = draws
        self._pictures = {
            (name, side): _encoded(draws, name, side) for name in ("png", "jpeg", "webp") for side in (16, 40)
        }
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self.field, self.prompt, self.json_bytes, self.picture, self.picture, self.mask, self.odd_picture,
            self.multipart, self.head,
        )  # fmt: skip

    def next(self) -> tuple[str, bytes]:
        """(Kind, bytes of a whole request)."""
        kind = self._kinds[self._below(len(self._kinds))]
        return kind.__name__, kind()

    @staticmethod
    def leaks(body: bytes) -> bool:
        """Whether an answer tells of this machine."""
        return _LEAK.search(body) is not None

    def field(self) -> bytes:
        """A field of the wrong type, range or name."""
        values = {**_CHEAP, self._one(_FIELDS): self._one(_VALUES)}
        return raw_request(GENERATIONS, json.dumps(values).encode("utf-8", "surrogatepass"))

    def prompt(self) -> bytes:
        """A prompt of odd characters, bytes that are no text, or of a length about the limit."""
        which = self._below(4)
        if which == 0:
            text = self._one(_ODD)
        elif which == 1:
            text = "".join(map(chr, self._draws.integers(0, 0xD800, self._below(400))))
        elif which == 2:
            text = "x" * (4000 + self._below(3) - 1)
        else:
            body = b'{"num_inference_steps":1,"size":"16x16","prompt":"\\ud800' + self._noise(8) + b'"}'
            return raw_request(GENERATIONS, body)
        values = {**_CHEAP, self._one(("prompt", "negative_prompt")): text}
        return raw_request(GENERATIONS, json.dumps(values).encode())

    def json_bytes(self) -> bytes:
        """JSON that is damaged, ambiguous, deep or no object."""
        plain = json.dumps(_CHEAP).encode()
        odd = (
            b"[" * 20_000, b"{" * 20_000, b'{"a":' * 20_000, b"null", b"[]", b'""', b"NaN", b"",
            b"\xff\xfe{}", plain[:-1] + b',"n":2}', plain[:-1] + b',"seed":' + b"9" * 5000 + b"}",
            plain[:-1] + b',"guidance_scale":NaN}', plain[:-1] + b',"guidance_scale":1e999}', plain + plain,
        )  # fmt: skip
        body = self._one(odd) if self._below(2) else self._mutated(plain)
        kind = self._one(
            ("application/json", "application/json", "text/plain", "application/json; charset=x")
        )
        return raw_request(GENERATIONS, body, kind)

    def picture(self) -> bytes:
        """A picture with bytes changed, cut, doubled or put in."""
        return self._edit({"image": self._mutated(self._file())})

    def mask(self) -> bytes:
        """A mask with bytes changed, or of another size or kind than the picture."""
        mask = self._file() if self._below(2) else self._mutated(self._file())
        return self._edit({"image": self._pictures["png", 16], "mask": mask})

    def odd_picture(self) -> bytes:
        """A picture that is a bomb, a sliver, of an odd mode, animated, or no picture."""
        return self._edit({"image": self._one(_odd_pictures())})

    def multipart(self) -> bytes:
        """A form that is damaged, or has fields twice, without names, or too many."""
        data, kind = _form({"image": self._file()}, _CHEAP | {"size": "auto"})
        which = self._below(6)
        if which == 0:
            data = self._mutated(data, near_start=600)
        elif which == 1:
            data = data[: self._below(len(data))]
        elif which == 2:
            kind = self._one(
                ("multipart/form-data", "multipart/form-data; boundary=", kind + "x", "multipart/x")
            )
        elif which == 3:
            data = data.replace(
                b'name="n"', self._one((b'name="prompt"', b'name=""', b"", b'name="n"; name="seed"'))
            )
        elif which == 4:
            extra = b'--cut\r\nContent-Disposition: form-data; name="x%d"\r\n\r\ny\r\n'
            data = b"".join(extra % number for number in range(self._below(300))) + data
        else:
            data = data.replace(b"\r\n", self._one((b"\n", b"\r", b"\r\n\r\n")), 1 + self._below(8))
        return raw_request(EDITS, data, kind)

    def head(self) -> bytes:
        """A head with bytes changed, that lies about lengths, or asks for what is not there."""
        data = raw_request(
            self._one((GENERATIONS, EDITS, "/", "/v1/images/jobs/../x")), json.dumps(_CHEAP).encode()
        )
        which = self._below(4)
        if which == 0:
            data = data.replace(
                b"Content-Length: ", self._one((b"Content-Length: 9", b"Content-Length: -", b"X: "))
            )
            return (
                data + b"\r\n" * 4
                if b"X: " in data
                else data.replace(b"POST", self._one((b"POST", b"GET", b"POSTT")), 1)
            )
        if which == 1:
            return self._mutated(data, near_start=160) + b"\r\n\r\n"
        if which == 2:
            return data.replace(
                b"POST", self._one((b"PUT", b"PATCH", b"TRACE", b"HEAD", b"OPTIONS", b"DELETE")), 1
            )
        return data.replace(
            b"Host: 127.0.0.1", self._one((b"Host: evil.example", b"Host:", b"Host: 127.0.0.1\r\nHost: a"))
        )

    def _edit(self, files: dict[str, bytes]) -> bytes:
        more = {"strength": self._one(("0.5", "1"))} if self._below(3) == 0 else {}
        texts = {key: value for key, value in _CHEAP.items() if key != "size"}
        return raw_request(EDITS, *_form(files, texts | more))

    def _file(self) -> bytes:
        return self._one(tuple(self._pictures.values()))

    def _mutated(self, data: bytes, near_start: int | None = None) -> bytes:
        found, reach = bytearray(data), min(len(data), near_start or len(data))
        for _ in range(1 + self._below(8)):
            at, which = self._below(reach), self._below(5)
            if which < 2:
                found[at : at + 1] = bytes([self._below(256)])
            elif which == 2:
                found[at : at + 1 + self._below(16)] = b""
            elif which == 3:
                found[at:at] = self._noise(1 + self._below(16))
            else:
                del found[at + self._below(len(data)) :]
            reach = max(1, min(reach, len(found)))
        return bytes(found)

    def _noise(self, count: int) -> bytes:
        return self._draws.bytes(count)

    def _below(self, most: int) -> int:
        return int(self._draws.integers(most))

    def _one(self, choices: Any) -> Any:  # noqa: ANN401  (of whatever they are)
        return choices[self._below(len(choices))]


def _form(files: dict[str, bytes], texts: dict[str, Any]) -> tuple[bytes, str]:
    """(Body, content type) of a form."""
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in texts.items()
    ]
    for name, data in files.items():
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def _encoded(draws: np.random.Generator, name: str, side: int) -> bytes:
    pixels, file = draws.integers(0, 256, (side, side, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, name.upper())
    return file.getvalue()


def _odd_pictures() -> list[bytes]:
    """Files that are pictures of an odd kind, or only say so."""
    found = [
        b"",
        b"GIF89a",
        b"%!PS",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        _png(60_000, 60_000),
        _png(0, 5),
    ]
    for mode, size, kind, more in (
        ("L", (1, 1), "PNG", {}), ("1", (16, 16), "PNG", {}), ("P", (16, 16), "PNG", {}),
        ("RGBA", (16, 32), "PNG", {}),
        ("I;16", (16, 16), "PNG", {}), ("CMYK", (16, 16), "JPEG", {}), ("L", (1, 1024), "PNG", {}),
        ("RGB", (4097, 1), "PNG", {}),
        ("RGB", (16, 16), "GIF", {}), ("RGB", (16, 16), "BMP", {}), ("RGB", (16, 16), "TIFF", {}),
        ("RGB", (16, 16), "PNG", {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "red")]}),
    ):  # fmt: skip
        file = io.BytesIO()
        Image.new(mode, size).save(file, kind, **more)
        found.append(file.getvalue())
    return found


def _png(width: int, height: int) -> bytes:
    """PNG whose header says so much, and that holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )
