"""One route: measure another series of a study, or the same one with the tilt taken out."""

from __future__ import annotations

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from heimdallr_ray.api import views
from heimdallr_ray.api.access import OPERATOR, SERVICES, actor_of
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.models import ChoiceView
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog.choosing import MAX_NAME, MAX_REASON
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.ids import Uid
from heimdallr_ray.security.audited import series_chosen

ACTOR = "api"
MAX_ACTOR = 64
"""Width of the column."""


class SeriesWanted(BaseModel):
    """A person's choice."""

    model_config = ConfigDict(extra="forbid")

    series_uid: str | None = Field(
        max_length=64, description="SeriesInstanceUID; null: the rules choose again, but see `keep_series`."
    )
    part: int | None = Field(None, ge=0, description="Of a series that was split; null: the best of its parts.")
    deskew: bool | None = Field(
        None,
        description="Whether a tilt of the gantry is taken out of the images before models run; null: as the site's "
        "setting says.",
    )
    keep_series: bool = Field(
        True,
        description="Where `series_uid` is null and `deskew` is not: whether a series that a person chose earlier "
        "stays chosen. False: the rules choose it.",
    )
    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Why; kept in the history and the results.")
    chosen_by: str = Field(
        min_length=1, max_length=MAX_NAME, description="Who, by name; kept in the history and the results."
    )


class SeriesChoiceAccepted(BaseModel):
    """The study waits to be measured anew."""

    study_uid: str
    state: str = Field(description="queued.")
    series_uid: str | None = Field(description="That is measured now; null: the rules choose it.")
    part: int | None
    deskew: bool | None
    choice: ChoiceView | None = Field(description="What a person chose, as it stands now; null: rules and settings do.")
    before: ChoiceView | None = Field(description="What a person had chosen before.")


def build_router() -> APIRouter:
    """POST /api/v1/studies/{study_uid}/series."""
    router = APIRouter(prefix="/api/v1/studies", tags=["studies"], dependencies=[OPERATOR])

    @router.post(
        "/{study_uid}/series",
        status_code=202,
        responses=documented(400, 401, 403, 404, 409, 422, 503),
        summary="Measure another series, or without the tilt",
    )
    def choose(
        wanted: SeriesWanted,
        request: Request,
        study_uid: str = Path(description="StudyInstanceUID.", max_length=64),
        services: ApiServices = SERVICES,
    ) -> SeriesChoiceAccepted:
        """A study that has ended is queued, to be measured on the series named, or deskewed; its results stand.

        400 `not_a_volume` where the series is no volume, with the rule's name; 404 where the study has no such series;
        409 `not_retryable` while the study is received or worked on, `no_tilt` where a series is known to have none.
        """
        uid = Uid.parse(study_uid)
        series_uid = None if wanted.series_uid is None else Uid.parse(wanted.series_uid)
        now = services.clock.now()
        with services.database.write() as session:
            made = choose_series(
                session,
                uid,
                series_uid,
                wanted.part,
                deskew=wanted.deskew,
                keep_series=wanted.keep_series,
                reason=wanted.reason,
                chosen_by=wanted.chosen_by,
                now=now,
                max_attempts=services.settings.max_attempts,
                actor=f"{ACTOR}:{wanted.chosen_by.strip()}"[:MAX_ACTOR],
            )
            series_chosen(services.audit, session, made, wanted.chosen_by, actor_of(request), now)
        choice = made.choice
        return SeriesChoiceAccepted(
            study_uid=uid,
            state="queued",
            series_uid=None if choice is None else choice.series_uid,
            part=None if choice is None else choice.part,
            deskew=None if choice is None else choice.deskew,
            choice=views.choice_view(choice),
            before=views.choice_view(made.before),
        )

    return router
