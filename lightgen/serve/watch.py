"""What every request gets, whatever comes of it: a number, safe headers, and a line when something broke."""

import logging
import secrets
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightgen.serve.answers import Problem, error_response
from lightgen.serve.metrics import Metrics

REQUEST_ID = "lightgen.request_id"  # in the scope
_LOG = logging.getLogger("lightgen.serve")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Watch:
    """Numbers requests, makes their answers safe to show, counts them, and answers for what broke.

    An exception goes to the server's log with the request's number; its sender is told the number alone.

    Args:
        app: what is watched.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer 500 if that fails."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        number = scope[REQUEST_ID] = secrets.token_hex(8)
        status = 0

        async def send_safe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = number
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_safe)
        except Exception:
            _LOG.exception("request %s failed", number)
            if status:  # half an answer is out: only the end of the connection can tell
                raise
            problem = Problem(500, f"server: something broke; its log knows more of request {number}")
            await error_response(problem)(scope, receive, send_safe)
        finally:
            self._metrics.count_request(_route(scope), status)


def _route(scope: Scope) -> str:
    """Template of the route that a request took; strangers' paths are none."""
    route: Any = scope.get("route")
    return "other" if route is None else str(route.path)
