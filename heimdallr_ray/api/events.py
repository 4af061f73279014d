"""The live stream of the worklist."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from heimdallr_ray.api.access import READER
from heimdallr_ray.api.failures import documented
from heimdallr_ray.errors import NotReady
from heimdallr_ray.events.stream import Feed, parse_last_event_id

MAX_STREAMS = 100
"""Of one process. Each counts against the deployment's max_ongoing_requests, which leaves room for requests."""


def build_router(feed: Feed, max_streams: int = MAX_STREAMS) -> APIRouter:
    """The route of the live stream over `feed`."""
    router = APIRouter(prefix="/api/v1", tags=["live"])
    streams = 0

    async def counted(last_event_id: int | None) -> AsyncIterator[bytes]:
        nonlocal streams
        streams += 1
        try:
            async for message in feed.messages(last_event_id):
                yield message
        finally:
            streams -= 1

    @router.get(
        "/events",
        dependencies=[READER],
        responses={
            **documented(401, 403, 503),
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        },
        response_class=StreamingResponse,
        summary="Changes as they happen (Server-Sent Events)",
    )
    async def events(
        last_event_id: str | None = Header(None, description="Continue after this event."),
        last: str | None = Query(None, description="The same, for clients that cannot set a header."),
    ) -> StreamingResponse:
        """Messages `study` and `job` tell what changed, `resync` that everything should be fetched anew."""
        if streams >= max_streams:
            raise NotReady("too many live streams; poll instead")
        return StreamingResponse(
            counted(parse_last_event_id(last_event_id or last)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"},
        )

    return router
