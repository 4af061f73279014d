"""Read-only questions that the API asks: the worklist in its order, one study's details, the event stream, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, case, or_
from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.ahead import AHEAD_JOB
from heimdallr_ray.catalog.conflicts import contested_uids
from heimdallr_ray.catalog.priority import ORDERED_CLASS, ROUTINE_CLASS
from heimdallr_ray.catalog.results import current_result, results_of
from heimdallr_ray.catalog.states import JobPriority, JobState
from heimdallr_ray.catalog.studies import series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import (
    ArtifactRow,
    EventRow,
    InstanceRow,
    JobRow,
    JobStepRow,
    ResultRow,
    SeriesRow,
    StudyRow,
)

MAX_ROWS = 500
"""Rows that one call returns at most."""
MAX_TEXT = 64


@dataclass(frozen=True)
class StudyDetail:
    """One study with everything its page shows."""

    study: StudyRow
    series: tuple[SeriesRow, ...]
    result: ResultRow | None
    """The one that stands."""
    superseded: tuple[ResultRow, ...]
    """Older results, the newest first."""
    artifacts: tuple[ArtifactRow, ...]
    """Of `result`."""
    jobs: tuple[JobRow, ...]
    """The newest first."""
    uid_conflicts: int = 0
    """SOP Instance UIDs of its images under which others came, with other bytes."""


@dataclass(frozen=True)
class QueueDepth:
    """How much work waits and runs."""

    queued: int
    running: int
    dead: int
    oldest_run_at: datetime | None
    """Of the jobs that wait."""


def worklist(
    session: Session, *, limit: int, offset: int, state: str | None = None, text: str | None = None
) -> list[StudyRow]:
    """Studies in reading order: effective class, then first arrival, then study UID.

    The effective class is the more urgent of our urgency and the ordered priority; unknown is ROUTINE.

    Args:
        session: Of `Database.read()`.
        limit: At most `MAX_ROWS` are returned.
        offset: Rows to leave out at the front.
        state: Only studies in this state.
        text: Only studies whose patient id or name, accession number, description or UID contains it, in any case.
    """
    statement = (
        select(StudyRow)
        .where(*_filters(state, text))
        .order_by(_effective_class(), col(StudyRow.first_received_at), col(StudyRow.study_uid))
        .limit(max(0, min(limit, MAX_ROWS)))
        .offset(max(0, offset))
    )
    return list(session.exec(statement).all())


def worklist_count(session: Session, *, state: str | None = None, text: str | None = None) -> int:
    """How many studies `worklist` would return without a limit."""
    return session.exec(select(func.count()).select_from(StudyRow).where(*_filters(state, text))).one()


def study_detail(session: Session, study_uid: str) -> StudyDetail | None:
    """The study with its series, results, artifacts and jobs; None where there is no such study."""
    study = study_by_uid(session, study_uid)
    if study is None:
        return None
    result = current_result(session, study.id)
    return StudyDetail(
        study=study,
        series=tuple(series_of(session, study.id)),
        result=result,
        superseded=tuple(row for row in results_of(session, study.id) if row.superseded_by is not None),
        artifacts=() if result is None else tuple(artifacts_of(session, result.id)),
        jobs=tuple(jobs_of(session, study.id)),
        uid_conflicts=contested_uids(session, [study.id]).get(study.id, 0),
    )


def series_of(session: Session, study_id: str) -> list[SeriesRow]:
    """The study's series, by series number, then UID."""
    return series_rows_of(session, study_id)


def artifacts_of(session: Session, result_id: str) -> list[ArtifactRow]:
    """The result's files, by kind, then name."""
    statement = (
        select(ArtifactRow)
        .where(ArtifactRow.result_id == result_id)
        .order_by(col(ArtifactRow.kind), col(ArtifactRow.name))
    )
    return list(session.exec(statement).all())


def artifact_named(session: Session, result_id: str, name: str) -> ArtifactRow | None:
    """The result's file of this name, or None. The name is compared, never used as a path."""
    statement = select(ArtifactRow).where(ArtifactRow.result_id == result_id, ArtifactRow.name == name)
    return session.exec(statement).one_or_none()


def newest_results(session: Session, study_ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
    """Latest epoch and urgency of the newest result of each of at most `MAX_ROWS` studies that have one."""
    statement = (
        select(ResultRow.study_id, func.coalesce(ResultRow.kept_epoch, ResultRow.epoch), ResultRow.urgency)
        .where(col(ResultRow.study_id).in_(study_ids[:MAX_ROWS]), col(ResultRow.superseded_by).is_(None))
        .order_by(col(ResultRow.version))
    )
    return {study_id: (epoch, urgency) for study_id, epoch, urgency in session.exec(statement).all()}


def images_until(session: Session, study_id: str, epoch: int) -> int:
    """How many of the study's images came in up to and with `epoch`: those that its result is made from."""
    statement = (
        select(func.count())
        .select_from(InstanceRow)
        .where(InstanceRow.study_id == study_id, col(InstanceRow.epoch) <= epoch)
    )
    return session.exec(statement).one()


def events_after(session: Session, last_id: int, limit: int) -> list[EventRow]:
    """The events after `last_id`, oldest first, at most `limit` and `MAX_ROWS`; none is ever committed behind it."""
    statement = (
        select(EventRow)
        .where(col(EventRow.id) > last_id)
        .order_by(col(EventRow.id))
        .limit(max(0, min(limit, MAX_ROWS)))
    )
    return list(session.exec(statement).all())


def last_event_id(session: Session) -> int:
    """The id of the newest event; 0 where there is none."""
    return session.exec(select(func.max(EventRow.id))).one() or 0


def event_history(session: Session, study_id: str, limit: int = MAX_ROWS) -> list[EventRow]:
    """The newest `limit` events of the study, oldest first."""
    statement = (
        select(EventRow)
        .where(EventRow.study_id == study_id)
        .order_by(col(EventRow.id).desc())
        .limit(max(0, min(limit, MAX_ROWS)))
    )
    return list(reversed(session.exec(statement).all()))


def jobs_of(session: Session, study_id: str) -> list[JobRow]:
    """The study's jobs, the newest first."""
    statement = select(JobRow).where(JobRow.study_id == study_id).order_by(col(JobRow.id).desc()).limit(MAX_ROWS)
    return list(session.exec(statement).all())


def steps_of(session: Session, job_id: int) -> list[JobStepRow]:
    """The job's finished steps in the order in which they were recorded."""
    statement = select(JobStepRow).where(JobStepRow.job_id == job_id).order_by(col(JobStepRow.id)).limit(MAX_ROWS)
    return list(session.exec(statement).all())


def counts_by_state(session: Session) -> dict[str, int]:
    """How many studies are in each state; states without one are absent."""
    rows = session.exec(select(StudyRow.state, func.count()).group_by(col(StudyRow.state))).all()
    return dict(rows)


def queue_depth(session: Session, kinds: tuple[str, ...] = ()) -> QueueDepth:
    """How many jobs of `kinds` (none given: all that somebody waits for) wait, run and are dead, from the rows."""
    of_kinds = [col(JobRow.kind).in_(kinds) if kinds else col(JobRow.kind) != AHEAD_JOB]
    counts = dict(session.exec(select(JobRow.state, func.count()).where(*of_kinds).group_by(col(JobRow.state))).all())
    waiting = select(func.min(JobRow.run_at)).where(JobRow.state == JobState.QUEUED.value, *of_kinds)
    return QueueDepth(
        queued=counts.get(JobState.QUEUED.value, 0),
        running=counts.get(JobState.RUNNING.value, 0),
        dead=counts.get(JobState.DEAD.value, 0),
        oldest_run_at=session.exec(waiting).one(),
    )


def _effective_class() -> ColumnElement[int]:
    ours = case(
        {urgency.value: number for urgency, number in JobPriority.LIVE.items()},
        value=col(StudyRow.urgency),
        else_=ROUTINE_CLASS,
    )
    theirs = case(ORDERED_CLASS, value=func.upper(func.trim(StudyRow.ordered_priority)), else_=ROUTINE_CLASS)
    return case((ours <= theirs, ours), else_=theirs)


def _filters(state: str | None, text: str | None) -> list[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = []
    if state is not None:
        filters.append(col(StudyRow.state) == state)
    wanted = (text or "").replace("\0", "").strip()[:MAX_TEXT].lower()
    if wanted:
        columns = (
            StudyRow.patient_id,
            StudyRow.patient_name,
            StudyRow.accession_number,
            StudyRow.study_description,
            StudyRow.study_uid,
        )
        filters.append(or_(*(func.lower(col(column)).contains(wanted, autoescape=True) for column in columns)))
    return filters
