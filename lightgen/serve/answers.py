"""What the server answers: errors in OpenAI's shape, and the headers that go with them."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from lightgen.core.progress import printable

# Kind and code by status, as clients of OpenAI's API know them.
_KINDS = {
    400: ("invalid_request_error", "invalid_value"),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "deadline_exceeded"),
}
_SHOWN = 600


class Problem(Exception):
    """What a request gets in place of what it asked for.

    Args:
        status: of HTTP.
        message: one line: what, got, allowed; never a path or an address of this machine.
        param: field of the request that is at fault.
        code: for programs; None = the usual one of the status.
        retry_after_s: when it may be better.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))


def error_body(problem: Problem) -> dict[str, Any]:
    """The problem in OpenAI's shape."""
    kind, code = _KINDS.get(problem.status, ("invalid_request_error", None))
    message = printable(" ".join(problem.message.split()))[:_SHOWN]
    return {"error": {"message": message, "type": kind, "param": problem.param, "code": problem.code or code}}


def error_response(problem: Problem) -> Response:
    """The answer that tells a problem."""
    return JSONResponse(error_body(problem), problem.status, headers=problem.headers)
