"""Where a picture comes from: its settings inside the file, and a signed C2PA manifest if one is wanted."""

import functools
import importlib
import importlib.util
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.provenance import library_versions
from lightgen.serve.config import ServeConfig
from lightgen.stages.picture_files import picture_bytes

Kind = Literal["png", "jpeg", "webp"]
MEDIA_TYPES: dict[Kind, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"  # names a kind of source; nothing is fetched
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


class Signer(Protocol):
    """What signs files."""

    def sign(self, data: bytes, media_type: str, facts: Mapping[str, Any]) -> bytes:
        """The file with a signed manifest that says how it was made; called from several threads."""
        ...


class C2paSigner:
    """Signs by c2pa-python with a certificate and its key.

    Args:
        library: the module `c2pa`.
        certificate: chain in PEM, the signer's first.
        key: private key in PEM (PKCS 8).

    Raises:
        UserError: no algorithm of C2PA fits them.
    """

    def __init__(self, library: Any, certificate: bytes, key: bytes) -> None:  # noqa: ANN401
        self._library, self._certificate, self._key = library, certificate, key
        self._algorithm = self._fitting()

    def sign(self, data: bytes, media_type: str, facts: Mapping[str, Any]) -> bytes:
        """The file with a signed manifest that says how it was made."""
        return self._sign(self._algorithm, data, media_type, facts)

    def _fitting(self) -> str:
        """The algorithm with which a picture can be signed, found by signing one."""
        trial = picture_bytes(np.zeros((16, 16, 3), np.uint8), {})
        problems = set()
        for algorithm in _ALGORITHMS:
            try:
                self._sign(algorithm, trial, "image/png", {})
            except self._library.C2paError as error:
                problems.add(" ".join(str(error).split())[:120])
            else:
                return algorithm
        raise UserError(
            "c2pa: the certificate and key sign nothing, allowed: a chain and its key for C2PA, in PEM "
            f"({min(problems, key=len)})"
        )

    def _sign(self, algorithm: str, data: bytes, media_type: str, facts: Mapping[str, Any]) -> bytes:
        library, signed = self._library, io.BytesIO()
        info = library.C2paSignerInfo(algorithm, self._certificate, self._key, None)
        context = library.Context(settings=library.Settings.from_dict(_SETTINGS))
        with (
            library.Signer.from_info(info) as signer,
            library.Builder(json.dumps(manifest(media_type, facts)), context=context) as builder,
        ):
            builder.sign(signer, media_type, io.BytesIO(data), signed)
        return signed.getvalue()


def manifest(media_type: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a C2PA manifest says: that a model made the picture, or part of it, and with which settings."""
    source = "compositeWithTrainedAlgorithmicMedia" if "image_sha256" in facts else "trainedAlgorithmicMedia"
    action = {"action": "c2pa.created", "digitalSourceType": _SOURCE + source}
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions", "data": {"actions": [action]}}]
    if facts:
        assertions.append({"label": "lightgen.settings", "data": dict(facts)})
    return {
        "claim_generator_info": [{"name": "lightgen", "version": _version()}],
        "format": media_type,
        "assertions": assertions,
    }


@functools.cache
def _version() -> str:
    return library_versions().get("lightgen", "unknown")


def load_signer(config: ServeConfig) -> Signer | None:
    """What signs this server's pictures; None where no certificate is named.

    Raises:
        UserError: c2pa-python is not installed, or the certificate and key cannot be used.
    """
    if config.c2pa_certificate is None or config.c2pa_key is None:
        return None
    if importlib.util.find_spec("c2pa") is None:
        raise UserError("c2pa: c2pa-python is not installed, allowed: with it, `pip install c2pa-python`")
    files = [_pem("certificate", config.c2pa_certificate), _pem("key", config.c2pa_key)]
    return C2paSigner(importlib.import_module("c2pa"), *files)


def provenance_bytes(
    image: np.ndarray, facts: Mapping[str, Any], kind: Kind, quality: int, signer: Signer | None
) -> bytes:
    """File of an image uint8 [H, W, 3] that says how it was made, signed where there is a signer."""
    data = picture_bytes(image, facts, kind, quality)
    return data if signer is None else signer.sign(data, MEDIA_TYPES[kind], facts)


def _pem(name: str, path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > 1 << 20:
        raise UserError(f"--c2pa-{name}: got {str(path)!r}, allowed: a PEM file")
    return path.read_bytes()
