"""The web app's files and pages. Files are looked up in a list made at the start: a request never becomes a path."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from heimdallr_ray.api.access import ANYONE
from heimdallr_ray.errors import BadIdentifier, NotFound, NotReady
from heimdallr_ray.ids import Uid

MAX_FILES = 2000
IMMUTABLE = "public, max-age=31536000, immutable"
_TYPES = MappingProxyType(
    {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        ".woff2": "font/woff2",
    }
)


def media_type_of(name: str) -> str:
    """The content type of a file of ours; independent of the machine's own tables for what a browser must run."""
    suffix = Path(name).suffix
    return _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def list_files(folder: Path | None) -> dict[str, Path]:
    """The regular files under `folder` by their name relative to it, `/` between parts.

    Links and hidden files are left out: no build writes any.

    Raises:
        NotReady: more than MAX_FILES files: this is not a built web app.
    """
    files: dict[str, Path] = {}
    if folder is None or not folder.is_dir():
        return files
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        files[relative.as_posix()] = path
        if len(files) > MAX_FILES:
            raise NotReady("the folder of the web app holds too many files")
    return files


def wants_page(method: str, path: str, accept: str) -> bool:
    """True where a request comes from the address bar or a link of a browser, and not for the API."""
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return method in ("GET", "HEAD") and "text/html" in types and not f"{path}/".startswith("/api/")


def unknown_page(static_dir: Path | None) -> Callable[[Request], Response | None]:
    """Answers a browser at an address where nothing is with the web app, which says so, and status 404."""
    index = list_files(static_dir).get("index.html")

    def answer(request: Request) -> Response | None:
        accept = request.headers.get("accept", "")
        if index is None or not wants_page(request.method, request.url.path, accept):
            return None
        headers = {"Cache-Control": "no-cache", "Vary": "Accept"}
        return Response(index.read_bytes(), 404, headers, media_type_of(index.name))

    return answer


def build_router(static_dir: Path | None) -> APIRouter:
    """Routes of the web app under `static_dir`: its files, its pages, `/docs`."""
    router = APIRouter(include_in_schema=False)
    files = list_files(static_dir)

    def file_response(request: Request, name: str, cache: str) -> Response:
        path = files.get(name)
        if path is None:
            raise NotFound("there is no such file")
        headers = {"Cache-Control": cache, "Vary": "Accept-Encoding"}
        zipped = files.get(name + ".gz")
        if zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return FileResponse(zipped, media_type=media_type_of(name), headers={**headers, "Content-Encoding": "gzip"})
        return FileResponse(path, media_type=media_type_of(name), headers=headers)

    def page(request: Request, name: str) -> Response:
        if name not in files:
            raise NotReady("the web pages were not built; run `make setup`")
        return file_response(request, name, "no-cache")

    @router.get("/", dependencies=[ANYONE])
    def worklist_page(request: Request) -> Response:
        """The web app; it finds out by itself what to show."""
        return page(request, "index.html")

    @router.get("/studies/{study_uid}", dependencies=[ANYONE])
    def study_page(request: Request, study_uid: str) -> Response:
        """The web app; 404 where the address names no study because it is no UID."""
        answer = page(request, "index.html")
        try:
            Uid.parse(study_uid)
        except BadIdentifier:
            answer.status_code = 404
        return answer

    @router.get("/docs", dependencies=[ANYONE])
    def docs_page(request: Request) -> Response:
        """The interactive documentation of the API."""
        return page(request, "docs/index.html")

    @router.get("/studies", dependencies=[ANYONE])
    def to_worklist() -> Response:
        """The worklist lives at `/`."""
        return RedirectResponse("/", status_code=308)

    @router.get("/assets/{name:path}", dependencies=[ANYONE])
    def asset(request: Request, name: str) -> Response:
        """A file whose name carries a hash of its content."""
        return file_response(request, f"assets/{name}", IMMUTABLE)

    @router.get("/docs/{name}", dependencies=[ANYONE])
    def docs_asset(request: Request, name: str) -> Response:
        """A file of the documentation page."""
        return file_response(request, f"docs/{name}", "no-cache")

    @router.get("/favicon.svg", dependencies=[ANYONE])
    def icon(request: Request) -> Response:
        """The icon."""
        return file_response(request, "favicon.svg", "no-cache")

    return router
