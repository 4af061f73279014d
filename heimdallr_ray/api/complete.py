"""One route: a person says that a study is complete."""

from __future__ import annotations

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from heimdallr_ray.api.access import OPERATOR, SERVICES, actor_of
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog.choosing import MAX_NAME, MAX_REASON
from heimdallr_ray.catalog.closing import complete_study
from heimdallr_ray.ids import Uid
from heimdallr_ray.security.audited import study_completed

ACTOR = "api"
MAX_ACTOR = 64
"""Width of the column."""


class CompletionWanted(BaseModel):
    """Who says that it is complete, and why."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Why; kept in the history.")
    completed_by: str = Field(min_length=1, max_length=MAX_NAME, description="Who, by name; kept in the history.")


class CompletionAccepted(BaseModel):
    """The study waits to be analysed."""

    study_uid: str
    state: str = Field(description="queued.")
    n_instances: int = Field(description="Images that it is closed with.")


def build_router() -> APIRouter:
    """POST /api/v1/studies/{study_uid}/complete."""
    router = APIRouter(prefix="/api/v1/studies", tags=["studies"], dependencies=[OPERATOR])

    @router.post(
        "/{study_uid}/complete",
        status_code=202,
        responses=documented(400, 401, 403, 404, 409, 422, 503),
        summary="It is complete: analyse it now",
    )
    def complete(
        wanted: CompletionWanted,
        request: Request,
        study_uid: str = Path(description="StudyInstanceUID.", max_length=64),
        services: ApiServices = SERVICES,
    ) -> CompletionAccepted:
        """A study that is receiving or settling is closed as it stands and queued, whoever may still be sending to it.

        An image that comes later opens its next epoch. 409 `not_open` in every other state.
        """
        uid = Uid.parse(study_uid)
        now = services.clock.now()

        def close(session: Session) -> CompletionAccepted:
            study = complete_study(
                session,
                uid,
                reason=wanted.reason,
                by=wanted.completed_by,
                now=now,
                max_attempts=services.settings.max_attempts,
                actor=f"{ACTOR}:{wanted.completed_by.strip()}"[:MAX_ACTOR],
            )
            study_completed(services.audit, session, study.id, wanted.completed_by, actor_of(request), now)
            return CompletionAccepted(study_uid=uid, state=study.state, n_instances=study.n_instances)

        return services.receiver.close_hard(uid, close)

    return router
