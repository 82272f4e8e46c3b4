"""`lightgen serve` as replicas of Ray Serve: `serve run lightgen_app:app model=nano max_replicas=4`.

Each replica is the whole server, application, queue and worker, without its socket: Ray's proxy listens, and
starts more replicas as more requests are under way. Needs `ray[serve]`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field

from lightgen.core.errors import UserError
from lightgen.serve.answers import Problem, error_response
from lightgen.serve.app import create_app
from lightgen.serve.config import QueueConfig, ServeConfig
from lightgen.serve.keys import VARIABLE, load_keys
from lightgen.serve.metrics import Metrics
from lightgen.serve.worker import Worker
from lightgen.stages.checkpoint import quiet_libraries
from lightgen.stages.live import open_live

if TYPE_CHECKING:
    from ray.serve import Application

Messages = Callable[..., Awaitable[Any]]
NAME = "LightGen"
# Requests beside those for pictures: health, metrics, models, the page.
_OTHERS = 32


class Settings(BaseModel):
    """What `serve run` or a config file may say."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="nano", description="A checkpoint directory that all machines see, or nano.")
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=4, ge=1)
    max_running: int = Field(default=16, ge=1, description="Pictures decoded together in a replica.")
    max_waiting: int = Field(default=64, ge=1, description="Pictures in a replica's queue.")
    deadline_s: float = Field(default=60.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)
    num_cpus: float = Field(
        default=2.0, gt=0, description="Of a replica; its arithmetic takes as many threads."
    )
    num_gpus: float = Field(default=0.0, ge=0)
    api_key_file: Path | None = Field(default=None, description=f"On every machine; or {VARIABLE} there.")
    insecure_no_keys: bool = False
    allowed_hosts: tuple[str, ...] = Field(default=(), description="Names that requests may call it by.")

    def server(self) -> ServeConfig:
        """Config of the server in each replica; its address is Ray's to say."""
        queue = QueueConfig(
            max_running=self.max_running, max_waiting=self.max_waiting, deadline_s=self.deadline_s
        )
        return ServeConfig(
            host="0.0.0.0",
            api_key_file=self.api_key_file,
            insecure_no_keys=self.insecure_no_keys,
            allowed_hosts=self.allowed_hosts,
            drain_s=self.drain_s,
            queue=queue,
        )

    def deployment(self) -> dict[str, Any]:
        """Options of the deployment.

        A replica is given more requests than it has room for, so that it is the one who refuses, and says
        when to come back. Replicas are added before they are full: there, a request waits for a whole batch.
        """
        return {
            "name": NAME,
            "max_ongoing_requests": self.max_running + self.max_waiting + _OTHERS,
            "max_queued_requests": self.max_replicas * (self.max_running + self.max_waiting),
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.max_running,
                "upscale_delay_s": 10.0,
                "downscale_delay_s": 300.0,
            },
            "health_check_period_s": 10.0,
            "health_check_timeout_s": 30.0,
            "graceful_shutdown_wait_loop_s": 1.0,
            "graceful_shutdown_timeout_s": self.drain_s + 10.0,
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
        }


class Replica:
    """One server; Ray makes it in a process of its own.

    Args:
        settings: of `Settings`, as plain values.

    Raises:
        UserError: a model or keys that cannot be used, or no keys.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = Settings(**settings)
        self._config = self._settings.server()
        if not (load_keys(self._config.api_key_file) or self._config.insecure_no_keys):
            raise UserError(
                f"api_key_file: got none, allowed: a file of keys, {VARIABLE}, or insecure_no_keys"
            )
        quiet_libraries()
        name = Path(self._settings.model).name
        self._models = {name: open_live(self._settings.model)}
        self._worker = Worker(self._models, self._config.queue, Metrics())

    def __serve_build_asgi_app__(self) -> Messages:
        """The application that Ray's proxy sends requests to; its lifespan starts and drains the worker."""
        app = create_app(self._config, self._worker, self._models)
        return app if self._settings.max_replicas == 1 else WithoutJobs(app)

    def check_health(self) -> None:
        """Have Ray replace the replica where its worker is gone.

        Raises:
            RuntimeError: it is.
        """
        if not self._worker.is_ready:
            raise RuntimeError("the worker takes no pictures")


class WithoutJobs:
    """Refuses jobs: they are kept by one replica, and the next request may reach another.

    Args:
        app: that answers everything else.
    """

    def __init__(self, app: Messages) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Messages, send: Messages) -> None:
        """Pass a request on, or answer 400."""
        asked = parse_qs(scope.get("query_string", b"")).get(b"async", [])
        if scope["type"] == "http" and {b"1", b"true"} & set(asked):
            problem = Problem(
                400, "async: got it at several replicas, allowed: with max_replicas=1", param="async"
            )
            return await error_response(problem)(scope, receive, send)
        return await self._app(scope, receive, send)


def app(settings: Settings) -> "Application":
    """The application of Ray Serve; `serve run` passes what it is given as settings."""
    from ray import serve

    load_keys(settings.api_key_file)  # better here than in a replica that starts again and again
    deployment = serve.deployment(**settings.deployment())(serve.ingress()(Replica))
    return deployment.bind(settings.model_dump(mode="json"))
