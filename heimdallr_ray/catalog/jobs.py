"""The part of the queue that must share a transaction with catalog rows: insert, finish, cancel.

The queue itself (claim, renew, fail) is heimdallr_ray.queue; it uses these functions too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol, cast

from sqlalchemy import CursorResult, bindparam, text
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.states import JobState
from heimdallr_ray.catalog.tables import JobRow
from heimdallr_ray.catalog.types import UtcDateTime
from heimdallr_ray.errors import StaleLease

STUDY_JOB = "study"


class FencedJob(Protocol):
    """What proves that a worker still owns its job: `heimdallr_ray.queue.lease.Lease` is one."""

    @property
    def job_id(self) -> int:
        """The job's row."""
        ...

    @property
    def fence(self) -> int:
        """The fence of the claim; the row's fence is greater as soon as somebody else claimed it."""
        ...

    @property
    def study_id(self) -> str | None:
        """The study that the job belongs to."""
        ...

    @property
    def epoch(self) -> int:
        """The study's epoch that the job was made for."""
        ...

    @property
    def owner(self) -> str:
        """The worker's name."""
        ...


# Invariant: only the holder of the newest fence ends a running job, and a job ends once.
FINISH = text("""
    UPDATE job
       SET state = 'done', finished_at = :now, owner = NULL, lease_until = NULL, error_code = NULL, error = NULL
     WHERE id = :job_id AND fence = :fence AND state = 'running'
""").bindparams(bindparam("now", type_=UtcDateTime()))


def insert_job(
    session: Session,
    kind: str,
    key: str,
    *,
    now: datetime,
    study_id: str | None = None,
    epoch: int = 1,
    priority: int = 3,
    max_attempts: int = 3,
    payload: dict[str, Any] | None = None,
    run_at: datetime | None = None,
) -> JobRow:
    """There is one job of this kind and key; an existing one is returned as it is."""
    existing = session.exec(select(JobRow).where(JobRow.kind == kind, JobRow.key == key)).one_or_none()
    if existing is not None:
        return existing
    job = JobRow(
        kind=kind,
        key=key,
        study_id=study_id,
        epoch=epoch,
        priority=priority,
        run_at=run_at or now,
        max_attempts=max_attempts,
        payload=payload or {},
        created_at=now,
    )
    session.add(job)
    session.flush()
    return job


def finish_job(session: Session, lease: FencedJob, now: datetime) -> None:
    """The job is done, in the caller's transaction.

    Raises:
        StaleLease: the fence is not the newest, or the job is not running; the caller's work must be thrown away.
    """
    values = {"job_id": lease.job_id, "fence": lease.fence, "now": now}
    session.flush()
    changed = cast("CursorResult[Any]", session.connection().execute(FINISH, values)).rowcount
    if changed != 1:
        raise StaleLease(f"job {lease.job_id}: fence {lease.fence} does not hold it any more")
    record_event(
        session,
        "job.done",
        now=now,
        actor=lease.owner,
        study_id=lease.study_id,
        job_id=lease.job_id,
        payload={"fence": lease.fence},
    )


def cancel_jobs(session: Session, study_id: str, *, now: datetime, actor: str, reason: str) -> int:
    """No job of the study is waiting or running; who runs one finds its lease stale. Returns how many there were."""
    live = (JobState.QUEUED.value, JobState.RUNNING.value)
    statement = (
        select(JobRow)
        .where(JobRow.study_id == study_id, col(JobRow.state).in_(live))
        .order_by(col(JobRow.id))
        .with_for_update()
    )
    jobs = session.exec(statement, execution_options={"populate_existing": True}).all()
    for job in jobs:
        record_event(
            session,
            "job.cancelled",
            now=now,
            actor=actor,
            study_id=study_id,
            job_id=job.id,
            old=job.state,
            new=JobState.CANCELLED.value,
            reason=reason,
            payload={"fence": job.fence},
        )
        job.state = JobState.CANCELLED.value
        job.fence += 1
        job.owner = None
        job.lease_until = None
        job.finished_at = now
        session.add(job)
    return len(jobs)
