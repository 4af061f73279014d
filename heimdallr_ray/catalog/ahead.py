"""Labels that are made ahead of their study: the wish for them, their row, and how often they were of use.

A job of this kind names its study in the payload alone: no state of the queue's job ever becomes one of the study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Protocol

from sqlalchemy import text
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import insert_job
from heimdallr_ray.catalog.recording import OPEN
from heimdallr_ray.catalog.states import JobPriority, StudyState
from heimdallr_ray.catalog.tables import JobRow, LabelsAheadRow, SeriesRow, StudyRow, TallyRow
from heimdallr_ray.ids import Sha256

AHEAD_JOB: Final = "speculation"
MAX_ATTEMPTS: Final = 2
KEPT_S: Final = 24 * 3600.0
"""Labels are removed at this age; a study that is open for longer is segmented by its own run."""
MAX_REMOVED: Final = 50
EVENT: Final = "study.labels_ahead"

_COUNT = text("""
    INSERT INTO tally (what, number) VALUES (:what, :by)
    ON CONFLICT (what) DO UPDATE SET number = tally.number + excluded.number
""")


class Outcome(StrEnum):
    """What became of an attempt to make labels ahead, and of the labels."""

    STARTED = "started"
    """The series is the one that the rules choose now; it is prepared."""
    MADE = "made"
    USED = "used"
    UNUSED = "unused"
    """Removed at their age; no study had taken them."""
    FAILED = "failed"
    GAVE_WAY = "gave_way"
    """Other work came first."""
    DROPPED = "dropped"
    """Before anything was prepared: the rules choose otherwise, the series grew, or the study was closed."""


class AheadJob(Protocol):
    """What is needed of the lease: `heimdallr_ray.queue.lease.Lease` is one."""

    @property
    def job_id(self) -> int:
        """The job's row."""
        ...

    @property
    def owner(self) -> str:
        """The worker's name."""
        ...


@dataclass(frozen=True)
class SeriesCount:
    """One series of a study, as far as it has come."""

    series_uid: str
    modality: str
    n_images: int


@dataclass(frozen=True)
class Wish:
    """Labels that are wanted: of this series as it is now, in this epoch of the study."""

    study_id: str
    epoch: int
    series_uid: str
    n_images: int

    def payload(self) -> dict[str, Any]:
        """What the job carries."""
        return {"study_id": self.study_id, "series_uid": self.series_uid, "n_images": self.n_images}

    @classmethod
    def of(cls, payload: Mapping[str, Any], epoch: int) -> Wish:
        """What the job was made for."""
        return cls(str(payload["study_id"]), epoch, str(payload["series_uid"]), int(payload["n_images"]))


def series_counts(session: Session, study_id: str) -> tuple[SeriesCount, ...]:
    """The study's series as far as they have come."""
    rows = session.exec(select(SeriesRow).where(SeriesRow.study_id == study_id)).all()
    return tuple(SeriesCount(row.series_uid, row.modality or "", row.n_instances) for row in rows)


def wish_for(session: Session, wish: Wish, *, now: datetime) -> bool:
    """There is a job for the wish, unless there ever was one for this series; returns whether it is new."""
    key = f"{wish.study_id}:{wish.series_uid}"
    if session.exec(select(JobRow.id).where(JobRow.kind == AHEAD_JOB, JobRow.key == key)).one_or_none() is not None:
        return False
    insert_job(
        session,
        AHEAD_JOB,
        key,
        now=now,
        epoch=wish.epoch,
        priority=JobPriority.AHEAD,
        max_attempts=MAX_ATTEMPTS,
        payload=wish.payload(),
    )
    return True


def still_wanted(session: Session, wish: Wish) -> bool:
    """True while images may still come to the study, and the series is as it was."""
    study = session.get(StudyRow, wish.study_id, populate_existing=True)
    if study is None or study.epoch != wish.epoch or StudyState(study.state) not in OPEN:
        return False
    count = select(SeriesRow.n_instances).where(
        SeriesRow.study_id == wish.study_id, SeriesRow.series_uid == wish.series_uid
    )
    return session.exec(count).one_or_none() == wish.n_images


def record_labels(
    session: Session,
    job: AheadJob,
    wish: Wish,
    inputs_sha256: str,
    document: Mapping[str, Any],
    seconds: float,
    *,
    now: datetime,
) -> None:
    """The labels can be found by their inputs, and the study's history says that they were made."""
    session.add(
        LabelsAheadRow(
            study_id=wish.study_id,
            epoch=wish.epoch,
            series_uid=wish.series_uid,
            job_id=job.job_id,
            inputs_sha256=str(Sha256.parse(inputs_sha256)),
            document=dict(document),
            made_at=now,
            seconds=seconds,
        )
    )
    count(session, Outcome.MADE)
    record_event(
        session,
        EVENT,
        now=now,
        actor=job.owner,
        study_id=wish.study_id,
        job_id=job.job_id,
        new=Outcome.MADE.value,
        reason=f"Labels of one series were made ahead, in {seconds:.1f} s, while the study settled.",
        payload={"inputs_sha256": inputs_sha256, "series_uid": wish.series_uid, "seconds": round(seconds, 3)},
    )


def labels_of(session: Session, study_id: str, inputs_sha256: str) -> LabelsAheadRow | None:
    """The labels that were made for this study from these inputs, or None."""
    statement = select(LabelsAheadRow).where(
        LabelsAheadRow.study_id == study_id, LabelsAheadRow.inputs_sha256 == inputs_sha256
    )
    return session.exec(statement).one_or_none()


def mark_used(session: Session, job: AheadJob, row_id: str, *, now: datetime) -> None:
    """The study's run takes the labels, and its history says so; a second time changes nothing."""
    row = session.get(LabelsAheadRow, row_id, populate_existing=True)
    if row is None or row.used_at is not None:
        return
    row.used_at, row.used_by = now, job.job_id
    session.add(row)
    count(session, Outcome.USED)
    record_event(
        session,
        EVENT,
        now=now,
        actor=job.owner,
        study_id=row.study_id,
        job_id=job.job_id,
        old=Outcome.MADE.value,
        new=Outcome.USED.value,
        reason=f"The labels are those of {row.made_at:%Y-%m-%d %H:%M:%S} UTC, made ahead: every input is equal.",
        payload={"made_by": row.job_id, "inputs_sha256": row.inputs_sha256},
    )


def outdated(session: Session, now: datetime, kept_s: float = KEPT_S) -> list[LabelsAheadRow]:
    """Labels that have reached the age of `kept_s`, the oldest first, at most MAX_REMOVED."""
    statement = (
        select(LabelsAheadRow)
        .where(col(LabelsAheadRow.made_at) <= now - timedelta(seconds=kept_s))
        .order_by(col(LabelsAheadRow.made_at))
        .limit(MAX_REMOVED)
    )
    return list(session.exec(statement).all())


def remove(session: Session, row_id: str) -> None:
    """The row is gone; labels that nobody had used are counted."""
    row = session.get(LabelsAheadRow, row_id, populate_existing=True)
    if row is None:
        return
    if row.used_at is None:
        count(session, Outcome.UNUSED)
    session.delete(row)


def count(session: Session, outcome: Outcome, by: int = 1) -> None:
    """The outcome is counted, in the caller's transaction."""
    session.flush()
    session.connection().execute(_COUNT, {"what": f"{AHEAD_JOB}.{outcome.value}", "by": by})


def counts(session: Session) -> dict[str, int]:
    """How often each outcome has come about in this installation; all of them, those that never did as 0."""
    prefix = f"{AHEAD_JOB}."
    rows = session.exec(select(TallyRow).where(col(TallyRow.what).startswith(prefix))).all()
    found = {row.what.removeprefix(prefix): row.number for row in rows}
    return {outcome.value: found.get(outcome.value, 0) for outcome in Outcome}
