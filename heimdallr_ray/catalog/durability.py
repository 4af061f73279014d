"""Rows whose bytes a power cut may still take (the setting durability = study): found, made sure of, or taken back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study

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


def take_back(
    session: Session, lost: Sequence[Undurable], is_there: Callable[[str], bool], *, now: datetime, actor: str
) -> int:
    """Rows whose bytes a power cut took are gone, the studies' counts are right, and the history says what was lost.

    Sending the images again makes them anew. Rows that another process has taken back meanwhile are not told twice.

    Args:
        session: of a write transaction.
        lost: rows whose bytes were found missing.
        is_there: whether the bytes of this digest are there. Asked once nobody can record the study any more: an image
            that was sent again meanwhile was found known, was answered Success, and keeps its row.
        now: when.
        actor: who.

    Returns:
        How many rows are gone.
    """
    ids_of: dict[str, list[Undurable]] = {}
    for item in lost:
        ids_of.setdefault(item.study_id, []).append(item)
    studies = [
        row
        for start in range(0, len(ids_of), _CHUNK)
        for row in session.exec(
            select(StudyRow.study_uid, StudyRow.id).where(col(StudyRow.id).in_(sorted(ids_of)[start : start + _CHUNK]))
        ).all()
    ]
    n_all = 0
    # In the order in which whoever records several studies locks them.
    for study_uid, study_id in sorted(studies):
        lock_study_uid(session, study_uid)
        study = locked_study(session, study_id)
        ids = [item.id for item in ids_of[study_id] if not is_there(item.blob_sha256)]
        n_gone = 0
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            n_gone += session.exec(delete(InstanceRow).where(col(InstanceRow.id).in_(chunk))).rowcount
        if not n_gone:
            continue
        n_all += n_gone
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
            reason=f"{n_gone} images that were answered Success were lost in a power cut (durability = study)",
            payload={"lost": n_gone, "n_instances": study.n_instances},
        )
    return n_all
