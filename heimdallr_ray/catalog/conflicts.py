"""Images that came under a SOP Instance UID that another image has, with other bytes: all are kept, and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow

SOP_UID_CONFLICT = "sop_uid_conflict"
"""Reason code of a study that has such images."""
MAX_STUDIES = 500
"""Studies of one question."""
MAX_UIDS = 20
"""UIDs of one study that are told one by one."""
MAX_IMAGES = 100
"""Images of these."""


@dataclass(frozen=True)
class ContestedImage:
    """One of the images that share a SOP Instance UID."""

    sop_uid: str
    study_uid: str
    series_uid: str
    sha256: str
    """Of the Part 10 file as it is kept."""
    received_at: datetime
    door: str
    calling_ae: str | None
    address: str | None


@dataclass(frozen=True)
class Contested:
    """What the installation has of it."""

    uids: int
    """SOP Instance UIDs under which images with different bytes came."""
    images: int
    """Images under these UIDs."""
    studies: tuple[tuple[str, int], ...]
    """Study UID and number of contested UIDs, the newest first; not all where there are many."""
    n_studies: int


def contested_uids(session: Session, study_ids: Sequence[str]) -> dict[str, int]:
    """How many SOP Instance UIDs of each of at most MAX_STUDIES studies are contested; studies without are absent."""
    statement = (
        select(InstanceRow.study_id, func.count(func.distinct(InstanceRow.sop_uid)))
        .where(col(InstanceRow.study_id).in_(study_ids[:MAX_STUDIES]), col(InstanceRow.sop_uid_conflict).is_(True))
        .group_by(col(InstanceRow.study_id))
    )
    return {study_id: int(number) for study_id, number in session.exec(statement).all()}


def contested_images(session: Session, study_id: str) -> list[ContestedImage]:
    """The images of the study's first MAX_UIDS contested UIDs, by UID and arrival; also those in other studies."""
    of_study = (
        select(InstanceRow.sop_uid)
        .where(InstanceRow.study_id == study_id, col(InstanceRow.sop_uid_conflict).is_(True))
        .distinct()
        .order_by(InstanceRow.sop_uid)
        .limit(MAX_UIDS)
    )
    uids = list(session.exec(of_study).all())
    if not uids:
        return []
    statement = (
        select(InstanceRow, StudyRow.study_uid, SeriesRow.series_uid)
        .join(StudyRow, col(StudyRow.id) == InstanceRow.study_id)
        .join(SeriesRow, col(SeriesRow.id) == InstanceRow.series_id)
        .where(col(InstanceRow.sop_uid).in_(uids))
        .order_by(col(InstanceRow.sop_uid), col(InstanceRow.received_at), col(InstanceRow.blob_sha256))
        .limit(MAX_IMAGES)
    )
    return [
        ContestedImage(
            row.sop_uid,
            study_uid,
            series_uid,
            row.blob_sha256,
            row.received_at,
            row.door,
            row.calling_ae,
            row.address,
        )
        for row, study_uid, series_uid in session.exec(statement).all()
    ]


def contested(session: Session, limit: int) -> Contested:
    """All of it, with the `limit` studies that had such an image last."""
    flagged = col(InstanceRow.sop_uid_conflict).is_(True)
    uids, images, n_studies = session.exec(
        select(
            func.count(func.distinct(InstanceRow.sop_uid)),
            func.count(),
            func.count(func.distinct(InstanceRow.study_id)),
        ).where(flagged)
    ).one()
    if not images:
        return Contested(0, 0, (), 0)
    statement = (
        select(StudyRow.study_uid, func.count(func.distinct(InstanceRow.sop_uid)))
        .join(StudyRow, col(StudyRow.id) == InstanceRow.study_id)
        .where(flagged)
        .group_by(StudyRow.study_uid)
        .order_by(func.max(InstanceRow.received_at).desc(), StudyRow.study_uid)
        .limit(limit)
    )
    studies = tuple((uid, int(number)) for uid, number in session.exec(statement).all())
    return Contested(int(uids), int(images), studies, int(n_studies))
