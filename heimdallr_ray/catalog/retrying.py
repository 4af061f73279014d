"""A person asks for a study to be worked on again, as it is or with another series: a fresh job for the same images."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.choosing import (
    MAX_NAME,
    MAX_REASON,
    SeriesChosen,
    job_payload,
    next_choice,
    record_choice,
    require_choosable,
    require_tilt,
    standing_choice,
)
from heimdallr_ray.catalog.closing import manifest_sha256
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.catalog.priority import ordered_class, urgency_class
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import study_by_uid
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study, transition
from heimdallr_ray.errors import BadIdentifier, NotFound, NotRetryable

RETRYABLE = frozenset({StudyState.FAILED, StudyState.NOT_APPLICABLE, StudyState.CANCELLED})
"""States without a result in which nothing happens any more by itself."""
CHOOSABLE = RETRYABLE | {StudyState.DONE}
"""States in which a person may choose another series."""


@dataclass(frozen=True)
class ChoiceMade:
    """What a person's wish made of a study's choice, and the job that follows it."""

    job: JobRow
    before: SeriesChosen | None
    choice: SeriesChosen | None


def retry_study(session: Session, study_uid: str, *, now: datetime, max_attempts: int, actor: str) -> JobRow:
    """The study waits in the queue with a fresh job, in the caller's transaction; the history says who asked.

    The job has all its attempts. The epoch stays: the images are the same. A series that a person chose stays chosen.

    Args:
        session: Of `Database.write()`.
        study_uid: StudyInstanceUID.
        now: UTC.
        max_attempts: Of the fresh job.
        actor: Who asked, for the history.

    Raises:
        NotFound: there is no such study.
        NotRetryable: it is not failed, not applicable or cancelled; says what it is.
    """
    study = _locked(session, study_uid)
    state = StudyState(study.state)
    if state not in RETRYABLE:
        raise NotRetryable(f"the study is {state.value}; only failed, not_applicable and cancelled ones can be retried")
    record_event(
        session,
        "study.retry",
        now=now,
        actor=actor,
        study_id=study.id,
        old=state.value,
        new=StudyState.QUEUED.value,
        reason=study.reason,
        payload={"epoch": study.epoch, "reason_code": study.reason_code},
    )
    choice = standing_choice(session, study.id)
    return _queued(session, study, choice, now=now, max_attempts=max_attempts, actor=actor)


def choose_series(
    session: Session,
    study_uid: str,
    series_uid: str | None,
    part: int | None = None,
    *,
    deskew: bool | None = None,
    keep_series: bool = True,
    reason: str,
    chosen_by: str,
    now: datetime,
    max_attempts: int,
    actor: str,
) -> ChoiceMade:
    """The study waits in the queue to be measured as a person says: which series, how; in the caller's transaction.

    Its results, if it has any, stand until the new ones are there. The history says who chose, when and why.

    Args:
        session: Of `Database.write()`.
        study_uid: StudyInstanceUID.
        series_uid: Series Instance UID; None: the rules choose again, but see `keep_series`.
        part: of a series that was split; None: the best of its parts.
        deskew: whether a tilt is taken out before models run; None: as the site's setting says.
        reason: why, in the person's words; not blank.
        keep_series: whether a wish about the tilt alone leaves the series that a person chose earlier as it is.
        chosen_by: the person's name; not blank.
        now: UTC.
        max_attempts: Of the fresh job.
        actor: Who asked, for the history.

    Raises:
        NotFound: there is no such study, series or part.
        NotAVolume: the last selection found that the series is no volume; names the rule.
        NoTilt: the last selection found that there is no tilt about which `deskew` could say anything.
        NotRetryable: the study is still being received or worked on; says what it is.
        BadIdentifier: the reason or the name is blank or too long.
    """
    why, who = reason.strip(), chosen_by.strip()
    if not why or len(why) > MAX_REASON or not who or len(who) > MAX_NAME:
        raise BadIdentifier(f"a reason of 1 to {MAX_REASON} letters and a name of 1 to {MAX_NAME} are needed")
    study = _locked(session, study_uid)
    state = StudyState(study.state)
    if state not in CHOOSABLE:
        raise NotRetryable(f"the study is {state.value}; a series can be chosen once it has ended")
    before = standing_choice(session, study.id)
    wish = SeriesChosen(series_uid, None if series_uid is None else part, who, now.isoformat(), why, deskew)
    choice = next_choice(before, wish, keep_series=keep_series)
    if choice is not None and choice.series_uid is not None:
        require_choosable(session, study, choice.series_uid, choice.part)
    if choice is not None and deskew is not None:
        require_tilt(session, study, choice)
    record_choice(session, study, before, choice, now=now, actor=actor, reason=why)
    job = _queued(session, study, choice, now=now, max_attempts=max_attempts, actor=actor)
    return ChoiceMade(job, before, choice)


def _locked(session: Session, study_uid: str) -> StudyRow:
    lock_study_uid(session, study_uid)
    found = study_by_uid(session, study_uid)
    if found is None:
        raise NotFound("there is no such study")
    return locked_study(session, found.id)


def _queued(
    session: Session, study: StudyRow, choice: SeriesChosen | None, *, now: datetime, max_attempts: int, actor: str
) -> JobRow:
    study = transition(session, study.id, StudyState.QUEUED, now=now, actor=actor)
    if study.manifest_sha256 is None or study.closed_at is None:
        # It was cancelled before its images were complete; what is there is what there is.
        study.manifest_sha256, study.closed_at = manifest_sha256(session, study.id), now
        session.add(study)
    # Its own first job is not counted: a study that was cancelled while it was received has none.
    stem = f"{study.id}:{study.epoch}:r"
    earlier = select(func.count()).where(JobRow.study_id == study.id, col(JobRow.key).startswith(stem))
    number = session.exec(earlier).one() + 1
    return insert_job(
        session,
        STUDY_JOB,
        f"{stem}{number}",
        now=now,
        study_id=study.id,
        epoch=study.epoch,
        priority=min(ordered_class(study.ordered_priority), urgency_class(study.urgency)),
        max_attempts=max_attempts,
        payload=job_payload(study.manifest_sha256, choice),
    )
