"""One question to a server: JSON is posted, and a JSON object comes back, or one line that says why not."""

import email.utils
import hashlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from lightgen.core.config import environment
from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError

MAX_BYTES = 64 * 2**20
MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 1.0
_PASSING = (408, 429, 500, 502, 503, 504, 529)  # 529: overloaded, as some servers say it
_SPENT = "insufficient_quota"  # a 429 that no waiting mends
_ERROR_BYTES = 64 * 2**10
_CHUNK = 2**16


class RequestError(UserError):
    """A server that did not answer as it should.

    Attributes:
        status: of HTTP; None where no whole answer came.
        code: what the server calls the mistake (such as `content_policy_violation`), or empty.
        told: the server's own words, in one line, or empty.
        passing: whether the same question may well succeed later.
        after_s: how long the server asks to wait, seconds.
    """

    def __init__(
        self,
        text: str,
        status: int | None = None,
        code: str = "",
        told: str = "",
        passing: bool = False,
        after_s: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.told, self.passing, self.after_s = status, code, told, passing, after_s


def post_json(
    url: str,
    payload: Mapping[str, Any],
    key: str | None = None,
    timeout_s: float = 120.0,
    retries: int = 5,
    *,
    plain_http: bool = False,
    max_bytes: int = MAX_BYTES,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Object that a server answers to a POST of JSON; redirects are not followed.

    What may pass (429, 5xx, a lost connection, no answer in time) is asked again, after a wait that doubles,
    with jitter, and is at least what the server asks for in Retry-After, up to MAX_WAIT_S.

    Args:
        url: https, or http on this machine.
        payload: what is asked.
        key: sent as `Authorization: Bearer`; in no message.
        timeout_s: longest wait for one whole answer, seconds.
        retries: how often it is asked again.
        plain_http: whether http is fine for other machines too.
        max_bytes: most bytes of an answer.
        stop: set by another thread to end the waiting.

    Raises:
        RequestError: no answer, an error, a redirect, or anything but a JSON object of up to max_bytes.
        UserError: an address or key that cannot be sent.
    """
    parts = check_url(url, plain_http=plain_http)
    body = json.dumps(payload, allow_nan=False).encode()
    jitter = hashlib.sha256(body).hexdigest()
    for attempt in range(retries + 1):
        try:
            return _ask(parts, body, key, timeout_s, max_bytes)
        except RequestError as error:
            if attempt == retries or not error.passing:
                raise
            part = draw_key(attempt, jitter) / 2**63
            wait = min(MAX_WAIT_S, _FIRST_WAIT_S * 2**attempt) * (0.5 + 0.5 * part)
            wait = max(wait, min(MAX_WAIT_S, error.after_s))
            if stop is None:
                time.sleep(wait)
            elif stop.wait(wait):
                raise
    raise AssertionError("unreachable")


def check_url(url: str, *, plain_http: bool = False) -> SplitResult:
    """Parts of an address that may be asked.

    Raises:
        UserError: it is neither https, nor http on this machine (or anywhere, if plain_http), or holds a
            password, a query or characters that no address holds.
    """
    shown = repr(url[:80]) if "@" not in url and "?" not in url else "(with a password or query)"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"address {shown}: got no host or port, allowed: https://HOST/PATH") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("address: got one with a password, query or fragment, allowed: https://HOST/PATH")
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not host or not is_plain:
        raise UserError(f"address {shown}: got no such address, allowed: https://HOST/PATH in plain letters")
    if parts.scheme == "http" and not plain_http and not is_loopback(host):
        raise UserError(
            f"address {shown}: got http, which anybody on the way can read, allowed: https, or http on this "
            "machine (elsewhere only where the config says plain_http)"
        )
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(variable: str | None) -> str | None:
    """Secret in the environment variable of a name; None where no variable is named.

    Raises:
        UserError: the variable is unset, empty, or holds what no header can.
    """
    if variable is None:
        return None
    key = (environment(variable) or "").strip()
    if not key:
        raise UserError(f"environment variable {variable}: got nothing, allowed: the key of the endpoint")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"environment variable {variable}: got blanks or odd letters, allowed: a plain key")
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: a POST, and the key with it, goes where the user said."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """None: it is not followed."""
        return


def _ask(
    parts: SplitResult, body: bytes, key: str | None, timeout_s: float, max_bytes: int
) -> dict[str, Any]:
    """Object of one answer."""
    where, deadline = f"{parts.scheme}://{parts.netloc}{parts.path}", time.monotonic() + timeout_s
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "lightgen"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(parts.geturl(), body, headers, method="POST")
    # a proxy of the environment is of no use for this machine itself
    proxies = [urllib.request.ProxyHandler({})] if is_loopback(parts.hostname or "") else []
    opener = urllib.request.build_opener(_NoRedirects, *proxies)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            found = _read(response, max_bytes, deadline, timeout_s)
            kind = response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise _refusal(where, error, deadline, key) from None
    except (OSError, http.client.HTTPException) as error:
        raise _lost(where, error) from error
    if len(found) > max_bytes:
        raise RequestError(f"{where}: got more than {max_bytes} bytes, allowed: up to {max_bytes}", 200)
    try:
        answer = json.loads(found)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RequestError(f"{where}: got {len(found)} bytes of {kind}, allowed: a JSON object", 200)
    return answer


def _read(
    response: http.client.HTTPResponse | urllib.error.HTTPError, limit: int, deadline: float, timeout_s: float
) -> bytes:
    """Body of an answer, or its first limit + 1 bytes; the deadline holds for servers that drip, too."""
    found = bytearray()
    while len(found) <= limit and (chunk := response.read1(min(_CHUNK, limit + 1 - len(found)))):
        found += chunk
        if time.monotonic() > deadline:
            raise TimeoutError(f"no whole answer in {timeout_s:g} s")
    announced = response.headers.get("Content-Length") or ""
    if announced.isdecimal() and len(found) < min(int(announced), limit + 1):
        raise http.client.IncompleteRead(bytes(found), int(announced) - len(found))
    return bytes(found)


def _refusal(where: str, error: urllib.error.HTTPError, deadline: float, key: str | None) -> RequestError:
    """What a status beyond 299 means, with the server's own words where it says any."""
    with error:
        if 300 <= error.code < 400:
            return RequestError(
                f"{where}: got a redirect ({error.code}), allowed: the address itself, as redirects are not "
                "followed",
                error.code,
            )
        try:
            body = json.loads(_read(error, _ERROR_BYTES, deadline, 0.0))
        except (ValueError, RecursionError, OSError, http.client.HTTPException):
            body = None
        after_s = _seconds(error.headers.get("Retry-After"))
    code, told = _words(body, key)
    passing = error.code in _PASSING and code != _SPENT
    said = f", {told}" if told else ""
    label = f" {code}" if code else ""
    text = f"{where}: got {error.code}{label}{said}"
    return RequestError(f"{text}; allowed: a request that it takes", error.code, code, told, passing, after_s)


def _words(body: Any, key: str | None) -> tuple[str, str]:  # noqa: ANN401  (any JSON)
    """(Code, message) of an error as OpenAI's and FastAPI's servers write it, each in one clean line."""
    found = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(found, str):
        found = {"message": found}
    if not isinstance(found, dict):
        return "", ""
    code = next((found[name] for name in ("code", "type") if isinstance(found.get(name), str)), "")
    told = next((found[name] for name in ("message", "detail") if found.get(name)), "")
    return _line(code, key)[:60], _line(told if isinstance(told, str) else json.dumps(told), key)


def _line(text: str, key: str | None) -> str:
    """A stranger's text as one printable line without the key."""
    if key is not None:
        text = text.replace(key, "***")
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= 200 else line[:197] + "..."


def _lost(where: str, error: OSError | http.client.HTTPException) -> RequestError:
    """What it means that no whole answer came."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    passing = not isinstance(reason, ssl.SSLCertVerificationError)
    if isinstance(reason, socket.gaierror):
        passing = reason.errno == socket.EAI_AGAIN
    if isinstance(reason, http.client.IncompleteRead):
        why = "an answer that breaks off"
    else:
        why = "no answer in time" if isinstance(reason, TimeoutError) else f"{_line(str(reason), None)}"
        why = why if why.strip() else type(reason).__name__
    return RequestError(f"{where}: got {why}, allowed: a server that answers", passing=passing)


def _seconds(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it asks for none."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
