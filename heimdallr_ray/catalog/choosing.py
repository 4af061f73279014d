"""A person names the series of a study that is to be measured, or how it is to be prepared, or leaves it to the rules.

The choice travels in the payload of the job. It stands until a person makes another one: a retry and a new epoch of the
same study follow it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, cast

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import STUDY_JOB
from heimdallr_ray.catalog.tables import JobRow, SeriesRow, StudyRow
from heimdallr_ray.errors import NotAVolume, NotFound

PAYLOAD_KEY: Final = "series"
MAX_REASON: Final = 500
MAX_NAME: Final = 64


@dataclass(frozen=True)
class SeriesChosen:
    """A person's choice.

    Attributes:
        series_uid: Series Instance UID; None: the rules choose.
        part: of a series that was split; None: the best of its parts.
        chosen_by: who.
        chosen_at: when, ISO 8601, UTC.
        reason: why, in the person's words.
        deskew: whether a tilt is taken out of the images before models run; None: as the site's setting says.
    """

    series_uid: str | None
    part: int | None
    chosen_by: str
    chosen_at: str
    reason: str
    deskew: bool | None = None


def chosen_in(payload: Mapping[str, Any]) -> SeriesChosen | None:
    """The choice that a job carries, or None."""
    kept = payload.get(PAYLOAD_KEY)
    return SeriesChosen(**cast("dict[str, Any]", kept)) if isinstance(kept, dict) else None


def standing_choice(session: Session, study_id: str) -> SeriesChosen | None:
    """The choice that the study's newest job carries, or None."""
    statement = (
        select(JobRow)
        .where(JobRow.study_id == study_id, JobRow.kind == STUDY_JOB)
        .order_by(col(JobRow.id).desc())
        .limit(1)
    )
    newest = session.exec(statement).one_or_none()
    return None if newest is None else chosen_in(newest.payload)


def job_payload(manifest_sha256: str | None, choice: SeriesChosen | None) -> dict[str, Any]:
    """What a study's job carries."""
    payload: dict[str, Any] = {"manifest_sha256": manifest_sha256}
    if choice is not None:
        payload[PAYLOAD_KEY] = asdict(choice)
    return payload


def require_choosable(session: Session, study: StudyRow, series_uid: str, part: int | None) -> None:
    """Nothing happens where the series may be chosen, as far as the catalog knows.

    Raises:
        NotFound: the study has no such series, or the series no such part.
        NotAVolume: the last selection found that it is no volume; names the rule.
    """
    row = session.exec(
        select(SeriesRow).where(SeriesRow.study_id == study.id, SeriesRow.series_uid == series_uid)
    ).one_or_none()
    if row is None:
        raise NotFound("the study has no such series")
    parts = cast("list[dict[str, Any]]", (row.selection or {}).get("parts", []))
    named = [one for one in parts if part is None or one.get("part") == part]
    if parts and not named:
        raise NotFound("the series has no such part")
    if named and not any(one.get("can_be_chosen") for one in named):
        code = str(named[0].get("code"))
        raise NotAVolume(code, f"{code}: {named[0].get('reason')}")


def record_choice(
    session: Session, study: StudyRow, choice: SeriesChosen | None, *, now: datetime, actor: str, reason: str
) -> None:
    """The history says who chose which series, and why; or that the rules choose again."""
    before = standing_choice(session, study.id)
    record_event(
        session,
        "study.series",
        now=now,
        actor=actor,
        study_id=study.id,
        old=_words(before),
        new=_words(choice),
        reason=reason,
        payload={"epoch": study.epoch, "choice": None if choice is None else asdict(choice)},
    )


def _words(choice: SeriesChosen | None) -> str:
    series = "rules" if choice is None or choice.series_uid is None else choice.series_uid
    if choice is None or choice.deskew is None:
        return series
    return f"{series}, {'deskewed' if choice.deskew else 'not deskewed'}"
