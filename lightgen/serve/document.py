"""The OpenAPI document: what the routes take and answer, to the letter."""

from typing import Any

from fastapi import FastAPI

from lightgen.serve.bodies import EditBody, GenerationBody
from lightgen.serve.config import LimitConfig
from lightgen.serve.guards import OPEN

# Answers that FastAPI adds by itself, and that there are none of: what is wrong is 400.
_NEVER = "422"
_SCHEMAS = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI, limits: LimitConfig, *, has_keys: bool) -> None:
    """Make an application's document say what it really does.

    Args:
        app: with all its routes.
        limits: what one request may ask for.
        has_keys: whether a key is needed.
    """
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _mend(made(), limits, has_keys=has_keys)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi


def _mend(document: dict[str, Any], limits: LimitConfig, *, has_keys: bool) -> None:
    schemas = document["components"]["schemas"]
    for name in _SCHEMAS:
        schemas.pop(name, None)
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop(_NEVER, None)
            if has_keys and path not in OPEN:
                operation["security"] = [{"key": []}]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                _limit(content["schema"], limits)


def _limit(schema: dict[str, Any], limits: LimitConfig) -> None:
    """Have the ranges of a body be those of this server."""
    assert schema["title"] in (GenerationBody.__name__, EditBody.__name__)
    for name, limit in limits.most.items():
        field = schema["properties"][name]
        for kind in field.get("anyOf", [field]):
            if "maximum" in kind:
                kind["maximum"] = min(kind["maximum"], limit)
