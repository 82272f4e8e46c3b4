"""Files of the page, read once and served with a tag that says when they changed."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightgen.serve.answers import Problem

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


class PageFile:
    """One file: its bytes, media type, and the tag of what it holds."""

    def __init__(self, path: Path) -> None:
        self.data, self.kind = path.read_bytes(), _KINDS[path.suffix]
        self.tag = f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        """The file, or 304 if the client has it."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache"}
        known = request.headers.get("if-none-match", "")
        if self.tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers=headers, media_type=self.kind)


def page_routes(folder: Path = FOLDER) -> APIRouter:
    """Routes of the page: `/`, and each of its files under `/page/`, by name; no other path is looked at."""
    files = {path.name: PageFile(path) for path in sorted(folder.glob("*.*")) if path.suffix in _KINDS}
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        """The page."""
        return _answer(files, INDEX, request)

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        """A file of the page."""
        return _answer(files, name, request)

    return routes


def _answer(files: dict[str, PageFile], name: str, request: Request) -> Response:
    if name not in files:
        raise Problem(404, "path: there is nothing here")
    return files[name].answer(request)
