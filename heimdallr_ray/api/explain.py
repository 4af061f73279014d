"""One route: what the reason codes mean."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from heimdallr_ray.api.access import ANYONE
from heimdallr_ray.reasons import SENTENCES


class Reasons(BaseModel):
    """The sentences of this version."""

    reasons: dict[str, str] = Field(description="Reason code to what it means and what to do about it.")


def build_router() -> APIRouter:
    """GET /api/v1/reasons."""
    router = APIRouter(prefix="/api/v1", tags=["studies"])

    @router.get("/reasons", dependencies=[ANYONE], summary="What the reason codes mean")
    async def reasons() -> Reasons:
        """One sentence or two for every code of studies, series, images, left out tasks and measurements."""
        return Reasons(reasons=dict(SENTENCES))

    return router
