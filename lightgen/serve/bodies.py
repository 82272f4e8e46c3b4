"""What requests may say: the fields of OpenAI's image API and our own, each with its range."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lightgen.core.config import suggestion
from lightgen.serve.answers import Problem

SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
# What OpenAI calls the trade of quality against time, as a preset.
PRESET_OF_QUALITY = {
    "high": "exact",
    "hd": "exact",
    "medium": "balanced",
    "standard": "balanced",
    "low": "fast",
}
_SHOWN = 60


Text = Annotated[str, Field(max_length=4096)]


class PictureBody(BaseModel):
    """What the picture is wanted like; null is the default everywhere."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        """The value; 2.0 as 2, which JSON does not tell apart."""
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        return int(value) if is_whole else value  # pyright: ignore[reportArgumentType]

    prompt: Annotated[str, Field(min_length=1, max_length=4096, description="What the picture shall show.")]
    model: Annotated[
        str | None, Field(max_length=200, description="Its name; by default the first of /v1/models.")
    ] = None
    n: Annotated[int | None, Field(ge=1, le=8, description="Pictures, of seeds that count up.")] = None
    size: Annotated[
        str | None, Field(pattern=SIZE, description="WIDTHxHEIGHT in px, or auto: the model's own.")
    ] = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "standard", "hd"] | None,
        Field(description="A preset by OpenAI's names: low is fast, medium balanced, high exact."),
    ] = None
    preset: Annotated[
        Literal["exact", "balanced", "fast"] | None, Field(description="Goes before `quality`.")
    ] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None, Field(description="`url` is refused: nothing is stored.")
    ] = None
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, Field(description="png, by default.")] = (
        None
    )
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of jpeg and webp, in percent.")
    ] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Changes nothing.")] = None
    moderation: Annotated[Literal["auto", "low"] | None, Field(description="Changes nothing.")] = None
    style: Annotated[Literal["vivid", "natural"] | None, Field(description="Changes nothing.")] = None
    user: Annotated[str | None, Field(max_length=256, description="Changes nothing.")] = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    partial_images: Annotated[
        int | None, Field(ge=0, le=64, description="Pictures on the way to each, when streaming.")
    ] = None
    progress: Annotated[
        bool | None, Field(description="Also events `lightgen.progress`, when streaming.")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="Of the first picture; by default a random one.")
    ] = None
    negative_prompt: Annotated[Text | None, Field(description="What to stay away from.")] = None
    num_inference_steps: Annotated[
        int | None, Field(ge=1, le=256, description="Iterations of masked decoding.")
    ] = None
    num_head_steps: Annotated[
        int | None, Field(ge=1, le=100, description="Steps of the head for each token.")
    ] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100, description="Weight of the text.")] = None
    temperature: Annotated[float | None, Field(ge=0, le=10, description="Factor on the noise.")] = None
    deadline_s: Annotated[
        float | None,
        Field(ge=0.1, le=3600, description="Longest wait, seconds; the server's own is the most."),
    ] = None


class GenerationBody(PictureBody):
    """What `/v1/images/generations` is asked."""


class EditBody(PictureBody):
    """What `/v1/images/edits` is asked, beside the files `image` and `mask`."""

    input_fidelity: Annotated[Literal["low", "high"] | None, Field(description="Changes nothing.")] = None
    strength: Annotated[
        float | None, Field(ge=0, le=1, description="Share of the masked part that is drawn anew.")
    ] = None
    padding_mask_crop: Annotated[
        int | None, Field(ge=0, le=4096, description="The model sees only the mask and px around it.")
    ] = None
    feather: Annotated[
        int | None, Field(ge=0, le=256, description="px inside the mask over which it fades in.")
    ] = None


_Body = TypeVar("_Body", bound=PictureBody)


def read_body(kind: type[_Body], values: Mapping[str, Any], *, is_form: bool) -> _Body:
    """Body of a request's values; those of forms are texts.

    Raises:
        Problem: 400, for an unknown or missing field or a value that is not allowed; the first of them.
    """
    if "image_url" in values or "images" in values:
        raise Problem(400, "image_url: got an address, allowed: a file `image`, since no address is opened")
    try:
        if is_form:
            return kind.model_validate_strings(dict(values))
        return kind.model_validate(dict(values), strict=True)
    except ValidationError as error:
        raise _problem(kind, values, error) from None


def _problem(kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> Problem:
    unknown = [each for each in error.errors() if each["type"] == "extra_forbidden"]
    first = (unknown or error.errors())[0]
    name = str(first["loc"][0])
    shown = name.encode(errors="replace").decode()[:_SHOWN]
    if unknown:
        hint = suggestion(name, kind.model_fields) or f", allowed: {', '.join(kind.model_fields)}"
        return Problem(400, f"unknown field {shown!r}{hint}", param=shown, code="unknown_parameter")
    if first["type"] == "missing":
        return Problem(400, f"{name}: got nothing, allowed: text", param=name, code="missing_parameter")
    if name == "size":
        allowed = "auto, or WIDTHxHEIGHT in px such as 128x128"
    else:
        allowed = first["msg"].removeprefix("Input should be ").removeprefix("String should have ")
    return Problem(400, f"{name}: got {_short(values[name])}, allowed: {allowed}", param=name)


def _short(value: object) -> str:
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'JSON object'}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
