"""Routes of pictures: generations, edits, and jobs of either."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from lightgen.serve.answers import Problem
from lightgen.serve.bodies import EditBody, GenerationBody, PictureBody, read_body
from lightgen.serve.events import PictureStream
from lightgen.serve.fields import media_type, read_form, read_json
from lightgen.serve.guards import OWNER
from lightgen.serve.intake import release_body
from lightgen.serve.jobs import Jobs
from lightgen.serve.orders import Order, make_order
from lightgen.serve.service import ENDS, ClientGone, Service, as_problem, while_there
from lightgen.serve.shapes import JobAnswer, JobGone, PicturesAnswer, errors

MAX_JSON_BYTES = 256 << 10
_GONE = 499  # nobody reads it; it is for the metrics
_FILES = ("image", "mask")
_JOBS = "/v1/images/jobs"
_ASKED = errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PicturesAnswer,
        "description": "The pictures, or, with `stream`, events.",
        "content": {"text/event-stream": {}},
    },
    202: {"model": JobAnswer, "description": "A job, with `async`."},
    **_ASKED,
}
_FILE = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
Async = Annotated[
    Literal["0", "1", "false", "true"] | None,
    Query(alias="async", description="Answer at once with a job that is asked for later."),
]
JobName = Annotated[str, Path(pattern="^job_[0-9a-f]{32}$")]


def image_routes(service: Service, jobs: Jobs) -> APIRouter:
    """Routes of pictures.

    Args:
        service: of the server.
        jobs: of the server.
    """
    routes = APIRouter()

    async def answer(
        request: Request, body: PictureBody, files: dict[str, bytes], *, is_job: bool
    ) -> Response:
        owner = request.scope[OWNER]
        if is_job and body.stream:
            raise Problem(400, "stream: got it with async, allowed: one of them", param="stream")
        created, check = int(time.time()), service.checks.prompt
        try:
            service.check_room(owner, body.n or 1)
            made = service.read(
                owner, make_order, body, files, service.models, service.config, created, check
            )
            order = await while_there(request.receive, made)
            files.clear()
            release_body(request.scope)
            if is_job:
                job = jobs.start(order, owner)
                place = {"Location": f"{_JOBS}/{job.name}"}
                return Response(job.answer(), 202, place, "application/json")
            return await _drawn(service, order, request, is_stream=bool(body.stream))
        except ENDS as error:
            raise as_problem(error) from None
        except ClientGone:
            return Response(status_code=_GONE)

    @routes.post(
        "/v1/images/generations",
        responses=_ANSWERS,
        response_class=JSONResponse,
        openapi_extra={"requestBody": _described("application/json", _schema(GenerationBody))},
    )
    async def generations(request: Request, is_async: Async = None) -> Response:
        """Pictures of a prompt."""
        values = read_json(await _json_bytes(request))
        body = read_body(GenerationBody, values, is_form=False)
        return await answer(request, body, {}, is_job=_is_true(is_async))

    @routes.post(
        "/v1/images/edits",
        responses=_ANSWERS,
        response_class=JSONResponse,
        openapi_extra={"requestBody": _described("multipart/form-data", _edit_schema())},
    )
    async def edits(request: Request, is_async: Async = None) -> Response:
        """A picture, changed under a mask or all over."""
        header = request.headers.get("content-type", "")
        if media_type(header) != "multipart/form-data":
            raise Problem(415, f"Content-Type: got {header[:60]!r}, allowed: multipart/form-data")
        form = await read_form(header, request.stream())
        for name in form.files:
            if name not in _FILES:
                raise Problem(400, f"unknown file {name[:60]!r}, allowed: image and mask", param=name[:60])
        for name in _FILES:
            if name in form.texts:
                raise Problem(400, f"{name}: got text, allowed: a file", param=name)
        body = read_body(EditBody, form.texts, is_form=True)
        if "image" not in form.files:
            raise Problem(400, "image: got nothing, allowed: a PNG, JPEG or WebP file", param="image")
        return await answer(request, body, form.files, is_job=_is_true(is_async))

    @routes.get(
        _JOBS + "/{name}",
        responses={200: {"model": JobAnswer}, **errors(400, 401, 403, 404, 429, 500, 503)},
        response_class=JSONResponse,
    )
    async def job(request: Request, name: JobName) -> Response:
        """How far a job is, and its result."""
        return jobs.answer(name, request.scope[OWNER])

    @routes.delete(
        _JOBS + "/{name}",
        responses={200: {"model": JobGone}, **errors(400, 401, 403, 404, 500, 503)},
        response_class=JSONResponse,
    )
    async def cancelled(request: Request, name: JobName) -> Response:
        """Cancel a job, or forget it."""
        jobs.forget(jobs.find(name, request.scope[OWNER]))
        return JSONResponse({"id": name, "object": "image.job", "deleted": True})

    return routes


async def _drawn(service: Service, order: Order, request: Request, *, is_stream: bool) -> Response:
    """The pictures of an order, or a stream of events.

    Raises:
        ClientGone: it went before they were there.
    """
    tickets = service.submit(order, request.scope[OWNER])
    if is_stream:
        return PictureStream(service, order, tickets)
    answer = await while_there(request.receive, service.draw(order, tickets))
    return Response(answer, media_type="application/json")


async def _json_bytes(request: Request) -> bytes:
    """Body of a JSON request, which is small."""
    header = request.headers.get("content-type", "")
    if media_type(header) != "application/json":
        raise Problem(415, f"Content-Type: got {header[:60]!r}, allowed: application/json")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_JSON_BYTES:
            allowed = f"at most {MAX_JSON_BYTES} bytes of JSON"
            raise Problem(413, f"body: too large, allowed: {allowed}", headers={"Connection": "close"})
    return bytes(data)


def _is_true(text: str | None) -> bool:
    return text in ("1", "true")


def _described(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema}}}


def _schema(body: type[PictureBody]) -> dict[str, Any]:
    return body.model_json_schema()


def _edit_schema() -> dict[str, Any]:
    schema = _schema(EditBody)
    # a form has no null: what is not said is the default
    for field in schema["properties"].values():
        kinds = [each for each in field.pop("anyOf", []) if each.get("type") != "null"]
        field.update(kinds[0] if kinds else {})
        field.pop("default", None)
    schema["properties"] |= {"image": _FILE, "mask": _FILE}
    schema["required"] = ["prompt", "image"]
    return schema
