"""The result of a study: committed together with its artifacts, the study's state and the end of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import FencedJob, finish_job
from heimdallr_ray.catalog.states import StudyState, Urgency
from heimdallr_ray.catalog.tables import ArtifactRow, InstanceRow, ResultRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.transitions import bounded_reason, locked_study, set_urgency, transition
from heimdallr_ray.errors import NotFound, StaleLease
from heimdallr_ray.ids import Sha256

LATE_IMAGES_UNCHANGED: Final = "late_images_unchanged"
"""Images came after a result was made, and all that it was made from is as it was."""


def _no_meta() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class NewArtifact:
    """One file of a result whose bytes are already in the blob store."""

    name: str
    kind: str
    media_type: str
    sha256: Sha256
    size: int
    meta: Mapping[str, Any] = field(default_factory=_no_meta)
    """JSON."""


@dataclass(frozen=True)
class SeriesChoice:
    """What the selection said about one series."""

    series_uid: str
    chosen: bool
    reject_code: str | None = None
    reason: str | None = None
    geometry: Mapping[str, Any] | None = None
    """JSON: shape, spacing_mm, flags of the assembled volume."""
    selection: Mapping[str, Any] | None = None
    """JSON: the rules, and every line of each part."""


def commit_result(
    session: Session,
    lease: FencedJob,
    document: Mapping[str, Any],
    artifacts: Sequence[NewArtifact],
    urgency: Urgency | None,
    *,
    now: datetime,
    urgency_reason: str | None = None,
    synthetic: bool = False,
    selection: Sequence[SeriesChoice] = (),
    inputs_sha256: str | None = None,
) -> ResultRow:
    """The job is done, its result stands and the study is done: all or nothing, in the caller's write transaction.

    An earlier result of the study stays and points to the new one. The study's urgency rises to `urgency` and never
    falls by a machine (docs/architecture.md, decision 11); the result keeps its own class.

    Args:
        session: Of `Database.write()`.
        lease: The worker's claim; its study must still be in the epoch that the job was made for.
        document: JSON of the result, the same as the artifact results.json.
        artifacts: Files, with their blobs already durable.
        urgency: The class that the rules gave; None where nothing could be ruled.
        now: UTC.
        urgency_reason: Which rule and value, for a person.
        synthetic: True where demo weights or phantoms took part.
        selection: What to keep about the study's series.
        inputs_sha256: Of everything that the result was made from; None: never kept for a later epoch.

    Raises:
        StaleLease: somebody else holds the job, or it has ended, or the study has moved on; nothing is changed.
        NotFound: the job has no study, or `selection` names a series that the study does not have.
    """
    study = _finished(session, lease, now)
    record_selection(session, study.id, selection)
    result = ResultRow(
        study_id=study.id,
        job_id=lease.job_id,
        epoch=lease.epoch,
        version=_next_version(session, study.id),
        fence=lease.fence,
        created_at=now,
        urgency=None if urgency is None else urgency.value,
        synthetic=synthetic,
        document=dict(document),
        inputs_sha256=inputs_sha256,
    )
    for old in _standing(session, study.id):
        old.superseded_by = result.id
        session.add(old)
    session.add(result)
    session.flush()
    session.add_all(_artifact_row(result, item) for item in artifacts)
    study.synthetic = study.synthetic or synthetic
    session.add(study)
    if urgency is not None:
        set_urgency(session, study.id, urgency, urgency_reason, now=now, actor=lease.owner)
    elif study.urgency in (None, Urgency.P3.value):
        # No class from AI is an answer too, and the reader is told why. An older P3 raised nothing.
        study.urgency_reason = bounded_reason(urgency_reason)
        session.add(study)
    transition(session, study.id, StudyState.DONE, now=now, actor=lease.owner)
    record_event(
        session,
        "study.result",
        now=now,
        actor=lease.owner,
        study_id=study.id,
        job_id=lease.job_id,
        new=str(result.version),
        payload={"result_id": result.id, "epoch": result.epoch, "urgency": result.urgency, "fence": result.fence},
    )
    session.flush()
    return result


def standing_result(session: Session, study_id: str, epoch: int, inputs_sha256: str | None) -> ResultRow | None:
    """The study's result where it was made for an earlier epoch than `epoch` from the same inputs; else None."""
    row = current_result(session, study_id)
    if row is None or inputs_sha256 is None or row.inputs_sha256 != inputs_sha256 or stands_until(row) >= epoch:
        return None
    return row


def stands_until(row: ResultRow) -> int:
    """The latest epoch of its study that the result stands for."""
    return row.kept_epoch or row.epoch


def keep_result(
    session: Session,
    lease: FencedJob,
    result_id: str,
    *,
    now: datetime,
    selection: Sequence[SeriesChoice] = (),
) -> ResultRow:
    """The job is done without a run and the study too: its result stands for this epoch, and the history says why.

    Args:
        session: Of `Database.write()`.
        lease: The worker's claim; its study must still be in the epoch that the job was made for.
        result_id: The study's standing result, whose inputs are those of this epoch.
        now: UTC.
        selection: What to keep about series that the result says nothing of.

    Raises:
        StaleLease: as `commit_result`; or another result has taken this one's place.
        NotFound: as `commit_result`.
    """
    study = _finished(session, lease, now)
    row = current_result(session, study.id)
    if row is None or row.id != result_id:
        raise StaleLease("the result is not the study's standing one any more")
    record_selection(session, study.id, selection)
    earlier = stands_until(row)
    late = session.exec(
        select(func.count()).where(
            InstanceRow.study_id == study.id, InstanceRow.epoch > earlier, InstanceRow.epoch <= lease.epoch
        )
    ).one()
    row.kept_epoch = lease.epoch
    session.add(row)
    images = "1 image" if late == 1 else f"{late} images"
    unchanged = f"Nothing that was measured has changed: the result stands (version {row.version})."
    reason = f"{images} came after the analysis. {unchanged}"
    study = transition(
        session,
        study.id,
        StudyState.DONE,
        now=now,
        actor=lease.owner,
        reason_code=LATE_IMAGES_UNCHANGED,
        reason=reason,
    )
    # The history keeps it; the study's own reason is for what has no result.
    study.reason_code = study.reason = None
    session.add(study)
    record_event(
        session,
        "study.result_kept",
        now=now,
        actor=lease.owner,
        study_id=study.id,
        job_id=lease.job_id,
        old=str(earlier),
        new=str(lease.epoch),
        reason=reason,
        payload={
            "code": LATE_IMAGES_UNCHANGED,
            "result_id": row.id,
            "version": row.version,
            "late_images": late,
            "n_instances": study.n_instances,
            "inputs_sha256": row.inputs_sha256,
        },
    )
    session.flush()
    return row


def _finished(session: Session, lease: FencedJob, now: datetime) -> StudyRow:
    if lease.study_id is None:
        raise NotFound("the job belongs to no study")
    finish_job(session, lease, now)
    study = locked_study(session, lease.study_id)
    if study.epoch != lease.epoch or study.state != StudyState.RUNNING.value:
        raise StaleLease(f"the study is {study.state} in epoch {study.epoch}, the job was for epoch {lease.epoch}")
    return study


def record_selection(session: Session, study_id: str, selection: Sequence[SeriesChoice]) -> None:
    """Each named series says whether, and why, it was chosen.

    Raises:
        NotFound: the study has no such series.
    """
    if not selection:
        return
    rows = {row.series_uid: row for row in session.exec(select(SeriesRow).where(SeriesRow.study_id == study_id)).all()}
    for choice in selection:
        row = rows.get(str(choice.series_uid))
        if row is None:
            raise NotFound("the study has no such series")
        row.chosen = choice.chosen
        row.reject_code = choice.reject_code
        row.reason = choice.reason
        row.geometry = None if choice.geometry is None else dict(choice.geometry)
        row.selection = None if choice.selection is None else dict(choice.selection)
        session.add(row)


def current_result(session: Session, study_id: str) -> ResultRow | None:
    """The study's result that no other supersedes, or None."""
    standing = _standing(session, study_id)
    return standing[-1] if standing else None


def results_of(session: Session, study_id: str) -> list[ResultRow]:
    """All results of the study, the newest first."""
    statement = select(ResultRow).where(ResultRow.study_id == study_id).order_by(col(ResultRow.version).desc())
    return list(session.exec(statement).all())


def _standing(session: Session, study_id: str) -> list[ResultRow]:
    statement = (
        select(ResultRow)
        .where(ResultRow.study_id == study_id, col(ResultRow.superseded_by).is_(None))
        .order_by(col(ResultRow.version))
    )
    return list(session.exec(statement).all())


def _next_version(session: Session, study_id: str) -> int:
    newest = session.exec(select(func.max(ResultRow.version)).where(ResultRow.study_id == study_id)).one()
    return (newest or 0) + 1


def _artifact_row(result: ResultRow, item: NewArtifact) -> ArtifactRow:
    return ArtifactRow(
        result_id=result.id,
        study_id=result.study_id,
        name=item.name,
        kind=item.kind,
        media_type=item.media_type,
        sha256=str(Sha256.parse(item.sha256)),
        size=item.size,
        synthetic=result.synthetic,
        meta=dict(item.meta),
    )
