"""Uploads of a study as a ZIP: the API's own route, and the one that the original's clients know."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import APIRouter, Request

from heimdallr_ray.api.access import SERVICES, UPLOADER
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.models import UploadAccepted, UploadResult
from heimdallr_ray.api.multipart import UploadedFile, receive_file
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.api.told import Story
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import Draining, NotReady, TooLarge
from heimdallr_ray.ids import new_id
from heimdallr_ray.listener.archive import ArchiveLimits, UploadOutcome, receive_zip
from heimdallr_ray.listener.spool import storage_error

_log = logging.getLogger(__name__)
FIELD = "file"
MAX_UPLOADS = 4
"""Uploads of one process at once; each may fill a temporary file and occupies a thread."""
STALE_S = 24 * 3600
"""A temporary file of this age belongs to a process that died."""
MAX_SWEEP = 1000
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "string", "format": "binary", "description": "A ZIP of DICOM files."}
                    },
                }
            }
        },
    }
}


def sweep(folder: Path, now_s: float) -> int:
    """The number of temporary files older than STALE_S that were removed."""
    removed = 0
    for path in list(folder.glob("*.zip"))[:MAX_SWEEP]:
        try:
            if now_s - path.stat().st_mtime > STALE_S:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue
    return removed


class _Slots:
    """Counts uploads; never waits, because a waiting upload would hold its connection for nothing."""

    def __init__(self) -> None:
        self._taken = 0

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None]:
        if self._taken >= MAX_UPLOADS:
            raise NotReady("too many uploads at the moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


async def _receive(request: Request, services: ApiServices, suffix: str = "") -> tuple[UploadedFile, UploadOutcome]:
    """The upload in `request`, stored; refused where the client's name for it does not end in `suffix`."""
    settings = services.settings
    if await asyncio.to_thread(services.draining):
        raise Draining
    max_bytes = settings.max_upload_mib << 20
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > max_bytes + (1 << 20):
        raise TooLarge(f"larger than {settings.max_upload_mib} MiB")
    folder = settings.data_dir / "uploads"
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(sweep, folder, services.clock.now().timestamp())
    except OSError as error:
        raise storage_error(error) from error
    upload_id = new_id()
    address = request.client.host if request.client else None
    target = folder / f"{upload_id}.zip"
    story = Story(services, request, Door.UPLOAD, upload_id)
    started = services.clock.monotonic()
    try:
        content_type = request.headers.get("content-type")
        min_free_bytes = settings.min_free_mib << 20
        upload = await receive_file(request.stream(), content_type, FIELD, suffix, target, max_bytes, min_free_bytes)
        limits = ArchiveLimits(settings.max_zip_entries, settings.max_unpacked_mib << 20)
        outcome = await asyncio.to_thread(
            receive_zip, target, services.receiver, limits, upload_id, address, story.notes
        )
    finally:
        with suppress(OSError):  # What stays is swept later; the answer does not depend on it.
            await asyncio.to_thread(target.unlink, missing_ok=True)
    story.stored()
    ms = round((services.clock.monotonic() - started) * 1000)
    _log.info(
        "upload stored",
        extra={
            "upload": upload_id,
            "bytes": upload.size,
            "accepted": outcome.accepted,
            "rejected": outcome.rejected,
            "ms": ms,
        },
    )
    return upload, outcome


def build_router() -> APIRouter:
    """Routes of uploads; one set of slots for both."""
    router = APIRouter(tags=["upload"])
    slots = _Slots()

    @router.post(
        "/api/v1/upload",
        dependencies=[UPLOADER],
        responses=documented(400, 401, 403, 413, 503, 507),
        openapi_extra=_BODY,
        summary="Store the DICOM files of a ZIP",
    )
    async def upload(request: Request, services: ApiServices = SERVICES) -> UploadResult:
        """Every DICOM file of the ZIP in field `file` is durable, and its study on the worklist, when this answers.

        One DICOM file that cannot be accepted refuses them all and nothing is stored. Other files are left out.
        What is no ZIP by its content is refused, whatever it is called.
        """
        async with slots.one():
            _, outcome = await _receive(request, services)
        return UploadResult(
            accepted=outcome.accepted,
            rejected=outcome.rejected,
            rejections=dict(Counter(code for _, code in outcome.rejections)),
            already_there=outcome.already_there,
            study_uids=list(outcome.study_uids),
        )

    @router.post(
        "/upload",
        dependencies=[UPLOADER],
        responses=documented(400, 401, 403, 413, 503, 507),
        openapi_extra=_BODY,
        summary="Upload, as clients of the original Heimdallr do it",
    )
    async def original_upload(request: Request, services: ApiServices = SERVICES) -> UploadAccepted:
        """The same as /api/v1/upload with the answer of the original, for files that are called `.zip` only."""
        async with slots.one():
            received, outcome = await _receive(request, services, ".zip")
        return UploadAccepted(
            status="Accepted",
            message=f"{counted(outcome.accepted, 'image')} of {counted(len(outcome.study_uids), 'study', 'studies')} "
            f"stored, {counted(outcome.rejected, 'file')} not DICOM and left out",
            original_file=received.client_name,
        )

    return router
