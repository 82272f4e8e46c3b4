"""The server as an ASGI application."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from lightgen.core.provenance import library_versions
from lightgen.serve.answers import Problem, error_response
from lightgen.serve.batches import Live
from lightgen.serve.config import ServeConfig
from lightgen.serve.document import describe
from lightgen.serve.guards import LOOPBACK, HostGuard, KeyGuard, OriginGuard, is_loopback
from lightgen.serve.images import image_routes
from lightgen.serve.intake import BodyGuard, CrowdGuard
from lightgen.serve.jobs import Jobs
from lightgen.serve.keys import Keys, load_keys
from lightgen.serve.metrics import EventLoopLag
from lightgen.serve.page_files import page_routes
from lightgen.serve.provenance import load_signer
from lightgen.serve.service import Checks, Service
from lightgen.serve.shapes import ModelAnswer, ModelsAnswer, StatusAnswer, errors
from lightgen.serve.watch import Watch
from lightgen.serve.worker import Worker
from lightgen.stages.decoding import PRESETS

_GONE = 499
_DEFAULT = Checks()


def create_app(
    config: ServeConfig,
    worker: Worker,
    models: Mapping[str, Live],
    checks: Checks = _DEFAULT,
    keys: Keys | None = None,
) -> FastAPI:
    """Application that answers for the models; its lifespan starts and drains the worker.

    Args:
        config: whom it lets in, and what it grants.
        worker: that draws, of the same models; not started yet.
        models: by name; the first is the default.
        checks: what is not drawn or not shown.
        keys: that may ask; None = as the config says.

    Raises:
        UserError: keys, or a certificate, that cannot be used.
    """
    keys = load_keys(config.api_key_file) if keys is None else keys
    service = Service(config, worker, models, checks, load_signer(config))
    jobs = Jobs(service, config.jobs)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lag = EventLoopLag(worker.metrics)
        worker.start()
        lag.start()
        try:
            yield
        finally:
            await worker.drain(config.drain_s)
            await jobs.close()
            await lag.stop()
            service.close()

    app = FastAPI(
        title="lightgen",
        version=library_versions().get("lightgen", "unknown"),
        description="Pictures of prompts, by OpenAI's image API and more.",
        lifespan=lifespan,
        docs_url=None,  # its page takes scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(image_routes(service, jobs))
    app.include_router(_model_routes(service))
    app.include_router(_state_routes(worker))
    app.include_router(page_routes())
    _add_handlers(app)
    limits, connections = config.limits, config.connections
    names = [*LOOPBACK, config.host] if is_loopback(config.host) else []
    hosts = [name.lower() for name in (*names, *config.allowed_hosts)]
    # the last is the outermost
    app.add_middleware(BodyGuard, limits.max_body_bytes, connections.body_timeout_s)
    app.add_middleware(CrowdGuard, connections.max_connections)
    app.add_middleware(KeyGuard, keys)
    app.add_middleware(OriginGuard, config.cors_origins)
    app.add_middleware(HostGuard, hosts)
    app.add_middleware(Watch, worker.metrics)
    app.state.worker = worker
    describe(app, limits, has_keys=bool(keys))
    return app


def _model_routes(service: Service) -> APIRouter:
    routes, began = APIRouter(), int(time.time())

    def facts(name: str) -> dict[str, object]:
        live = service.models[name]
        height, width = live.default_size
        return {
            "id": name,
            "object": "model",
            "created": began,
            "owned_by": "lightgen",
            "lightgen": {
                "unit": live.unit,
                "default_size": f"{width}x{height}",
                "max_side": service.config.limits.max_side_px // live.unit * live.unit,
                "max_pixels": int(service.config.limits.max_area * height * width),
                "presets": list(PRESETS),
                "digest": live.facts.get("model_digest", ""),
            },
        }

    @routes.get("/v1/models", responses={200: {"model": ModelsAnswer}, **errors(400, 401, 403, 500, 503)})
    async def models() -> JSONResponse:
        """The models that draw; the first is the default."""
        return JSONResponse({"object": "list", "data": [facts(name) for name in service.models]})

    @routes.get(
        "/v1/models/{name}", responses={200: {"model": ModelAnswer}, **errors(400, 401, 403, 404, 500, 503)}
    )
    async def model(name: str) -> JSONResponse:
        """One of them."""
        if name not in service.models:
            raise Problem(404, "model: there is none of this name", param="model", code="model_not_found")
        return JSONResponse(facts(name))

    return routes


def _state_routes(worker: Worker) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", responses={200: {"model": StatusAnswer}, **errors(400, 403, 500, 503)})
    async def health() -> JSONResponse:
        """That the server lives."""
        return JSONResponse({"status": "alive"})

    @routes.get(
        "/ready",
        responses={
            200: {"model": StatusAnswer},
            **errors(400, 403, 500),
            503: {"model": StatusAnswer, "description": "It takes no pictures (any more)."},
        },
    )
    async def ready() -> JSONResponse:
        """Whether it takes pictures."""
        status = "ready" if worker.is_ready else "not ready"
        return JSONResponse({"status": status}, 200 if worker.is_ready else 503)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **errors(400, 401, 403, 500, 503)},
    )
    async def metrics() -> Response:
        """What is counted and measured, as Prometheus reads it."""
        return Response(worker.metrics.text(), media_type=worker.metrics.content_type)

    return routes


def _add_handlers(app: FastAPI) -> None:
    """Have every error answered in one shape."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        told = {404: "path: there is nothing here", 405: "method: the path has no such method"}
        text = told.get(error.status_code, "request: cannot be answered")
        return error_response(Problem(error.status_code, text, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name, allowed = str(first["loc"][-1]), first["msg"].removeprefix("Input should be ")
        return error_response(
            Problem(400, f"{name}: got what is not allowed, allowed: {allowed}", param=name)
        )

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_GONE)
