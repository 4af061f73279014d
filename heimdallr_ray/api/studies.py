"""Studies: the worklist, one study, its results, its files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from heimdallr_ray.api import models, reading
from heimdallr_ray.api.access import READER, SERVICES
from heimdallr_ray.api.failures import NoResultResponse, documented
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.worklist import MAX_ROWS

CHUNK_BYTES = 1 << 18
MAX_OFFSET = 10_000_000
STALE_HEADER = "X-Heimdallr-Stale"
_STALE: dict[str, Any] = {
    STALE_HEADER: {
        "description": "`true` where newer images came in, or a newer run has not ended well; else absent.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
_UID = Path(description="StudyInstanceUID.", max_length=64)


async def _chunks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """At most `size` bytes of `file`, which is closed at the end."""
    try:
        left = size
        while left > 0:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk
    finally:
        file.close()


def etag_matches(header: str | None, etag: str) -> bool:
    """True where an If-None-Match header (RFC 9110 13.1.2) names `etag`."""
    candidates = [part.strip().removeprefix("W/") for part in (header or "").split(",")]
    return "*" in candidates or etag in candidates


def build_router() -> APIRouter:
    """Routes under /api/v1/studies."""
    router = APIRouter(prefix="/api/v1/studies", tags=["studies"], dependencies=[READER])

    @router.get("", responses=documented(401, 403, 422, 503), summary="The worklist")
    def studies(
        services: ApiServices = SERVICES,
        limit: int = Query(100, ge=1, le=MAX_ROWS, description="Rows of the page."),
        offset: int = Query(0, ge=0, le=MAX_OFFSET, description="Rows to leave out."),
        state: StudyState | None = Query(None, description="Only studies in this state."),
        q: str = Query("", max_length=64, description="Part of patient name or id, accession, description or UID."),
    ) -> models.StudyPage:
        """Most urgent first (the higher of our urgency and the ordered priority), then first come first."""
        return reading.study_page(services, limit, offset, state, q)

    @router.get("/{study_uid}", responses=documented(400, 401, 403, 404, 503), summary="One study")
    def study(study_uid: str = _UID, services: ApiServices = SERVICES) -> models.StudyDetail:
        """State, series with the reason for their choice, step times, history and files of one study."""
        return reading.study_detail(services, study_uid)

    @router.get(
        "/{study_uid}/results",
        responses={
            **documented(400, 401, 403, 404, 503),
            200: {"headers": _STALE},
            409: {"model": NoResultResponse, "description": "There is none yet (`not_ready`), or none comes."},
        },
        summary="Its results",
    )
    def results(response: Response, study_uid: str = _UID, services: ApiServices = SERVICES) -> dict[str, Any]:
        """The document results.json: measurements with unit, status, reasons and provenance; findings; urgency.

        409 `not_ready` while there is none yet; 409 `no_result`, with state and reason, where the study ended without
        one. An older result stands until a newer one replaces it; the header tells.
        """
        document, stale = reading.results_document(services, study_uid)
        if stale:
            response.headers[STALE_HEADER] = "true"
        return document

    @router.get(
        "/{study_uid}/artifacts/{name}",
        responses={
            **documented(400, 401, 403, 404, 503),
            200: {"content": {"application/octet-stream": {}}, "headers": _STALE},
            304: {"headers": _STALE},
        },
        response_class=StreamingResponse,
        summary="One of its files",
    )
    async def artifact(
        request: Request,
        study_uid: str = _UID,
        name: str = Path(description="As in the study's list of artifacts.", max_length=128),
        services: ApiServices = SERVICES,
    ) -> Response:
        """The bytes of the file. `ETag` is their sha256.

        NIfTI files are sent as they lie, compressed, without Content-Encoding.
        """
        row, stale = await asyncio.to_thread(reading.find_artifact, services, study_uid, name)
        etag = f'"{row.sha256}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if stale:
            headers[STALE_HEADER] = "true"
        if etag_matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        file = await asyncio.to_thread(reading.open_artifact, services, row)
        headers["Content-Length"] = str(row.size)
        return StreamingResponse(_chunks(file, row.size), media_type=row.media_type, headers=headers)

    return router
