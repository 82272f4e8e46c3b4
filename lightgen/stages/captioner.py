"""Captioners as a stage finds them: behind a server, in local folders or the Hub's cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError
from lightgen.ports.captioner import EndpointCaptioner, EndpointCaptionerConfig, ModelCaptionerConfig
from lightgen.ports.captioner_model import PATTERNS, captioner_files, load_captioner
from lightgen.ports.protocols import Captioner
from lightgen.ports.requests import read_key
from lightgen.stages.checkpoint import pick_device
from lightgen.stages.hub import cached, hash_files

CaptionerConfig = ModelCaptionerConfig | EndpointCaptionerConfig


@dataclass(frozen=True)
class CaptionerPlace:
    """Where a captioner is: the folder of its model, or None for a server."""

    config: CaptionerConfig
    folder: Path | None

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name; of a server nothing but what the config says is known."""
        if self.folder is None:
            return {}
        return hash_files(self.folder.name, {path.name: path for path in captioner_files(self.folder)})

    def load(self) -> Captioner:
        """The captioner, on the accelerator where there is one."""
        if isinstance(self.config, EndpointCaptionerConfig):
            return EndpointCaptioner(self.config)
        assert self.folder is not None
        return load_captioner(self.config, self.folder, pick_device())


def find_captioner(config: CaptionerConfig) -> CaptionerPlace:
    """Place of a captioner; nothing is downloaded, and no server is asked yet.

    Raises:
        UserError: a number out of its range, a model that is not on this machine, or a server's key that is
            not in the environment.
    """
    config.ask.check()
    if isinstance(config, EndpointCaptionerConfig):
        config.check()
        read_key(config.key_variable)
        return CaptionerPlace(config, None)
    if config.batch_size < 1:
        raise UserError(f"--captioner.batch-size: got {config.batch_size}, allowed: a whole number from 1")
    folder = cached(config.model, PATTERNS)
    captioner_files(folder)
    return CaptionerPlace(config, folder)
