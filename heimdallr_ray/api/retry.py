"""One route: work on a study again."""

from __future__ import annotations

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from heimdallr_ray.api.access import OPERATOR, SERVICES, actor_of
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog.retrying import retry_study
from heimdallr_ray.ids import Uid
from heimdallr_ray.security.audited import study_retried

ACTOR = "api"


class RetryAccepted(BaseModel):
    """The study waits again."""

    study_uid: str
    state: str = Field(description="queued.")


def build_router() -> APIRouter:
    """POST /api/v1/studies/{study_uid}/retry."""
    router = APIRouter(prefix="/api/v1/studies", tags=["studies"], dependencies=[OPERATOR])

    @router.post(
        "/{study_uid}/retry",
        status_code=202,
        responses=documented(400, 401, 403, 404, 409, 503),
        summary="Work on it again",
    )
    def retry(
        request: Request,
        study_uid: str = Path(description="StudyInstanceUID.", max_length=64),
        services: ApiServices = SERVICES,
    ) -> RetryAccepted:
        """A failed, not applicable or cancelled study is queued again, with all its attempts.

        409 `not_retryable` in every other state.
        """
        uid = Uid.parse(study_uid)
        now = services.clock.now()
        with services.database.write() as session:
            job = retry_study(
                session,
                uid,
                now=now,
                max_attempts=services.settings.max_attempts,
                actor=ACTOR,
            )
            study_retried(services.audit, session, job, actor_of(request), now)
        return RetryAccepted(study_uid=uid, state="queued")

    return router
