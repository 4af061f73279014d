"""A person asks for a study to be worked on again: a fresh job for the same images."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.closing import manifest_sha256
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.catalog.priority import ordered_class, urgency_class
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import study_by_uid
from heimdallr_ray.catalog.tables import JobRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study, transition
from heimdallr_ray.errors import NotFound, NotRetryable

RETRYABLE = frozenset({StudyState.FAILED, StudyState.NOT_APPLICABLE, StudyState.CANCELLED})
"""States without a result in which nothing happens any more by itself."""


def retry_study(session: Session, study_uid: str, *, now: datetime, max_attempts: int, actor: str) -> JobRow:
    """The study waits in the queue with a fresh job, in the caller's transaction; the history says who asked.

    The job has all its attempts. The epoch stays: the images are the same.

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
    lock_study_uid(session, study_uid)
    found = study_by_uid(session, study_uid)
    if found is None:
        raise NotFound("there is no such study")
    study = locked_study(session, found.id)
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
    study = transition(session, study.id, StudyState.QUEUED, now=now, actor=actor)
    if study.manifest_sha256 is None or study.closed_at is None:
        # It was cancelled before its images were complete; what is there is what there is.
        study.manifest_sha256, study.closed_at = manifest_sha256(session, study.id), now
        session.add(study)
    earlier = select(func.count()).where(JobRow.study_id == study.id, col(JobRow.epoch) == study.epoch)
    number = max(1, session.exec(earlier).one())
    return insert_job(
        session,
        STUDY_JOB,
        f"{study.id}:{study.epoch}:r{number}",
        now=now,
        study_id=study.id,
        epoch=study.epoch,
        priority=min(ordered_class(study.ordered_priority), urgency_class(study.urgency)),
        max_attempts=max_attempts,
        payload={"manifest_sha256": study.manifest_sha256},
    )
