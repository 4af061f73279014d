"""STOW-RS (PS3.18 10.5): DICOM objects by HTTP, as PACS and gateways send them. Retrieval is not offered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from heimdallr_ray.api.access import SERVICES, UPLOADER
from heimdallr_ray.api.bodies import Slots, ThreadBody, measured, require_acceptable
from heimdallr_ray.api.dicomjson import JSON_TYPE, XML_TYPE, Attribute, chosen_type, encode
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.related import RelatedReader, parse_content_type
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.api.taking import Taking
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import Draining, NotAcceptable, UnsupportedMedia
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener.stow import StowFailed, StowOutcome, store_objects

_log = logging.getLogger(__name__)
MAX_REQUESTS = 4
"""Of one process at once; each has a thread of its own and its objects on the disk."""
OBJECT_TYPE = "application/dicom"
_TYPES = f'multipart/related; type="{OBJECT_TYPE}"'
_DOCUMENT = {"schema": {"type": "object", "description": "Store Instances Response Module (PS3.18 table I.2-1)."}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **documented(400, 401, 403, 406, 408, 413, 415, 503, 507),
    200: {"description": "All objects are stored.", "content": {JSON_TYPE: _DOCUMENT, XML_TYPE: _DOCUMENT}},
    202: {"description": "Some are stored; the others are listed.", "content": {JSON_TYPE: _DOCUMENT}},
    409: {"description": "None is stored; each is listed with its reason.", "content": {JSON_TYPE: _DOCUMENT}},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/related": {
                "schema": {"type": "string", "format": "binary", "description": "Each part an application/dicom file."}
            }
        },
    }
}


def object_bodies(reader: RelatedReader) -> Iterator[Iterator[bytes]]:
    """The body of each part.

    Raises:
        UnsupportedMedia: a part is no application/dicom; metadata with bulk data is not taken here.
    """
    for part in reader.parts():
        if part.content_type not in ("", OBJECT_TYPE) or part.transfer_encoding not in ("", "binary"):
            raise UnsupportedMedia(f"each part has to be {OBJECT_TYPE}, binary")
        yield part.body


def status_of(outcome: StowOutcome) -> int:
    """PS3.18 table 10.5.3-1."""
    if not outcome.failed:
        return 200
    return 202 if outcome.stored else 409


def response_module(outcome: StowOutcome) -> list[Attribute]:
    """The Store Instances Response Module (PS3.18 table I.2-1). Retrieve URL is empty: nothing can be retrieved."""
    nowhere = Attribute("00081190", "UR", "RetrieveURL")
    module = [nowhere]
    if outcome.stored:
        items = tuple((*_reference(item.sop_class_uid, item.sop_uid), nowhere) for item in outcome.stored)
        module.append(Attribute("00081199", "SQ", "ReferencedSOPSequence", items=items))
    named = tuple(
        (*_reference(item.sop_class_uid, item.sop_uid), _reason(item)) for item in outcome.failed if item.named
    )
    if named:
        module.append(Attribute("00081198", "SQ", "FailedSOPSequence", items=named))
    others = tuple((_reason(item),) for item in outcome.failed if not item.named)
    if others:
        module.append(Attribute("0008119A", "SQ", "OtherFailuresSequence", items=others))
    return module


def _reference(sop_class_uid: str, sop_uid: str) -> tuple[Attribute, Attribute]:
    return (
        Attribute("00081150", "UI", "ReferencedSOPClassUID", (sop_class_uid,) if sop_class_uid else ()),
        Attribute("00081155", "UI", "ReferencedSOPInstanceUID", (sop_uid,)),
    )


def _reason(failed: StowFailed) -> Attribute:
    return Attribute("00081197", "US", "FailureReason", (failed.status,))


async def _store(request: Request, services: ApiServices, pool: ThreadPoolExecutor, study: Uid | None) -> Response:
    taking = Taking(request, services, Door.STOW)
    wanted, outcome = await _take(request, services, pool, taking, study)
    if outcome.stored:
        stored, known = len(outcome.stored), outcome.already_there
        await asyncio.to_thread(taking.counted, stored, known, len(outcome.failed), outcome.size)
    told = taking.story.refused([item.code for item in outcome.failed])
    _log.info(
        "stow.answered",
        extra={"upload": taking.id, "actor": taking.actor.name, "status": status_of(outcome), "ms": taking.ms},
    )
    return Response(encode(response_module(outcome), wanted), status_of(outcome), media_type=wanted, background=told)


async def _take(
    request: Request, services: ApiServices, pool: ThreadPoolExecutor, taking: Taking, study: Uid | None
) -> tuple[str, StowOutcome]:
    settings = services.settings
    wanted = chosen_type(request.headers.get("accept"))
    if wanted is None:
        raise NotAcceptable(f"the answer can be {JSON_TYPE} or {XML_TYPE}")
    related = parse_content_type(request.headers.get("content-type"))
    if related is None or related.root_type not in ("", OBJECT_TYPE):
        raise UnsupportedMedia(f"send {_TYPES}")
    max_bytes = settings.max_upload_mib << 20
    require_acceptable(request, max_bytes)
    loop = asyncio.get_running_loop()
    if await asyncio.to_thread(services.draining):
        raise Draining
    await asyncio.to_thread(services.receiver.spool.require_room)
    await asyncio.to_thread(taking.begin)
    body = ThreadBody(measured(request.stream(), max_bytes, services.clock), loop)
    bodies = object_bodies(RelatedReader(iter(body), related.boundary, settings.max_zip_entries))
    try:
        outcome = await loop.run_in_executor(
            pool, store_objects, bodies, services.receiver, taking.id, taking.address, study, taking.notes
        )
    finally:
        body.abandon()
    return wanted, outcome


def build_router() -> APIRouter:
    """The two routes of the Store transaction."""
    router = APIRouter(prefix="/dicomweb", tags=["dicomweb"])
    slots = Slots(MAX_REQUESTS)
    # Threads of their own: one that waits for a slow sender must not keep those of other requests.
    pool = ThreadPoolExecutor(MAX_REQUESTS, "stow")

    @router.post(
        "/studies",
        dependencies=[UPLOADER],
        responses=_RESPONSES,
        openapi_extra=_BODY,
        response_class=Response,
        summary="Store DICOM objects (STOW-RS)",
    )
    async def store(request: Request, services: ApiServices = SERVICES) -> Response:
        """What is answered under Referenced SOP Sequence is durable, and its study on the worklist.

        Objects that cannot be taken stand under Failed SOP Sequence, or Other Failures Sequence where they do not say
        what they are, with the status that a C-STORE of them would have got.
        """
        async with slots.one():
            return await _store(request, services, pool, None)

    @router.post(
        "/studies/{study_uid}",
        dependencies=[UPLOADER],
        responses=_RESPONSES,
        openapi_extra=_BODY,
        response_class=Response,
        summary="Store DICOM objects of one study (STOW-RS)",
    )
    async def store_in_study(
        request: Request,
        study_uid: str = Path(description="StudyInstanceUID.", max_length=64),
        services: ApiServices = SERVICES,
    ) -> Response:
        """The same; objects of other studies fail with 0xA900."""
        async with slots.one():
            return await _store(request, services, pool, Uid.parse(study_uid))

    return router
