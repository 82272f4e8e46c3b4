"""How the server listens, whom it lets in, and what it grants."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError

Preset = Literal["exact", "balanced", "fast"]


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How many pictures are accepted, and for how long.

    Attributes:
        max_running: pictures decoded together, of all models; of dear ones fewer: their cost together is no
            more than that, 1 = a picture of the model's own size by the preset `fast`.
        max_waiting: pictures in the queue; more are refused; of one key beside others, more than stay free.
        max_per_key: pictures of one key, waiting and running.
        deadline_s: seconds from acceptance to the finished picture; a request may ask for less.
    """

    max_running: int = 16
    max_waiting: int = 64
    max_per_key: int = 32
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        _check_whole("max_running", self.max_running, 1, 4096)
        _check_whole("max_waiting", self.max_waiting, 1, 2**20)
        _check_whole("max_per_key", self.max_per_key, 1, 2**20)
        _check_real("deadline_s", self.deadline_s, 0.1, 86_400)


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """What one request may ask for.

    Attributes:
        max_prompt_bytes: of a prompt or a negative prompt, as UTF-8.
        max_side_px: of a picture, drawn or sent.
        max_area: of a drawn picture, times the area that the model is made for.
        max_body_bytes: of a request.
        max_pictures: of a request, `n`.
        max_iterations, max_head_steps: of the decoder.
        max_previews: partial images of one picture.
    """

    max_prompt_bytes: int = 4000
    max_side_px: int = 1024
    max_area: float = 4.0
    max_body_bytes: int = 20 * 2**20
    max_pictures: int = 8
    max_iterations: int = 256
    max_head_steps: int = 100
    max_previews: int = 64

    def __post_init__(self) -> None:
        _check_whole("max_prompt_bytes", self.max_prompt_bytes, 1, 2**20)
        _check_whole("max_side_px", self.max_side_px, 1, 4096)
        _check_real("max_area", self.max_area, 0.01, 1024)
        _check_whole("max_body_bytes", self.max_body_bytes, 2**10, 2**30)
        _check_whole("max_pictures", self.max_pictures, 1, 1024)
        _check_whole("max_iterations", self.max_iterations, 1, 4096)
        _check_whole("max_head_steps", self.max_head_steps, 1, 1000)
        _check_whole("max_previews", self.max_previews, 0, 4096)

    @property
    def most(self) -> dict[str, int]:
        """The largest value of each numeric field of a request that is limited, by the field's name."""
        return {
            "n": self.max_pictures,
            "num_inference_steps": self.max_iterations,
            "num_head_steps": self.max_head_steps,
            "partial_images": self.max_previews,
        }


@dataclass(frozen=True, kw_only=True)
class ConnectionConfig:
    """How many may be connected, and how slow they may be.

    Attributes:
        max_connections: at a time; more are answered 503.
        max_header_bytes: of a request, all lines together.
        header_timeout_s: seconds until the head of a request is there.
        body_timeout_s: seconds until its body is there.
        write_timeout_s: seconds until a client has read what is sent to it.
        idle_timeout_s: seconds that a connection is kept between requests.
        heartbeat_s: seconds between signs of life in a stream.
    """

    max_connections: int = 512
    max_header_bytes: int = 16 * 2**10
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 120.0
    idle_timeout_s: float = 15.0
    heartbeat_s: float = 10.0

    def __post_init__(self) -> None:
        _check_whole("max_connections", self.max_connections, 1, 2**16)
        _check_whole("max_header_bytes", self.max_header_bytes, 2**10, 2**20)
        seconds = ("header_timeout_s", "body_timeout_s", "write_timeout_s", "idle_timeout_s", "heartbeat_s")
        for name in seconds:
            _check_real(name, vars(self)[name], 0.05, 3600)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What is kept in memory of requests that nobody waits for.

    Attributes:
        max_jobs: of all keys together; the oldest finished ones go first.
        max_bytes: of their pictures.
        max_age_s: seconds that a finished job is kept.
    """

    max_jobs: int = 256
    max_bytes: int = 256 * 2**20
    max_age_s: float = 3600.0

    def __post_init__(self) -> None:
        _check_whole("max_jobs", self.max_jobs, 1, 2**16)
        _check_whole("max_bytes", self.max_bytes, 2**20, 2**36)
        _check_real("max_age_s", self.max_age_s, 1, 7 * 86_400)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How the server listens, whom it lets in, and what it grants.

    Attributes:
        host, port: where it listens; port 0 = any free one.
        preset: of requests that name none.
        api_key_file: keys that may ask, one per line; None = those of the environment, if any.
        insecure_no_keys: whether others than this machine may ask without a key.
        allowed_hosts: further names that requests may call the server by.
        cors_origins: origins of other pages that may ask.
        drain_s: seconds for the accepted pictures when the server is told to end.
        c2pa_certificate, c2pa_key: PEM files that sign a C2PA manifest; both or none.
        queue: how many pictures are accepted, and for how long.
        limits: what one request may ask for.
        connections: how many may be connected, and how slow they may be.
        jobs: what is kept of requests that nobody waits for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    preset: Preset = "fast"
    api_key_file: Path | None = None
    insecure_no_keys: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    drain_s: float = 30.0
    c2pa_certificate: Path | None = None
    c2pa_key: Path | None = None
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    connections: ConnectionConfig = field(default_factory=ConnectionConfig)
    jobs: JobConfig = field(default_factory=JobConfig)

    def __post_init__(self) -> None:
        _check_whole("port", self.port, 0, 2**16 - 1)
        _check_real("drain_s", self.drain_s, 0, 3600)
        if self.preset not in get_args(Preset):
            hint = suggestion(self.preset, get_args(Preset)) or f", allowed: {', '.join(get_args(Preset))}"
            raise UserError(f"preset: got {self.preset!r}{hint}")
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise UserError("c2pa: got one of certificate and key, allowed: both or none")
        most = min(self.queue.max_waiting, self.queue.max_per_key)
        if self.limits.max_pictures > most:
            raise UserError(
                f"max_pictures: got {self.limits.max_pictures}, allowed: at most {most}, "
                "as max_waiting and max_per_key are"
            )


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name}: got {value!r}, allowed: a whole number from {low} to {high}")


def _check_real(name: str, value: float, low: float, high: float) -> None:
    is_real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_real or not low <= value <= high:
        raise UserError(f"{name}: got {value!r}, allowed: a number from {low:g} to {high:g}")
