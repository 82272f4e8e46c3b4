"""Teachers as a stage finds them: pipelines in local folders or the Hub's cache, and servers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightgen.core.errors import UserError
from lightgen.ports.endpoint import EndpointTeacher, EndpointTeacherConfig, endpoint_name
from lightgen.ports.endpoint import check_config as check_endpoint
from lightgen.ports.pipeline_folder import PATTERNS, read_folder
from lightgen.ports.protocols import ImageGenerator
from lightgen.ports.refusal import RefusedPrompt
from lightgen.ports.requests import read_key
from lightgen.ports.teacher import DiffusersTeacher, DiffusersTeacherConfig, call_settings, model_label
from lightgen.ports.teacher import check_config as check_pipeline
from lightgen.stages.checkpoint import pick_device
from lightgen.stages.hub import cached, hash_files


class Teacher(ImageGenerator, Protocol):
    """An ImageGenerator that hands over its images one by one, and says which prompts it refuses."""

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], height: int, width: int
    ) -> Iterator[np.ndarray | RefusedPrompt]:
        """Images uint8 [height, width, 3] in order, or why there is none."""
        ...


@dataclass(frozen=True)
class TeacherPlace:
    """Where a teacher is: plain data that another process can load it from.

    Attributes:
        config: its settings; of a pipeline, with the model's name in place of its folder.
        folder: of a pipeline, absolute; None for a server.
        name: what the manifest of its images carries.
    """

    config: DiffusersTeacherConfig | EndpointTeacherConfig
    folder: Path | None
    name: str

    def identity(self) -> dict[str, Any]:
        """What draws, wherever it lies: SHA-256 of each file, and the arguments of a pipeline's calls."""
        if isinstance(self.config, EndpointTeacherConfig):
            return {"name": self.name}
        assert self.folder is not None
        found = read_folder(self.folder)
        files = hash_files(self.name, {name: self.folder / name for name in found.files})
        return {"name": self.name, "settings": call_settings(self.config, found)[0], "files": files}

    def recorded(self) -> DiffusersTeacherConfig | EndpointTeacherConfig:
        """The config without what changes no image: an artifact begun in one way may be ended in another."""
        if isinstance(self.config, EndpointTeacherConfig):
            usual = EndpointTeacherConfig(base_url=self.config.base_url, model=self.config.model)
            free = {
                name: vars(usual)[name] for name in ("key_variable", "concurrency", "timeout_s", "retries")
            }
            return replace(self.config, **free)
        return replace(self.config, offload="none")

    def load(self) -> Teacher:
        """The teacher, on the accelerator where there is one."""
        if isinstance(self.config, EndpointTeacherConfig):
            return EndpointTeacher(self.config)
        assert self.folder is not None
        return DiffusersTeacher(self.config, self.folder, pick_device())


def find_teacher(config: DiffusersTeacherConfig | EndpointTeacherConfig) -> TeacherPlace:
    """Place of a teacher; nothing is downloaded and no server is asked.

    Raises:
        UserError: a config that cannot work, no such model on this machine, or no key where one is named.
    """
    if isinstance(config, EndpointTeacherConfig):
        check_endpoint(config)
        read_key(config.key_variable)
        return TeacherPlace(config, None, endpoint_name(config))
    check_pipeline(config)
    if not config.model:
        raise UserError("--teacher.model: got nothing, allowed: a folder, or OWNER/NAME in the Hub's cache")
    folder = cached(config.model, PATTERNS)
    is_here = Path(config.model).exists()
    folder = folder.resolve() if is_here else folder.absolute()
    config = replace(config, model=model_label(str(folder) if is_here else config.model))
    found = read_folder(folder)
    call_settings(config, found)
    return TeacherPlace(config, folder, f"{config.model} ({found.kind})")
