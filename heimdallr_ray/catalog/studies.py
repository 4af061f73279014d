"""Studies in the catalog: record what arrives, close what is complete, move states, look up."""

from __future__ import annotations

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.aliases import standing_uid
from heimdallr_ray.catalog.closing import close_study, complete_study, manifest_sha256
from heimdallr_ray.catalog.recording import RecordOutcome, record_instances
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.transitions import set_step, set_urgency, transition
from heimdallr_ray.errors import NotFound

__all__ = [
    "RecordOutcome",
    "close_study",
    "complete_study",
    "instances_of",
    "manifest_sha256",
    "record_instances",
    "require_study",
    "series_rows_of",
    "set_step",
    "set_urgency",
    "study_by_id",
    "study_by_uid",
    "transition",
]


def study_by_uid(session: Session, study_uid: str) -> StudyRow | None:
    """The study with this StudyInstanceUID, or that which a derived UID stands for (`aliases`), or None."""
    found = session.exec(select(StudyRow).where(StudyRow.study_uid == str(study_uid))).one_or_none()
    if found is not None or (standing := standing_uid(session, str(study_uid))) == str(study_uid):
        return found
    return session.exec(select(StudyRow).where(StudyRow.study_uid == standing)).one_or_none()


def study_by_id(session: Session, study_id: str) -> StudyRow | None:
    """The study with this id, or None."""
    return session.get(StudyRow, study_id)


def require_study(session: Session, study_id: str) -> StudyRow:
    """The study with this id.

    Raises:
        NotFound: there is no such study.
    """
    study = study_by_id(session, study_id)
    if study is None:
        raise NotFound("no such study")
    return study


def instances_of(session: Session, study_id: str, epoch: int | None = None) -> list[InstanceRow]:
    """The study's instances as they stood when `epoch` was closed (None: all), in a stable order."""
    statement = select(InstanceRow).where(InstanceRow.study_id == study_id)
    if epoch is not None:
        statement = statement.where(InstanceRow.epoch <= epoch)
    ordered = statement.order_by(col(InstanceRow.sop_uid), col(InstanceRow.blob_sha256))
    return list(session.exec(ordered).all())


def series_rows_of(session: Session, study_id: str) -> list[SeriesRow]:
    """The study's series, by series number, then UID."""
    statement = (
        select(SeriesRow)
        .where(SeriesRow.study_id == study_id)
        .order_by(col(SeriesRow.series_number).is_(None), col(SeriesRow.series_number), col(SeriesRow.series_uid))
    )
    return list(session.exec(statement).all())
