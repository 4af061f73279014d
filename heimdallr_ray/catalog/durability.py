"""Rows whose bytes a power cut may still take (the setting durability = study): found, made sure of, or taken back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow
from heimdallr_ray.catalog.transitions import locked_study

_CHUNK = 500


@dataclass(frozen=True)
class Undurable:
    """One row whose bytes were not yet seen on the disk."""

    id: str
    study_id: str
    blob_sha256: str


def undurable(session: Session, study_ids: Collection[str] | None, limit: int) -> list[Undurable]:
    """Rows of these studies (None: of all) that are not durable, study by study."""
    statement = select(InstanceRow.id, InstanceRow.study_id, InstanceRow.blob_sha256).where(
        col(InstanceRow.durable).is_(False)
    )
    if study_ids is not None:
        statement = statement.where(col(InstanceRow.study_id).in_(sorted(study_ids)))
    statement = statement.order_by(col(InstanceRow.study_id), col(InstanceRow.id)).limit(limit)
    return [Undurable(*row) for row in session.exec(statement).all()]


def mark_durable(session: Session, row_ids: Sequence[str]) -> None:
    """The rows' bytes are on the disk."""
    for start in range(0, len(row_ids), _CHUNK):
        chunk = row_ids[start : start + _CHUNK]
        session.exec(update(InstanceRow).where(col(InstanceRow.id).in_(chunk)).values(durable=True))


def take_back(session: Session, lost: Sequence[Undurable], *, now: datetime, actor: str) -> None:
    """Rows whose bytes a power cut took are gone, the studies' counts are right, and the history says what was lost.

    Sending the images again makes them anew.
    """
    for study_id in sorted({item.study_id for item in lost}):
        ids = [item.id for item in lost if item.study_id == study_id]
        study = locked_study(session, study_id)
        for start in range(0, len(ids), _CHUNK):
            session.exec(delete(InstanceRow).where(col(InstanceRow.id).in_(ids[start : start + _CHUNK])))
        counts = {
            series_id: (count, size or 0)
            for series_id, count, size in session.exec(
                select(InstanceRow.series_id, func.count(), func.sum(InstanceRow.size))
                .where(InstanceRow.study_id == study_id)
                .group_by(col(InstanceRow.series_id))
            ).all()
        }
        for series in session.exec(select(SeriesRow).where(SeriesRow.study_id == study_id)).all():
            series.n_instances = counts.get(series.id, (0, 0))[0]
            session.add(series)
        study.n_instances = sum(count for count, _ in counts.values())
        study.n_bytes = sum(size for _, size in counts.values())
        session.add(study)
        record_event(
            session,
            "study.images_lost",
            now=now,
            actor=actor,
            study_id=study_id,
            reason=f"{len(ids)} images that were answered Success were lost in a power cut (durability = study)",
            payload={"lost": len(ids), "n_instances": study.n_instances},
        )
