"""How much comes in: requests at a time, and the size and time of their bodies."""

import asyncio
from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightgen.serve.answers import Problem, error_response
from lightgen.serve.guards import OWNER

CLOSE = {"Connection": "close"}  # the rest of the body is not waited for
_HELD_BODIES = 8  # largest bodies that are in memory at a time, all requests together
_HELD_OF_ONE = 2  # of them, of one owner
_RELEASE = "lightgen.release_body"  # in the scope


class CrowdGuard:
    """Answers 503 beyond a number of requests at a time.

    Args:
        app: what is guarded.
        most: requests at a time.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most, self._running = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 503."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._running >= self._most:
            problem = Problem(503, "server: too many requests at a time", retry_after_s=1, headers=CLOSE)
            return await error_response(problem)(scope, receive, send)
        self._running += 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self._running -= 1


class BodyGuard:
    """Ends a body that is too large or too slow, while it comes.

    What is wrong reaches the reader of the body as a `Problem`: 413 where it is too large, 408 where it takes
    too long, 429 where its owner has too much in memory already, 503 where all have. A body counts until the
    request ends, or until `release_body` is told that it is not needed any more.

    Args:
        app: what is guarded.
        max_bytes: of a body.
        timeout_s: seconds until it is there.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s
        self._held: Counter[str] = Counter()  # bytes by owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body guarded, or answer 413 if it says that it is too large."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._max_bytes:
            return await error_response(self._too_large())(scope, receive, send)
        owner, got, is_whole = scope.get(OWNER, "nobody"), 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def receive_guarded() -> Message:
            nonlocal got, is_whole
            if is_whole:  # what comes now is that the client is gone, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                allowed = f"all of it in {self._timeout_s:g} s"
                raise Problem(408, f"body: got a part, allowed: {allowed}", headers=CLOSE) from None
            size = len(message.get("body", b""))
            got += size
            self._held[owner] += size
            is_whole = message["type"] != "http.request" or not message.get("more_body", False)
            if got > self._max_bytes:
                raise self._too_large()
            if self._held[owner] > _HELD_OF_ONE * self._max_bytes:
                raise Problem(
                    429, "server: too many large requests of yours at a time", retry_after_s=1, headers=CLOSE
                )
            if self._held.total() > _HELD_BODIES * self._max_bytes:
                raise Problem(
                    503, "server: too many large requests at a time", retry_after_s=1, headers=CLOSE
                )
            return message

        def release() -> None:
            nonlocal got
            self._held[owner] -= got
            got = 0
            if not self._held[owner]:
                del self._held[owner]

        scope[_RELEASE] = release
        try:
            return await self._app(scope, receive_guarded, send)
        finally:
            release()

    def _too_large(self) -> Problem:
        return Problem(413, f"body: too large, allowed: at most {self._max_bytes} bytes", headers=CLOSE)


def release_body(scope: Scope) -> None:
    """Say that the body of a request is not needed any more, and is not in memory."""
    scope[_RELEASE]()
