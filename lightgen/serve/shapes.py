"""Shapes of what the server answers, for its OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong: one line, and which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Any error."""

    error: ErrorDetail


class TokenCounts(BaseModel):
    """Tokens of either kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens that were decoded; texts and given pictures are not counted."""

    input_tokens: int
    input_tokens_details: TokenCounts
    output_tokens: int
    total_tokens: int


class Picture(BaseModel):
    """One picture: its file in base64, and the seed that gives it again."""

    b64_json: str
    seed: int


class PicturesAnswer(BaseModel):
    """The pictures of one request."""

    created: int
    data: list[Picture]
    size: str
    quality: str
    output_format: str
    background: str
    usage: Usage
    preset: str
    model: str


class JobPicture(BaseModel):
    """How far a picture of a job is; `position` counts those before it in the queue."""

    status: str
    iteration: int
    num_iterations: int
    position: int


class JobAnswer(BaseModel):
    """A request that nobody waits for."""

    id: str
    object: Literal["image.job"]
    created_at: int
    status: Literal["queued", "running", "succeeded", "failed"]
    pictures: list[JobPicture]
    error: ErrorDetail | None
    result: PicturesAnswer | None


class JobGone(BaseModel):
    """A job that was cancelled and forgotten."""

    id: str
    object: Literal["image.job"]
    deleted: bool


class ModelFacts(BaseModel):
    """What a model draws: sizes in px, the names of presets, and the digest of its checkpoint."""

    unit: int
    default_size: str
    max_side: int
    max_pixels: int
    presets: list[str]
    digest: str


class ModelAnswer(BaseModel):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    lightgen: ModelFacts


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class StatusAnswer(BaseModel):
    """Whether the server is well."""

    status: str


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that tell errors, for its documentation."""
    return {status: {"model": ErrorAnswer, "description": _WHEN[status]} for status in statuses}


_WHEN = {
    400: "Something in the request is not allowed.",
    401: "There is no key, or it is not known.",
    403: "Another origin's page asks.",
    404: "There is no such thing.",
    405: "The path has no such method.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "The key has its share of the queue already; Retry-After says when to come back.",
    500: "The server is broken.",
    503: "The server is full or about to end; Retry-After says when to come back.",
    504: "The picture was not done in time.",
}
