"""Uploads of a study as a ZIP: the API's own route, and the one that the original's clients know."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path

from fastapi import APIRouter, Request

from heimdallr_ray.api.access import SERVICES, UPLOADER
from heimdallr_ray.api.bodies import Slots, measured, require_acceptable
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.models import InstancesAsked, InstancesKnown, UploadAccepted, UploadResult
from heimdallr_ray.api.multipart import OVERHEAD_BYTES, UploadedFile, receive_file
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.api.taking import MORE_HEADER, SESSION_HEADER, Taking
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import Draining
from heimdallr_ray.ids import new_id
from heimdallr_ray.listener.archive import ArchiveLimits, UploadOutcome, receive_upload
from heimdallr_ray.listener.room import storage_error
from heimdallr_ray.listener.vouching import vouched_for

_log = logging.getLogger(__name__)
FIELD = "file"
MAX_UPLOADS = 4
"""Uploads of one process at once; each may fill a temporary file and occupies a thread."""
MAX_LOOKS = 4
"""Questions of one process at once about what is there; each reads the disk in a thread."""
STALE_S = 24 * 3600
"""A temporary file of this age belongs to a process that died."""
MAX_SWEEP = 1000
_SESSION_PARAMETERS = [
    {
        "in": "header",
        "name": SESSION_HEADER,
        "description": "32 hexadecimal digits, chosen by the client: several requests are one upload.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    {
        "in": "header",
        "name": MORE_HEADER,
        "description": "`true`: another request of this session follows; its studies are not closed meanwhile.",
        "schema": {"type": "string"},
    },
]
_BODY = {
    "parameters": _SESSION_PARAMETERS,
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "string", "format": "binary", "description": "A ZIP of DICOM files, or one."}
                    },
                }
            }
        },
    },
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


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


async def _receive(request: Request, services: ApiServices, suffix: str = "") -> tuple[UploadedFile, UploadOutcome]:
    """The upload in `request`, stored; refused where the client's name for it does not end in `suffix`."""
    taking = Taking(request, services, Door.UPLOAD)
    upload, outcome = await _take(request, services, taking, suffix)
    await asyncio.to_thread(taking.counted, outcome.accepted, outcome.already_there, outcome.rejected, outcome.size)
    _log.info(
        "upload.answered",
        extra={
            "upload": taking.id,
            "actor": taking.actor.name,
            "bytes": upload.size,
            "accepted": outcome.accepted,
            "rejected": outcome.rejected,
            "ms": taking.ms,
        },
    )
    return upload, outcome


async def _take(
    request: Request, services: ApiServices, taking: Taking, suffix: str
) -> tuple[UploadedFile, UploadOutcome]:
    settings = services.settings
    if await asyncio.to_thread(services.draining):
        raise Draining
    max_bytes = settings.max_upload_mib << 20
    require_acceptable(request, max_bytes + OVERHEAD_BYTES)
    folder = settings.data_dir / "uploads"
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(sweep, folder, services.clock.now().timestamp())
    except OSError as error:
        raise storage_error(error) from error
    target = folder / f"{new_id()}.zip"
    marks = services.receiver.spool.marks
    try:
        await asyncio.to_thread(taking.begin)
        body = measured(request.stream(), max_bytes + OVERHEAD_BYTES, services.clock)
        content_type = request.headers.get("content-type")
        upload = await receive_file(body, content_type, FIELD, suffix, target, max_bytes, marks)
        limits = ArchiveLimits(settings.max_zip_entries, settings.max_unpacked_mib << 20)
        outcome = await asyncio.to_thread(
            receive_upload, target, services.receiver, limits, taking.id, taking.address, taking.notes
        )
    finally:
        with suppress(OSError):  # What stays is swept later; the answer does not depend on it.
            await asyncio.to_thread(target.unlink, missing_ok=True)
    return upload, outcome


def build_router() -> APIRouter:
    """Routes of uploads; one set of slots for both, another for the question what is there."""
    router = APIRouter(tags=["upload"])
    slots, looks = Slots(MAX_UPLOADS), Slots(MAX_LOOKS)

    @router.post(
        "/api/v1/upload",
        dependencies=[UPLOADER],
        responses=documented(400, 401, 403, 408, 413, 415, 503, 507),
        openapi_extra=_BODY,
        summary="Store the DICOM files of a ZIP, or one DICOM file",
    )
    async def upload(request: Request, services: ApiServices = SERVICES) -> UploadResult:
        """Every DICOM file of the ZIP in field `file` is durable, and its study on the worklist, when this answers.

        One DICOM file that cannot be accepted refuses them all and nothing is stored. Other files are left out. A
        single DICOM file needs no ZIP. What is neither by its content is refused, whatever it is called.
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
        "/api/v1/instances/known",
        dependencies=[UPLOADER],
        responses=documented(401, 403, 422, 503),
        summary="Which objects are there already",
    )
    async def known(asked: InstancesAsked, services: ApiServices = SERVICES) -> InstancesKnown:
        """What was stored before an upload broke off need not be sent again. Tells nothing to who has not the bytes.

        Each object that is called known has been read from the disk, so a question that takes long is answered in
        part: ask again from `looked_at` on. What is here but damaged, or could still be lost in a power cut, is not
        known; sending it again mends it.
        """
        pairs = [(item.sop_uid, item.sha256) for item in asked.instances]
        async with looks.one():
            vouched = await asyncio.to_thread(vouched_for, services.database, services.blobs, services.clock, pairs)
        return InstancesKnown(known=list(vouched.known), looked_at=vouched.looked_at)

    @router.post(
        "/upload",
        dependencies=[UPLOADER],
        responses=documented(400, 401, 403, 408, 413, 415, 503, 507),
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
