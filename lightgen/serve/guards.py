"""Guards before every request: whom it calls, whence it comes, and whether its sender may ask."""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightgen.core.errors import UserError
from lightgen.serve.answers import Problem, error_response
from lightgen.serve.config import ServeConfig
from lightgen.serve.keys import VARIABLE, Keys

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# What is open to everybody: the page, which asks for the key itself, and whether the server is well.
OPEN = ("/", "/health", "/ready", "/openapi.json")
OPEN_UNDER = "/page/"
OWNER = "lightgen.owner"  # in the scope, once a sender is known
_EXPOSED = "Retry-After, X-Request-Id"
# As browsers write them: lowercase, without a path or the scheme's own port.
_ORIGIN = re.compile(
    r"(?!http:.*:80$|https:.*:443$)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_access(config: ServeConfig, keys: Keys) -> None:
    """Check that whoever may ask is meant to.

    Raises:
        UserError: other machines could ask without keys, by the address or, through a proxy, by a name; or
            an origin is none that a browser sends.
    """
    if not keys and not config.insecure_no_keys:
        names = {"--host": [config.host], "--allowed-host": config.allowed_hosts}
        for option, name in ((option, name) for option, found in names.items() for name in found):
            if not is_loopback(name.strip("[]")):
                raise UserError(
                    f"{option}: got {name!r} without keys, allowed: 127.0.0.1; or --api-key-file or "
                    f"{VARIABLE}; or --insecure-no-keys"
                )
    for origin in config.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors-origin: got {origin!r}, allowed: SCHEME://HOST or SCHEME://HOST:PORT as browsers "
                "write it, such as https://their.example, without a path or a slash at the end"
            )


class HostGuard:
    """Refuses requests that call the server by a name that is not its own.

    So pages of others cannot reach a server on this machine under their own name (DNS rebinding).

    Args:
        app: what is guarded.
        names: allowed names without ports, lowercase; none = all.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400."""
        if scope["type"] == "http" and self._names:
            hosts = Headers(scope=scope).getlist("host")
            if len(hosts) != 1 or _name(hosts[0]) not in self._names:
                problem = Problem(
                    400,
                    "Host: got a name that is not this server's, allowed: its own",
                    code="host_not_allowed",
                )
                return await error_response(problem)(scope, receive, send)
        return await self._app(scope, receive, send)


class OriginGuard:
    """Refuses requests that pages of other origins make, but for those that are allowed, and answers CORS.

    Args:
        app: what is guarded.
        origins: allowed ones, as `https://example.org`.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, answer a preflight, or answer 403."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or _is_same(origin, headers.get("host", "")):
            return await self._app(scope, receive, send)
        if origin not in self._origins:
            problem = Problem(403, "Origin: got another page's, allowed: the server's own page")
            return await error_response(problem)(scope, receive, send)
        shared = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed = {
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": "Authorization, Content-Type",
                "Access-Control-Max-Age": "600",
            }
            return await Response(status_code=204, headers=shared | allowed)(scope, receive, send)

        async def send_shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent.update({**shared, "Access-Control-Expose-Headers": _EXPOSED})
            await send(message)

        return await self._app(scope, receive, send_shared)


class KeyGuard:
    """Lets in who has a key, and notes whose request it is; without keys, its sender's address.

    Args:
        app: what is guarded.
        keys: that may ask.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "http":
            client = scope.get("client")
            scope[OWNER] = f"address {client[0]}" if client else "nobody"
            if self._keys and not _is_open(scope["path"]):
                given = Headers(scope=scope).get("authorization", "")
                scheme, _, key = given.partition(" ")
                owner = self._keys.owner(key.strip()) if scheme.lower() == "bearer" else None
                if owner is None:
                    got = "no key" if not given else "a key that is not known"
                    problem = Problem(
                        401,
                        f"Authorization: got {got}, allowed: Bearer and a key of this server",
                        headers={"WWW-Authenticate": "Bearer"},
                    )
                    return await error_response(problem)(scope, receive, send)
                scope[OWNER] = owner
        return await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_UNDER)


def _name(host: str) -> str:
    """Name in a `Host` header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin is the server that the request calls; behind a proxy the scheme may differ."""
    scheme, _, name = origin.partition("://")
    return scheme in ("http", "https") and name.lower() == host.lower()
